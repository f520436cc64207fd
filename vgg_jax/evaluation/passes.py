"""Passes of the test protocol: how an image is seen at one test scale Q, and the choices of Q (Paper §3.2, §4)."""

from __future__ import annotations

from typing import NamedTuple

from vgg_jax.config import scaled_length
from vgg_jax.models.description import LARGEST_SCALE
from vgg_jax.recipe import Recipe
from vgg_jax.runtime.exceptions import UserError, quoted

# protocol -> the methods whose probabilities it averages.
PROTOCOLS: dict[str, tuple[str, ...]] = {
    "center_crop": ("center_crop",),  # one crop, not mirrored: no protocol of the paper, but what most quote
    "ten_crop": ("ten_crop",),  # Krizhevsky et al. 2012 §4.1
    "dense": ("dense",),  # Paper §3.2
    "multi_crop": ("multi_crop",),  # Paper §4.3
    "square_crop": ("square_crop",),  # 144 crops at four scales, Szegedy et al. 2014 §7
    "dense+multi_crop": ("dense", "multi_crop"),  # Paper §4.3
}
GRID = 5  # rows and columns of the regular grid of crops: 5 x 5 x 2 mirrored x 3 scales = 150 (Paper §4.3)
# Cells of the grid that a method takes, (row, column): all, or the corners and the centre.
GRID_CELLS = {
    "multi_crop": tuple((row, column) for row in range(GRID) for column in range(GRID)),
    "ten_crop": ((0, 0), (0, 4), (2, 2), (4, 0), (4, 4)),
}
# Of the squares at an image's ends and in its middle: corners, centre and the square itself, resized.
_SQUARE_CROPS = 3 * 6
SQUARE_SCALES = (256, 288, 320, 352)  # at crop 224 (Szegedy et al. 2014, §7): 4 x 18 x 2 mirrored = 144
# ResNets are tested densely at shorter sides of these, at crop 224 (He et al. 2015, §3.4).
RESNET_SCALES = (224, 256, 384, 480, 640)


class EvalPass(NamedTuple):
    """One method at one scale: the unit in which probabilities are computed, cached and averaged."""

    method: str  # center_crop, ten_crop, dense, multi_crop or square_crop
    scale: int  # Q, pixels
    crop: int  # height and width of the model's crop, pixels
    mirrored: bool  # whether the mirror image counts too

    def crops(self) -> int:
        """Returns the number of crops that are cut from an image; 1 where it is seen whole."""
        return _SQUARE_CROPS if self.method == "square_crop" else len(GRID_CELLS.get(self.method, "1"))

    def images_seen(self) -> int:
        """Returns the number of images that the model sees for each one of the split."""
        return self.crops() * (2 if self.mirrored else 1)


def eval_passes(recipe: Recipe, protocol: str, scales: str) -> list[EvalPass]:
    """Returns all passes of a protocol for one model, method after method, each in ascending Q.

    Args:
      recipe: the model's.
      protocol: a key of PROTOCOLS.
      scales: as for `test_scales`; "" for the protocol's own: multi where there are crops, else single.

    Raises:
      UserError: an unknown protocol, or as `test_scales`.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"the protocol is {quoted(protocol)}; it must be one of {', '.join(PROTOCOLS)}.")
    if not isinstance(scales, str):
        raise UserError(f"the test scales are {quoted(scales)}; they must be a text, as 'multi' or '256,384'.")
    spec = scales or ("multi" if {"multi_crop", "square_crop"} & set(PROTOCOLS[protocol]) else "single")
    return [
        EvalPass(method, scale, recipe.image.crop, mirrored=method != "center_crop")
        for method in PROTOCOLS[protocol]
        for scale in test_scales(recipe, method, spec)
    ]


def test_scales(recipe: Recipe, method: str, spec: str) -> list[int]:
    """Returns Q in pixels, ascending.

    Single (Paper §4.1): S, or the middle of the range for jitter; a centre crop is taken where validation takes it,
    ten crops at the least S.
    Multi (Paper §4.2): S - 32, S, S + 32, or the ends and the middle of the range for jitter; for ResNets
    RESNET_SCALES, for square crops SQUARE_SCALES. At another crop all pixels are times crop / 224.

    Args:
      recipe: the model's.
      method: of an `EvalPass`.
      spec: "single", "multi", or numbers with commas between.

    Raises:
      UserError: neither of these, a scale twice, one smaller than the crop, or one beyond LARGEST_SCALE.
    """
    crop, flag = recipe.image.crop, f"--scales={quoted(spec)[1:-1]}"
    if spec in ("single", "multi"):
        scales = paper_scales(recipe, method, spec)
    else:
        try:
            scales = sorted(int(word) for word in spec.split(","))
        except ValueError:
            raise UserError(
                f"{flag} is neither `single` nor `multi` nor whole numbers with commas between, as 256,384,512."
            ) from None
        if len(set(scales)) < len(scales):
            raise UserError(f"{flag} names a scale twice; name each once.")
    if scales[0] < crop:
        least = max(crop, recipe.image.scale_min)
        raise UserError(
            f"the test scale Q={quoted(scales[0])} ({flag}) is smaller than the model's crop, {crop}; "
            f"give scales of at least {crop}: --scales={least},{least + scaled_length(32, crop)}."
        )
    if scales[-1] > LARGEST_SCALE:
        raise UserError(
            f"the test scale Q={quoted(scales[-1])} ({flag}) is larger than {LARGEST_SCALE} pixels; give smaller ones."
        )
    return scales


def paper_scales(recipe: Recipe, method: str, kind: str) -> list[int]:
    """Returns the paper's Q in pixels, ascending, whether or not the crop fits; arguments as of `test_scales`."""
    low, high, offset = recipe.image.scale_min, recipe.image.scale_max, scaled_length(32, recipe.image.crop)
    middle, network = (low + high + 1) // 2, recipe.model.network
    if kind == "multi" and method == "square_crop":
        return [scaled_length(scale, recipe.image.crop) for scale in SQUARE_SCALES]
    if kind == "multi" and network.is_resnet and low < high:
        return [scaled_length(scale, recipe.image.crop) for scale in RESNET_SCALES]
    if kind == "multi" and low == high:
        least = low - offset if network.is_vgg else max(recipe.image.crop, low - offset)
        return sorted({least, low, low + offset})
    if kind == "multi":
        return [low, middle, high]
    return [{"center_crop": recipe.image.eval_scale, "ten_crop": low}.get(method, middle)]
