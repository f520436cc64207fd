"""Configuration B, 13 weight layers: the third row of Paper Table 3.

    python -m vgg_jax.main --config=configs/vgg13.py            # S = 256
    python -m vgg_jax.main --config=configs/vgg13.py:S=384 --config.init_from=runs/vgg13
    python -m vgg_jax.main --config=configs/vgg13.py:S=jitter --config.init_from=runs/vgg13-S=384

Paper, top-1/top-5 error:

- S = 256, Q = 256: 28.7/9.9 %

Ours: not trained on ImageNet yet.

Recipe (Paper §3.1, the defaults of vgg_jax/recipe.py):

- batch 256, momentum 0.9, L2 5e-4 on kernels, dropout 0.5, Glorot's initialisation
- learning rate 1e-2, divided by 10 at each of three plateaus, at most 74 epochs
- one random crop of 224 per image from S = 256, flipped and shifted in colour
- S = 384 and S = jitter (256 to 512) start from a trained model at 1e-3
"""

from ml_collections import ConfigDict

from vgg_jax.config import paper_config


def get_config(argument: str | None = None) -> ConfigDict:
    return paper_config("B", argument)
