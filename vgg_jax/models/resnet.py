"""Residual networks, and the plain networks that they are compared with (He et al. 2015)."""

from __future__ import annotations

from vgg_jax.models.description import Layer, Layers

# Depth -> blocks of the stages conv2_x ... conv5_x (He et al. 2015, Table 1); from 50 on, blocks are bottlenecks.
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# For CIFAR (§4.2): depth 6 n + 2.
CIFAR_DEPTHS = (20, 32, 44, 56, 110)
PLAIN_DEPTHS = (18, 34, 20, 32, 44, 56)
# How a block's input reaches its sum where the shape changes: A zero channels, B a projection; C projects everywhere (§4.1).
SHORTCUTS = ("A", "B", "C")
# Which convolution of a bottleneck has the stride: 3x3 as torchvision's files have it ("v1.5"), or 1x1, the paper.
BOTTLENECK_STRIDES = ("3x3", "1x1")


def resnet(depth: int, is_residual: bool = True, shortcut: str = "", bottleneck_stride: str = "3x3") -> Layers:
    """Returns the layers of ResNet-<depth> or Plain-<depth>, in the order of computation.

    Args:
      depth: a key of STAGES, or one of CIFAR_DEPTHS.
      is_residual: False for the plain network.
      shortcut: a key of SHORTCUTS; "" for the paper's: B, for CIFAR A.
      bottleneck_stride: a key of BOTTLENECK_STRIDES.
    """
    is_cifar = depth in CIFAR_DEPTHS
    blocks = (depth // 6,) * 3 if is_cifar else STAGES[depth]
    shortcut = shortcut or ("A" if is_cifar else "B")
    if is_cifar:
        layers = _conv_bn("1", 1, 0, 3, 1, 16, relu=True)
    else:
        layers = [*_conv_bn("1", 1, 0, 7, 2, 64, relu=True), Layer("pool1", "pool", 1, kernel=3, stride=2, padding=1)]
    inputs = width = 16 if is_cifar else 64
    for stage, count in enumerate(blocks, 2):
        for unit in range(1, count + 1):
            stride = 2 if stage > 2 and unit == 1 else 1
            entry, name = layers[-1].name, f"{stage}_{unit}"
            if depth < 50 or is_cifar:
                convolutions, outputs = [(3, stride, width), (3, 1, width)], width
            else:
                first, second = (1, stride) if bottleneck_stride == "3x3" else (stride, 1)
                outputs = 4 * width
                convolutions = [(1, first, width), (3, second, width), (1, 1, outputs)]
            *hidden, last = (
                _conv_bn(f"{name}{letter}", stage, unit, *convolution, relu=letter != "abc"[len(convolutions) - 1])
                for letter, convolution in zip("abc", convolutions, strict=False)
            )
            layers += [layer for part in (*hidden, last) for layer in part]
            if is_residual:
                main = layers[-1].name
                if shortcut == "C" or (shortcut == "B" and (stride > 1 or inputs != outputs)):
                    projection = _conv_bn(f"{name}s", stage, unit, 1, stride, outputs, relu=False)
                    layers += [projection[0]._replace(inputs=(entry,)), *projection[1:]]
                    entry = layers[-1].name
                elif stride > 1 or inputs != outputs:
                    layers.append(
                        Layer(f"shortcut{name}", "zero_pad", stage, stride=stride, channels=outputs, inputs=(entry,))
                    )
                    entry = layers[-1].name
                layers.append(Layer(f"add{name}", "add", stage, inputs=(main, entry)))
            layers.append(Layer(f"relu{name}", "relu", stage))
            inputs = outputs
        width *= 2
    return (*layers, Layer("mean", "mean", 6), Layer("fc", "head", 6))


def _conv_bn(name: str, block: int, position: int, kernel: int, stride: int, channels: int, relu: bool) -> list[Layer]:
    conv = Layer(
        f"conv{name}",
        "conv",
        block,
        position,
        kernel=kernel,
        stride=stride,
        padding=kernel // 2,
        channels=channels,
        has_bias=False,
    )
    return [conv, Layer(f"bn{name}", "batch_norm", block, position), *[Layer(f"relu{name}", "relu", block)] * relu]
