"""Configuration D with batch normalisation after each convolution (Ioffe & Szegedy 2015), trained as the paper trains D.

Published: top-1/top-5 error 26.64/8.48 %, one centre crop at Q = 256 (torchvision's vgg16_bn, trained for 90 epochs at S = 256);
the same without batch normalisation 28.41/9.62 %.
Ours: not trained on ImageNet yet.
Recipe: as configs/vgg16.py, with He's initialisation. Statistics are those of the whole batch,
over all devices; with accumulation_steps, of each microbatch.

    python -m vgg_jax.main --config=configs/vgg16_bn.py
    python -m vgg_jax.main --config=configs/vgg16_bn.py --config.model.configuration=E
"""

from ml_collections import ConfigDict

from vgg_jax.config import paper_config


def get_config(argument: str | None = None) -> ConfigDict:
    config = paper_config("D", argument)
    config.model.batch_norm = True
    config.model.init = "he"
    return config
