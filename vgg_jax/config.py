"""Every hyper-parameter's default with its unit, source and range, and the checks that refuse bad values."""

from __future__ import annotations

import fnmatch
import itertools
import math
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vgg_jax.models import BOTTLENECK_STRIDES, CONFIGURATIONS, HEADS, SHORTCUTS, Layers, NetworkSpec
from vgg_jax.models.description import LARGEST_CROP, LARGEST_SCALE, LEAST_CROP, layer_names, with_inputs
from vgg_jax.models.initializers import PRESETS
from vgg_jax.runtime.compilation import AUTO
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.sharding import RULES
from vgg_jax.training.schedules import SCHEDULES

DTYPES = ("float32", "bfloat16")
L2_MASKS = ("kernels", "all")
CLASS_WEIGHTS = ("none", "balanced")
OPTIMIZERS = ("momentum", "adamw")
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
    # Directory of compiled programs, for the next start; "auto": JAX_COMPILATION_CACHE_DIR, else the user's, or of several
    # processes the workdir; "": none.
    "compilation_cache": Key(AUTO, may_change=True, is_local=True),
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
    "model.auxiliary": Key(False),  # of GoogLeNet: the classifiers in the middle, in training (Szegedy 2014 §5)
    "model.num_classes": Key(1000, 2, 2**20),
    "model.width_multiplier": Key(1.0, 1e-3, 64),  # factor on the channels of all convolutions
    "model.fc_width": Key(4096, 1, 2**20),  # features of fc6 and fc7
    "model.dropout_rate": Key(0.5, 0, 0.99),  # after fc6 and fc7 (Paper §3.1)
    "model.init": Key("glorot", choices=tuple(PRESETS)),  # of the parameters, see docs/decisions.md
    "model.dtype": Key("float32", choices=DTYPES),  # of the computation
    "model.param_dtype": Key("float32", choices=DTYPES),  # of parameters and momentum
    "image.crop": Key(224, LEAST_CROP, LARGEST_CROP),  # pixels, square (Paper §2.1)
    "image.scale_min": Key(256, LEAST_CROP, LARGEST_SCALE),  # S, pixels: the shorter side after rescaling, drawn from
    "image.scale_max": Key(256, LEAST_CROP, LARGEST_SCALE),  # [scale_min, scale_max] for every image (Paper §3.1)
    "image.padding": Key(
        0, 0, 512
    ),  # black pixels around the rescaled image, which the crop may take in (He 2015 §4.2)
    # Least share of the image's area in a random resized crop, which takes the place of S (Szegedy 2014 §6: 0.08); 0: none.
    "image.area_min": Key(0.0, 0, 1),
    "image.eval_scale": Key(
        0, 0, LARGEST_SCALE
    ),  # Q of the validation crop, pixels; 0: S, the middle of the range for jitter
    "augment.flip": Key(True),  # mirror every second image (Paper §3.1)
    "augment.color_std": Key(0.1, 0, 10),  # of the shift along the colour vectors (Krizhevsky 2012 §4.1); 0: none
    "augment.trivial": Key(False),  # one operation at random for each crop: TrivialAugment (Müller & Hutter 2021)
    # Images and labels of a batch mixed in pairs, with a share drawn from Beta(a, a) at each step; 0: not. With both of them, one
    # or the other at each step.
    "augment.mixup": Key(0.0, 0, 100),  # a of blending (Zhang et al. 2018)
    "augment.cutmix": Key(0.0, 0, 100),  # a of pasting a rectangle (Yun et al. 2019)
    "label_smoothing": Key(0.0, 0, 0.99),  # share of the target that all classes have in common (Szegedy et al. 2016)
    "class_weights": Key("none", choices=CLASS_WEIGHTS),  # of the loss; balanced: inverse to a class's training images
    "ema_decay": Key(0.0, 0, 0.99999),  # of the average of parameters that is evaluated and saved too; 0: none
    "optimizer.name": Key("momentum", choices=OPTIMIZERS),  # the paper's, or AdamW (Loshchilov & Hutter 2019)
    "optimizer.clip_norm": Key(0.0, 0, 1e6),  # largest norm of the gradient over all parameters; 0: any
    "optimizer.learning_rate": Key(1e-2, 1e-12, 1e6),  # at the start (Paper §3.1)
    # Factors on it by layer, the first that fits counts: "classifier=10,conv1_*=0,conv*=0.1"; 0 freezes, layers not named have 1.
    "optimizer.lr_factors": Key(""),
    # Whether a normalisation that lr_factors does not match has the factor of its convolution. A continued run keeps its own
    # value: False if it was begun by version 0.4 or earlier.
    "optimizer.norms_follow": Key(True, may_change=True),
    "optimizer.momentum": Key(0.9, 0, 0.9999),  # (Paper §3.1)
    "optimizer.l2": Key(5e-4, 0, 1),  # weight decay that joins the gradient (Paper §3.1); of AdamW the decoupled one
    "optimizer.l2_mask": Key("kernels", choices=L2_MASKS),  # the parameters that decay
    "plateau.factor": Key(0.1, 1e-6, 0.9999),  # on the learning rate at each drop (Paper §3.1)
    "plateau.max_drops": Key(3, 0, 100),  # the plateau after the last one ends training (Paper §3.1)
    "plateau.patience": Key(4, 1, 10**6),  # evaluations without improvement that make a plateau; the paper does not say
    "plateau.min_improvement": Key(0.001, 1e-9, 0.99),  # of the validation top-1 error, a fraction
    "schedule.name": Key("plateau", choices=SCHEDULES),  # of the learning rate; plateau is the paper's (Paper §3.1)
    "schedule.warmup_epochs": Key(0.0, 0, 1e6),  # in which the rate rises linearly to optimizer.learning_rate
    # Until the training error of an evaluation's epochs is below this fraction, the rate is a tenth of the schedule's; 1: never
    # (He 2015 §4.2: 0.8 for 110 layers).
    "schedule.warmup_error": Key(1.0, 1e-4, 1),
    "schedule.drop_epochs": Key("30,60"),  # for `steps`: epochs at which the rate drops
    "schedule.drop_factor": Key(0.1, 1e-6, 0.9999),  # for `steps`: on the rate at each of them
    "data.name": Key("imagenet2012"),  # `builtin`, `folder`, or the name of a TFDS data set
    "data.dir": Key(DATA_DIR, may_change=True, is_local=True),  # of prepared data
    "data.root": Key("", may_change=True, is_local=True),  # for `folder`: a directory laid out <split>/<class>/<image>
    "data.exif": Key(False),  # for `folder`: turn images as their EXIF orientation says
    "data.train_split": Key("train"),
    "data.val_split": Key("validation"),
    "data.threads": Key(16, 1, 1024, may_change=True, is_local=True),  # that decode ahead, each a whole local batch
    # Processes that do so with so many threads each; 0: the threads of this process alone.
    "data.processes": Key(0, 0, 256, may_change=True, is_local=True),
}
_LARGEST_LR_FACTOR = 1e6


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
    try:
        return NetworkSpec.from_config(config).layers(config.image.crop)
    except ValueError as error:
        raise UserError(
            f"config.image.crop is {config.image.crop}, and {error} of {config.model.configuration}; give a larger one."
        ) from error


def init_from(config: ConfigDict) -> str:
    """Returns the checkpoint, workdir or weights file to start from; "" for none."""
    return "" if config.init_from == NO_INIT_FROM else config.init_from


def lr_factors(config: ConfigDict) -> dict[str, float]:
    """Returns the factor on the learning rate of each layer with parameters, by `optimizer.lr_factors`; 0 freezes it.

    The first pattern that matches a layer's name decides, and "classifier" stands for the last layer. Where
    `optimizer.norms_follow`, a normalisation that no pattern matches takes the factor of its convolution.

    Raises:
      UserError: anything but `pattern=factor` with commas between, a pattern that decides no layer, or no layer that trains.
    """
    text, layers = config.optimizer.lr_factors, network_layers(config)
    names = layer_names(layers)
    patterns = [_lr_factor(part, text, names) for part in text.split(",") if part]
    deciding = {
        name: next((pattern for pattern, _ in patterns if fnmatch.fnmatchcase(name, pattern)), None) for name in names
    }
    if config.optimizer.norms_follow:
        for layer, (source, *_) in with_inputs(layers):
            if layer.is_norm:
                deciding[layer.name] = deciding[layer.name] or deciding.get(source)
    factors: dict[str | None, float] = {None: 1.0}
    for pattern, factor in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                f"config.optimizer.lr_factors is {text!r}, and no layer of configuration {config.model.configuration} is "
                f"called {pattern!r}; there are {', '.join(names)}."
            )
        if pattern in factors or pattern not in deciding.values():
            raise UserError(
                f"config.optimizer.lr_factors is {text!r}, in which earlier patterns decide every layer of {pattern!r}; "
                "leave it out, or write it before them."
            )
        factors[pattern] = factor
    if not any(factors[pattern] for pattern in deciding.values()):
        raise UserError(f"config.optimizer.lr_factors is {text!r}, which freezes every layer; leave one that trains.")
    return {name: factors[pattern] for name, pattern in deciding.items()}


def _lr_factor(part: str, text: str, names: list[str]) -> tuple[str, float]:
    """Returns the pattern and the factor of one part of `optimizer.lr_factors`, which is `text`."""
    pattern, _, number = (word.strip() for word in part.partition("="))
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not 0 <= factor <= _LARGEST_LR_FACTOR:
        raise UserError(
            f"config.optimizer.lr_factors is {text!r}, in which {part!r} is not layer=factor with a factor from 0 to "
            f'{_LARGEST_LR_FACTOR:g}; write for example "classifier=10,conv*=0.1".'
        )
    return names[-1] if pattern == "classifier" else pattern, factor


def lr_factors_text(config: ConfigDict) -> str:
    """Returns the layers of each factor in words: "frozen: conv1_1 to bn2_2; x 0.1: conv3_1 to bn5_3; x 1: fc6, fc7"."""
    factors = lr_factors(config)
    spans: dict[float, list[str]] = {}
    for factor, group in itertools.groupby(factors, factors.__getitem__):
        first, *others = group
        last = "" if not others else f", {others[0]}" if len(others) == 1 else f" to {others[-1]}"
        spans.setdefault(factor, []).append(first + last)
    labels = {factor: f"x {factor:g}" if factor else "frozen" for factor in sorted(spans)}
    return "; ".join(f"{label}: {', '.join(spans[factor])}" for factor, label in labels.items())


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
