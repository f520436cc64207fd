"""Descriptions of the networks: Paper Table 1 as text, and the layers it stands for.

Module, parameter names, output sizes, receptive field, multiplications and weight layouts all derive from these layers.
"""

from __future__ import annotations

from typing import NamedTuple

# The columns of Paper Table 1: SIZE-CHANNELS is a convolution and its ReLU, M 2x2 max pooling, LRN local response
# normalisation. The three FC layers, which all columns share, follow.
TABLE_1 = {
    "A": "3-64 M 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "A-LRN": "3-64 LRN M 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "B": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "C": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 1-256 M 3-512 3-512 1-512 M 3-512 3-512 1-512 M",
    "D": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 3-256 M 3-512 3-512 3-512 M 3-512 3-512 3-512 M",
    "E": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 3-256 3-256 M 3-512 3-512 3-512 3-512 M 3-512 3-512 3-512 3-512 M",
    # The ablation of Paper §4.1: each pair of B's 3x3 convolutions is one 5x5.
    "B-5x5": "5-64 M 5-128 M 5-256 M 5-512 M 5-512 M",
}


class Layer(NamedTuple):
    """One layer of a network."""

    name: str  # conv3_2, relu3_2, lrn1_1, pool3, fc6, relu6
    kind: str  # conv, relu, lrn, pool, fc or dropout
    block: int  # 1 to 5; 6, 7 and 8 are the FC layers
    position: int = 0  # of a convolution within its block, from 1
    kernel: int = 1  # height and width; fc6's are those of the last map
    stride: int = 1
    channels: int = 0  # of a convolution's output, at full width

    @property
    def has_params(self) -> bool:
        """Returns whether the layer has a kernel and a bias."""
        return self.kind in ("conv", "fc")

    def scaled_channels(self, width_multiplier: float) -> int:
        """Returns the output channels at a width; at least 1 stays."""
        return max(1, round(self.channels * width_multiplier))


def parse(column: str) -> tuple[Layer, ...]:
    """Returns the layers of a column of Table 1, in the order of computation."""
    layers: list[Layer] = []
    block, position = 1, 0
    for item in column.split():
        if item == "M":
            layers.append(Layer(f"pool{block}", "pool", block, kernel=2, stride=2))
            block, position = block + 1, 0
        elif item == "LRN":
            layers.append(Layer(f"lrn{block}_{position}", "lrn", block, position))
        else:
            kernel, channels = map(int, item.split("-"))
            position += 1
            name = f"{block}_{position}"
            layers.append(Layer(f"conv{name}", "conv", block, position, kernel, channels=channels))
            layers.append(Layer(f"relu{name}", "relu", block, position))
    for block in (6, 7):
        layers += [Layer(f"{kind}{block}", kind, block) for kind in ("fc", "relu", "dropout")]
    return (*layers, Layer("fc8", "fc", 8))


CONFIGURATIONS: dict[str, tuple[Layer, ...]] = {name: parse(column) for name, column in TABLE_1.items()}
STRIDE = 32  # of every configuration: five poolings halve the image five times


def endpoint_names(configuration: str) -> list[str]:
    """Returns the names that `VGG.__call__` takes as endpoints, in the order of computation: images, conv1_1, ..., score_map."""
    *layers, _ = CONFIGURATIONS[configuration]
    return ["images", *(layer.name for layer in layers if layer.kind != "dropout"), "score_map"]  # of fc8


def layer_names(configuration: str) -> list[str]:
    """Returns the names of the layers that have parameters, in the order of computation: conv1_1, ..., fc8."""
    return [layer.name for layer in CONFIGURATIONS[configuration] if layer.has_params]
