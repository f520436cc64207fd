"""Configuration D with batch normalisation after each convolution (Ioffe & Szegedy 2015).

    python -m vgg_jax.main --config=configs/vgg16_bn.py
    python -m vgg_jax.main --config=configs/vgg16_bn.py --config.model.configuration=E

Published, top-1/top-5 error of one centre crop at Q = 256, by torchvision (90 epochs at S = 256):

- with batch normalisation (vgg16_bn): 26.64/8.48 %
- without: 28.41/9.62 %

Ours: not trained on ImageNet yet.

Recipe: as configs/vgg16.py, with He's initialisation. Statistics cover the whole batch, over all
devices. With accumulation_steps they cover each microbatch.
"""

from ml_collections import ConfigDict

from vgg_jax.config import paper_config


def get_config(argument: str | None = None) -> ConfigDict:
    config = paper_config("D", argument)
    config.model.batch_norm = True
    config.model.init = "he"
    return config
