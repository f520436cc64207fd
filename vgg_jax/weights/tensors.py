"""Tensors of a weights file by name, as every reader returns them; shapes are known before any tensor is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from vgg_jax.runtime.exceptions import UserError

T = TypeVar("T")
# Bytes of a number; any other dtype counts one.
_ITEMSIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2}


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


def tensor_file(
    kind: str, tensors: dict[str, Tensor], num_bytes: int, metadata: dict[str, str] | None = None
) -> TensorFile:
    """Returns the contents of a file of `num_bytes` bytes.

    Raises:
      WeightsError: tensors that claim more than the file has, before memory is taken for them.
    """
    total = 0
    for name, tensor in tensors.items():
        size = _ITEMSIZES.get(tensor.dtype, 1)
        for n in tensor.shape:
            size *= n
        total += size
        if min(tensor.shape, default=1) < 1 or total > num_bytes:
            raise WeightsError(
                f"{short(name)} of shape {short(list(tensor.shape))} cannot be in a file of {num_bytes:,} bytes"
            )
    return TensorFile(kind, tensors, metadata or {})


def unique(pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Returns a dictionary of (name, value); raises WeightsError for a name that is there twice."""
    entries: dict[str, T] = {}
    for name, value in pairs:
        if name in entries:
            raise WeightsError(f"it has {short(name)} twice")
        entries[name] = value
    return entries


@contextlib.contextmanager
def refusing(fault: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turns exceptions of these kinds, which a library raises on damaged bytes, into a WeightsError of this fault."""
    try:
        yield
    except (WeightsError, UserError):
        raise
    except kinds as error:
        raise WeightsError(f"{fault} ({short(str(error))})") from error


def short(value: object, most: int = 60) -> str:
    """Returns a value's text, cut where it is long, and on one line: names in a hostile file may be anything."""
    text = str(value) if isinstance(value, str | int | list | tuple) else type(value).__name__
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."
