"""Every hyper-parameter's default with its unit, source and range, and the checks that refuse bad values."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vgg_jax.exceptions import UserError, did_you_mean, quoted
from vgg_jax.models import BOTTLENECK_STRIDES, CONFIGURATIONS, HEADS, SHORTCUTS, Layers, describe, is_vgg
from vgg_jax.models.description import layer_names
from vgg_jax.models.initializers import PRESETS
from vgg_jax.schedules import SCHEDULES, drop_epochs
from vgg_jax.sharding import RULES

DTYPES = ("float32", "bfloat16")
L2_MASKS = ("kernels", "all")
NO_INIT_FROM = "none"
DATA_DIR = "~/tensorflow_datasets"  # of prepared data, unless the environment has TFDS_DATA_DIR


class Key(NamedTuple):
    """A configuration key. Beyond `greatest`, which is far beyond use, arithmetic in float32 or int32 breaks down."""

    default: Any
    least: float = -math.inf  # of a number
    greatest: float = math.inf
    choices: tuple[str, ...] = ()  # of a text; () for any
    may_change: bool = False  # when a run is continued: it alters only how long, how or where the run computes
    is_local: bool = False  # the processes of a run may differ in it: each machine may keep the same data elsewhere


# The paper's values for ImageNet (Paper §3.1), configuration D at S = 256.
KEYS: dict[str, Key] = {
    # Seed of everything random: initialisation, order, crops, flips, colours, dropout. JAX's keys take 32 bits.
    "seed": Key(0, 0, 2**32 - 1),
    # Model to start from: a workdir, one of its checkpoints/<step>, a weights file or a name of published weights;
    # "" or "none" starts from model.init.
    "init_from": Key(""),
    # Layers to take from there, with commas between: names, patterns ("conv*"), or what to leave out ("-fc6,-fc7"). "": all
    # from a model of the same convolutions, else those of the net-A transplant (Paper §3.1); never a head of other classes.
    "init_layers": Key(""),
    "start_required": Key(False),  # requires init_from to be set
    "batch_size": Key(256, 1, 2**20),  # images in a step, over all devices (Paper §3.1)
    "accumulation_steps": Key(1, 1, 2**20),  # microbatches of a batch, one after another, to need less memory
    "num_epochs": Key(
        74.0, 1e-6, 1e6, may_change=True
    ),  # passes over the training split at most; 370K iterations (Paper §3.1)
    "eval_every_epochs": Key(1.0, 1e-6, 1e6),  # the plateau's unit of time
    "log_every_steps": Key(100, 1, 2**31 - 1, may_change=True),
    "checkpoint_every_steps": Key(
        1000, 0, 2**31 - 1, may_change=True
    ),  # besides one at every evaluation; 0: only there
    "sharding": Key("replicated", choices=tuple(RULES), may_change=True),  # how parameters lie on the devices
    "model_parallel": Key(
        1, 1, 2**16, may_change=True
    ),  # devices along the mesh's `model` axis; the others form `data`
    "model.configuration": Key(
        "D", choices=CONFIGURATIONS
    ),  # Paper Table 1, or a network that followed (docs/networks.md)
    "model.batch_norm": Key(False),  # of a VGG: after each convolution
    "model.head": Key("fc", choices=HEADS),  # of a VGG: three FC layers, or global average pooling and one
    "model.shortcut": Key("", choices=("", *SHORTCUTS)),  # of a ResNet; "": the paper's, B, for CIFAR A
    "model.bottleneck_stride": Key("3x3", choices=BOTTLENECK_STRIDES),  # of a ResNet from 50 layers up
    "model.num_classes": Key(1000, 2, 2**20),
    "model.width_multiplier": Key(1.0, 1e-3, 64),  # factor on the channels of all convolutions
    "model.fc_width": Key(4096, 1, 2**20),  # features of fc6 and fc7
    "model.dropout_rate": Key(0.5, 0, 0.99),  # after fc6 and fc7 (Paper §3.1)
    "model.init": Key("glorot", choices=tuple(PRESETS)),  # of the parameters, see docs/decisions.md
    "model.dtype": Key("float32", choices=DTYPES),  # of the computation
    "model.param_dtype": Key("float32", choices=DTYPES),  # of parameters and momentum
    "image.crop": Key(224, 8, 2048),  # pixels, square (Paper §2.1)
    "image.scale_min": Key(256, 8, 4096),  # S, pixels: the shorter side after rescaling, drawn from
    "image.scale_max": Key(256, 8, 4096),  # [scale_min, scale_max] for every image (Paper §3.1)
    "image.padding": Key(
        0, 0, 512
    ),  # black pixels around the rescaled image, which the crop may take in (He 2015 §4.2)
    # Least share of the image's area in a random resized crop, which takes the place of S (Szegedy 2014 §6: 0.08); 0: none.
    "image.area_min": Key(0.0, 0, 1),
    "image.eval_scale": Key(0, 0, 4096),  # Q of the validation crop, pixels; 0: S, the middle of the range for jitter
    "augment.flip": Key(True),  # mirror every second image (Paper §3.1)
    "augment.color_std": Key(0.1, 0, 10),  # of the shift along the colour vectors (Krizhevsky 2012 §4.1); 0: none
    "optimizer.learning_rate": Key(1e-2, 1e-12, 1e6),  # at the start (Paper §3.1)
    # Factors on it by layer, the first that fits counts: "fc8=10,conv1_*=0,conv*=0.1"; 0 freezes, layers not named have 1.
    "optimizer.lr_factors": Key(""),
    "optimizer.momentum": Key(0.9, 0, 0.9999),  # (Paper §3.1)
    "optimizer.l2": Key(5e-4, 0, 1),  # weight decay that joins the gradient (Paper §3.1)
    "optimizer.l2_mask": Key("kernels", choices=L2_MASKS),  # the parameters that decay
    "plateau.factor": Key(0.1, 1e-6, 0.9999),  # on the learning rate at each drop (Paper §3.1)
    "plateau.max_drops": Key(3, 0, 100),  # the plateau after the last one ends training (Paper §3.1)
    "plateau.patience": Key(4, 1, 10**6),  # evaluations without improvement that make a plateau; the paper does not say
    "plateau.min_improvement": Key(0.001, 1e-9, 1),  # of the validation top-1 error, a fraction
    "schedule.name": Key("plateau", choices=SCHEDULES),  # of the learning rate; plateau is the paper's (Paper §3.1)
    "schedule.warmup_epochs": Key(0.0, 0, 1e6),  # in which the rate rises linearly to optimizer.learning_rate
    "schedule.drop_epochs": Key("30,60,90"),  # for `steps`: epochs at which the rate drops
    "schedule.drop_factor": Key(0.1, 1e-6, 0.9999),  # for `steps`: on the rate at each of them
    "data.name": Key("imagenet2012"),  # `builtin`, `folder`, or the name of a TFDS data set
    "data.dir": Key(DATA_DIR, may_change=True, is_local=True),  # of prepared data
    "data.root": Key("", may_change=True, is_local=True),  # for `folder`: a directory laid out <split>/<class>/<image>
    "data.train_split": Key("train"),
    "data.val_split": Key("validation"),
    "data.threads": Key(16, 1, 1024, may_change=True, is_local=True),  # that decode ahead, each a whole local batch
    # Processes that do so with so many threads each; 0: the threads of this process alone.
    "data.processes": Key(0, 0, 256, may_change=True, is_local=True),
}
_LARGEST_LR_FACTOR = 1e6
_LONGEST_TEXT = 4096  # characters: a path's, on Linux
_LEAST_RATE = 1e-30  # of learning, after the last drop; float32 has 1.2e-38


def default_config() -> ConfigDict:
    """Returns the defaults of KEYS. Files in configs/ change what they need."""
    config = ConfigDict()
    for name, key in KEYS.items():
        section, _, leaf = name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[leaf] = key.default
    return config


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


def eval_scale(config: ConfigDict) -> int:
    """Returns Q of the validation centre crop in pixels: S, or the middle of the range for jitter."""
    return config.image.eval_scale or (config.image.scale_min + config.image.scale_max) // 2


def scale_text(low: int, high: int) -> str:
    """Returns S in words: "256", or "256 to 512" for jitter."""
    return str(low) if low == high else f"{low} to {high}"


def scaled_length(length: int, crop: int) -> int:
    """Returns a length of the paper, which is for crop 224, at another crop: round(crop length / 224)."""
    return (2 * crop * length + 224) // (2 * 224)


def network_layers(config: ConfigDict) -> Layers:
    """Returns the layers of a configuration's network.

    Raises:
      UserError: a crop too small for it.
    """
    model = config.model
    try:
        return describe(
            model.configuration,
            config.image.crop,
            model.batch_norm,
            model.head,
            model.shortcut,
            model.bottleneck_stride,
        )
    except ValueError as error:
        raise UserError(
            f"config.image.crop is {config.image.crop}, and {error} of {model.configuration}; give a larger one."
        ) from error


def network_name(config: ConfigDict | Mapping[str, Any]) -> str:
    """Returns the network of a configuration, or of a flat one: "D", "D-BN-GAP", "ResNet-50 (shortcut C)"."""
    flat = flatten(config) if isinstance(config, ConfigDict) else config
    name = str(flat["model.configuration"])
    if is_vgg(name):
        return f"{name}{'-BN' * flat['model.batch_norm']}{'-GAP' * (flat['model.head'] == 'gap')}"
    shortcut, is_paper = flat["model.shortcut"], flat["model.bottleneck_stride"] == "1x1"
    options = [f"shortcut {shortcut}"] * bool(shortcut) + ["stride in the 1x1"] * is_paper
    return f"{name} ({', '.join(options)})" if options else name


def network_title(config: ConfigDict | Mapping[str, Any]) -> str:
    """Returns the network's name with its family: "VGG D", "ResNet-50"."""
    flat = flatten(config) if isinstance(config, ConfigDict) else config
    return f"{'VGG ' * is_vgg(flat['model.configuration'])}{network_name(flat)}"


def init_from(config: ConfigDict) -> str:
    """Returns the checkpoint, workdir or weights file to start from; "" for none."""
    return "" if config.init_from == NO_INIT_FROM else config.init_from


def lr_factors(config: ConfigDict) -> list[tuple[str, float]]:
    """Returns `optimizer.lr_factors` as (pattern of a layer's name, factor on the learning rate), in its order.

    Raises:
      UserError: anything but `pattern=factor` with commas between, or a pattern that fits no layer.
    """
    text, factors = config.optimizer.lr_factors, []
    layers = layer_names(network_layers(config))
    for part in filter(None, text.split(",")):
        pattern, _, number = (word.strip() for word in part.partition("="))
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if not 0 <= factor <= _LARGEST_LR_FACTOR:
            raise UserError(
                f"config.optimizer.lr_factors is {text!r}, in which {part!r} is not layer=factor with a factor from 0 to "
                f'{_LARGEST_LR_FACTOR:g}; write for example "fc8=10,conv*=0.1".'
            )
        if not fnmatch.filter(layers, pattern):
            raise UserError(
                f"config.optimizer.lr_factors is {text!r}, and no layer of configuration {config.model.configuration} is "
                f"called {pattern!r}; there are {', '.join(layers)}."
            )
        factors.append((pattern, factor))
    return factors


def may_change(key: str, config: ConfigDict) -> bool:
    """Returns whether a continued run may have another value of a key."""
    if key == "num_epochs" and config.schedule.name == "cosine":  # which ends with the epochs
        return False
    return key in KEYS and KEYS[key].may_change


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns {"seed": 0, "model.configuration": "D", ...}, in the order of definition."""
    flat: dict[str, Any] = {}
    for key in config:
        value = config[key]
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value})
    return flat


def validate(config: ConfigDict, num_devices: int) -> None:
    """Refuses impossible values before anything is built.

    Args:
      config: as `default_config` makes it, changed by a file and the command line.
      num_devices: devices the run would use, over all processes.

    Raises:
      UserError: the first value that cannot work: its key, the value, and what is allowed.
    """
    if "plan" in config:
        raise UserError(
            "this configuration has config.plan, so it is of many runs: python -m vgg_jax.reproduce trains them."
        )
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
        raise UserError(
            f"config.{name} is {value!r}; it must be one of {', '.join(key.choices)}.{did_you_mean(value, key.choices)}"
        )
    if isinstance(value, int | float) and not key.least <= value <= key.greatest:
        raise UserError(
            f"config.{name} is {quoted(value, 100)}; it must be at least {key.least} and at most {key.greatest}."
        )


def _rules(config: ConfigDict, num_devices: int) -> Iterator[tuple[bool, str]]:
    """Yields (whether it is broken, the sentence that says so) of every rule that relates several keys."""
    image, data, plateau, parallel = config.image, config.data, config.plateau, config.model_parallel
    yield from _network_rules(config)
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
        image.scale_max < image.scale_min,
        f"config.image.scale_max is {image.scale_max}, less than config.image.scale_min, {image.scale_min}; "
        "for one fixed S set both to it.",
    )
    yield (
        eval_scale(config) < image.crop,
        f"config.image.eval_scale (Q) is {image.eval_scale}, less than config.image.crop, {image.crop}; "
        f"make it at least {image.crop}, or 0 for the training scale.",
    )
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
    parts = num_devices // parallel * config.accumulation_steps
    below = config.batch_size // parts * parts
    microbatches = f" x {config.accumulation_steps} accumulation steps" if config.accumulation_steps > 1 else ""
    yield (
        config.batch_size % parts != 0,
        f"config.batch_size is {config.batch_size}, which {num_devices // parallel} devices{microbatches} do not divide; "
        f"{below or parts} or {below + parts if below else 2 * parts} would do.",
    )
    yield not data.name, "config.data.name is empty; it must be `builtin`, `folder`, or the name of a TFDS data set."
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
    yield (
        config.start_required and not config.init_from,
        f"this stage (S={scale_text(image.scale_min, image.scale_max)}, learning rate "
        f"{config.optimizer.learning_rate:g}) starts from a trained model: give its workdir with --config.init_from=DIR, or "
        "say --config.init_from=none to start afresh.",
    )


def _network_rules(config: ConfigDict) -> Iterator[tuple[bool, str]]:
    model, is_paper = config.model, is_vgg(config.model.configuration)
    is_residual = model.configuration.startswith("ResNet")
    yield (
        (model.batch_norm or model.head != "fc") and not is_paper,
        f"config.model.batch_norm and config.model.head are for the VGGs, and {model.configuration} is none: it has batch "
        "normalisation and global average pooling by itself; leave them out.",
    )
    yield (
        bool(model.shortcut) and not is_residual,
        f"config.model.shortcut is {model.shortcut!r}, and {model.configuration} has no shortcuts; leave it out.",
    )
    microbatch = config.batch_size // config.accumulation_steps
    has_batch_norm = any(layer.kind == "batch_norm" for layer in network_layers(config))
    yield (
        has_batch_norm and microbatch < 2,
        f"config.batch_size is {config.batch_size}, in which batch normalisation would see {microbatch} image at a time; give at "
        "least 2 for each accumulation step.",
    )
