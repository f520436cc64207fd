"""A run's hyper-parameters: each key's default, range and source, and the typed values that the run uses.

A key is one field of a part of `Recipe`. KEYS, the defaults of configurations and their checks are derived from the
fields.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from vgg_jax.models import CHOICES, NETWORK_KEYS, Layers, NetworkSpec
from vgg_jax.models.description import LARGEST_CROP, LARGEST_SCALE, LEAST_CROP
from vgg_jax.models.initializers import PRESETS
from vgg_jax.runtime.compilation import AUTO
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.sharding import RULES
from vgg_jax.value_parsers import LrFactors, epochs_text, parse_epochs, parse_lr_factors, parse_steps

DTYPES = ("float32", "bfloat16")
L2_MASKS = ("kernels", "all")
CLASS_WEIGHTS = ("none", "balanced")
OPTIMIZERS = ("momentum", "adamw")
SCHEDULES = ("plateau", "steps", "cosine")
NO_INIT_FROM = "none"
# Of prepared data, unless the environment has TFDS_DATA_DIR.
DATA_DIR = "~/tensorflow_datasets"


class Key(NamedTuple):
    """A configuration key. Beyond `greatest`, which is far beyond use, arithmetic in float32 or int32 breaks down."""

    default: Any
    least: float = -math.inf  # of a number
    greatest: float = math.inf
    choices: tuple[str, ...] = ()  # of a text; () for any
    may_change: bool = False  # when a run is continued: it alters only how long, how or where the run computes
    is_local: bool = False  # the processes of a run may differ in it: each machine may keep the same data elsewhere
    parse: Callable[[Any], Any] | None = None  # from the configuration's value to the recipe's; raises UserError


def key(default: Any, least: float = -math.inf, greatest: float = math.inf, **options: Any) -> Any:
    """Returns a field that is a configuration key; arguments as of `Key`."""
    return dataclasses.field(metadata={"key": Key(default, least, greatest, **options)})


def part(cls: type) -> Any:
    """Returns a field that is a section of keys, the fields of a class."""
    return dataclasses.field(metadata={"part": cls})


def _network_keys() -> Any:
    """Returns the field of the network, whose own fields are keys of the section."""
    default = dataclasses.asdict(NetworkSpec())
    keys = {name: Key(default[name], choices=CHOICES.get(name, ())) for name in NETWORK_KEYS}
    return dataclasses.field(metadata={"network": keys})


# The values are the paper's for ImageNet (Paper §3.1), configuration D at S = 256.
@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The network, its initialisation and its computation."""

    # Paper Table 1, or a network that followed (docs/networks.md).
    network: NetworkSpec = _network_keys()
    # 0: as many as the data have.
    num_classes: int = key(1000, 0, 2**20)
    # Factor on the channels of all convolutions.
    width_multiplier: float = key(1.0, 1e-3, 64)
    # Features of fc6 and fc7.
    fc_width: int = key(4096, 1, 2**20)
    # Of the dropout layers after fc6 and fc7 (Paper §3.1).
    dropout_rate: float = key(0.5, 0, 0.99)
    # Distribution that parameters are drawn from, see docs/decisions.md.
    init: str = key("glorot", choices=tuple(PRESETS))
    # Of the computation; logits are float32.
    dtype: jnp.dtype = key("float32", choices=DTYPES, parse=jnp.dtype)
    # Of parameters and momentum.
    param_dtype: jnp.dtype = key("float32", choices=DTYPES, parse=jnp.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """Sizes of images."""

    # Pixels, square (Paper §2.1).
    crop: int = key(224, LEAST_CROP, LARGEST_CROP)
    # S, pixels: the shorter side after rescaling, drawn from [scale_min, scale_max] for every image (Paper §3.1).
    scale_min: int = key(256, LEAST_CROP, LARGEST_SCALE)
    scale_max: int = key(256, LEAST_CROP, LARGEST_SCALE)
    # Black pixels around the rescaled image, which the crop may take in (He 2015 §4.2).
    padding: int = key(0, 0, 512)
    # Least share of the image's area in a random resized crop, which takes the place of S (Szegedy 2014 §6: 0.08).
    # 0: no such crop.
    area_min: float = key(0.0, 0, 1)
    # Q of the validation crop, pixels. The value 0 in a configuration stands for S, for jitter the middle of its range.
    eval_scale: int = key(0, 0, LARGEST_SCALE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentRecipe:
    """Random changes of training images after the crop."""

    # Mirror every second image (Paper §3.1).
    flip: bool = key(True)
    # Standard deviation of the shift along the colour vectors (Krizhevsky 2012 §4.1); 0: none.
    color_std: float = key(0.1, 0, 10)
    # One operation at random for each crop: TrivialAugment (Müller & Hutter 2021).
    trivial: bool = key(False)
    # Images and labels of a batch are mixed in pairs, with a share drawn from Beta(a, a) at each step; 0: not mixed.
    # With mixup and cutmix, one of them at each step. This is a of blending (Zhang et al. 2018).
    mixup: float = key(0.0, 0, 100)
    # The number a of pasting a rectangle (Yun et al. 2019).
    cutmix: float = key(0.0, 0, 100)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """The optimizer: L2, learning rate, momentum."""

    # The paper's, or AdamW (Loshchilov & Hutter 2019).
    name: str = key("momentum", choices=OPTIMIZERS)
    # Largest norm of the gradient over all parameters; 0: any.
    clip_norm: float = key(0.0, 0, 1e6)
    # The rate at the start (Paper §3.1).
    learning_rate: float = key(1e-2, 1e-12, 1e6)
    # Factors on the rate by layer. In a configuration: "classifier=10,conv1_*=0,conv*=0.1", where the first pattern
    # that fits counts; 0 freezes, and layers that are not named have 1.
    lr_factors: LrFactors = key("")
    # Whether a normalisation that lr_factors does not match has the factor of its convolution. A continued run keeps
    # its own value: False if it was begun by version 0.4 or earlier.
    norms_follow: bool = key(True, may_change=True)
    # Share of the last update that the next one keeps (Paper §3.1).
    momentum: float = key(0.9, 0, 0.9999)
    # Weight decay that joins the gradient (Paper §3.1); of AdamW the decoupled one.
    l2: float = key(5e-4, 0, 1)
    # The parameters that decay.
    l2_mask: str = key("kernels", choices=L2_MASKS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlateauRecipe:
    """When the plateau schedule drops the rate."""

    # Factor on the learning rate at each drop (Paper §3.1).
    factor: float = key(0.1, 1e-6, 0.9999)
    # Drops at most; the plateau after the last one ends training (Paper §3.1).
    max_drops: int = key(3, 0, 100)
    # Evaluations without improvement that make a plateau; the paper does not say.
    patience: int = key(4, 1, 10**6)
    # Steps without improvement that a plateau has at least, for small data, whose epochs have few.
    min_steps: int = key(0, 0, 2**31 - 1)
    # Least improvement of the validation top-1 error, a fraction.
    min_improvement: float = key(0.001, 1e-9, 0.99)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """The schedule of the learning rate."""

    # The paper's is `plateau` (Paper §3.1).
    name: str = key("plateau", choices=SCHEDULES)
    # Epochs in which the rate rises linearly to optimizer.learning_rate.
    warmup_epochs: float = key(0.0, 0, 1e6)
    # Until the training error of an evaluation's epochs is below this fraction, the rate is a tenth of the
    # schedule's; 1: never (He 2015 §4.2: 0.8 for 110 layers).
    warmup_error: float = key(1.0, 1e-4, 1)
    # For `steps`: epochs at which the rate drops, ascending. Texts, "30,60", are read too.
    drop_epochs: tuple[float, ...] = key((30, 60), parse=parse_epochs)
    # For `steps`: factor on the rate at each of them.
    drop_factor: float = key(0.1, 1e-6, 0.9999)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The data set and its decoding."""

    # `builtin`, `folder`, or the name of a TFDS data set.
    name: str = key("imagenet2012")
    # Directory of prepared data.
    dir: str = key(DATA_DIR, may_change=True, is_local=True)
    # For `folder`: a directory laid out <split>/<class>/<image>, or <class>/<image>.
    root: str = key("", may_change=True, is_local=True)
    # For `folder`: turn images as their EXIF orientation says.
    exif: bool = key(False)
    train_split: str = key("train")
    # Of a folder without `validation`, this stands for val, valid or test, the first that is there.
    val_split: str = key("validation")
    # Threads that decode ahead, each a whole local batch.
    threads: int = key(16, 1, 1024, may_change=True, is_local=True)
    # Processes that do so with so many threads each; 0: the threads of this process alone.
    processes: int = key(0, 0, 256, may_change=True, is_local=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run's hyper-parameters. The fields are the keys of a configuration, and its sections are parts.

    Some values are parsed: the network, dtypes, factors by layer, epochs, and Q. `given` holds them as they were given.
    """

    # Seed of everything random: initialisation, order, crops, flips, colours, dropout. JAX's keys take 32 bits.
    seed: int = key(0, 0, 2**32 - 1)
    # Model to start from: a workdir, one of its checkpoints/<step>, a weights file or a name of published weights; ""
    # starts from model.init, as "none" does in a configuration.
    init_from: str = key("", parse=lambda text: "" if text == NO_INIT_FROM else text)
    # Layers to take from there, with commas between: names, patterns ("conv*"), or what to leave out ("-fc6,-fc7").
    # "": all from a model of the same convolutions, else those of the net-A transplant (Paper §3.1); never a head of
    # other classes.
    init_layers: str = key("")
    # Whether the network, its width, crop and S are those of init_from, except for keys that are given.
    init_network: bool = key(False, may_change=True)
    # Whether init_from must be given.
    start_required: bool = key(False)
    # Images in a step, over all devices (Paper §3.1).
    batch_size: int = key(256, 1, 2**20)
    # Microbatches of a batch, one after another, to need less memory.
    accumulation_steps: int = key(1, 1, 2**20)
    # Passes over the training split at most; 370K iterations (Paper §3.1).
    num_epochs: float = key(74.0, 1e-6, 1e6, may_change=True)
    # Steps that an epoch has at least: it takes a small training split several times, so that num_epochs, the schedule
    # and the evaluations are long enough for it.
    min_epoch_steps: int = key(0, 0, 2**20)
    # The plateau's unit of time.
    eval_every_epochs: float = key(1.0, 1e-6, 1e6)
    log_every_steps: int = key(100, 1, 2**31 - 1, may_change=True)
    # First and last step of a trace for TensorBoard and Perfetto, "(100, 105)"; "" for none.
    profile_steps: tuple[int, int] | None = key("", may_change=True, parse=parse_steps)
    # Steps between checkpoints, besides one at every evaluation; 0: only there.
    checkpoint_every_steps: int = key(1000, 0, 2**31 - 1, may_change=True)
    # Directory of compiled programs, for the next start; "auto": JAX_COMPILATION_CACHE_DIR, else the user's, or of
    # several processes the workdir; "": none.
    compilation_cache: str = key(AUTO, may_change=True, is_local=True)
    # How parameters lie on the devices.
    sharding: str = key("replicated", choices=tuple(RULES), may_change=True)
    # Devices along the mesh's `model` axis; the others form `data`.
    model_parallel: int = key(1, 1, 2**16, may_change=True)
    model: ModelRecipe = part(ModelRecipe)
    image: ImageRecipe = part(ImageRecipe)
    augment: AugmentRecipe = part(AugmentRecipe)
    # Share of the target that all classes have in common (Szegedy et al. 2016).
    label_smoothing: float = key(0.0, 0, 0.99)
    # Weights of the loss; balanced: inverse to a class's training images.
    class_weights: str = key("none", choices=CLASS_WEIGHTS)
    # Decay of the average of parameters that is evaluated and saved too; 0: no average.
    ema_decay: float = key(0.0, 0, 0.99999)
    optimizer: OptimizerRecipe = part(OptimizerRecipe)
    plateau: PlateauRecipe = part(PlateauRecipe)
    schedule: ScheduleRecipe = part(ScheduleRecipe)
    data: DataRecipe = part(DataRecipe)
    # The configuration's values by key, {"model.configuration": "D", ...}, as config.json holds them.
    given: Mapping[str, Any] = dataclasses.field(repr=False, compare=False)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Recipe:
        """Parses the values of a configuration that `validation.check_values` lets pass.

        Args:
          values: by key, {"seed": 0, "model.configuration": "D", ...}; missing ones have their defaults.

        Raises:
          UserError: a value that cannot be parsed, or a crop that is too small for the network.
        """
        given = dict(sorted(({name: each.default for name, each in KEYS.items()} | dict(values)).items()))
        given["schedule.drop_epochs"] = epochs_text(parse_epochs(given["schedule.drop_epochs"]))
        recipe = _parsed(cls, given, given=given)
        image, optimizer, network = recipe.image, recipe.optimizer, recipe.model.network
        factors = parse_lr_factors(
            given["optimizer.lr_factors"], recipe.layers, optimizer.norms_follow, network.configuration
        )
        scale = image.eval_scale or (image.scale_min + image.scale_max) // 2
        return dataclasses.replace(
            recipe,
            image=dataclasses.replace(image, eval_scale=scale),
            optimizer=dataclasses.replace(optimizer, lr_factors=factors),
        )

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """Returns the recipe with other values of some keys, {"sharding": "fsdp"}; raises as `from_values`."""
        return Recipe.from_values({**self.given, **values})

    @property
    def layers(self) -> Layers:
        """Returns the network's layers; raises UserError where the crop is too small for it."""
        try:
            return self.model.network.layers(self.image.crop)
        except ValueError as error:
            raise UserError(
                f"config.image.crop is {self.image.crop}, and {error} of {self.model.network.configuration}; "
                "give a larger one."
            ) from error


def _parsed(cls: Any, values: Mapping[str, Any], prefix: str = "", **fields: Any) -> Any:
    """Returns a part of the recipe, made of the values whose keys begin with `prefix`."""
    for field in dataclasses.fields(cls):
        name = f"{prefix}{field.name}"
        if inner := field.metadata.get("part"):
            fields[field.name] = _parsed(inner, values, f"{name}.")
        elif "network" in field.metadata:
            fields[field.name] = NetworkSpec.from_config(values)
        elif declared := field.metadata.get("key"):
            value = float(values[name]) if isinstance(declared.default, float) else values[name]
            fields[field.name] = declared.parse(value) if declared.parse else value
    return cls(**fields)


def _keys(cls: Any, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yields (name, key) of a part of the recipe, in the order of definition."""
    for field in dataclasses.fields(cls):
        if inner := field.metadata.get("part"):
            yield from _keys(inner, f"{prefix}{field.name}.")
        elif "key" in field.metadata:
            yield f"{prefix}{field.name}", field.metadata["key"]
        for name, declared in field.metadata.get("network", {}).items():
            yield f"{prefix}{name}", declared


KEYS: dict[str, Key] = dict(_keys(Recipe))


def may_change(name: str, recipe: Recipe) -> bool:
    """Returns whether a continued run may have another value of a key."""
    if name == "num_epochs" and recipe.schedule.name == "cosine":  # which ends with the epochs
        return False
    return name in KEYS and KEYS[name].may_change


def scale_text(low: int, high: int) -> str:
    """Returns S in words: "256", or "256 to 512" for jitter."""
    return str(low) if low == high else f"{low} to {high}"
