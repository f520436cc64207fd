"""Configurations, which files and command lines make of `recipe.KEYS`.

The module holds the defaults, the paper's values, and the flat form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from vgg_jax.recipe import KEYS, Recipe
from vgg_jax.runtime.exceptions import UserError


def default_config() -> ConfigDict:
    """Returns the defaults of KEYS. Files in configs/ change what they need."""
    config = ConfigDict(nested({name: key.default for name, key in KEYS.items()}))
    _accept_texts(config)
    return config


def resolved_copy(config: ConfigDict) -> ConfigDict:
    """Returns a copy in which no value follows another one."""
    copy = config.copy_and_resolve_references()
    _accept_texts(copy)
    return copy


def _accept_texts(config: ConfigDict) -> None:
    """Lets `schedule.drop_epochs` be a tuple, or a text as configurations before version 0.6 have it."""
    if "drop_epochs" in config.get("schedule", {}):
        config.schedule.drop_epochs = FieldReference(config.schedule.drop_epochs, field_type=object)


def paper_config(configuration: str, argument: str | None) -> ConfigDict:
    """Returns the paper's training of one configuration on ImageNet.

    Args:
      configuration: a key of models.CONFIGURATIONS.
      argument: what follows the colon in `--config=configs/vgg19.py:S=384`. None or "S=256", "S=384", "S=jitter".
        The last two continue a trained model at a lower rate (Paper §3.1) and require `init_from`.

    Raises:
      UserError: any other argument.
    """
    config = default_config()
    config.model.configuration = configuration
    scales = {None: (256, 256), "S=256": (256, 256), "S=384": (384, 384), "S=jitter": (256, 512)}
    if argument not in scales:
        raise UserError(
            f"the configuration file does not know the argument {argument!r}: write S=256, S=384 or S=jitter "
            "after the colon, as in configs/vgg19.py:S=384."
        )
    config.image.scale_min, config.image.scale_max = scales[argument]
    if argument in ("S=384", "S=jitter"):
        # "To speed-up training of the S = 384 network, it was initialised with the weights pre-trained with S = 256,
        # and we used a smaller initial learning rate of 10^-3" (Paper §3.1). Jitter likewise (docs/decisions.md).
        config.optimizer.learning_rate = 1e-3
        config.start_required = True
    return config


def scaled_length(length: int, crop: int) -> int:
    """Returns a length of the paper, which is for crop 224, at another crop: round(crop length / 224)."""
    return (2 * crop * length + 224) // (2 * 224)


def recipe_of(config: ConfigDict) -> Recipe:
    """Returns the recipe of a configuration that `validation.validate` accepts; raises as `Recipe.from_values`."""
    return Recipe.from_values(flatten(config))


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns {"seed": 0, "model.configuration": "D", ...}."""
    flat: dict[str, Any] = {}
    for key in config:
        value = config[key]
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value})
    return flat


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"seed": 0, "model": {"configuration": "D", ...}, ...} of a flat configuration."""
    sections: dict[str, Any] = {}
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        (sections.setdefault(section, {}) if section else sections)[leaf] = value
    return sections
