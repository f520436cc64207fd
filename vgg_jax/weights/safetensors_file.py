"""`.safetensors`, read by the safetensors package, which checks every offset against the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vgg_jax.weights.tensors import Tensor, TensorFile, WeightsError, refusing, tensor_file

# A header has about 100 bytes for each tensor, and in this project's own files the class names. The package would read
# one of 100 MB, which takes many times its size.
_MAX_HEADER = 4 * 2**20
# Others keep their own name.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
}


def matches(start: bytes) -> bool:
    """Returns whether a file begins as safetensors do: the header's length, then a JSON object."""
    return len(start) > 8 and start[8:9] == b"{"


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Opens the tensors and the metadata.

    Raises:
      WeightsError: a damaged header, or one that does not describe the file to its last byte. There are no checksums.
    """
    num_bytes = path.stat().st_size
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > min(_MAX_HEADER, num_bytes - 8):
        raise WeightsError(f"its header claims {header:,} bytes")
    with refusing("its header is damaged", SafetensorError), safe_open(path, framework="numpy") as file:
        tensors = {name: _tensor(file, name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        yield tensor_file("a .safetensors", tensors, num_bytes, file.metadata())


def _tensor(file: Any, name: str) -> Tensor:
    part = file.get_slice(name)
    dtype = _DTYPES.get(part.get_dtype(), part.get_dtype())

    def read() -> np.ndarray:
        return file.get_tensor(name)

    return Tensor(tuple(part.get_shape()), dtype, read)
