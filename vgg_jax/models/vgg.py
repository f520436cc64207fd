"""The networks of the paper (Paper Table 1), and their later variants: batch normalisation, global average pooling."""

from __future__ import annotations

from vgg_jax.models.description import BATCH_NORM, WHOLE_MAP, Layer, Layers

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
# Three FC layers, or the mean over the last map and one.
HEADS = ("fc", "gap")
# A trunk, which ends with the last pooling.
NO_HEAD = "none"


def vgg(column: str, is_normalized: bool = False, head: str = "fc") -> Layers:
    """Returns the layers of a column of Table 1, in the order of computation.

    Args:
      column: in the notation of TABLE_1.
      is_normalized: whether each convolution is followed by batch normalisation (Ioffe & Szegedy 2015).
      head: one of HEADS, where "gap" is global average pooling (Lin et al. 2013); or NO_HEAD.
    """
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
            layers.append(Layer(f"conv{name}", "conv", block, position, kernel, padding=kernel // 2, channels=channels))
            if is_normalized:
                layers.append(Layer(f"bn{name}", BATCH_NORM, block, position))
            layers.append(Layer(f"relu{name}", "relu", block, position))
    if head == NO_HEAD:
        return tuple(layers)
    if head == "gap":
        return (*layers, Layer("mean", "mean", 6), Layer("fc", "head", 6))
    for block, kernel in ((6, WHOLE_MAP), (7, 1)):
        layers.append(Layer(f"fc{block}", "fc", block, kernel=kernel))
        layers += [Layer(f"{kind}{block}", kind, block) for kind in ("relu", "dropout")]
    return (*layers, Layer("fc8", "head", 8))
