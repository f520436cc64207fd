"""ResNets and plain networks on CIFAR-10 (He et al. 2015, §4.2).

    vgg-jax prepare cifar10 --data_root=cifar-10-python.tar.gz
    python -m vgg_jax.main --config=configs/resnet_cifar.py
    python -m vgg_jax.main --config=configs/resnet_cifar.py:plain-56

The archive is at https://www.cs.toronto.edu/~kriz/cifar.html. After the colon stands the network:
20 (the default), 32, 44, 56 or 110, or plain-20 ... plain-56.

Published, error on the test split (Table 6):

- ResNet-20: 8.75 %
- ResNet-32: 7.51 %
- ResNet-44: 7.17 %
- ResNet-56: 6.97 %
- ResNet-110: 6.43 %

The paper shows plain networks as curves: 56 layers are worse than 20 in training and test error.

Ours: not trained for the whole recipe yet.

Recipe:

- batch 128, momentum 0.9, L2 1e-4, He's initialisation
- learning rate 0.1, divided by 10 at 32,000 and 48,000 iterations, end at 64,000
- ResNet-110: rate 0.01 until the training error of an epoch is below 80 %
- 4 pixels of padding, a random crop of 32, flipped
- test: a centre crop

Deviation from the paper: the mean RGB is subtracted, not the mean of each pixel.
"""

from ml_collections import ConfigDict

from vgg_jax.config import default_config

STEPS_PER_EPOCH = 50_000 / 128


def get_config(network: str = "20") -> ConfigDict:
    config = default_config()
    kind, _, depth = network.rpartition("-")
    config.model.configuration = f"{kind.capitalize() or 'ResNet'}-{depth}"
    config.model.num_classes = 0  # as many as the data have: CIFAR-100 has 100
    config.model.init = "he"
    config.image.crop = config.image.scale_min = config.image.scale_max = 32
    config.image.padding = 4
    config.augment.color_std = 0.0
    config.batch_size = 128
    config.optimizer.learning_rate = 0.1
    config.optimizer.l2 = 1e-4
    config.schedule.name = "steps"
    config.num_epochs = 64_000 / STEPS_PER_EPOCH
    epochs = config.get_ref("num_epochs")  # also of a shortened run: 32,000 and 48,000 of 64,000
    config.schedule.drop_epochs = (epochs * 0.5).to_str() + "," + (epochs * 0.75).to_str()
    config.schedule.warmup_error = 0.8 if depth == "110" else 1.0
    config.data.name = "cifar10"
    config.data.val_split = "test"
    return config
