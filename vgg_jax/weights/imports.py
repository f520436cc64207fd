"""Imports weights of any supported file: identifies the framework, the network and the preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vgg_jax.models import NetworkSpec
from vgg_jax.models.description import LARGEST_SCALE, auxiliary_heads
from vgg_jax.models.initializers import PRESETS
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights import containers, imagenet_classes, layouts, preprocessing
from vgg_jax.weights.file import EXPORTED_KEY, KEY, Weights, fault_of_names, load_own
from vgg_jax.weights.identification import identify, mapped
from vgg_jax.weights.model_config import ModelConfig
from vgg_jax.weights.tensors import TensorFile, WeightsError, short


class Digests(NamedTuple):
    """Digests of a file, hexadecimal."""

    sha256: str
    md5: str


class Published(NamedTuple):
    """A file whose makers say how its pixels are prepared, and by what it is known."""

    name: str
    sha256: str = ""  # first digits
    md5: str = ""


# torchvision writes the first eight digits of the SHA-256 into the file's name; Keras has MD5 sums in its code. These
# are the files that `weights.hub` fetches by name, of ResNets those by the paper's recipe.
TORCHVISION = (
    "vgg11-8a719046",
    "vgg13-19584684",
    "vgg16-397923af",
    "vgg19-dcbb9e9d",
    "vgg11_bn-6002323d",
    "vgg13_bn-abd245e5",
    "vgg16_bn-6c64b313",
    "vgg19_bn-c79401a0",
    "resnet18-f37072fd",
    "resnet34-b627a593",
    "resnet50-0676ba61",
    "resnet101-63fe2227",
    "resnet152-394f9c45",
)
_OTHER_VERSIONS = ("vgg11-bbd30ac9", "vgg13-c768596a", "resnet50-11ad3fa6", "resnet101-cd907fc2", "resnet152-f82ba261")
PUBLISHED: tuple[tuple[Published, str], ...] = (
    *(
        (Published(f"torchvision's {name}.pth", sha256=name.split("-")[1]), "torchvision")
        for name in (*TORCHVISION, *_OTHER_VERSIONS)
    ),
    (Published("Keras's VGG16", md5="64373286793e3c8b2b4e3219cbf3544b"), "caffe"),
    (Published("Keras's VGG19", md5="cbe5617147190e668d6c5d5026f83318"), "caffe"),
)
_MAPPED = "--layers"  # stands for the layout of files with other names
# What is usual for files of a layout that are not known one by one, and why it is not simply taken.
_USUAL = {
    "torchvision": ("torchvision", "torchvision's own take `torchvision`, ports of the authors' Caffe models `caffe`"),
    "Keras": ("caffe", "keras.applications.vgg16.preprocess_input is `caffe`"),
    "Caffe": ("caffe", "the authors' own take `caffe`"),
    "NumPy": ("mean_rgb", "the usual port of the authors' VGG-16 takes red first and `mean_rgb`"),
    "vgg_jax": (
        "mean_rgb",
        "it has our names but no metadata; models trained here take `mean_rgb`",
    ),
    _MAPPED: ("caffe", "its makers say which; the authors' own take `caffe`"),
}


class FileHints(NamedTuple):
    """Hints of a person about a file; "" where the file itself tells."""

    configuration: str = ""  # name of the network that it must be, see `identification.identify`
    preprocessing: str = ""  # see `preprocessing.parse`
    training_scales: str = ""  # S in pixels, one number or two with a comma
    layers: str = ""  # see `identification.mapped`, for a file with other names


NO_HINTS = FileHints()


def import_weights(
    path: Path, digests: Digests, hints: FileHints = NO_HINTS, config: ModelConfig | None = None
) -> tuple[Weights, str]:
    """Reads a file of weights of any kind.

    Args:
      path: of the file.
      digests: of it.
      hints: for what the file, or its being a published one, does not tell; S is then 256 at crop 224.
      config: of the files next to it on the hub, which must not contradict it.

    Returns:
      The weights, and in words what they were found to be.

    Raises:
      UserError: whatever `containers.open_tensors` and `identification.identify` refuse, or an unknown preprocessing.
    """
    with containers.open_tensors(path) as contents:
        if KEY in contents.metadata:
            return _import_own(path, contents, hints)
        if hints.layers:
            contents = contents._replace(tensors=mapped(contents.tensors, hints.layers))
        model = identify(contents.tensors, hints.configuration)
        layout, size = _MAPPED if hints.layers else model.framework, model.size
        origin, known = _provenance(contents, layout, digests)
        crop = _crop(model, config)
        name, expected = _expected(path, contents, hints.preprocessing, known, layout, config)
        model_state = layouts.to_variables(lambda tensor: containers.read_array(contents, tensor), model)
    params = model_state.pop("params")
    weights = Weights(
        params=params,
        network=model.network,
        width_multiplier=size.width_multiplier,
        fc_width=size.fc_width,
        crop=crop,
        training_scales=_imported_scales(hints.training_scales, known, model.network, crop, config),
        preprocessing=expected,
        class_names=list(imagenet_classes.titles()) if known and size.num_classes == 1000 else None,
        class_titles=None,
        source=f"{origin}, {path.name}, sha256 {digests.sha256}",
        model_state=model_state,
    )
    kind = " with global average pooling" * (model.network.head == "gap")
    kind += " with batch normalisation" * bool(model_state) + ", a trunk without classifier" * (not weights.num_classes)
    names = "names of its own" if layout == _MAPPED else f"{layout}'s layout"
    if config and config.interpolation not in ("", "bilinear"):
        name += f", resized bilinearly and not {short(config.interpolation)} as its config.json says"
    said = f"{origin}: {names}, configuration {model.network.configuration}{kind}, preprocessing {name}"
    return _with_labels(weights, config), said


def _import_own(path: Path, contents: TensorFile, hints: FileHints) -> tuple[Weights, str]:
    """Reads this project's own file, as `import_weights`."""
    if hints.configuration or hints.preprocessing:
        raise UserError(
            f"{path} says itself what it is, so --configuration and --preprocessing are not for it; leave them out."
        )
    weights = load_own(contents)
    if hints.training_scales:
        weights = weights._replace(training_scales=_scales(hints.training_scales, weights.crop))
    return weights, f"this project's own, configuration {weights.configuration}; {weights.source}"


def _imported_scales(
    given: str, known: str, network: NetworkSpec, crop: int, config: ModelConfig | None
) -> tuple[int, int]:
    """Returns S: of the flag, the config.json, or what is usual of such a file."""
    if given:
        return _scales(given, crop)
    if config and config.scale:
        return _scales(str(config.scale), crop)
    # The authors' two published models were trained with jitter; all others, as far as their makers say, at 256.
    usual = "256,512" if known == "caffe" else "256" if network.paper_crop == 224 else "32"
    return _scales(usual, crop, crop / network.paper_crop)


def _with_labels(weights: Weights, config: ModelConfig | None) -> Weights:
    """Returns weights with the labels of a config.json; those that are not unique are titles alone."""
    if config is None or not config.labels or not weights.num_classes:
        return weights
    are_names = not fault_of_names(config.labels, once=True)
    return weights._replace(class_names=config.labels if are_names else weights.class_names, class_titles=config.labels)


def with_new_head(weights: Weights, num_classes: int, seed: int) -> Weights:
    """Replaces the last layers, of auxiliary classifiers too, by ones for other classes, drawn by `glorot`."""
    if not weights.num_classes:
        raise UserError(
            f"--num_classes={num_classes} is for a model with a head, and this is a trunk; fine-tune from it with "
            "--config.init_from, which adds one."
        )
    params, key = dict(weights.params), jax.random.key(seed)
    for name in (weights.layers[-1].name, *auxiliary_heads(weights.layers)):
        width = params[name]["kernel"].shape[2]
        kernel_init, bias_init = PRESETS["glorot"](width, num_classes)
        kernel = kernel_init(key, (1, 1, width, num_classes), jnp.float32)
        params[name] = jax.device_get({"kernel": kernel, "bias": bias_init(key, (num_classes,), jnp.float32)})
        key = jax.random.fold_in(key, 1)
    return weights._replace(
        params=params,
        class_names=None,
        class_titles=None,
        source=f"{weights.source}; a new head of {num_classes} classes, seed {seed}",
    )


def with_class_names(weights: Weights, listing: str, source: str) -> Weights:
    """Names for the classes.

    Args:
      weights: any.
      listing: one name a line, in the order of the classes; where every line begins with a WNID (n01440764 tench), that
        is the name, by which data sets know a class, and the rest is what a person reads.
      source: where the listing came from, for the message.

    Raises:
      UserError: another number of names, or one of them twice.
    """
    lines = [line.strip() for line in listing.split("\n") if line.strip()]
    first = [line.split()[0] for line in lines]
    wnids = all(len(word) == 9 and word[0] == "n" and word[1:].isdigit() for word in first)
    names = first if wnids else lines
    if fault := fault_of_names(lines, once=True):
        raise UserError(
            f"--class_names={source} cannot be: {fault}; give one a line, in the order of the model's classes."
        )
    if len(names) != weights.num_classes or len(set(names)) != len(names):
        raise UserError(
            f"--class_names={source} has {len(names)} names ({len(set(names))} different) for {weights.num_classes} "
            "classes; give one a line, in the order of the model's classes."
        )
    titles = [line.removeprefix(word).strip() or word for line, word in zip(lines, first, strict=True)]
    return weights._replace(class_names=names, class_titles=titles if wnids else None)


def _crop(model: layouts.StoredModel, config: ModelConfig | None) -> int:
    """Returns the crop of a model; raises WeightsError where its config.json contradicts the file."""
    crop, classes = layouts.crop_of(model.size), model.size.num_classes
    if config is None:
        return crop
    if classes and config.num_classes not in (0, classes):
        raise WeightsError(f"its head has {classes} classes, and the config.json next to it says {config.num_classes}")
    if classes and config.labels and len(config.labels) != classes:
        raise WeightsError(
            f"its head has {classes} classes, and the config.json next to it {len(config.labels)} labels"
        )
    has_fc6 = any(layer.kind == "fc" for layer in model.network.layers())
    if has_fc6 and config.crop not in (0, crop):
        raise WeightsError(f"its FC layers are for a crop of {crop}, and the config.json next to it says {config.crop}")
    try:
        model.network.layers(config.crop or crop)
    except ValueError as error:
        raise WeightsError(f"the config.json next to it does not fit: {error}") from error
    return config.crop or crop


def _expected(
    path: Path, contents: TensorFile, flag: str, known: str, layout: str, config: ModelConfig | None
) -> tuple[str, preprocessing.Preprocessing]:
    """Returns the preprocessing and its name: of the flag, the file, its config.json, or published models."""
    told = contents.metadata.get(EXPORTED_KEY, "")
    of_config = config.preprocessing if config else None
    # All of timm's VGGs are known by their names alone, which a config.json may correct.
    says = _told(told) if told else preprocessing.KNOWN[known] if known and layout != "timm" else None
    if of_config and not flag:
        if says not in (None, of_config):
            raise WeightsError(
                f"its own preprocessing is mean {list(says.mean)} and std {list(says.std)}, and the config.json next "
                f"to it says {list(of_config.mean)} and {list(of_config.std)}; choose one with --preprocessing"
            )
        return "as its config.json says", of_config
    name = flag or ("as the file says" if told else known)
    if not name:
        usual, why = _USUAL[layout]
        raise UserError(
            f"{path} does not say how its pixels are prepared; say it with --preprocessing={usual} or another of "
            f"{', '.join(preprocessing.KNOWN)}, or ORDER:SCALE:MEAN:STD ({why})."
        )
    return name, _told(told) if told and not flag else preprocessing.parse(name)


def _told(text: str) -> preprocessing.Preprocessing:
    """Returns the preprocessing in the metadata of a file that this project exported."""
    try:
        return preprocessing.from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"its preprocessing is damaged ({short(str(error))})") from error


def _provenance(contents: TensorFile, layout: str, digests: Digests) -> tuple[str, str]:
    """Returns the known origin of a file in words, and the name of its preprocessing ("" where it is unknown)."""
    for published, name in PUBLISHED:
        if (published.sha256 and digests.sha256.startswith(published.sha256)) or (
            published.md5 and digests.md5 == published.md5
        ):
            return published.name, name
    model = contents.metadata.get("name", "")
    # The authors' two models are named so in their files.
    if layout == "Caffe" and model.startswith("VGG_ILSVRC_"):
        return f"Caffe's {model}", "caffe"
    # All of timm's VGGs are prepared alike, and nobody else names layers so.
    if layout == "timm":
        return contents.kind, "torchvision"
    return contents.kind, ""


def _scales(text: str, crop: int, factor: float = 1) -> tuple[int, int]:
    try:
        numbers = [round(int(word) * factor) for word in text.split(",")]
        low, high = numbers if len(numbers) == 2 else numbers * 2
    except ValueError:
        raise UserError(
            f"--training_scales={text} is neither a number nor two with a comma, as 256 or 256,512."
        ) from None
    if not crop <= low <= high <= LARGEST_SCALE:
        raise UserError(f"--training_scales={text} must be from the crop, {crop}, to {LARGEST_SCALE}, and ascending.")
    return low, high
