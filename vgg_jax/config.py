"""Every hyper-parameter's default with its unit and source, and the one place where bad values are refused."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vgg_jax.exceptions import UserError, did_you_mean, quoted
from vgg_jax.models import CONFIGURATIONS, STRIDE, layer_names
from vgg_jax.models.initializers import PRESETS
from vgg_jax.schedules import SCHEDULES, drop_epochs
from vgg_jax.sharding import RULES

DTYPES = ("float32", "bfloat16")
L2_MASKS = ("kernels", "all")
NO_INIT_FROM = "none"
DATA_DIR = "~/tensorflow_datasets"  # of prepared data, unless the environment has TFDS_DATA_DIR


def default_config() -> ConfigDict:
    """The paper's values for ImageNet (Paper §3.1), configuration D at S = 256. Files in configs/ change what they need."""
    config = ConfigDict()
    config.seed = 0  # of everything random: initialisation, order, crops, flips, colours, dropout
    # Parameters to start from: a workdir, one of its checkpoints/<step>, or a weights file of `python -m vgg_jax.convert`;
    # "" or "none" starts from model.init.
    config.init_from = ""
    # Layers to take from there, with commas between: names, patterns ("conv*"), or what to leave out ("-fc6,-fc7"). "": all
    # from a net of the same convolutions, else those of the net-A transplant (Paper §3.1); never a head of other classes.
    config.init_layers = ""
    config.start_required = False  # True where a start from another net is meant: init_from must then say something

    config.batch_size = 256  # images in a step, over all devices (Paper §3.1)
    config.accumulation_steps = 1  # parts a batch is computed in, one after another, to need less memory
    config.num_epochs = 74.0  # passes over the training split at most; 370K iterations (Paper §3.1)
    config.eval_every_epochs = 1.0  # the plateau's unit of time
    config.log_every_steps = 100
    config.checkpoint_every_steps = 1000  # besides one at every evaluation; 0: at evaluations only
    config.sharding = "replicated"  # how parameters lie on the devices: a key of sharding.RULES
    config.model_parallel = 1  # devices along the mesh's `model` axis; the others form its `data` axis

    config.model = ConfigDict()
    config.model.configuration = "D"  # a key of models.CONFIGURATIONS (Paper Table 1)
    config.model.num_classes = 1000
    config.model.width_multiplier = 1.0  # factor on the channels of all convolutions
    config.model.fc_width = 4096  # features of fc6 and fc7
    config.model.dropout_rate = 0.5  # after fc6 and fc7 (Paper §3.1)
    config.model.init = "glorot"  # a key of models.initializers.PRESETS (PAPER.md §5.1)
    config.model.dtype = "float32"  # of the computation: float32 or bfloat16
    config.model.param_dtype = "float32"  # of parameters and momentum

    config.image = ConfigDict()
    config.image.crop = 224  # pixels, square (Paper §2.1)
    config.image.scale_min = 256  # S, pixels: the shorter side after rescaling, drawn from
    config.image.scale_max = 256  # [scale_min, scale_max] for every image (Paper §3.1)
    config.image.eval_scale = 0  # Q of the validation centre crop, pixels; 0: S, the middle of the range for jitter

    config.augment = ConfigDict()
    config.augment.flip = True  # mirror every second image (Paper §3.1)
    config.augment.color_std = 0.1  # of the shift along the colour vectors (Krizhevsky 2012 §4.1); 0: none

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-2  # at the start (Paper §3.1)
    # Factors on it by layer, the first that fits counts: "fc8=10,conv1_*=0,conv*=0.1"; 0 freezes, layers not named have 1.
    config.optimizer.lr_factors = ""
    config.optimizer.momentum = 0.9  # (Paper §3.1)
    config.optimizer.l2 = 5e-4  # weight decay that joins the gradient (Paper §3.1)
    config.optimizer.l2_mask = "kernels"  # what it decays: kernels, or all parameters (PAPER.md §5.3)

    config.plateau = ConfigDict()
    config.plateau.factor = 0.1  # on the learning rate at each drop (Paper §3.1)
    config.plateau.max_drops = 3  # the plateau after the last one ends training (Paper §3.1, PAPER.md §5.4)
    config.plateau.patience = 4  # evaluations without improvement that make a plateau; the paper does not say
    config.plateau.min_improvement = 0.001  # of the validation top-1 error, a fraction, to count as improvement

    config.schedule = ConfigDict()
    config.schedule.name = (
        "plateau"  # of the learning rate: a key of schedules.SCHEDULES; plateau is the paper's (§3.1)
    )
    config.schedule.warmup_epochs = 0.0  # in which the rate rises linearly to optimizer.learning_rate
    config.schedule.drop_epochs = "30,60,90"  # for `steps`: epochs at which the rate drops
    config.schedule.drop_factor = 0.1  # for `steps`: on the rate at each of them

    config.data = ConfigDict()
    config.data.name = "imagenet2012"  # `builtin`, `folder`, or the name of a TFDS data set
    config.data.dir = DATA_DIR  # where prepared data lies
    config.data.root = ""  # for `folder`: a directory laid out <split>/<class>/<picture>
    config.data.train_split = "train"
    config.data.val_split = "validation"
    config.data.threads = 16  # that read and decode ahead, each a whole batch of this process
    config.data.processes = 0  # that do so with so many threads each; 0: the threads of this process alone
    return config


# The least and the greatest value of every number above. The greatest is far beyond use; further on, arithmetic in float32
# or int32 breaks down.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),  # JAX's keys take 32 bits
    "batch_size": (1, 2**20),
    "accumulation_steps": (1, 2**20),
    "num_epochs": (1e-6, 1e6),
    "eval_every_epochs": (1e-6, 1e6),
    "log_every_steps": (1, 2**31 - 1),
    "checkpoint_every_steps": (0, 2**31 - 1),
    "model_parallel": (1, 2**16),
    "model.num_classes": (2, 2**20),
    "model.width_multiplier": (1e-3, 64),
    "model.fc_width": (1, 2**20),
    "model.dropout_rate": (0, 0.99),
    "image.crop": (STRIDE, 2048),  # five poolings leave one pixel
    "image.scale_min": (STRIDE, 4096),
    "image.scale_max": (STRIDE, 4096),
    "image.eval_scale": (0, 4096),
    "augment.color_std": (0, 10),
    "optimizer.learning_rate": (1e-12, 1e6),
    "optimizer.momentum": (0, 0.9999),
    "optimizer.l2": (0, 1),
    "plateau.factor": (1e-6, 0.9999),
    "plateau.max_drops": (0, 100),
    "plateau.patience": (1, 10**6),
    "plateau.min_improvement": (1e-9, 1),
    "schedule.warmup_epochs": (0, 1e6),
    "schedule.drop_factor": (1e-6, 0.9999),
    "data.threads": (1, 1024),
    "data.processes": (0, 256),
}
_LARGEST_LR_FACTOR = 1e6
_LONGEST_TEXT = 4096  # letters: a path's, on Linux
_LEAST_RATE = 1e-30  # of learning, after the last drop; float32 has 1.2e-38


def paper_config(configuration: str, argument: str | None) -> ConfigDict:
    """The paper's training of one configuration on ImageNet.

    Args:
      configuration: a key of models.CONFIGURATIONS.
      argument: what follows the colon in `--config=configs/vgg19.py:S=384`. None or "S=256", "S=384", "S=jitter".
        The last two continue a trained net at a lower rate (Paper §3.1) and want `init_from`.

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
        # and we used a smaller initial learning rate of 10^-3" (Paper §3.1). Jitter likewise (PAPER.md §5.11).
        config.optimizer.learning_rate = 1e-3
        config.start_required = True
    return config


def eval_scale(config: ConfigDict) -> int:
    """Q of the validation centre crop in pixels: S, or the middle of the range for jitter (PAPER.md §5.4)."""
    return config.image.eval_scale or (config.image.scale_min + config.image.scale_max) // 2


def scale_text(low: int, high: int) -> str:
    """Returns S in words: "256", or "256 to 512" for jitter."""
    return str(low) if low == high else f"{low} to {high}"


def init_from(config: ConfigDict) -> str:
    """The checkpoint, workdir or weights file to start from; "" where none is meant."""
    return "" if config.init_from == NO_INIT_FROM else config.init_from


def lr_factors(config: ConfigDict) -> list[tuple[str, float]]:
    """`optimizer.lr_factors` as (pattern of a layer's name, factor on the learning rate), in its order.

    Raises:
      UserError: anything but `pattern=factor` with commas between, or a pattern that fits no layer.
    """
    text, found = config.optimizer.lr_factors, []
    layers = layer_names(config.model.configuration)
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
        found.append((pattern, factor))
    return found


def resumed_run_may_differ_in() -> tuple[str, ...]:
    """Keys that may change when a run is continued: they do not alter what is computed, only for how long or where."""
    return (
        *("num_epochs", "log_every_steps", "checkpoint_every_steps", "sharding", "model_parallel"),
        *("data.dir", "data.root", "data.threads", "data.processes"),
    )


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"seed": 0, "model.configuration": "D", ...}, in the order of definition."""
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
    known, given = flatten(default_config()), flatten(config)
    for key in given:
        if key not in known:
            raise UserError(f"config.{key} is not a known key.{did_you_mean(key, known)}")
    for key, default in known.items():
        if key not in given:
            raise UserError(
                f"config.{key} is missing; start a configuration file from vgg_jax.config.default_config()."
            )
        _check_type(key, given[key], default)

    model, image, data = config.model, config.image, config.data
    _one_of("model.configuration", model.configuration, CONFIGURATIONS)
    _one_of("model.init", model.init, PRESETS)
    _one_of("model.dtype", model.dtype, DTYPES)
    _one_of("model.param_dtype", model.param_dtype, DTYPES)
    _one_of("optimizer.l2_mask", config.optimizer.l2_mask, L2_MASKS)
    _one_of("sharding", config.sharding, RULES)
    _one_of("schedule.name", config.schedule.name, SCHEDULES)
    drop_epochs(config)
    for key, (least, greatest) in RANGES.items():
        if not least <= given[key] <= greatest:
            raise UserError(
                f"config.{key} is {quoted(given[key], 100)}; it must be at least {least} and at most {greatest}."
            )
    if config.init_layers and not init_from(config):
        raise UserError(
            f"config.init_layers is {config.init_layers!r}, but there is nothing to take layers from; give "
            "--config.init_from=DIR as well."
        )
    lr_factors(config)
    if config.optimizer.learning_rate * config.plateau.factor**config.plateau.max_drops < _LEAST_RATE:
        raise UserError(
            f"config.plateau.factor is {config.plateau.factor}, which makes a rate of less than {_LEAST_RATE:g} of "
            f"config.optimizer.learning_rate, {config.optimizer.learning_rate}, in config.plateau.max_drops, "
            f"{config.plateau.max_drops}, drops; choose fewer drops or a factor nearer to 1."
        )

    if image.scale_min < image.crop:
        raise UserError(
            f"config.image.scale_min (S) is {image.scale_min}, less than config.image.crop, {image.crop}: "
            f"the crop would not fit; make S at least {image.crop}."
        )
    if image.scale_max < image.scale_min:
        raise UserError(
            f"config.image.scale_max is {image.scale_max}, less than config.image.scale_min, {image.scale_min}; "
            "for one fixed S set both to it."
        )
    if eval_scale(config) < image.crop:
        raise UserError(
            f"config.image.eval_scale (Q) is {image.eval_scale}, less than config.image.crop, {image.crop}; "
            f"make it at least {image.crop}, or 0 for the training scale."
        )

    if num_devices % config.model_parallel:
        raise UserError(
            f"config.model_parallel is {config.model_parallel}, which does not divide the {num_devices} devices."
        )
    if config.model_parallel > 1 and config.sharding != "fc_model_parallel":
        raise UserError(
            f"config.model_parallel is {config.model_parallel}, but config.sharding is {config.sharding!r}, which splits "
            "nothing over the `model` axis; say --config.sharding=fc_model_parallel, or --config.model_parallel=1."
        )
    if model.fc_width % config.model_parallel:
        raise UserError(
            f"config.model_parallel is {config.model_parallel}, which does not divide config.model.fc_width, "
            f"{model.fc_width}; {math.gcd(model.fc_width, num_devices)} would do."
        )
    parts = num_devices // config.model_parallel * config.accumulation_steps
    if config.batch_size % parts:
        below = config.batch_size // parts * parts
        raise UserError(
            f"config.batch_size is {config.batch_size}, which {num_devices // config.model_parallel} devices"
            + (f" x {config.accumulation_steps} accumulation steps" if config.accumulation_steps > 1 else "")
            + f" do not divide; {below or parts} or {below + parts if below else 2 * parts} would do."
        )

    if not data.name:
        raise UserError("config.data.name is empty; it must be `builtin`, `folder`, or the name of a TFDS data set.")
    if data.name == "folder":
        if not data.root:
            raise UserError(
                "config.data.name is `folder`, so config.data.root must name a directory laid out as "
                "<split>/<class>/<picture>: --config.data.root=DIR."
            )
        if not Path(data.root).expanduser().is_dir():
            raise UserError(f"config.data.root is {data.root!r}, and there is no such directory.")
    elif data.root:
        raise UserError(
            f"config.data.root is {data.root!r}, but config.data.name is {data.name!r}; a root goes with "
            "--config.data.name=folder."
        )
    if config.start_required and not config.init_from:
        raise UserError(
            f"this stage (S={scale_text(config.image.scale_min, config.image.scale_max)}, learning rate {config.optimizer.learning_rate:g}) starts from a trained net: "
            "give its workdir with --config.init_from=DIR, or say --config.init_from=none to start afresh."
        )


def _check_type(key: str, value: object, default: object) -> None:
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return
    if type(value) is not type(default):
        raise UserError(
            f"config.{key} is {quoted(value, 100)}; it must be of type {type(default).__name__}, as {default!r} is."
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{key} is {value}; it must be a finite number.")
    if isinstance(value, str) and (len(value) > _LONGEST_TEXT or any(ord(letter) < 32 for letter in value)):
        raise UserError(
            f"config.{key} is {quoted(value, 100)}; it must have at most {_LONGEST_TEXT} letters and no control characters."
        )


def _one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise UserError(
            f"config.{key} is {value!r}; it must be one of {', '.join(allowed)}.{did_you_mean(value, allowed)}"
        )
