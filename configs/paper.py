"""All models of the paper, from A to the seven of its submission: Paper Tables 3 to 6.

    vgg-jax reproduce --config=configs/paper.py            # at crop 224
    vgg-jax reproduce --config=configs/paper.py:crop=64    # every length in proportion
    vgg-jax reproduce --config=configs/paper.py --dry_run

Paper: top-1/top-5 error from 29.6/10.4 % (A, S = 256) to 23.7/6.8 % (D and E, fused).
Ours: not trained on ImageNet yet. For small data see benchmarks/findings.md.
"""

from ml_collections import ConfigDict

from vgg_jax.config import default_config
from vgg_jax.reproduction.stages import plan_defaults
from vgg_jax.runtime.exceptions import UserError


def get_config(argument: str | None = None) -> ConfigDict:
    config = default_config()
    if argument is not None:
        name, _, value = argument.partition("=")
        if name != "crop" or not value.isdigit():
            raise UserError(f"configs/paper.py does not know the argument {argument!r}: write crop=64, for example.")
        config.image.crop = int(value)
    config.plan = plan_defaults()
    return config
