"""ONNX out: a model with its preprocessing as a graph of the standard's own operators, one or a few for each layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vgg_jax.models.description import Kind, Layer, needed, with_inputs
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.files import ANOTHER_PLACE, write_atomically
from vgg_jax.weights.file import Weights, folded_params

# Versions of 2022, which every tool reads.
_OPSET, _IR_VERSION = 17, 8
# Limit of the arrays in a file: protobuf ends at 2 GiB, and the graph needs some of it.
_MOST_BYTES = 2**31 - 2**20
# Data types of onnx.TensorProto.
_FLOAT, _UINT8 = 1, 2


def write_onnx(path: Path, weights: Weights) -> None:
    """Writes an ONNX file, whole or not at all.

    Its input is `images`, uint8 RGB [b, height, width, 3], of any size from the crop up. Its output is `probabilities`
    [b, K] float32, of the class scores averaged over space (Paper §3.2); of a trunk `features` [b, C, h, w], its last
    map.

    Raises:
      UserError: the package onnx is not installed, the parameters do not fit into such a file, or it cannot be written.
    """
    num_bytes = sum(array.nbytes for array in jax.tree.leaves((weights.params, weights.model_state)))
    if num_bytes > _MOST_BYTES:
        raise UserError(
            f"the model's parameters take {num_bytes:,} bytes, and an ONNX file holds 2 GiB; write it with "
            "--to=stablehlo or --to=torchvision, or as this project's file."
        )
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "ONNX files are written by the package onnx, which is not installed: pip install 'vgg-jax[onnx]', or pip "
            "install onnx."
        ) from error
    graph = _Graph(onnx)
    last = graph.add_layers(weights)
    if weights.num_classes:
        pooled = graph.add("GlobalAveragePool", [last], "mean_scores")
        graph.add("Softmax", [graph.add("Flatten", [pooled], "scores")], "probabilities", axis=1)
        result = graph.value("probabilities", _FLOAT, ["b", weights.num_classes])
    else:
        graph.add("Identity", [last], "features")
        result = graph.value("features", _FLOAT, ["b", "channels", "h", "w"])
    images = graph.value("images", _UINT8, ["b", "height", "width", 3])
    made = onnx.helper.make_graph(graph.nodes, weights.configuration, [images], [result], graph.arrays)
    opset = [onnx.helper.make_opsetid("", _OPSET)]
    model = onnx.helper.make_model(made, producer_name="vgg_jax", opset_imports=opset, ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    with write_atomically(path, ANOTHER_PLACE) as unfinished:
        unfinished.write_bytes(model.SerializeToString())


class _Graph:
    """Nodes and constants of a graph; maps are [b, C, h, w]."""

    def __init__(self, onnx: Any):
        self._onnx = onnx
        self.nodes: list[Any] = []
        self.arrays: list[Any] = []

    def value(self, name: str, dtype: int, shape: list[Any]) -> Any:
        """Returns the declaration of an input or output."""
        return self._onnx.helper.make_tensor_value_info(name, dtype, shape)

    def constant(self, name: str, array: Any) -> str:
        """Adds a constant; returns its name."""
        self.arrays.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a node; returns the name of its output."""
        self.nodes.append(self._onnx.helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def add_layers(self, weights: Weights) -> str:
        """Adds the preprocessing and all layers that the last one depends on; returns the name of its output."""
        params, layers = folded_params(weights), weights.layers
        statistics = weights.model_state.get("batch_stats", {})
        floats = self.add("Cast", ["images"], "float_images", to=_FLOAT)
        mean = self.constant("mean_rgb", np.asarray(weights.preprocessing.mean_rgb(), np.float32))
        centered = self.add("Sub", [floats, mean], "centered_images")
        outputs = {"images": self.add("Transpose", [centered], "pixels", perm=[0, 3, 1, 2])}
        channels = {"images": 3}
        computed = needed(layers, {layers[-1].name})
        for layer, inputs in with_inputs(layers):
            if layer.name in computed:
                leaves = {**params.get(layer.name, {}), **statistics.get(layer.name, {})}
                channels[layer.name] = self._channels(layer, leaves, [channels[name] for name in inputs], weights)
                added = channels[layer.name] - channels[inputs[0]]
                node = _Node(self, layer, [outputs[name] for name in inputs], leaves, added)
                outputs[layer.name] = FUNCTIONS[layer.kind](node)
        return outputs[layers[-1].name]

    def _channels(self, layer: Layer, leaves: dict, inputs: list[int], weights: Weights) -> int:
        if "kernel" in leaves:
            return leaves["kernel"].shape[-1]
        if layer.kind == "zero_pad":
            return layer.scaled_channels(weights.width_multiplier)
        return sum(inputs) if layer.kind == "concat" else inputs[0]


class _Node(NamedTuple):
    """One layer on its way into a graph."""

    graph: _Graph
    layer: Layer
    inputs: list[str]  # names of the outputs that it reads
    leaves: dict[str, Any]  # its parameters and statistics
    added_channels: int  # between its first input and its output

    def add(self, operator: str, *constants: str, **attributes: Any) -> str:
        """Adds the layer as one node; returns the name of its output."""
        return self.graph.add(operator, [*self.inputs, *constants], self.layer.name, **attributes)

    def constant(self, part: str, array: Any) -> str:
        """Adds a constant; returns its name."""
        return self.graph.constant(f"{self.layer.name}/{part}", array)

    @property
    def window(self) -> dict[str, list[int]]:
        """Returns the attributes of a kernel that moves over the map."""
        layer = self.layer
        pads = [layer.padding] * 2 + [layer.padding_after] * 2
        return {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2, "pads": pads}


def _convolution(node: _Node) -> str:
    constants = [node.constant("kernel", node.leaves["kernel"].transpose(3, 2, 0, 1))]
    constants += [node.constant("bias", node.leaves["bias"])] if "bias" in node.leaves else []
    return node.add("Conv", *constants, group=node.layer.groups, **node.window)


def _batch_norm(node: _Node) -> str:
    constants = [node.constant(leaf, node.leaves[leaf]) for leaf in ("scale", "bias", "mean", "var")]
    return node.add("BatchNormalization", *constants, epsilon=1e-5)


def _mean_pool(node: _Node) -> str:
    return node.add("AveragePool", **{key: value for key, value in node.window.items() if key != "pads"})


def _zero_pad(node: _Node) -> str:
    graph, name = node.graph, node.layer.name
    ends = [node.constant(part, np.array(ends, np.int64)) for part, ends in _strided(node.layer.stride)]
    strided = graph.add("Slice", [*node.inputs, *ends], f"{name}/kept")
    pads = node.constant("pads", np.array([0, 0, 0, 0, 0, node.added_channels, 0, 0]))
    return graph.add("Pad", [strided, pads], name)


FUNCTIONS: dict[Kind, Callable[[_Node], str]] = {
    "conv": _convolution,
    "batch_norm": _batch_norm,
    "relu": lambda node: node.add("Relu"),
    # ONNX divides alpha by the window's size.
    "lrn": lambda node: node.add("LRN", size=5, alpha=5e-4, beta=0.75, bias=2.0),
    "pool": lambda node: node.add("MaxPool", **node.window),
    "mean_pool": _mean_pool,
    "add": lambda node: node.add("Add"),
    "concat": lambda node: node.add("Concat", axis=1),
    "zero_pad": _zero_pad,
    "mean": lambda node: node.add("GlobalAveragePool"),
    "dropout": lambda node: node.inputs[0],
    "fc": _convolution,
    "head": _convolution,
}


def _strided(stride: int) -> list[tuple[str, list[int]]]:
    """Returns the constants of ONNX's Slice that takes every `stride`-th row and column."""
    return [("starts", [0, 0]), ("ends", [2**31, 2**31]), ("axes", [2, 3]), ("steps", [stride, stride])]
