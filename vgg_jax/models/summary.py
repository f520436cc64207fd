"""Figures of a network from its description alone: parameters, multiply-adds, fields of view, bytes of activations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vgg_jax.models.description import WINDOWS, endpoint_names, needed, with_inputs
from vgg_jax.models.network import Network, variable_shapes

# Bytes of a float32.
_BYTES = 4


class LayerRow(NamedTuple):
    """Figures of one layer, for one image of the crop's size."""

    name: str
    kind: str
    block: int  # or stage
    kernel: int
    stride: int
    output: tuple[int, int, int]  # height, width, channels
    parameters: int
    macs: int
    receptive_field: int  # pixels of the image along a side that an output depends on
    activation_bytes: int  # of the output, float32
    depth: int  # layers with a kernel on the longest way from the image to its output
    is_projection: bool  # of a shortcut, which the papers do not count as a layer
    inputs: tuple[str, ...]  # layers whose outputs it reads


def layer_rows(network: Network) -> list[LayerRow]:
    """Returns the figures of every layer but dropout and auxiliary classifiers, in order; computes no activations."""
    crop = network.crop
    image = jax.ShapeDtypeStruct((1, crop, crop, 3), jnp.float32)
    variables = variable_shapes(network)
    head = network.layers[-1].name
    counted = needed(network.layers, [head])
    hidden = tuple(name for name in endpoint_names(network.layers) if name in counted)
    shortcuts = [layer.inputs[1] for layer in network.layers if layer.kind == "add"]
    projections = {name.replace("bn", "conv") for name in shortcuts if name.startswith("bn")}
    maps: Any = jax.eval_shape(lambda v, x: network.apply(v, x, endpoints=hidden)[1], variables, image)
    fields, strides, depths = {"images": 1}, {"images": 1}, {"images": 0}
    rows: list[LayerRow] = []
    dropped: dict[str, str] = {}  # dropout, which is not listed, and what it reads
    for layer, inputs in with_inputs(network.layers):
        inputs = tuple(dropped.get(name, name) for name in inputs)
        stride = strides[inputs[0]]
        sees_all = layer.kind in ("mean", "fc", "head")
        reach = (layer.kernel - 1) * stride if layer.kind in WINDOWS else 0
        fields[layer.name] = crop if sees_all else max(fields[name] for name in inputs) + reach
        strides[layer.name] = stride * layer.stride
        is_projection = layer.name in projections
        depths[layer.name] = max(depths[name] for name in inputs) + (layer.has_kernel and not is_projection)
        if layer.kind == "dropout":
            dropped[layer.name] = inputs[0]
        if layer.kind == "dropout" or layer.name not in counted:
            continue
        output = (1, 1, network.num_classes) if layer.kind == "head" else maps[layer.name].shape[1:]
        params = variables["params"].get(layer.name, {})
        macs = output[0] * output[1] * math.prod(params["kernel"].shape) if layer.has_kernel else 0
        rows.append(
            LayerRow(
                layer.name,
                layer.kind,
                layer.block,
                layer.kernel,
                layer.stride,
                output,
                sum(math.prod(leaf.shape) for leaf in params.values()),
                macs,
                fields[layer.name],
                _BYTES * math.prod(output),
                depths[layer.name],
                is_projection,
                inputs,
            )
        )
    return rows


def summary(rows: list[LayerRow]) -> dict[str, Any]:
    """Returns a network's totals, from `layer_rows`.

    activation_bytes_forward: the least memory for computing one layer after another, that is the largest sum of a
    layer's output and the earlier ones that it or a later layer reads.
    activation_bytes_training: the sum of all outputs, which the backward pass reads.
    """
    convolutions = [row for row in rows if row.kind == "conv"]
    last = rows[next(i for i, row in enumerate(rows) if row.kind in ("mean", "fc", "head")) - 1]
    parameters = sum(row.parameters for row in rows)
    last_read = {name: i for i, row in enumerate(rows) for name in row.inputs}
    held = [
        row.activation_bytes + sum(other.activation_bytes for other in rows[:i] if last_read.get(other.name, 0) >= i)
        for i, row in enumerate(rows)
    ]
    return {
        "weight_layers": rows[-1].depth,
        "parameters": parameters,
        "parameter_bytes": _BYTES * parameters,
        "macs": sum(row.macs for row in rows),
        "receptive_field": last.receptive_field,
        "last_map": list(last.output),
        "activation_bytes_forward": max(held),
        "activation_bytes_training": sum(row.activation_bytes for row in rows),
        "kernels": sorted({row.kernel for row in convolutions}),
        "shrinks_by": [
            f"{row.name} {row.kernel}x{row.kernel}/{row.stride}"
            for row in rows
            if row.stride > 1 and not row.is_projection and row.kind != "zero_pad"
        ],
        "classifier": "mean, 1 FC layer" if any(row.kind == "mean" for row in rows) else "3 FC layers",
    }
