"""Validation of a configuration: types, ranges and choices of `recipe.KEYS`, and the rules that relate several keys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vgg_jax.config import flatten
from vgg_jax.recipe import KEYS, Key, Recipe, scale_text
from vgg_jax.runtime.exceptions import UserError, did_you_mean, quoted

_LEAST_RATE = 1e-30  # of learning, after the last drop; float32 has 1.2e-38
_LEAST_MIXING = 1e-3  # of Beta(a, a), whose draws are 0 or 1 to within float32 long before
_LONGEST_TEXT = 4096  # characters: a path's, on Linux


def validate(config: ConfigDict | Mapping[str, Any], num_devices: int) -> Recipe:
    """Parses a configuration; refuses impossible values before anything is built.

    Args:
      config: as `default_config` makes it, changed by a file and the command line; or its flat form.
      num_devices: devices the run would use, over all processes.

    Raises:
      UserError: the first value that cannot work: its key, the value, and what is allowed.
    """
    given = flatten(config) if isinstance(config, ConfigDict) else config
    if any(name.startswith("plan.") for name in given):
        raise UserError("this configuration has config.plan, so it is of many runs: vgg-jax reproduce trains them.")
    for name in given:
        if name not in KEYS:
            raise UserError(f"config.{name} is not a known key.{did_you_mean(name, KEYS)}")
    for name, key in KEYS.items():
        if name not in given:
            raise UserError(
                f"config.{name} is missing; start a configuration file from vgg_jax.config.default_config()."
            )
        _check_value(name, given[name], key)
    recipe = Recipe.from_values(given)
    check_rules(recipe, num_devices)
    return recipe


def check_rules(recipe: Recipe, num_devices: int) -> None:
    """Raises UserError as `validate` where values of several keys do not go together."""
    for is_broken, sentence in _rules(recipe, num_devices):
        if is_broken:
            raise UserError(sentence)


def check_values(given: Mapping[str, Any]) -> None:
    """Checks the type, the range and the choices of each known key; ignores the others.

    Raises:
      UserError: as `validate`.
    """
    for name, value in given.items():
        if name in KEYS:
            _check_value(name, value, KEYS[name])


def _check_value(name: str, value: Any, key: Key) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    is_listing = isinstance(key.default, tuple) and isinstance(value, str | list | float)
    if type(value) is not type(key.default) and not (
        (isinstance(key.default, float | tuple) and is_whole) or is_listing
    ):
        kind = type(key.default).__name__
        raise UserError(f"config.{name} is {quoted(value, 100)}; it must be of type {kind}, as {key.default!r} is.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{name} is {value}; it must be a finite number.")
    if isinstance(value, str) and (len(value) > _LONGEST_TEXT or any(ord(letter) < 32 for letter in value)):
        raise UserError(
            f"config.{name} is {quoted(value, 100)}; it must have at most {_LONGEST_TEXT} letters and no control "
            "characters."
        )
    if key.choices and value not in key.choices:
        choices = ", ".join(choice or "''" for choice in key.choices)
        raise UserError(f"config.{name} is {value!r}; it must be one of {choices}.{did_you_mean(value, key.choices)}")
    if isinstance(value, int | float) and not key.least <= value <= key.greatest:
        raise UserError(
            f"config.{name} is {quoted(value, 100)}; it must be at least {key.least} and at most {key.greatest}."
        )
    if key.parse:
        key.parse(value)


def _rules(recipe: Recipe, num_devices: int) -> Iterator[tuple[bool, str]]:
    """Yields (whether it is broken, the sentence that says so) of every rule that relates several keys."""
    image, plateau = recipe.image, recipe.plateau
    yield from _network_rules(recipe)
    yield from _data_rules(recipe)
    yield (
        bool(recipe.init_layers and not recipe.init_from),
        f"config.init_layers is {recipe.init_layers!r}, but there is nothing to take layers from; give "
        "--config.init_from=DIR as well.",
    )
    yield (
        recipe.optimizer.learning_rate * plateau.factor**plateau.max_drops < _LEAST_RATE,
        f"config.plateau.factor is {plateau.factor}, which makes a rate of less than {_LEAST_RATE:g} of "
        f"config.optimizer.learning_rate, {recipe.optimizer.learning_rate}, in config.plateau.max_drops, "
        f"{plateau.max_drops}, drops; choose fewer drops or a factor nearer to 1.",
    )
    yield from _image_rules(recipe)
    yield from _parallel_rules(recipe, num_devices)
    yield (
        recipe.model.param_dtype == "bfloat16" and bool(recipe.ema_decay or recipe.optimizer.name == "adamw"),
        "config.model.param_dtype is 'bfloat16', in which the averages of config.ema_decay, "
        f"{recipe.ema_decay:g}, and config.optimizer.name, {recipe.optimizer.name!r}, would not move; say "
        "--config.model.param_dtype=float32 (--config.model.dtype=bfloat16 computes in bfloat16 all the same).",
    )
    devices = num_devices // recipe.model_parallel
    parts = devices * recipe.accumulation_steps
    below = recipe.batch_size // parts * parts
    microbatches = f" x {recipe.accumulation_steps} accumulation steps" if recipe.accumulation_steps > 1 else ""
    yield (
        recipe.batch_size % parts != 0,
        f"config.batch_size is {recipe.batch_size}, which {devices} devices{microbatches} do not "
        f"divide; {below or parts} or {below + parts if below else 2 * parts} would do.",
    )
    yield (
        recipe.schedule.name == "steps" and not recipe.schedule.drop_epochs,
        "config.schedule.drop_epochs is '', and config.schedule.name, 'steps', drops the rate at these epochs; "
        "name them, as 30,60.",
    )
    for name, share in (("mixup", recipe.augment.mixup), ("cutmix", recipe.augment.cutmix)):
        yield (
            0 < share < _LEAST_MIXING,
            f"config.augment.{name} is {share:g}, which mixes nothing; give at least {_LEAST_MIXING:g}, or 0 for none.",
        )
    yield from _length_rules(recipe)
    yield (
        recipe.start_required and not recipe.given["init_from"],
        f"this stage (S={scale_text(image.scale_min, image.scale_max)}, learning rate "
        f"{recipe.optimizer.learning_rate:g}) starts from a trained model: give its workdir with "
        "--config.init_from=DIR, or say --config.init_from=none to start afresh.",
    )


def _parallel_rules(recipe: Recipe, num_devices: int) -> Iterator[tuple[bool, str]]:
    parallel = recipe.model_parallel
    yield (
        num_devices % parallel != 0,
        f"config.model_parallel is {parallel}, which does not divide the {num_devices} devices.",
    )
    yield (
        parallel > 1 and recipe.sharding != "fc_model_parallel",
        f"config.model_parallel is {parallel}, but config.sharding is {recipe.sharding!r}, which splits "
        "nothing over the `model` axis; say --config.sharding=fc_model_parallel, or --config.model_parallel=1.",
    )
    yield (
        recipe.model.fc_width % parallel != 0,
        f"config.model_parallel is {parallel}, which does not divide config.model.fc_width, "
        f"{recipe.model.fc_width}; {math.gcd(recipe.model.fc_width, num_devices)} would do.",
    )


def _length_rules(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    late = [epoch for epoch in recipe.schedule.drop_epochs if epoch >= recipe.num_epochs]
    yield (
        recipe.schedule.name == "steps" and bool(late),
        f"config.schedule.drop_epochs is {recipe.given['schedule.drop_epochs']!r}, of which "
        f"{', '.join(f'{epoch:g}' for epoch in late)} lie beyond config.num_epochs, {recipe.num_epochs:g}; "
        "drop earlier or train longer.",
    )
    yield (
        recipe.schedule.warmup_epochs >= recipe.num_epochs,
        f"config.schedule.warmup_epochs is {recipe.schedule.warmup_epochs:g}, and config.num_epochs, "
        f"{recipe.num_epochs:g}, is no longer; warm up for less.",
    )


def _image_rules(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    image = recipe.image
    yield (
        image.scale_min < image.crop,
        f"config.image.scale_min (S) is {image.scale_min}, less than config.image.crop, {image.crop}: "
        f"the crop would not fit; make S at least {image.crop}.",
    )
    yield (
        bool(image.area_min and image.padding),
        f"config.image.area_min is {image.area_min}, a random resized crop, for which there is no "
        f"config.image.padding, {image.padding}; give one of them.",
    )
    yield (
        image.padding >= image.crop,
        f"config.image.padding is {image.padding}, and a crop of config.image.crop, {image.crop}, could lie in it "
        "altogether; give less than the crop.",
    )
    yield (
        image.scale_max < image.scale_min,
        f"config.image.scale_max is {image.scale_max}, less than config.image.scale_min, {image.scale_min}; "
        "for one fixed S set both to it.",
    )
    yield (
        recipe.image.eval_scale < image.crop,
        f"config.image.eval_scale (Q) is {image.eval_scale}, less than config.image.crop, {image.crop}; "
        f"make it at least {image.crop}, or 0 for the training scale.",
    )


def _data_rules(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    data = recipe.data
    yield (
        recipe.model.num_classes == 1,
        "config.model.num_classes is 1; a network tells at least 2 classes apart, and 0 stands for those of the data.",
    )
    yield not data.name, "config.data.name is empty; it must be `builtin`, `folder`, or the name of a TFDS data set."
    is_folder = data.name == "folder"
    yield (
        is_folder and not data.root,
        "config.data.name is `folder`, so config.data.root must name a directory laid out as "
        "<class>/<image> or <split>/<class>/<image>: --config.data.root=DIR.",
    )
    yield (
        is_folder and not Path(data.root).expanduser().is_dir(),
        f"config.data.root is {data.root!r}, and there is no such directory.",
    )
    yield (
        bool(data.root) and not is_folder,
        f"config.data.root is {data.root!r}, but config.data.name is {data.name!r}; a root goes with "
        "--config.data.name=folder.",
    )


def _network_rules(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    network, width = recipe.model.network, recipe.model.width_multiplier
    for sentence in network.misplaced_options():
        yield True, sentence
    convolutions = [layer for layer in recipe.layers if layer.kind == "conv"]
    uneven = [
        f"{layer.groups} groups of {layer.name}"
        for before, layer in itertools.pairwise(convolutions)
        if before.scaled_channels(width) % layer.groups or layer.scaled_channels(width) % layer.groups
    ]
    yield (
        bool(uneven),
        f"config.model.width_multiplier is {width:g}, which leaves channels that the {' and the '.join(uneven)} do not "
        "divide; give another, as 0.25.",
    )
    microbatch = recipe.batch_size // recipe.accumulation_steps
    yield (
        network.has_norms and microbatch < 2,
        f"config.batch_size is {recipe.batch_size}, in which batch normalisation would see {microbatch} image at a "
        "time; give at least 2 for each accumulation step.",
    )
