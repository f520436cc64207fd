"""AlexNet on ImageNet, in one network of two groups, by its paper's recipe (Krizhevsky et al. 2012).

    python -m vgg_jax.main --config=configs/alexnet.py
    vgg-jax evaluate --workdir=runs/alexnet --protocol=ten_crop

Published: top-1/top-5 error of one network with ten crops 40.7/18.2 % (Table 1).
Ours: not trained on ImageNet yet.

Recipe:

- batch 128, momentum 0.9, L2 5e-4, dropout 0.5
- normal initialisation of deviation 0.01, some biases of 1
- learning rate 0.01, divided by 10 at each of three plateaus, about 90 epochs
- S = 256, one random crop of 227, flipped and shifted in colour
"""

from ml_collections import ConfigDict

from vgg_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.configuration = "AlexNet"
    config.model.init = "std001"
    config.image.crop = 227
    config.batch_size = 128
    config.num_epochs = 90.0
    return config
