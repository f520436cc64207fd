"""Residual networks, and the plain networks that they are compared with (He et al. 2015)."""

from __future__ import annotations

from vgg_jax.models.description import BATCH_NORM, Layer, Layers

# The convolutions of a block: kernel, and outputs as a multiple of the stage's width.
Block = tuple[tuple[int, int], ...]
BASIC: Block = ((3, 1), (3, 1))
BOTTLENECK: Block = ((1, 1), (3, 1), (1, 4))
# Depth -> block, and how often it is repeated in conv2_x ... conv5_x (Table 1).
STAGES: dict[int, tuple[Block, tuple[int, ...]]] = {
    18: (BASIC, (2, 2, 2, 2)),
    34: (BASIC, (3, 4, 6, 3)),
    50: (BOTTLENECK, (3, 4, 6, 3)),
    101: (BOTTLENECK, (3, 4, 23, 3)),
    152: (BOTTLENECK, (3, 8, 36, 3)),
}
# For CIFAR (§4.2): depth 6 n + 2, three stages of n blocks.
CIFAR_DEPTHS = (20, 32, 44, 56, 110)
PLAIN_DEPTHS = (18, 34, 20, 32, 44, 56)
# How a unit's input reaches its sum where the shape changes: A zero channels, B a projection; C projects everywhere
# (§4.1).
SHORTCUTS = ("A", "B", "C")
# Which convolution of a bottleneck has the stride: 3x3 as torchvision's files have it ("v1.5"), or 1x1, the paper.
BOTTLENECK_STRIDES = ("3x3", "1x1")


def resnet(depth: int, is_residual: bool = True, shortcut: str = "", bottleneck_stride: str = "3x3") -> Layers:
    """Returns the layers of ResNet-<depth> or Plain-<depth>, in the order of computation.

    Args:
      depth: a key of STAGES, or one of CIFAR_DEPTHS.
      is_residual: False for the plain network.
      shortcut: one of SHORTCUTS; "" for the paper's: B, for CIFAR A.
      bottleneck_stride: one of BOTTLENECK_STRIDES.
    """
    counts: tuple[int, ...]
    if depth in CIFAR_DEPTHS:
        block, counts = BASIC, (depth // 6,) * 3
        width, shortcut = 16, shortcut or "A"
        layers = _convolution("1", 1, 0, (3, 1, width))
    else:
        block, counts = STAGES[depth]
        width, shortcut = 64, shortcut or "B"
        pool = Layer("pool1", "pool", 1, kernel=3, stride=2, padding=1)
        layers = [*_convolution("1", 1, 0, (7, 2, width)), pool]
    strided = 1 if block is BOTTLENECK and bottleneck_stride == "3x3" else 0
    inputs = width
    for stage, count in enumerate(counts, 2):
        outputs = block[-1][1] * width
        for unit in range(1, count + 1):
            name, stride = f"{stage}_{unit}", 2 if stage > 2 and unit == 1 else 1
            changes = stride > 1 or inputs != outputs
            branch: list[Layer] | None = []
            if not is_residual:
                branch = None
            elif shortcut == "C" or (shortcut == "B" and changes):
                branch = _convolution(f"{name}s", stage, unit, (1, stride, outputs))[:2]
            elif changes:
                branch = [Layer(f"shortcut{name}", "zero_pad", stage, stride=stride, channels=outputs)]
            convolutions = [(kernel, stride if i == strided else 1, n * width) for i, (kernel, n) in enumerate(block)]
            layers += _unit(stage, unit, convolutions, branch, layers[-1].name)
            inputs = outputs
        width *= 2
    return (*layers, Layer("mean", "mean", 6), Layer("fc", "head", 6))


def _unit(
    stage: int, unit: int, convolutions: list[tuple[int, int, int]], branch: list[Layer] | None, entry: str
) -> list[Layer]:
    """Returns a unit's convolutions, its shortcut, their sum and the last ReLU.

    Args:
      stage, unit: numbers in the layers' names.
      convolutions: kernel, stride and channels of each.
      branch: layers of the shortcut, none for the identity; None: a plain network, without a sum.
      entry: name of the unit's input.
    """
    name = f"{stage}_{unit}"
    layers: list[Layer] = []
    for letter, convolution in zip("abc", convolutions, strict=False):
        layers += _convolution(f"{name}{letter}", stage, unit, convolution)
    # The last ReLU comes after the sum.
    main = layers[:-1]
    if branch is not None:
        shortcut = [branch[0]._replace(inputs=(entry,)), *branch[1:]] if branch else []
        sources = (main[-1].name, shortcut[-1].name if shortcut else entry)
        main += [*shortcut, Layer(f"add{name}", "add", stage, inputs=sources)]
    return [*main, Layer(f"relu{name}", "relu", stage)]


def _convolution(name: str, block: int, position: int, convolution: tuple[int, int, int]) -> list[Layer]:
    """Returns a convolution (kernel, stride, channels), its batch normalisation and its ReLU."""
    kernel, stride, channels = convolution
    return [
        Layer(f"conv{name}", "conv", block, position, kernel, stride, kernel // 2, channels, has_bias=False),
        Layer(f"bn{name}", BATCH_NORM, block, position),
        Layer(f"relu{name}", "relu", block),
    ]
