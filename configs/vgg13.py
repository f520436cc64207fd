"""Configuration B, 13 weight layers: the third row of Paper Table 3.

Paper: top-1/top-5 error 28.7/9.9 % (S = 256, Q = 256).
Ours: not trained on ImageNet yet.

    python -m vgg_jax.main --config=configs/vgg13.py            # S = 256
    python -m vgg_jax.main --config=configs/vgg13.py:S=384 --config.init_from=runs/vgg13
    python -m vgg_jax.main --config=configs/vgg13.py:S=jitter --config.init_from=runs/vgg13-S=384
"""

from ml_collections import ConfigDict

from vgg_jax.config import paper_config


def get_config(argument: str | None = None) -> ConfigDict:
    return paper_config("B", argument)
