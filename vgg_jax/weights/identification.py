"""Identification of the network that a file holds, by the names and shapes of its tensors."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import math
import re
from collections.abc import Iterable, Mapping

from vgg_jax.models import NetworkSpec, known_name
from vgg_jax.models.description import LARGEST_CROP
from vgg_jax.models.vgg import TABLE_1
from vgg_jax.weights.layouts import (
    FRAMEWORKS,
    HWIO,
    OIHW,
    Shape,
    Size,
    StoredModel,
    Target,
    crop_of,
    shapes,
    size_without_fc6,
    targets,
)
from vgg_jax.weights.tensors import Tensor, WeightsError, short

_COUNTER = "num_batches_tracked"  # of a running average, which nothing needs
_ONE_CLASS = (
    "its head has one output, as for a sigmoid, and a classifier here has at least two classes; give the head a row of "
    "zeros before its own, since the softmax of (0, x) is the sigmoid of x"
)
# Networks of torchvision's (and timm's) that are not the published ones: (a tensor, its shape, the sentence).
_NAMESAKES = (
    (
        "features.0.weight",
        (64, 3, 11, 11),
        'it is torchvision\'s alexnet, the network of "One weird trick" (64, 192, 384, 256 and 256 channels, no '
        "groups, no LRN), and not AlexNet as published; train that with --config=configs/alexnet.py",
    ),
    (
        "inception3a.branch1.conv.weight",
        (64, 192, 1, 1),
        "it is torchvision's googlenet, which has batch normalisation and 3x3 convolutions in place of 5x5, and not "
        "GoogLeNet as published; train that with --config=configs/googlenet.py",
    ),
)


def identify(tensors: Mapping[str, Tensor], name: str = "") -> StoredModel:
    """Identifies the model: every name and every shape must be right, and none too many.

    Args:
      tensors: of a file.
      name: of the network that it must be, see `NetworkSpec.parse`; a configuration's stands for it with all options.
        "" for the first network that fits.

    Raises:
      WeightsError: none fits; with what comes nearest and where it differs.
    """
    for tensor, shape, sentence in _NAMESAKES:
        if tensor in tensors and tensors[tensor].shape == shape:
            raise WeightsError(sentence)
    names = {name for name in tensors if not name.endswith(_COUNTER)}
    candidates = [
        (framework, network, targets(framework, network))
        for framework, table in FRAMEWORKS.items()
        for network in table.networks
        # A trunk's name is its configuration's.
        if known_name(name) in ("", network.configuration, network.name)
    ]
    if not candidates:
        raise WeightsError(f"there is no configuration {name!r}; there are {', '.join(TABLE_1)}")
    faults = []
    for framework, network, table in candidates:
        if set(table) == names:
            model = StoredModel(framework, network, _size(tensors, table, network))
            if crop_of(model.size) > LARGEST_CROP:
                raise WeightsError(
                    f"its FC layers are for crops of {crop_of(model.size):,} pixels, and the largest is "
                    f"{LARGEST_CROP:,}"
                )
            if not (wrong := _wrong_shapes(tensors, table, model)):
                if model.size.num_classes == 1:
                    raise WeightsError(_ONE_CLASS)
                return model
            faults.append(
                (len(wrong), f"it has the names of {framework}'s {network.configuration}, but {_listed(wrong)}")
            )
        elif names and names == {key for key, target in table.items() if target.collection == "params"}:
            raise WeightsError(
                f"it has the parameters of {framework}'s {network.configuration} with batch normalisation, but no "
                "running averages (running_mean, running_var), without which it cannot classify; save the whole state "
                "dictionary, or if its layers are others without averages (GroupNorm), no network here computes them"
            )
    if faults:
        raise WeightsError(min(faults)[1])
    framework, network, table = min(candidates, key=lambda candidate: len(names ^ set(candidate[2])))
    raise WeightsError(_foreign(names, framework, network.configuration, set(table)))


def _size(tensors: Mapping[str, Tensor], table: Mapping[str, Target], network: NetworkSpec) -> Size:
    """Returns the size that fits best; the shapes then show whether it fits."""
    layers = network.layers()
    # Every layer has a vector of as many numbers as it has outputs: a bias, or its normalisation's.
    counts = {target.layer: math.prod(tensors[name].shape) for name, target in table.items() if target.leaf == "bias"}
    kernels = {
        target.layer: math.prod(tensors[name].shape) for name, target in table.items() if target.leaf == "kernel"
    }
    norms = {a.name: b.name for a, b in itertools.pairwise(layers) if b.is_norm}
    convolutions = [layer for layer in layers if layer.kind == "conv"]
    outputs = {layer.name: counts.get(norms.get(layer.name, layer.name), 0) for layer in convolutions}
    # Rounding hides a width in few channels more than in many.
    widths = sorted({outputs[layer.name] / layer.channels for layer in convolutions})
    width = min(widths, key=lambda w: sum(layer.scaled_channels(w) != outputs[layer.name] for layer in convolutions))
    if layers[-1].kind != "head":
        return size_without_fc6(width, network)
    hidden = [layer.name for layer in layers if layer.kind == "fc"]
    if not hidden:
        return size_without_fc6(width, network, counts[layers[-1].name])
    cells = kernels[hidden[0]] // max(1, counts[hidden[0]] * outputs[convolutions[-1].name])
    return Size(width, counts[hidden[0]], counts[layers[-1].name], max(1, math.isqrt(cells)))


def _wrong_shapes(tensors: Mapping[str, Tensor], table: Mapping[str, Target], model: StoredModel) -> list[str]:
    wrong, expected = [], shapes(model)
    plain = _plain if FRAMEWORKS[model.framework].leading_ones else tuple
    for name, target in table.items():
        theirs = target.layout.shape(expected[target.collection][target.layer][target.leaf].shape)
        if plain(tensors[name].shape) != plain(theirs):
            wrong.append(f"{short(name)} is {short(list(tensors[name].shape))} and should be {list(theirs)}")
    return wrong


def _plain(shape: Iterable[int]) -> Shape:
    """Returns a shape without leading ones."""
    return tuple(itertools.dropwhile(lambda n: n == 1, shape))


def _foreign(names: set[str], framework: str, configuration: str, expected: set[str]) -> str:
    if any(name.startswith(("conv2_block1", "res2a_")) for name in names):
        return (
            "it holds a ResNet by the names of Keras or Caffe, and ResNets are read by those of torchvision and "
            "transformers"
        )
    if len(names & expected) * 2 < len(expected):
        shown = f"its tensors are {_listed(sorted(names))}" if names else "it holds no tensors"
        return (
            f"it is none of the models known here ({', '.join(FRAMEWORKS)}): {shown}; a trunk with names of its own is "
            "taken out of it by --layers=PATTERNS"
        )
    missing, strange = sorted(expected - names), sorted(names - expected)
    parts = [f"{_listed(missing)} missing"] * bool(missing) + [f"{_listed(strange)} too many"] * bool(strange)
    pattern = FRAMEWORKS[framework].trunk
    trunk = set(fnmatch.filter(expected, pattern))
    is_whole = bool(trunk) and trunk == set(fnmatch.filter(names, pattern))
    remedy = f"; its trunk alone is taken by --layers='{pattern}'" * is_whole
    return f"it comes nearest to {framework}'s configuration {configuration}, with {' and '.join(parts)}{remedy}"


def _listed(words: list[str]) -> str:
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    return ", ".join(short(word, 120) for word in words[:3]) + more


def mapped(tensors: dict[str, Tensor], patterns: str) -> dict[str, Tensor]:
    """Takes a network, or a VGG's trunk under its own names, out of a file with more in it.

    The tensors whose names fit a pattern are taken in natural order of their names (conv2d_2 before conv2d_10). The
    kernels among them, of four dimensions, are the convolutions in the order of computation, each with the bias, of
    one, that shares its group.

    Args:
      tensors: of a file.
      patterns: with commas between, * and ? as in file names.

    Returns:
      The tensors: unchanged where they are a model's that `identify` knows, else by this project's names.

    Raises:
      WeightsError: no trunk has kernels of these shapes, a pattern fits nothing, or a bias is missing.
    """
    words = [word.strip() for word in patterns.split(",") if word.strip()]
    if unused := [word for word in words if not fnmatch.filter(tensors, word)]:
        raise WeightsError(f"no tensor fits {unused[0]!r} of --layers; there are {_listed(sorted(tensors))}")
    chosen = sorted((name for name in tensors if any(fnmatch.fnmatchcase(name, w) for w in words)), key=_natural)
    known = {name: tensors[name] for name in chosen}
    with contextlib.suppress(WeightsError):
        identify(known)
        return known
    kernels = [name for name in chosen if len(tensors[name].shape) == 4]
    biases = {_group(name): name for name in chosen if len(tensors[name].shape) == 1}
    if not kernels or len(biases) != len(kernels) or any(_group(name) not in biases for name in kernels):
        raise WeightsError(
            f"--layers={patterns} takes {len(kernels)} kernels and {len(biases)} biases, and each kernel needs a bias "
            f"in its group ({_listed(chosen)})"
        )
    size = size_without_fc6(tensors[biases[_group(kernels[0])]].shape[0] / 64, NetworkSpec("D"))
    for configuration, form in itertools.product(TABLE_1, (HWIO, OIHW)):
        trunk = shapes(StoredModel("vgg_jax", NetworkSpec(configuration).without_head(), size))["params"]
        if [form.shape(leaves["kernel"].shape) for leaves in trunk.values()] == [
            tensors[name].shape for name in kernels
        ]:
            break
    else:
        shown = ", ".join(f"{short(name)} {list(tensors[name].shape)}" for name in kernels[:3])
        raise WeightsError(
            f"--layers={patterns} takes {len(kernels)} kernels ({shown}, ...), which are those of no configuration's "
            "trunk; name all of its convolutions and nothing else"
        )

    def kernel(name: str, shape: Shape) -> Tensor:
        return tensors[name]._replace(shape=shape, read=lambda: form.to_hwio(tensors[name].read(), shape))

    found: dict[str, Tensor] = {}
    for (layer, leaves), name in zip(trunk.items(), kernels, strict=True):
        found |= {
            f"{layer}/kernel": kernel(name, leaves["kernel"].shape),
            f"{layer}/bias": tensors[biases[_group(name)]],
        }
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts names by the numbers in them: conv, conv_1, conv_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _group(name: str) -> str:
    """Returns what a kernel's and its bias's names have in common: all but the last part."""
    return re.split(r"[./]", name[::-1], maxsplit=1)[-1][::-1]
