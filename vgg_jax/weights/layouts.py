"""Names and axes of every array of the networks in each framework: one table, read in both directions.

This project's kernels are [h, w, C, F] for convolutions and FC layers alike (fc6 spans the last map, fc7 and fc8 are
1x1). Elsewhere the axes have another order, and a matrix's columns run over the last map in another order: channels,
rows, columns in Caffe and torch; rows, columns, channels in Keras.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from vgg_jax.models import Layer, Layers, NetworkSpec, make_network, variable_shapes
from vgg_jax.models.resnet import CIFAR_DEPTHS, STAGES
from vgg_jax.models.vgg import TABLE_1

Shape = tuple[int, ...]
# Pixels of the crop for each row of fc6's kernel: five poolings.
SIDE_STRIDE = 32
FC_LAYERS = ("fc6", "fc7", "fc8")
RESNETS = tuple(f"ResNet-{depth}" for depth in STAGES)
# torchvision does not have these, but others name them as it would.
CIFAR_RESNETS = tuple(f"ResNet-{depth}" for depth in CIFAR_DEPTHS)


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


class Size(NamedTuple):
    """Values, besides the configuration, that determine a model's shapes."""

    width_multiplier: float
    fc_width: int
    num_classes: int  # 0: a trunk, without FC layers
    side: int  # rows and columns of fc6's kernel: crop // 32


class Target(NamedTuple):
    """Location of a tensor in the variables."""

    collection: str
    layer: str
    leaf: str
    layout: KernelLayout  # HWIO, as it is, for vectors


class StoredModel(NamedTuple):
    """A network that a file holds."""

    framework: str
    network: NetworkSpec
    size: Size


class Framework(NamedTuple):
    """Networks of a framework, and how it names and stores their arrays."""

    networks: tuple[NetworkSpec, ...]  # of those with the same names of tensors the usual one first
    stems: Callable[[Layers], Iterator[tuple[Layer, str]]]  # yields each layer with parameters, and its name
    leaves: dict[str, str]  # our leaf -> their name, from the stem
    layout: Callable[[Layer], KernelLayout]  # of a layer's kernel
    trunk: str  # a pattern of its trunks' names, for --layers
    leading_ones: bool = False  # do not count: Caffe of 2014 writes a bias [1, 1, 1, F] and a matrix [1, 1, F, C]


def _with_trunks(*names: str) -> tuple[NetworkSpec, ...]:
    """Returns the networks of these names, and their trunks."""
    networks = [NetworkSpec.parse(name) for name in names]
    return (*networks, *(network.without_head() for network in networks))


def _torch_stems(*fc: str) -> Callable[[Layers], Iterator[tuple[Layer, str]]]:
    def stems(layers: Layers) -> Iterator[tuple[Layer, str]]:
        if any(layer.kind == "add" for layer in layers):
            yield from _resnet_stems(layers)
            return
        names = iter(fc)
        # `features` numbers its modules in the order of computation.
        for i, layer in enumerate(layers):
            if layer.has_params:
                yield layer, next(names) if layer.is_fully_connected else f"features.{i}"

    return stems


def _resnet_stems(layers: Layers) -> Iterator[tuple[Layer, str]]:
    counts: dict[tuple[int, int], int] = {}
    stem = ""
    for layer in layers:
        unit = layer.block, layer.position
        if layer.kind == "head":
            yield layer, "fc"
        elif layer.is_norm:
            # Its name follows from the convolution before it.
            yield layer, stem.replace("downsample.0", "downsample.1").replace("conv", "bn")
        elif layer.kind == "conv":
            prefix, stem = f"layer{layer.block - 1}.{layer.position - 1}.", "conv1"
            if layer.block > 1:
                counts[unit] = counts.get(unit, 0) + (not layer.inputs)
                stem = prefix + ("downsample.0" if layer.inputs else f"conv{counts[unit]}")
            yield layer, stem


def _keras_stems(layers: Layers) -> Iterator[tuple[Layer, str]]:
    tops = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions", "fc": "predictions"}
    for layer in layers:
        if layer.has_params:
            yield layer, tops.get(layer.name) or f"block{layer.block}_conv{layer.position}"


def _own_stems(layers: Layers) -> Iterator[tuple[Layer, str]]:
    return ((layer, layer.name) for layer in layers if layer.has_params)


_TORCH = {"kernel": ".weight", "bias": ".bias", "scale": ".weight", "mean": ".running_mean", "var": ".running_var"}
_VGGS = ("A", "B", "D", "E")
_VGGS_WITH_NORMS = tuple(f"{name}-BN" for name in _VGGS)
FRAMEWORKS: dict[str, Framework] = {
    "torchvision": Framework(
        (
            *_with_trunks(*_VGGS),
            *_with_trunks(*_VGGS_WITH_NORMS),
            *_with_trunks(*RESNETS),
            *_with_trunks(*CIFAR_RESNETS),
            *_with_trunks(*(f"{name} (shortcut B)" for name in CIFAR_RESNETS)),
        ),
        _torch_stems("classifier.0", "classifier.3", "classifier.6"),
        _TORCH,
        lambda layer: ROWS_OF_CHW if layer.is_fully_connected else OIHW,
        "features.*",
    ),
    "timm": Framework(
        tuple(map(NetworkSpec.parse, (*_VGGS, *_VGGS_WITH_NORMS))),
        _torch_stems("pre_logits.fc1", "pre_logits.fc2", "head.fc"),
        _TORCH,
        lambda layer: ROWS_OF_CHW if layer.kind == "head" else OIHW,
        "features.*",
    ),
    "Keras": Framework(
        (*_with_trunks("D", "E"), NetworkSpec.parse("D-GAP"), NetworkSpec.parse("E-GAP")),
        _keras_stems,
        {"kernel": "/kernel", "bias": "/bias"},
        lambda layer: COLUMNS_OF_HWC if layer.is_fully_connected else HWIO,
        "block*",
    ),
    "Caffe": Framework(
        _with_trunks(*TABLE_1),
        _own_stems,
        {"kernel": "/0", "bias": "/1"},
        lambda layer: ROWS_OF_CHW if layer.is_fully_connected else OIHW,
        "conv*",
        leading_ones=True,
    ),
    # Names of a widely used port to TensorFlow: conv1_1_W, fc6_b.
    "NumPy": Framework(
        _with_trunks(*TABLE_1),
        _own_stems,
        {"kernel": "_W", "bias": "_b"},
        lambda layer: COLUMNS_OF_HWC if layer.is_fully_connected else HWIO,
        "conv*",
    ),
    "vgg_jax": Framework(
        _with_trunks(*TABLE_1),
        _own_stems,
        {leaf: f"/{leaf}" for leaf in ("kernel", "bias", "scale", "mean", "var")},
        lambda layer: HWIO,
        "conv*",
    ),
}
_NOT_IN_PARAMS = ("mean", "var")


def targets(framework: str, network: NetworkSpec) -> dict[str, Target]:
    """Returns where each tensor of a framework's file belongs, by its name."""
    table, named = FRAMEWORKS[framework], dict[str, Target]()
    for layer, stem in table.stems(network.layers()):
        leaves = ("kernel", "bias")[: 1 + layer.has_bias] if layer.has_kernel else ("scale", "bias", *_NOT_IN_PARAMS)
        for leaf in leaves:
            collection = "batch_stats" if leaf in _NOT_IN_PARAMS else "params"
            layout = table.layout(layer) if leaf == "kernel" else HWIO
            named[stem + table.leaves[leaf]] = Target(collection, layer.name, leaf, layout)
    return named


def shapes(model: StoredModel) -> Any:
    """Returns the model's variables as jax.ShapeDtypeStruct."""
    size = model.size
    network = make_network(
        model.network,
        crop_of(size),
        num_classes=size.num_classes,
        width_multiplier=size.width_multiplier,
        fc_width=size.fc_width,
    )
    return variable_shapes(network)


def to_variables(read: Callable[[str], np.ndarray], model: StoredModel) -> dict:
    """Returns a model's variables, float32; `read` gives a tensor by its name."""
    expected, variables = shapes(model), dict[str, dict[str, dict[str, np.ndarray]]]()
    for name, target in targets(model.framework, model.network).items():
        shape = expected[target.collection][target.layer][target.leaf].shape
        array = read(name) if target.leaf == "kernel" else read(name).reshape(shape)
        value = in_one_piece(target.layout.to_hwio(array, shape))
        variables.setdefault(target.collection, {}).setdefault(target.layer, {})[target.leaf] = value
    return variables


def from_variables(variables: dict, framework: str, network: NetworkSpec) -> dict[str, np.ndarray]:
    """Returns the tensors of a framework's file."""
    return {
        name: target.layout.from_hwio(variables[target.collection][target.layer][target.leaf])
        for name, target in targets(framework, network).items()
    }


def in_one_piece(kernel_hxwxCxF: np.ndarray) -> np.ndarray:
    """Returns a kernel in contiguous memory; copies a few output channels at a time, whose rows the caches hold."""
    if kernel_hxwxCxF.flags.c_contiguous:
        return kernel_hxwxCxF
    copy = np.empty(kernel_hxwxCxF.shape, kernel_hxwxCxF.dtype)
    for start in range(0, copy.shape[-1], 64):
        copy[..., start : start + 64] = kernel_hxwxCxF[..., start : start + 64]
    return copy


def crop_of(size: Size) -> int:
    """Returns the smallest crop whose last map fc6's kernel spans; of a trunk the paper's."""
    return size.side * SIDE_STRIDE


def size_without_fc6(width_multiplier: float, network: NetworkSpec, num_classes: int = 0) -> Size:
    """Returns the size of a trunk, or of a network whose head takes any map, for the crop that it was published for."""
    return Size(width_multiplier, 4096, num_classes, network.paper_crop // SIDE_STRIDE)
