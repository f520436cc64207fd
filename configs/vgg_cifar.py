"""Configuration D, a quarter as wide, on CIFAR-10 by a recipe of today.

    vgg-jax prepare cifar10 --data_root=cifar-10-python.tar.gz
    python -m vgg_jax.main --config=configs/vgg_cifar.py
    python -m vgg_jax.main --config=configs/vgg_cifar.py --config.model.width_multiplier=1

The archive is at https://www.cs.toronto.edu/~kriz/cifar.html.

Ours: not trained yet.

Recipe:

- network: batch normalisation and global average pooling, 0.92 million parameters
- batch 128, momentum 0.9, L2 5e-4, He's initialisation
- learning rate 0.1 after two epochs of warm-up, lowered to 0 by a cosine over 100 epochs
- 4 pixels of padding, a random crop of 32, flipped
- test: a centre crop
"""

from ml_collections import ConfigDict

from vgg_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.configuration = "D"
    config.model.batch_norm = True
    config.model.head = "gap"
    config.model.num_classes = 0  # as many as the data have: CIFAR-100 has 100
    config.model.width_multiplier = 0.25
    config.model.init = "he"
    config.image.crop = config.image.scale_min = config.image.scale_max = 32
    config.image.padding = 4
    config.augment.color_std = 0.0
    config.batch_size = 128
    config.optimizer.learning_rate = 0.1
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 2.0
    config.num_epochs = 100.0
    config.data.name = "cifar10"
    config.data.val_split = "test"
    return config
