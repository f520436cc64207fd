"""The paper's validation errors on ImageNet, per cent (top-1, top-5): printed next to the figures here."""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict


class TopKError(NamedTuple):
    """A pair of errors, per cent."""

    top1: float
    top5: float


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


def training_scales(config: ConfigDict) -> str | None:
    """Returns "S=256", "S=384" or "jitter" where a model is one of the paper's by its shape and S, else None."""
    model, image = config.model, config.image
    if (model.width_multiplier, model.fc_width, model.num_classes, image.crop) != (1.0, 4096, 1000, 224):
        return None
    return {(256, 256): "S=256", (384, 384): "S=384", (256, 512): "jitter"}.get((image.scale_min, image.scale_max))


def published(
    models: list[tuple[str, str | None]], protocol: str, scales: str, data: str, split: str
) -> TopKError | None:
    """Returns the paper's figure for an evaluation, or None where it has none.

    Args:
      models: (configuration, `training_scales`) of each.
      protocol: a key of `passes.PROTOCOLS`.
      scales: "single" or "multi" where they are the paper's own for each model, else anything.
      data: name of the data set, as TFDS has it.
      split: of it.
    """
    if not data.startswith("imagenet2012/") or split != "validation" or any(s is None for _, s in models):
        return None
    keys = [(configuration, s) for configuration, s in models if s is not None]
    if len(keys) == 1:
        if protocol == "dense":
            return {"single": SINGLE_SCALE, "multi": MULTI_SCALE}.get(scales, {}).get(keys[0])
        jitter = keys[0][1] == "jitter" and scales == "multi"
        return CROPS.get((keys[0][0], protocol)) if jitter else None
    if scales == "multi" and sorted(keys) == [("D", "jitter"), ("E", "jitter")]:
        return FUSION.get(protocol)
    return None
