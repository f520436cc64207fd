"""Configuration D with batch normalisation and, for its three FC layers, global average pooling and one (Lin et al. 2013).

15.2 million parameters in place of 138.4: what the FC layers buy is the difference to configs/vgg16_bn.py.
Published: nothing by this recipe.
Ours: not trained on ImageNet yet.
Recipe: as configs/vgg16_bn.py; there is no dropout, as its places were between the FC layers.

    python -m vgg_jax.main --config=configs/vgg16_gap.py
"""

from ml_collections import ConfigDict

from vgg_jax.config import paper_config


def get_config(argument: str | None = None) -> ConfigDict:
    config = paper_config("D", argument)
    config.model.batch_norm = True
    config.model.head = "gap"
    config.model.init = "he"
    return config
