"""AlexNet, the predecessor of VGG, and GoogLeNet, its contemporary."""

from __future__ import annotations

from vgg_jax.models.description import WHOLE_MAP, Layer, Layers

# Outputs of an Inception module's convolutions: 1x1; 3x3's reduction and 3x3; 5x5's and 5x5; the projection after the
# pooling (Szegedy et al. 2014, Table 1). M: 3x3 maximum pooling with stride 2.
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "M3": (),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "M4": (),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# Inception module -> the auxiliary classifier on its output.
AUXILIARY = {"4a": "aux1", "4d": "aux2"}


def alexnet() -> Layers:
    """Returns the layers of AlexNet, the single network (Krizhevsky et al. 2012, §3): its crop is 227."""
    layers: list[Layer] = []
    for block, kernel, stride, channels, groups in (
        (1, 11, 4, 96, 1),
        (2, 5, 1, 256, 2),
        (3, 3, 1, 384, 1),
        (4, 3, 1, 384, 2),
        (5, 3, 1, 256, 2),
    ):
        # "We initialized the neuron biases in the second, fourth, and fifth convolutional layers, as well as in the
        # fully-connected hidden layers, with the constant 1" (§5): exactly the layers of two groups.
        padding, bias = (kernel // 2 if block > 1 else 0), float(groups == 2)
        layers += [
            Layer(
                f"conv{block}", "conv", block, 1, kernel, stride, padding, channels, groups=groups, initial_bias=bias
            ),
            Layer(f"relu{block}", "relu", block),
        ]
        if block < 3:
            layers.append(Layer(f"lrn{block}", "lrn", block))
        if block in (1, 2, 5):
            layers.append(Layer(f"pool{block}", "pool", block, kernel=3, stride=2))
    for block, kernel in ((6, WHOLE_MAP), (7, 1)):
        layers.append(Layer(f"fc{block}", "fc", block, kernel=kernel, initial_bias=1.0))
        layers += [Layer(f"{kind}{block}", kind, block) for kind in ("relu", "dropout")]
    return (*layers, Layer("fc8", "head", 8))


def googlenet(auxiliary: bool = False) -> Layers:
    """Returns the layers of GoogLeNet (Szegedy et al. 2014, Table 1).

    Args:
      auxiliary: whether the classifiers in the middle belong to it, "aux1_fc2" and "aux2_fc2" (§5).
    """
    layers = [
        *_conv("1", 1, 7, 64, stride=2),
        _pool("pool1", 1),
        Layer("lrn1", "lrn", 1),
        *_conv("2_reduce", 2, 1, 64),
        *_conv("2", 2, 3, 192),
        Layer("lrn2", "lrn", 2),
        _pool("pool2", 2),
    ]
    entry = "pool2"
    for name, channels in INCEPTION.items():
        block = int(name[0]) if channels else int(name[1])
        if not channels:
            layers.append(_pool(f"pool{block}", block)._replace(inputs=(entry,)))
            entry = f"pool{block}"
            continue
        layers += _inception(name, block, entry, channels)
        entry = f"concat{name}"
        if auxiliary and name in AUXILIARY:
            layers += _auxiliary(AUXILIARY[name], block, entry)
    return (*layers, Layer("mean", "mean", 6), Layer("dropout", "dropout", 6), Layer("fc", "head", 6))


def _inception(name: str, block: int, entry: str, channels: tuple[int, ...]) -> list[Layer]:
    one, reduce_three, three, reduce_five, five, pool = channels
    branches = [
        _conv(f"{name}_1x1", block, 1, one),
        [*_conv(f"{name}_3x3_reduce", block, 1, reduce_three), *_conv(f"{name}_3x3", block, 3, three)],
        [*_conv(f"{name}_5x5_reduce", block, 1, reduce_five), *_conv(f"{name}_5x5", block, 5, five)],
        [Layer(f"pool{name}", "pool", block, kernel=3, padding=1), *_conv(f"{name}_pool", block, 1, pool)],
    ]
    layers = [layer for first, *others in branches for layer in (first._replace(inputs=(entry,)), *others)]
    return [*layers, Layer(f"concat{name}", "concat", block, inputs=tuple(branch[-1].name for branch in branches))]


def _auxiliary(name: str, block: int, entry: str) -> list[Layer]:
    return [
        Layer(f"{name}_pool", "mean_pool", block, kernel=5, stride=3, inputs=(entry,)),
        *(layer._replace(name=f"{name}_{layer.kind}") for layer in _conv("", block, 1, 128)),
        Layer(f"{name}_fc1", "fc", block, kernel=WHOLE_MAP, channels=1024),
        Layer(f"{name}_relu2", "relu", block),
        Layer(f"{name}_dropout", "dropout", block, dropout_rate=0.7),
        Layer(f"{name}_fc2", "head", block),
    ]


def _conv(name: str, block: int, kernel: int, channels: int, stride: int = 1) -> list[Layer]:
    conv = Layer(f"conv{name}", "conv", block, 1, kernel, stride, kernel // 2, channels)
    return [conv, Layer(f"relu{name}", "relu", block)]


def _pool(name: str, block: int) -> Layer:
    return Layer(name, "pool", block, kernel=3, stride=2, is_ceil=True)
