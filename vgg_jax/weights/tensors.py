"""What every reader of a weights file gives: tensors by name, whose shapes are known before any of them is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class WeightsError(ValueError):
    """A weights file that is damaged, hostile, or of a form that is not read; the message is the reason."""


class Tensor(NamedTuple):
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: str  # as NumPy calls it: "float32", "int64", ...
    read: Callable[[], np.ndarray]  # raises WeightsError


class TensorFile(NamedTuple):
    """Contents of a file."""

    kind: str  # in words
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def check_sizes(tensors: dict[str, Tensor], num_bytes: int, itemsizes: dict[str, int]) -> None:
    """Raises WeightsError where tensors claim more than the file has bytes; before memory is taken for them.

    Args:
      tensors: of the file.
      num_bytes: of the file.
      itemsizes: bytes of a number, by dtype; a dtype that is not in it counts one.
    """
    total = 0
    for name, tensor in tensors.items():
        size = itemsizes.get(tensor.dtype, 1)
        for n in tensor.shape:
            size *= n
        total += size
        if min(tensor.shape, default=1) < 1 or total > num_bytes:
            raise WeightsError(
                f"{short(name)} of shape {short(list(tensor.shape))} cannot be in a file of {num_bytes:,} bytes"
            )


def short(value: object, most: int = 60) -> str:
    """Its text, cut where it is long, and on one line: names in a hostile file may be anything."""
    text = str(value) if isinstance(value, str | int | list | tuple) else type(value).__name__
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."
