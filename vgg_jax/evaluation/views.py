"""What is computed of a picture: a protocol at one test scale Q, and which Q the paper takes (Paper §3.2, §4)."""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict

from vgg_jax.config import RANGES, eval_scale
from vgg_jax.exceptions import UserError

# protocol -> what it averages the posteriors of.
PROTOCOLS: dict[str, tuple[str, ...]] = {
    "center_crop": ("center_crop",),  # one crop, not mirrored: no protocol of the paper, but what most quote
    "dense": ("dense",),  # Paper §3.2
    "multi_crop": ("multi_crop",),  # Paper §4.3
    "dense+multi_crop": ("dense", "multi_crop"),  # Paper §4.3
}
GRID = 5  # rows and columns of the regular grid of crops: 5 x 5 x 2 mirrored x 3 scales = 150 (Paper §4.3)

LARGEST_SCALE = int(RANGES["image.eval_scale"][1])  # Q, pixels


class View(NamedTuple):
    """One part of a protocol at one scale: what posteriors are computed, kept and averaged of."""

    part: str  # center_crop, dense or multi_crop
    scale: int  # Q, pixels
    crop: int  # side of the crop the net was made for, pixels
    mirrored: bool  # the mirror image too

    def per_picture(self) -> int:
        """Images the net sees of each picture."""
        return (GRID**2 if self.part == "multi_crop" else 1) * (2 if self.mirrored else 1)


def views(config: ConfigDict, protocol: str, scales: str) -> list[View]:
    """All views of a protocol for one net, the parts one after another, each in ascending Q.

    Args:
      config: the net's.
      protocol: a key of PROTOCOLS.
      scales: as for `test_scales`; "" for the protocol's own: multi where there are crops, else single.

    Raises:
      UserError: as `test_scales`.
    """
    spec = scales or ("multi" if "multi_crop" in PROTOCOLS[protocol] else "single")
    return [
        View(part, scale, config.image.crop, mirrored=part != "center_crop")
        for part in PROTOCOLS[protocol]
        for scale in test_scales(config, part, spec)
    ]


def test_scales(config: ConfigDict, part: str, spec: str) -> list[int]:
    """Q in pixels, ascending.

    Single (Paper §4.1): S, or the middle of the range for jitter; a centre crop is taken where training took it.
    Multi (Paper §4.2): S - 32, S, S + 32, or the ends and the middle of the range for jitter. At another crop the 32
    pixels are 32 crop / 224 (PAPER.md §5.10).

    Args:
      config: the net's.
      part: of a protocol.
      spec: "single", "multi", or numbers with commas between.

    Raises:
      UserError: neither of these, a scale twice, one smaller than the crop, or one beyond LARGEST_SCALE.
    """
    crop = config.image.crop
    if spec in ("single", "multi"):
        scales = paper_scales(config, part, spec)
    else:
        try:
            scales = sorted(int(word) for word in spec.split(","))
        except ValueError:
            raise UserError(
                f"--scales={_short(spec)} is neither `single` nor `multi` nor whole numbers with commas between, as "
                "256,384,512."
            ) from None
        if len(set(scales)) < len(scales):
            raise UserError(f"--scales={_short(spec)} names a scale twice; name each once.")
    if scales[0] < crop:
        least = max(crop, config.image.scale_min)
        raise UserError(
            f"the test scale Q={_short(str(scales[0]))} (--scales={_short(spec)}) is smaller than the net's crop, {crop}; "
            f"give scales of at least {crop}: --scales={least},{least + _offset(crop)}."
        )
    if scales[-1] > LARGEST_SCALE:
        raise UserError(
            f"the test scale Q={_short(str(scales[-1]))} (--scales={_short(spec)}) is larger than {LARGEST_SCALE} pixels; "
            "give smaller ones."
        )
    return scales


def paper_scales(config: ConfigDict, part: str, kind: str) -> list[int]:
    """The paper's Q for a net in pixels, ascending, whether or not the crop fits; arguments as of `test_scales`."""
    low, high, offset = config.image.scale_min, config.image.scale_max, _offset(config.image.crop)
    middle = (low + high + 1) // 2
    if kind == "multi":
        return [low - offset, low, low + offset] if low == high else [low, middle, high]
    return [eval_scale(config) if part == "center_crop" else middle]


def _offset(crop: int) -> int:
    return (2 * 32 * crop + 224) // (2 * 224)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
