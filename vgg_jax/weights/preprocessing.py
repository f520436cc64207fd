"""Input normalisation as data, and folding it into conv1_1.

Inside this project a model sees RGB on the scale 0 to 255 with a mean subtracted and nothing divided (Paper §2.1).
Others divide by 255 and by a standard deviation, or take blue first. All of these are linear, channel by channel, so
they can be moved into conv1_1's kernel without changing the model's outputs, borders included: zero padding stands for
the mean colour before and after.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from vgg_jax.runtime.exceptions import UserError

ORDERS = ("RGB", "BGR")


class Preprocessing(NamedTuple):
    """A model's input is (channels of an image in `order` * scale / 255 - mean) / std.

    mean and std are in the order of `order` and on the scale of `scale`, as the model's makers write them.
    """

    order: str  # a word of ORDERS
    scale: float  # the value of a full channel: 255 or 1
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def mean_rgb(self) -> np.ndarray:
        """Returns the pixel that the model sees as zero, [3] float32, RGB on the scale 0 to 255."""
        mean = np.array(self.mean, np.float64) * 255 / self.scale
        return (mean if self.order == "RGB" else mean[::-1]).astype(np.float32)

    def factors_rgb(self) -> np.ndarray:
        """Returns [3] float64: the model's input over (RGB on 0 to 255 minus `mean_rgb`), in RGB's order."""
        factors = self.scale / 255 / np.array(self.std, np.float64)
        return factors if self.order == "RGB" else factors[::-1]


# Names for --preprocessing.
KNOWN: dict[str, Preprocessing] = {
    # torchvision and, for its VGGs, timm.
    "torchvision": Preprocessing("RGB", 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # The authors' own models: "the following BGR values should be subtracted: [103.939, 116.779, 123.68]".
    "caffe": Preprocessing("BGR", 255.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
    # This project's own on ImageNet.
    "mean_rgb": Preprocessing("RGB", 255.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
}


def fold_into_conv1(kernel_HxWx3xC: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Returns conv1_1's kernel for RGB on 0 to 255 minus `mean_rgb`, from the one for a model's own input; float32."""
    kernel = kernel_HxWx3xC if preprocessing.order == "RGB" else kernel_HxWx3xC[:, :, ::-1]
    return (kernel * preprocessing.factors_rgb()[:, None]).astype(np.float32)


def unfold_from_conv1(kernel_HxWx3xC: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Returns the inverse of `fold_into_conv1`; float32."""
    kernel = kernel_HxWx3xC / preprocessing.factors_rgb()[:, None]
    return (kernel if preprocessing.order == "RGB" else kernel[:, :, ::-1]).astype(np.float32)


def parse(text: str, flag: str = "--preprocessing") -> Preprocessing:
    """Parses a name of KNOWN, or ORDER:SCALE:MEAN:STD with commas within MEAN and STD.

    Raises:
      UserError: neither.
    """
    if text in KNOWN:
        return KNOWN[text]
    try:
        order, scale, mean, std = text.split(":")
        fields = {
            "order": order,
            "scale": float(scale),
            "mean": list(map(float, mean.split(","))),
            "std": list(map(float, std.split(","))),
        }
        return from_json(fields)
    except ValueError as error:
        raise UserError(
            f"{flag}={text} is neither of {', '.join(KNOWN)} nor of the form ORDER:SCALE:MEAN:STD, as "
            "RGB:1:0.485,0.456,0.406:0.229,0.224,0.225 is."
        ) from error


def from_json(value: Any) -> Preprocessing:
    """Rebuilds a preprocessing from its `_asdict`, once that has been through JSON.

    Raises:
      ValueError: anything else.
    """
    if not isinstance(value, dict) or set(value) != set(Preprocessing._fields):
        raise ValueError(f"preprocessing must have exactly {', '.join(Preprocessing._fields)}")
    if value["order"] not in ORDERS:
        raise ValueError("the order of channels is neither RGB nor BGR")
    numbers = [value["scale"], *_three(value["mean"]), *_three(value["std"])]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) <= 1e6 for n in numbers):
        raise ValueError("scale, mean and std must be numbers of at most 1e6")
    scale, largest = value["scale"], 10 * value["scale"]
    if not (scale >= 1e-3 and max(map(abs, value["mean"])) <= largest):
        raise ValueError("scale must be at least 0.001, and mean within ten times scale")
    if not (1e-4 * scale <= min(value["std"]) and max(value["std"]) <= largest):
        raise ValueError("std must be from 0.0001 to ten times scale")
    mean, std = ((float(r), float(g), float(b)) for r, g, b in (value["mean"], value["std"]))
    return Preprocessing(value["order"], float(value["scale"]), mean, std)


def _three(value: Any) -> list:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError("mean and std must be three numbers")
    return list(value)
