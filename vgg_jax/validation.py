"""Validation of a configuration: types, ranges and choices of `config.KEYS`, and the rules that relate several keys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vgg_jax.config import KEYS, Key, eval_scale, flatten, init_from, lr_factors, network_layers, scale_text
from vgg_jax.models import NetworkSpec
from vgg_jax.runtime.exceptions import UserError, did_you_mean, quoted
from vgg_jax.training.schedules import drop_epochs

_LEAST_RATE = 1e-30  # of learning, after the last drop; float32 has 1.2e-38
_LEAST_MIXING = 1e-3  # of Beta(a, a), whose draws are 0 or 1 to within float32 long before
_LONGEST_TEXT = 4096  # characters: a path's, on Linux


def validate(config: ConfigDict, num_devices: int) -> None:
    """Refuses impossible values before anything is built.

    Args:
      config: as `default_config` makes it, changed by a file and the command line.
      num_devices: devices the run would use, over all processes.

    Raises:
      UserError: the first value that cannot work: its key, the value, and what is allowed.
    """
    if "plan" in config:
        raise UserError("this configuration has config.plan, so it is of many runs: vgg-jax reproduce trains them.")
    given = flatten(config)
    for name in given:
        if name not in KEYS:
            raise UserError(f"config.{name} is not a known key.{did_you_mean(name, KEYS)}")
    for name, key in KEYS.items():
        if name not in given:
            raise UserError(
                f"config.{name} is missing; start a configuration file from vgg_jax.config.default_config()."
            )
        _check_value(name, given[name], key)
    for is_broken, sentence in _rules(config, num_devices):
        if is_broken:
            raise UserError(sentence)


def check_values(given: Mapping[str, Any]) -> None:
    """Checks the type, the range and the choices of each known key; raises UserError as `validate`, and ignores the others."""
    for name, value in given.items():
        if name in KEYS:
            _check_value(name, value, KEYS[name])


def _check_value(name: str, value: Any, key: Key) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if type(value) is not type(key.default) and not (isinstance(key.default, float) and is_whole):
        kind = type(key.default).__name__
        raise UserError(f"config.{name} is {quoted(value, 100)}; it must be of type {kind}, as {key.default!r} is.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{name} is {value}; it must be a finite number.")
    if isinstance(value, str) and (len(value) > _LONGEST_TEXT or any(ord(letter) < 32 for letter in value)):
        raise UserError(
            f"config.{name} is {quoted(value, 100)}; it must have at most {_LONGEST_TEXT} letters and no control characters."
        )
    if key.choices and value not in key.choices:
        choices = ", ".join(choice or "''" for choice in key.choices)
        raise UserError(f"config.{name} is {value!r}; it must be one of {choices}.{did_you_mean(value, key.choices)}")
    if isinstance(value, int | float) and not key.least <= value <= key.greatest:
        raise UserError(
            f"config.{name} is {quoted(value, 100)}; it must be at least {key.least} and at most {key.greatest}."
        )


def _rules(config: ConfigDict, num_devices: int) -> Iterator[tuple[bool, str]]:
    """Yields (whether it is broken, the sentence that says so) of every rule that relates several keys."""
    image, plateau, parallel = config.image, config.plateau, config.model_parallel
    yield from _network_rules(config)
    yield from _data_rules(config)
    lr_factors(config)
    drop_epochs(config)
    yield (
        bool(config.init_layers and not init_from(config)),
        f"config.init_layers is {config.init_layers!r}, but there is nothing to take layers from; give "
        "--config.init_from=DIR as well.",
    )
    yield (
        config.optimizer.learning_rate * plateau.factor**plateau.max_drops < _LEAST_RATE,
        f"config.plateau.factor is {plateau.factor}, which makes a rate of less than {_LEAST_RATE:g} of "
        f"config.optimizer.learning_rate, {config.optimizer.learning_rate}, in config.plateau.max_drops, "
        f"{plateau.max_drops}, drops; choose fewer drops or a factor nearer to 1.",
    )
    yield from _image_rules(config)
    yield (
        num_devices % parallel != 0,
        f"config.model_parallel is {parallel}, which does not divide the {num_devices} devices.",
    )
    yield (
        parallel > 1 and config.sharding != "fc_model_parallel",
        f"config.model_parallel is {parallel}, but config.sharding is {config.sharding!r}, which splits "
        "nothing over the `model` axis; say --config.sharding=fc_model_parallel, or --config.model_parallel=1.",
    )
    yield (
        config.model.fc_width % parallel != 0,
        f"config.model_parallel is {parallel}, which does not divide config.model.fc_width, "
        f"{config.model.fc_width}; {math.gcd(config.model.fc_width, num_devices)} would do.",
    )
    yield (
        config.model.param_dtype == "bfloat16" and bool(config.ema_decay or config.optimizer.name == "adamw"),
        "config.model.param_dtype is 'bfloat16', in which the averages of config.ema_decay, "
        f"{config.ema_decay:g}, and config.optimizer.name, {config.optimizer.name!r}, would not move; say "
        "--config.model.param_dtype=float32 (--config.model.dtype=bfloat16 computes in bfloat16 all the same).",
    )
    parts = num_devices // parallel * config.accumulation_steps
    below = config.batch_size // parts * parts
    microbatches = f" x {config.accumulation_steps} accumulation steps" if config.accumulation_steps > 1 else ""
    yield (
        config.batch_size % parts != 0,
        f"config.batch_size is {config.batch_size}, which {num_devices // parallel} devices{microbatches} do not divide; "
        f"{below or parts} or {below + parts if below else 2 * parts} would do.",
    )
    yield (
        config.schedule.name == "steps" and not drop_epochs(config),
        "config.schedule.drop_epochs is '', and config.schedule.name, 'steps', drops the rate at these epochs; name them, as 30,60.",
    )
    for name in ("mixup", "cutmix"):
        yield (
            0 < config.augment[name] < _LEAST_MIXING,
            f"config.augment.{name} is {config.augment[name]:g}, which mixes nothing; give at least {_LEAST_MIXING:g}, or 0 for none.",
        )
    late = [epoch for epoch in drop_epochs(config) if epoch >= config.num_epochs]
    yield (
        config.schedule.name == "steps" and bool(late),
        f"config.schedule.drop_epochs is {config.schedule.drop_epochs!r}, of which {', '.join(f'{epoch:g}' for epoch in late)} "
        f"lie beyond config.num_epochs, {config.num_epochs:g}; drop earlier or train longer.",
    )
    yield (
        config.schedule.warmup_epochs >= config.num_epochs,
        f"config.schedule.warmup_epochs is {config.schedule.warmup_epochs:g}, and config.num_epochs, {config.num_epochs:g}, is "
        "no longer; warm up for less.",
    )
    yield (
        config.start_required and not config.init_from,
        f"this stage (S={scale_text(image.scale_min, image.scale_max)}, learning rate "
        f"{config.optimizer.learning_rate:g}) starts from a trained model: give its workdir with --config.init_from=DIR, or "
        "say --config.init_from=none to start afresh.",
    )


def _image_rules(config: ConfigDict) -> Iterator[tuple[bool, str]]:
    image = config.image
    yield (
        image.scale_min < image.crop,
        f"config.image.scale_min (S) is {image.scale_min}, less than config.image.crop, {image.crop}: "
        f"the crop would not fit; make S at least {image.crop}.",
    )
    yield (
        bool(image.area_min and image.padding),
        f"config.image.area_min is {image.area_min}, a random resized crop, for which there is no config.image.padding, "
        f"{image.padding}; give one of them.",
    )
    yield (
        image.padding >= image.crop,
        f"config.image.padding is {image.padding}, and a crop of config.image.crop, {image.crop}, could lie in it altogether; give "
        "less than the crop.",
    )
    yield (
        image.scale_max < image.scale_min,
        f"config.image.scale_max is {image.scale_max}, less than config.image.scale_min, {image.scale_min}; "
        "for one fixed S set both to it.",
    )
    yield (
        eval_scale(config) < image.crop,
        f"config.image.eval_scale (Q) is {image.eval_scale}, less than config.image.crop, {image.crop}; "
        f"make it at least {image.crop}, or 0 for the training scale.",
    )


def _data_rules(config: ConfigDict) -> Iterator[tuple[bool, str]]:
    data = config.data
    yield not data.name, "config.data.name is empty; it must be `builtin`, `folder`, or the name of a TFDS data set."
    is_folder = data.name == "folder"
    yield (
        is_folder and not data.root,
        "config.data.name is `folder`, so config.data.root must name a directory laid out as "
        "<split>/<class>/<image>: --config.data.root=DIR.",
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


def _network_rules(config: ConfigDict) -> Iterator[tuple[bool, str]]:
    network, width = NetworkSpec.from_config(config), config.model.width_multiplier
    for sentence in network.misplaced_options():
        yield True, sentence
    convolutions = [layer for layer in network_layers(config) if layer.kind == "conv"]
    uneven = [
        f"{layer.groups} groups of {layer.name}"
        for before, layer in itertools.pairwise(convolutions)
        if before.scaled_channels(width) % layer.groups or layer.scaled_channels(width) % layer.groups
    ]
    yield (
        bool(uneven),
        f"config.model.width_multiplier is {width:g}, which leaves channels that the {' and the '.join(uneven)} do not divide; "
        "give another, as 0.25.",
    )
    microbatch = config.batch_size // config.accumulation_steps
    yield (
        network.has_batch_norm and microbatch < 2,
        f"config.batch_size is {config.batch_size}, in which batch normalisation would see {microbatch} image at a time; give at "
        "least 2 for each accumulation step.",
    )
