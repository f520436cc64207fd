"""Batch-normalised VGGs and ResNets as torchvision and timm store them: names and axes of every array, in both directions.

Networks without statistics are in `layouts`. Of a running average torch also stores how many batches it saw, which nothing needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.models import NO_HEAD, Layer, Layers, describe, make_network
from vgg_jax.models.resnet import STAGES
from vgg_jax.weights.layouts import HWIO, OIHW, ROWS_OF_CHW, KernelLayout, Size, crop_of, trunk_size
from vgg_jax.weights.tensors import Tensor, WeightsError, short

_COUNTER = "num_batches_tracked"
_LEAVES = {
    "scale": ("params", "weight"),
    "bias": ("params", "bias"),
    "mean": ("batch_stats", "running_mean"),
    "var": ("batch_stats", "running_var"),
}
_HEADS = {
    "torchvision": ("classifier.0", "classifier.3", "classifier.6"),
    "timm": ("pre_logits.fc1", "pre_logits.fc2", "head.fc"),
}
RESNETS = tuple(f"ResNet-{depth}" for depth in STAGES)
# (library, configuration, what else describes it); of a ResNet's files both libraries' names are the same.
_CANDIDATES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *((library, name, {"batch_norm": True}) for library in _HEADS for name in ("A", "B", "D", "E")),
    *(("torchvision", name, {"batch_norm": True, "head": NO_HEAD}) for name in ("A", "B", "D", "E")),
    *(("torchvision", name, {}) for name in RESNETS),
)
# Networks of torchvision's (and timm's) that are not the published ones: (a tensor, its shape, the sentence).
_NAMESAKES = (
    (
        "features.0.weight",
        (64, 3, 11, 11),
        'it is torchvision\'s alexnet, the network of "One weird trick" (64, 192, 384, 256 and 256 channels, no groups, no LRN), and not '
        "AlexNet as published; train that with --config=configs/alexnet.py",
    ),
    (
        "inception3a.branch1.conv.weight",
        (64, 192, 1, 1),
        "it is torchvision's googlenet, which has batch normalisation and 3x3 convolutions in place of 5x5, and not GoogLeNet as "
        "published; train that with --config=configs/googlenet.py",
    ),
)


class Array(NamedTuple):
    """Place of a torch tensor in the variables."""

    collection: str
    layer: str
    leaf: str
    layout: KernelLayout  # of a kernel; HWIO, as it is, for vectors


class Identified(NamedTuple):
    """A network that a file holds."""

    library: str  # torchvision or timm
    configuration: str
    description: dict[str, Any]
    size: Size


def arrays(library: str, configuration: str, description: Mapping[str, Any]) -> dict[str, Array]:
    """Returns where each tensor of a state dictionary belongs, by its name."""
    stems = dict(_stems(library, configuration, description))
    named: dict[str, Array] = {}
    for layer in describe(configuration, **description):
        if layer.has_kernel:
            layout = ROWS_OF_CHW if layer.kind == "head" or (library == "torchvision" and layer.kind == "fc") else OIHW
            named[f"{stems[layer.name]}.weight"] = Array("params", layer.name, "kernel", layout)
            if layer.has_bias:
                named[f"{stems[layer.name]}.bias"] = Array("params", layer.name, "bias", HWIO)
        elif layer.kind == "batch_norm":
            for leaf, (collection, theirs) in _LEAVES.items():
                named[f"{stems[layer.name]}.{theirs}"] = Array(collection, layer.name, leaf, HWIO)
    return named


def _stems(library: str, configuration: str, description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (our layer, the module of torch's that it is) of all layers with parameters."""
    layers = describe(configuration, **description)
    if not configuration.startswith("ResNet"):
        fc = iter(_HEADS[library])
        for i, layer in enumerate(layers):  # `features` numbers its modules in the order of computation
            if layer.has_params:
                yield layer.name, next(fc) if layer.is_fully_connected else f"features.{i}"
        return
    counts: dict[tuple[int, int], int] = {}
    stem = ""
    for layer in layers:
        unit = layer.block, layer.position
        if layer.kind == "head":
            yield layer.name, "fc"
        elif layer.kind == "conv" and layer.block == 1:
            stem = "conv1"
            yield layer.name, stem
        elif layer.kind == "conv":
            prefix = f"layer{layer.block - 1}.{layer.position - 1}"
            counts[unit] = counts.get(unit, 0) + (not layer.inputs)
            stem = f"{prefix}.downsample.0" if layer.inputs else f"{prefix}.conv{counts[unit]}"
            yield layer.name, stem
        elif layer.kind == "batch_norm":  # of the convolution before it
            yield layer.name, stem.replace("downsample.0", "downsample.1").replace("conv", "bn")


def identify(tensors: Mapping[str, Tensor], configuration: str = "") -> Identified | None:
    """Returns the network whose names these are; None where they are no such network's.

    Args:
      tensors: of a file.
      configuration: that it must be; "" for any.

    Raises:
      WeightsError: the running averages are missing; the names are right, but shapes are not, as those of a ResNeXt are; or it is
        another network of the same name.
    """
    for name, shape, sentence in _NAMESAKES:
        if name in tensors and tensors[name].shape == shape:
            raise WeightsError(sentence)
    names = {name for name in tensors if not name.endswith(_COUNTER)}
    for library, candidate, description in _CANDIDATES:
        table = arrays(library, candidate, description)
        if configuration not in ("", candidate):
            continue
        if names and names == {name for name, array in table.items() if array.collection == "params"}:
            raise WeightsError(
                f"it has the parameters of {library}'s {candidate} with batch normalisation, but no running averages "
                "(running_mean, running_var), without which it cannot classify; save the whole state dictionary"
            )
        if names != set(table):
            continue
        size = _size(tensors, table, describe(candidate, **description))
        shapes = _shapes(candidate, description, size)
        for name, array in table.items():
            ours = shapes[array.collection][array.layer][array.leaf].shape
            theirs = array.layout.shape(ours)
            if tensors[name].shape != theirs:
                raise WeightsError(
                    f"it has the names of {library}'s {candidate}, but {short(name)} is {short(list(tensors[name].shape))} and "
                    f"should be {list(theirs)}"
                )
        return Identified(library, candidate, description, size)
    return None


def to_variables(tensors: Mapping[str, np.ndarray], identified: Identified) -> dict:
    """Returns a network's variables from a state dictionary's arrays, float32."""
    shapes = _shapes(*identified[1:])
    variables: dict[str, dict[str, dict[str, np.ndarray]]] = {"params": {}, "batch_stats": {}}
    for name, array in arrays(*identified[:3]).items():
        ours = shapes[array.collection][array.layer][array.leaf].shape
        value = np.ascontiguousarray(array.layout.to_hwio(tensors[name], ours))
        variables[array.collection].setdefault(array.layer, {})[array.leaf] = value
    return variables


def to_state_dict(variables: dict, configuration: str, description: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the state dictionary of torchvision's model."""
    return {
        name: array.layout.from_hwio(variables[array.collection][array.layer][array.leaf])
        for name, array in arrays("torchvision", configuration, description).items()
    }


def _size(tensors: Mapping[str, Tensor], table: Mapping[str, Array], layers: Layers) -> Size:
    """Returns the size that the shapes of some layers speak for; all shapes then show whether it fits."""
    kernels = {array.layer: name for name, array in table.items() if array.leaf == "kernel"}

    def outputs(layer: Layer) -> int:
        return max(1, tensors[kernels[layer.name]].shape[:1][0]) if tensors[kernels[layer.name]].shape else 1

    first, *_ = layers
    if layers[-1].kind != "head":
        return trunk_size(outputs(first) / first.channels)
    hidden = [layer for layer in layers if layer.kind == "fc"]
    if not hidden:
        return Size(outputs(first) / first.channels, 4096, outputs(layers[-1]), 7)
    last = [layer for layer in layers if layer.kind == "conv"][-1]
    cells = math.prod(tensors[kernels[hidden[0].name]].shape) // (outputs(hidden[0]) * outputs(last))
    return Size(outputs(first) / first.channels, outputs(hidden[0]), outputs(layers[-1]), max(1, math.isqrt(cells)))


def _shapes(configuration: str, description: Mapping[str, Any], size: Size) -> Any:
    network = make_network(
        configuration,
        crop_of(size),
        dict(description),
        num_classes=size.num_classes,
        width_multiplier=size.width_multiplier,
        fc_width=size.fc_width,
    )
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, network.crop, network.crop, 3)))
