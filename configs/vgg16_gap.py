"""Configuration D with batch normalisation, global average pooling and one FC layer (Lin et al. 2013).

    python -m vgg_jax.main --config=configs/vgg16_gap.py

One FC layer replaces three: 15.2 million parameters in place of 138.4. The difference to
configs/vgg16_bn.py shows the effect of the FC layers.

Published: nothing by this recipe.
Ours: not trained on ImageNet yet.

Recipe: as configs/vgg16_bn.py. Dropout is absent, because its places were between the FC layers.
"""

from ml_collections import ConfigDict

from vgg_jax.config import paper_config


def get_config(argument: str | None = None) -> ConfigDict:
    config = paper_config("D", argument)
    config.model.batch_norm = True
    config.model.head = "gap"
    config.model.init = "he"
    return config
