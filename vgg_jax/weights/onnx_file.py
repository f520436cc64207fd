"""ONNX out: a model with its preprocessing as a graph of the standard's own operators, one or a few for each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from vgg_jax.models.description import Layer, needed, with_inputs
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.files import ANOTHER_PLACE, write_atomically
from vgg_jax.weights.file import Weights, folded_params

_OPSET, _IR_VERSION = 17, 8  # of 2022, which everything reads
_MOST_BYTES = 2**31 - 2**20  # of the numbers in a file: protobuf ends at 2 GiB, and a graph takes a little
_FLOAT, _UINT8 = 1, 2  # onnx.TensorProto


def write_onnx(path: Path, weights: Weights) -> None:
    """Writes an ONNX file, whole or not at all.

    Its input is `images`, uint8 RGB [b, height, width, 3], of any size from the crop up. Its output is `probabilities` [b, K]
    float32, those of the class scores averaged over space (Paper §3.2); of a trunk `features` [b, C, h, w], its last map.

    Raises:
      UserError: the package onnx is not installed, the parameters do not fit into such a file, or it cannot be written.
    """
    num_bytes = sum(array.nbytes for array in jax.tree.leaves((weights.params, weights.model_state)))
    if num_bytes > _MOST_BYTES:
        raise UserError(
            f"the model's parameters take {num_bytes:,} bytes, and an ONNX file holds 2 GiB; write it with --to=stablehlo or "
            "--to=torchvision, or as this project's file."
        )
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "ONNX files are written by the package onnx, which is not installed: pip install 'vgg-jax[onnx]', or pip install onnx."
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
        wanted = needed(layers, {layers[-1].name})
        for layer, inputs in with_inputs(layers):
            if layer.name in wanted:
                leaves = {**params.get(layer.name, {}), **statistics.get(layer.name, {})}
                channels[layer.name] = self._channels(layer, leaves, [channels[name] for name in inputs], weights)
                outputs[layer.name] = self._add_layer(
                    layer, [outputs[name] for name in inputs], leaves, channels, inputs
                )
        return outputs[layers[-1].name]

    def _channels(self, layer: Layer, leaves: dict, inputs: list[int], weights: Weights) -> int:
        if "kernel" in leaves:
            return leaves["kernel"].shape[-1]
        if layer.kind == "zero_pad":
            return layer.scaled_channels(weights.width_multiplier)
        return sum(inputs) if layer.kind == "concat" else inputs[0]

    def _add_layer(
        self, layer: Layer, inputs: list[str], leaves: dict, channels: dict[str, int], sources: tuple[str, ...]
    ) -> str:
        """Adds one layer's nodes; returns the name of its output."""
        name, before, after = layer.name, layer.padding, layer.padding_after
        window: dict[str, Any] = {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2}
        if layer.has_kernel:
            kernel = self.constant(f"{name}/kernel", leaves["kernel"].transpose(3, 2, 0, 1))
            bias = [self.constant(f"{name}/bias", leaves["bias"])] if "bias" in leaves else []
            window["pads"] = [before] * 4
            return self.add("Conv", [*inputs, kernel, *bias], name, group=layer.groups, **window)
        if layer.is_norm:
            arrays = [self.constant(f"{name}/{leaf}", leaves[leaf]) for leaf in ("scale", "bias", "mean", "var")]
            return self.add("BatchNormalization", [*inputs, *arrays], name, epsilon=1e-5)
        if layer.kind == "pool":
            return self.add("MaxPool", inputs, name, pads=[before, before, after, after], **window)
        if layer.kind == "lrn":  # where alpha is divided by the window's size
            return self.add("LRN", inputs, name, size=5, alpha=5e-4, beta=0.75, bias=2.0)
        if layer.kind == "zero_pad":
            ends = [self.constant(f"{name}/{part}", np.array(of, np.int64)) for part, of in _strided(layer.stride)]
            kept = self.add("Slice", [*inputs, *ends], f"{name}/kept")
            added = channels[name] - channels[sources[0]]
            return self.add("Pad", [kept, self.constant(f"{name}/pads", np.array([0, 0, 0, 0, 0, added, 0, 0]))], name)
        if layer.kind == "dropout":
            return inputs[0]
        operators: dict[str, tuple[str, dict[str, Any]]] = {
            "relu": ("Relu", {}),
            "mean_pool": ("AveragePool", window),
            "mean": ("GlobalAveragePool", {}),
            "add": ("Add", {}),
            "concat": ("Concat", {"axis": 1}),
        }
        operator, attributes = operators[layer.kind]
        return self.add(operator, inputs, name, **attributes)


def _strided(stride: int) -> list[tuple[str, list[int]]]:
    """Returns the constants of ONNX's Slice that takes every `stride`-th row and column."""
    return [("starts", [0, 0]), ("ends", [2**31, 2**31]), ("axes", [2, 3]), ("steps", [stride, stride])]
