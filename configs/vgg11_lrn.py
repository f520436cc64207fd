"""Configuration A-LRN, A with local response normalisation: the second row of Paper Table 3.

Paper: top-1/top-5 error 29.7/10.5 % (S = 256, Q = 256).
Ours: not trained on ImageNet yet.

    python -m vgg_jax.main --config=configs/vgg11_lrn.py            # S = 256
    python -m vgg_jax.main --config=configs/vgg11_lrn.py:S=384 --config.init_from=runs/vgg11_lrn
    python -m vgg_jax.main --config=configs/vgg11_lrn.py:S=jitter --config.init_from=runs/vgg11_lrn-S=384
"""

from ml_collections import ConfigDict

from vgg_jax.config import paper_config


def get_config(argument: str | None = None) -> ConfigDict:
    return paper_config("A-LRN", argument)
