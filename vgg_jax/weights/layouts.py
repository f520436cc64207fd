"""How other frameworks name and lay out a VGG's layers: one table, read in both directions.

This project's kernels are [h, w, C, F] for convolutions and FC layers alike (fc6 spans the last map, fc7 and fc8 are
1x1). What differs elsewhere is the order of axes, and for fc6 in which order a matrix's columns run over the last map:
channels, rows, columns in Caffe and torch; rows, columns, channels in Keras.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from vgg_jax.models import Layer, describe
from vgg_jax.models.description import layer_names
from vgg_jax.models.vgg import TABLE_1
from vgg_jax.weights.tensors import Tensor, WeightsError, short

Shape = tuple[int, ...]
SIDE_STRIDE = 32  # pixels of the crop for each row of fc6's kernel: five poolings
FC_LAYERS = ("fc6", "fc7", "fc8")


class KernelLayout(NamedTuple):
    """Layout of a kernel of shape [h, w, C, F] elsewhere."""

    shape: Callable[[Shape], Shape]  # ours -> theirs
    to_hwio: Callable[[np.ndarray, Shape], np.ndarray]  # (theirs, our shape) -> ours
    from_hwio: Callable[[np.ndarray], np.ndarray]


HWIO = KernelLayout(lambda s: s, lambda a, s: a, lambda k: k)
OIHW = KernelLayout(
    lambda s: (s[3], s[2], s[0], s[1]),
    lambda a, s: a.reshape(s[3], s[2], s[0], s[1]).transpose(2, 3, 1, 0),
    lambda k: k.transpose(3, 2, 0, 1),
)
# [F, C h w]
ROWS_OF_CHW = KernelLayout(
    lambda s: (s[3], s[2] * s[0] * s[1]),
    lambda a, s: a.reshape(s[3], s[2], s[0], s[1]).transpose(2, 3, 1, 0),
    lambda k: k.transpose(3, 2, 0, 1).reshape(k.shape[3], -1),
)
# [h w C, F]
COLUMNS_OF_HWC = KernelLayout(
    lambda s: (s[0] * s[1] * s[2], s[3]),
    lambda a, s: a.reshape(s),
    lambda k: k.reshape(-1, k.shape[3]),
)


class Layout(NamedTuple):
    """Layout of these models in a framework."""

    configurations: tuple[str, ...]  # that it has, the usual one first where names and shapes are those of several
    names: Callable[[str], dict[str, tuple[str, str]]]  # configuration -> {our layer: (kernel's name, bias's name)}
    forms: dict[str, KernelLayout]  # of fc6, fc7 and fc8; and of all convolutions, under "conv"
    leading_ones: bool = False  # do not count: Caffe of 2014 writes a bias [1, 1, 1, F] and a matrix [1, 1, F, C]


def _convolutions(configuration: str) -> list[Layer]:
    return [layer for layer in describe(configuration) if layer.kind == "conv"]


def _torch_names(configuration: str, fc: tuple[str, str, str]) -> dict[str, tuple[str, str]]:
    # `features` numbers convolutions, ReLUs and poolings in the order of computation.
    stems = [f"features.{i}" for i, layer in enumerate(describe(configuration)) if layer.kind == "conv"]
    return {
        layer: (f"{stem}.weight", f"{stem}.bias")
        for layer, stem in zip(layer_names(describe(configuration)), [*stems, *fc], strict=True)
    }


def _keras_names(configuration: str) -> dict[str, tuple[str, str]]:
    stems = [f"block{layer.block}_conv{layer.position}" for layer in _convolutions(configuration)] + [
        "fc1",
        "fc2",
        "predictions",
    ]
    return {
        layer: (f"{stem}/kernel", f"{stem}/bias")
        for layer, stem in zip(layer_names(describe(configuration)), stems, strict=True)
    }


LAYOUTS: dict[str, Layout] = {
    "torchvision": Layout(
        ("A", "B", "D", "E"),
        lambda c: _torch_names(c, ("classifier.0", "classifier.3", "classifier.6")),
        {"conv": OIHW} | dict.fromkeys(FC_LAYERS, ROWS_OF_CHW),
    ),
    "timm": Layout(
        ("A", "B", "D", "E"),
        lambda c: _torch_names(c, ("pre_logits.fc1", "pre_logits.fc2", "head.fc")),
        {"conv": OIHW, "fc6": OIHW, "fc7": OIHW, "fc8": ROWS_OF_CHW},
    ),
    "Keras": Layout(
        ("D", "E"),
        _keras_names,
        {"conv": HWIO} | dict.fromkeys(FC_LAYERS, COLUMNS_OF_HWC),
    ),
    "Caffe": Layout(
        tuple(TABLE_1),
        lambda c: {layer: (f"{layer}/0", f"{layer}/1") for layer in layer_names(describe(c))},
        {"conv": OIHW} | dict.fromkeys(FC_LAYERS, ROWS_OF_CHW),
        leading_ones=True,
    ),
    "vgg_jax": Layout(
        tuple(TABLE_1),
        lambda c: {layer: (f"{layer}/kernel", f"{layer}/bias") for layer in layer_names(describe(c))},
        {"conv": HWIO} | dict.fromkeys(FC_LAYERS, HWIO),
    ),
}


class Size(NamedTuple):
    """Values, besides the configuration, that determine a model's shapes."""

    width_multiplier: float
    fc_width: int
    num_classes: int  # 0: a trunk, without FC layers
    side: int  # rows and columns of fc6's kernel: crop // 32


def kernel_shapes(configuration: str, size: Size) -> dict[str, Shape]:
    """Returns the kernel shape [h, w, C, F] of every layer, in order, as `VGG.init` makes them."""
    shapes: dict[str, Shape] = {}
    channels = 3
    for layer in _convolutions(configuration):
        features = layer.scaled_channels(size.width_multiplier)
        shapes[layer.name] = (layer.kernel, layer.kernel, channels, features)
        channels = features
    if not size.num_classes:
        return shapes
    shapes["fc6"] = (size.side, size.side, channels, size.fc_width)
    shapes["fc7"] = (1, 1, size.fc_width, size.fc_width)
    shapes["fc8"] = (1, 1, size.fc_width, size.num_classes)
    return shapes


def kernel_layout(layout: Layout, layer: str) -> KernelLayout:
    return layout.forms.get(layer, layout.forms["conv"])


def identify(tensors: dict[str, Tensor], configuration: str = "") -> tuple[str, str, Size]:
    """Finds out whose model it is: every name and every shape must be right, and none too many.

    Args:
      tensors: of a file.
      configuration: a key of TABLE_1 that it must be; "" for the first that fits.

    Returns:
      A key of LAYOUTS, the configuration, and the model's size.

    Raises:
      WeightsError: none fits; with what comes nearest and where it differs.
    """
    names = set(tensors)
    candidates = [
        (len(names ^ _names(layout, c, is_trunk)), name, c, is_trunk)
        for is_trunk in (False, True)
        for name, layout in LAYOUTS.items()
        for c in layout.configurations
        if not configuration or c == configuration
    ]
    if not candidates:
        raise WeightsError(f"there is no configuration {configuration!r}; there are {', '.join(TABLE_1)}")
    apart, name, nearest, is_trunk = min(candidates, key=lambda candidate: candidate[0])
    if apart:
        raise WeightsError(_foreign(names, name, nearest, _names(LAYOUTS[name], nearest, is_trunk)))
    faults = []
    for _, name, matching, is_trunk in (candidate for candidate in candidates if not candidate[0]):
        size = _size(tensors, LAYOUTS[name], matching, is_trunk)
        wrong = _wrong_shapes(tensors, LAYOUTS[name], matching, size)
        if not wrong:
            return name, matching, size
        faults.append((len(wrong), f"it has the names of {name}'s configuration {matching}, but {_some(wrong)}"))
    raise WeightsError(min(faults)[1])


def _names(layout: Layout, configuration: str, is_trunk: bool) -> set[str]:
    pairs = layout.names(configuration).items()
    return {name for layer, pair in pairs if not (is_trunk and layer in FC_LAYERS) for name in pair}


def _size(tensors: dict[str, Tensor], layout: Layout, configuration: str, is_trunk: bool) -> Size:
    """Returns the size that fits best; the shapes then show whether it fits."""
    names = layout.names(configuration)

    def bias(layer: str) -> int:
        return math.prod(tensors[names[layer][1]].shape)

    convolutions = _convolutions(configuration)
    # Rounding hides a width in few channels more than in many.
    widths = sorted({bias(layer.name) / layer.channels for layer in convolutions})
    width = min(widths, key=lambda w: sum(layer.scaled_channels(w) != bias(layer.name) for layer in convolutions))
    if is_trunk:
        return trunk_size(width)
    cells = math.prod(tensors[names["fc6"][0]].shape) // max(1, bias("fc6") * bias(convolutions[-1].name))
    return Size(width, bias("fc6"), bias("fc8"), max(1, math.isqrt(cells)))


def _wrong_shapes(tensors: dict[str, Tensor], layout: Layout, configuration: str, size: Size) -> list[str]:
    wrong = []
    for layer, shape in kernel_shapes(configuration, size).items():
        expected = (kernel_layout(layout, layer).shape(shape), (shape[3],))
        for name, theirs in zip(layout.names(configuration)[layer], expected, strict=True):
            shape_there = tensors[name].shape
            if layout.leading_ones:
                shape_there, theirs = _plain(shape_there), _plain(theirs)
            if shape_there != theirs:
                wrong.append(f"{name} is {short(list(tensors[name].shape))} and should be {list(theirs)}")
    return wrong


def _plain(shape: Iterable[int]) -> Shape:
    """Returns a shape without leading ones."""
    dims = list(shape)
    while dims[:1] == [1]:
        del dims[0]
    return tuple(dims)


def _foreign(names: set[str], layout: str, configuration: str, expected: set[str]) -> str:
    if any(name.startswith(("layer1.0.", "layer4.", "conv2_block1", "res2a_")) for name in names):
        return "it holds the weights of a ResNet, but not of one that torchvision has under the names ResNet-18 to ResNet-152"
    if any(name.endswith(("running_mean", "moving_mean")) for name in names):
        return "it holds a network with batch normalisation that is neither torchvision's vgg11_bn to vgg19_bn nor one of its ResNets"
    if len(names & expected) * 2 < len(expected):
        some = f"its tensors are {_some(sorted(names))}" if names else "it holds no tensors"
        return (
            f"it is none of the models known here ({', '.join(LAYOUTS)}): {some}; a trunk with names of its own is taken out of it by "
            "--layers=PATTERNS"
        )
    missing, strange = sorted(expected - names), sorted(names - expected)
    parts = [f"{_some(missing)} missing"] * bool(missing) + [f"{_some(strange)} too many"] * bool(strange)
    return f"it comes nearest to {layout}'s configuration {configuration}, with {' and '.join(parts)}"


def _some(words: list[str]) -> str:
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    return ", ".join(short(word, 120) for word in words[:3]) + more


def crop_of(size: Size) -> int:
    """Returns the smallest crop whose last map fc6's kernel spans; of a trunk the paper's."""
    return size.side * SIDE_STRIDE


def trunk_size(width_multiplier: float) -> Size:
    """Returns the size of a trunk."""
    return Size(width_multiplier, 4096, 0, 7)


def mapped(tensors: dict[str, Tensor], patterns: str) -> dict[str, Tensor]:
    """Takes a VGG's trunk out of a file with names of its own.

    The tensors whose names fit a pattern are taken in natural order of their names (conv2d_2 before conv2d_10). The kernels among
    them, of four dimensions, are the convolutions in the order of computation, each with the bias, of one, that shares its group.

    Args:
      tensors: of a file.
      patterns: with commas between, * and ? as in file names.

    Returns:
      The tensors by this project's names.

    Raises:
      WeightsError: no trunk has kernels of these shapes, a pattern fits nothing, or a bias is missing.
    """
    words = [word.strip() for word in patterns.split(",") if word.strip()]
    if unused := [word for word in words if not fnmatch.filter(tensors, word)]:
        raise WeightsError(f"no tensor fits {unused[0]!r} of --layers; there are {_some(sorted(tensors))}")
    chosen = sorted((name for name in tensors if any(fnmatch.fnmatchcase(name, w) for w in words)), key=_natural)
    kernels = [name for name in chosen if len(tensors[name].shape) == 4]
    biases = {_group(name): name for name in chosen if len(tensors[name].shape) == 1}
    if not kernels or len(biases) != len(kernels) or any(_group(name) not in biases for name in kernels):
        raise WeightsError(
            f"--layers={patterns} takes {len(kernels)} kernels and {len(biases)} biases, and each kernel needs a bias in its group "
            f"({_some(chosen)})"
        )
    size = trunk_size(tensors[biases[_group(kernels[0])]].shape[0] / 64)
    for configuration, form in itertools.product(TABLE_1, (HWIO, OIHW)):
        shapes = kernel_shapes(configuration, size)
        if [form.shape(shape) for shape in shapes.values()] == [tensors[name].shape for name in kernels]:
            break
    else:
        shown = ", ".join(f"{short(name)} {list(tensors[name].shape)}" for name in kernels[:3])
        raise WeightsError(
            f"--layers={patterns} takes {len(kernels)} kernels ({shown}, ...), which are those of no configuration's trunk; name all "
            "of its convolutions and nothing else"
        )

    def kernel(name: str, shape: Shape) -> Tensor:
        return tensors[name]._replace(shape=shape, read=lambda: form.to_hwio(tensors[name].read(), shape))

    found: dict[str, Tensor] = {}
    for (layer, shape), name in zip(shapes.items(), kernels, strict=True):
        found |= {f"{layer}/kernel": kernel(name, shape), f"{layer}/bias": tensors[biases[_group(name)]]}
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """Returns a key that sorts numbers in names by value, and a name without one before those with: conv, conv_1, conv_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _group(name: str) -> str:
    """Returns what a kernel's and its bias's names have in common: all but the last part."""
    return re.split(r"[./]", name[::-1], maxsplit=1)[-1][::-1]
