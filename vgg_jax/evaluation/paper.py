"""Published errors, per cent (top-1, top-5), of VGGs and the networks around them, printed next to ours."""

from __future__ import annotations

from typing import NamedTuple

from vgg_jax.recipe import Recipe


class TopKError(NamedTuple):
    """A pair of errors, per cent; None where a paper does not say."""

    top1: float | None
    top5: float | None

    def text(self, between: str) -> str:
        """Returns both as text: 24.4/7.1, -/10.07, or the top-1 error alone."""
        top1, *top5 = ["-" if error is None else f"{error}" for error in (self.top1, self.top5)]
        return between.join((top1, *top5) if self.top5 is not None else (top1,))


# Dense evaluation at a single scale (Paper Table 3) and at three (Paper Table 4), top-1/top-5.
_TABLES_3_AND_4 = """
A      S=256   29.6/10.4 -
A-LRN  S=256   29.7/10.5 -
B      S=256   28.7/9.9  28.2/9.6
C      S=256   28.1/9.4  27.7/9.2
C      S=384   28.1/9.3  27.8/9.2
C      jitter  27.3/8.8  26.3/8.2
D      S=256   27.0/8.8  26.6/8.6
D      S=384   26.8/8.7  26.5/8.6
D      jitter  25.6/8.1  24.8/7.5
E      S=256   27.3/9.0  26.9/8.7
E      S=384   26.9/8.7  26.7/8.6
E      jitter  25.5/8.0  24.8/7.5
"""


def _column(number: int) -> dict[tuple[str, str], TopKError]:
    """Returns a column of figures by (configuration, training scales)."""
    rows = [line.split() for line in _TABLES_3_AND_4.split("\n") if line]
    return {(row[0], row[1]): TopKError(*map(float, row[number].split("/"))) for row in rows if row[number] != "-"}


SINGLE_SCALE, MULTI_SCALE = _column(2), _column(3)
# (configuration, protocol), of models trained with jitter, at three scales: Paper Table 5.
CROPS: dict[tuple[str, str], TopKError] = {
    ("D", "dense"): TopKError(24.8, 7.5),
    ("D", "multi_crop"): TopKError(24.6, 7.5),
    ("D", "dense+multi_crop"): TopKError(24.4, 7.2),
    ("E", "dense"): TopKError(24.8, 7.5),
    ("E", "multi_crop"): TopKError(24.6, 7.4),
    ("E", "dense+multi_crop"): TopKError(24.4, 7.1),
}
# D and E, both trained with jitter, fused, at three scales: Paper Table 6.
FUSION: dict[str, TopKError] = {
    "dense": TopKError(24.0, 7.1),
    "multi_crop": TopKError(23.9, 7.2),
    "dense+multi_crop": TopKError(23.7, 6.8),
}
# The submission's seven models fused, dense, each at its three scales: Paper Table 6.
SEVEN_NETS = TopKError(24.7, 7.5)
# Of the networks around, also several of a kind fused: (network, training scales, protocol, scales) -> error. He et al.
# 2015, Tables 2 (ResNet-18), 3 (ten crops), 4 (dense) and 6 (CIFAR-10, a crop as large as the image); Krizhevsky et al.
# 2012, Table 1; Szegedy et al. 2014, Table 3.
_OTHERS = """
Plain-18                       | jitter | ten_crop    | single | 27.94 | -
Plain-34                       | jitter | ten_crop    | single | 28.54 | 10.02
ResNet-18 (shortcut A)         | jitter | ten_crop    | single | 27.88 | -
ResNet-34 (shortcut A)         | jitter | ten_crop    | single | 25.03 | 7.76
ResNet-34                      | jitter | ten_crop    | single | 24.52 | 7.46
ResNet-34 (shortcut C)         | jitter | ten_crop    | single | 24.19 | 7.40
ResNet-50 (stride in the 1x1)  | jitter | ten_crop    | single | 22.85 | 6.71
ResNet-101 (stride in the 1x1) | jitter | ten_crop    | single | 21.75 | 6.05
ResNet-152 (stride in the 1x1) | jitter | ten_crop    | single | 21.43 | 5.71
ResNet-34                      | jitter | dense       | multi  | 21.84 | 5.71
ResNet-34 (shortcut C)         | jitter | dense       | multi  | 21.53 | 5.60
ResNet-50 (stride in the 1x1)  | jitter | dense       | multi  | 20.74 | 5.25
ResNet-101 (stride in the 1x1) | jitter | dense       | multi  | 19.87 | 4.60
ResNet-152 (stride in the 1x1) | jitter | dense       | multi  | 19.38 | 4.49
ResNet-20                      | CIFAR  | center_crop | single | 8.75  | -
ResNet-32                      | CIFAR  | center_crop | single | 7.51  | -
ResNet-44                      | CIFAR  | center_crop | single | 7.17  | -
ResNet-56                      | CIFAR  | center_crop | single | 6.97  | -
ResNet-110                     | CIFAR  | center_crop | single | 6.43  | -
AlexNet                        | S=256  | ten_crop    | single | 40.7  | 18.2
GoogLeNet                      | area   | center_crop | single | -     | 10.07
GoogLeNet                      | area   | ten_crop    | single | -     | 9.15
GoogLeNet                      | area   | square_crop | multi  | -     | 7.89
5 x AlexNet                    | S=256  | ten_crop    | single | 38.1  | 16.4
7 x GoogLeNet                  | area   | center_crop | single | -     | 8.09
7 x GoogLeNet                  | area   | ten_crop    | single | -     | 7.62
7 x GoogLeNet                  | area   | square_crop | multi  | -     | 6.67
"""


def _others() -> dict[tuple[str, ...], TopKError]:
    table = [[cell.strip() for cell in line.split("|")] for line in _OTHERS.strip().split("\n")]
    return {tuple(row[:4]): TopKError(*(None if error == "-" else float(error) for error in row[4:])) for row in table}


OTHERS = _others()


def training_scales(recipe: Recipe) -> str | None:
    """Returns how a model sees images in training where that and its shape are a paper's, else None.

    "S=256", "S=384" or "jitter" of a VGG; "jitter" of a ResNet (S from 256 to 480) and "CIFAR"; "S=256" of AlexNet;
    "area" of GoogLeNet, which takes random resized crops.
    """
    model, image, network = recipe.model, recipe.image, recipe.model.network
    name = network.configuration
    fc_width = model.fc_width if network.is_vgg or name == "AlexNet" else None
    shape, scales = (
        (model.width_multiplier, fc_width, model.num_classes, image.crop),
        (image.scale_min, image.scale_max),
    )
    if bool(image.area_min) != (name == "GoogLeNet") or bool(image.padding) != (shape == (1.0, None, 10, 32)):
        return None
    if name == "AlexNet":
        return "S=256" if (shape, scales) == ((1.0, 4096, 1000, 227), (256, 256)) else None
    if network.is_vgg:
        names = {(256, 256): "S=256", (384, 384): "S=384", (256, 512): "jitter"}
        return names.get(scales) if shape == (1.0, 4096, 1000, 224) else None
    if shape == (1.0, None, 10, 32):
        return "CIFAR" if scales == (32, 32) and image.padding == 4 else None
    if shape != (1.0, None, 1000, 224):
        return None
    if name == "GoogLeNet":
        return "area"
    return "jitter" if scales == (256, 480) else None


def published(
    models: list[tuple[str, str | None]], protocol: str, scales: str, data: str, split: str
) -> TopKError | None:
    """Returns the paper's figure for an evaluation, or None where it has none.

    Args:
      models: (network, `training_scales`) of each.
      protocol: a key of `passes.PROTOCOLS`.
      scales: "single" or "multi" where they are the paper's own for each model, else anything.
      data: name of the data set, as TFDS has it.
      split: of it.
    """
    keys = [(network, trained_at) for network, trained_at in models if trained_at is not None]
    data_set = ("cifar10", "test") if ("CIFAR" in (s for _, s in keys)) else ("imagenet2012", "validation")
    if len(keys) < len(models) or (data.split("/")[0], split) != data_set:
        return None
    if len(set(keys)) == 1:
        network = keys[0][0] if len(keys) == 1 else f"{len(keys)} x {keys[0][0]}"
        if (other := OTHERS.get((network, keys[0][1], protocol, scales))) is not None:
            return other
    if len(keys) == 1:
        if protocol == "dense":
            return {"single": SINGLE_SCALE, "multi": MULTI_SCALE}.get(scales, {}).get(keys[0])
        jitter = keys[0][1] == "jitter" and scales == "multi"
        return CROPS.get((keys[0][0], protocol)) if jitter else None
    if scales == "multi" and sorted(keys) == [("D", "jitter"), ("E", "jitter")]:
        return FUSION.get(protocol)
    return None
