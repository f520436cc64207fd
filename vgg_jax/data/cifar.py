"""CIFAR-10 from its official archives to ArrayRecord in TFDS's own layout, without TensorFlow.

cifar-10-python.tar.gz holds pickles, cifar-10-binary.tar.gz a label and 3,072 bytes of pixels, channel by channel, for
each image (https://www.cs.toronto.edu/~kriz/cifar.html). Both give the same images in the same order. Extracted, they
are read as well.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from etils import epath
from PIL import Image

from vgg_jax.data import prepared
from vgg_jax.data.records import Record
from vgg_jax.runtime.exceptions import UserError, first_line
from vgg_jax.weights.pickles import Dialect, Name, read_pickle
from vgg_jax.weights.tensors import WeightsError

NAME = "cifar10"
_FULL_NAME = f"{NAME}/3.0.2"  # the version of TFDS's layout of it
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_SIDE, _IN_BATCH = 32, 10_000
_PIXELS = 3 * _SIDE**2
# Bounds of what is read: the largest of the official files has 31,035,999 bytes, and all of them together 186 million.
_MOST_BYTES, _MOST_BYTES_IN_ALL = 2**25, 2**28
_EXTRACTED = ("cifar-10-batches-py", "cifar-10-batches-bin")


def prepare(archive: Path, data_dir: epath.Path) -> prepared.Prepared:
    """Makes `<data_dir>/cifar10/3.0.2/`; does nothing where it is there.

    Args:
      archive: one of the two official ones, or the directory that it unpacks to.
      data_dir: where prepared data lies.

    Raises:
      UserError: no such file, another archive, or a damaged one.
    """
    if there := prepared.read(data_dir / _FULL_NAME):
        return there
    try:
        batches = dict(_batches(archive))
        if missing := [name for names in _BATCHES.values() for name in names if name not in batches]:
            raise ValueError(f"it holds no {missing[0]}")
    except _DAMAGE as error:
        raise UserError(
            f"--data_root={archive} is not one of CIFAR-10's archives as published ({first_line(error).rstrip('.')}); "
            "give cifar-10-python.tar.gz or cifar-10-binary.tar.gz, whole, or the directory that it unpacks to."
        ) from error
    splits = {split: _entries(split, [batches[name] for name in names]) for split, names in _BATCHES.items()}
    description = prepared.Description(_FULL_NAME, str(__doc__), CLASS_NAMES, "png")
    return prepared.pack(data_dir / _FULL_NAME, description, splits)


# What reading a damaged archive raises.
_DAMAGE = (OSError, EOFError, tarfile.TarError, zlib.error, ValueError)


def _entries(split: str, batches: list[tuple[np.ndarray, np.ndarray]]) -> list[prepared.Entry]:
    entries: list[prepared.Entry] = []
    for labels_N, pixels_Nx3072 in batches:
        for label, pixels in zip(labels_N.tolist(), pixels_Nx3072, strict=True):
            file_name = f"{split}_{len(entries):05d}.png"
            entries.append(prepared.Entry(file_name, 2500, partial(_record, pixels, label, file_name)))
    return entries


def _batches(archive: Path) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Yields (name of a batch, (labels [10000] int64, pixels [10000, 3072] uint8: red, green, blue)).

    Raises:
      OSError, ValueError, ...: of _DAMAGE.
    """
    names = {f"{name}{suffix}": name for batches in _BATCHES.values() for name in batches for suffix in ("", ".bin")}
    for file, content in _files_of_directory(archive, names) if archive.is_dir() else _files_of_tar(archive, names):
        labels, pixels = _binary_batch(content) if file.endswith(".bin") else _python_batch(content)
        if len(labels) != _IN_BATCH or not 0 <= labels.min() <= labels.max() < len(CLASS_NAMES):
            raise ValueError(f"{file} is not {_IN_BATCH:,} images of {_SIDE} x {_SIDE} in ten classes")
        yield names[file], (labels, pixels)


def _files_of_directory(directory: Path, names: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    below = next((directory / name for name in _EXTRACTED if (directory / name).is_dir()), directory)
    for path in sorted(below.iterdir()):
        if path.name in names and path.is_file():
            with open(path, "rb") as file:
                yield path.name, _read(file, path.name, path.stat().st_size)


def _files_of_tar(archive: Path, names: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of files in a tar, gzip-compressed or not, header by header: `tarfile` has no bounds."""
    with open(archive, "rb") as packed:
        is_gzip = packed.peek(2)[:2] == b"\x1f\x8b"
        file: Any = gzip.GzipFile(fileobj=packed) if is_gzip else packed
        at = 0
        while len(header := file.read(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE and header.strip(b"\0"):
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            at += tarfile.BLOCKSIZE + member.size
            if member.size < 0 or at > _MOST_BYTES_IN_ALL:
                raise ValueError(f"it unpacks to more than {_MOST_BYTES_IN_ALL:,} bytes")
            name = Path(member.name).name
            if member.isreg() and name in names:
                yield name, _read(file, name, member.size)
            else:
                file.seek(member.size, io.SEEK_CUR)
            file.seek(-member.size % tarfile.BLOCKSIZE, io.SEEK_CUR)


def _read(file: BinaryIO, name: str, size: int) -> bytes:
    if size > _MOST_BYTES:
        raise ValueError(f"{name} has {size:,} bytes, more than {_MOST_BYTES:,}")
    content = file.read(size)
    if len(content) < size:
        raise EOFError(f"{name} is cut short")
    return content


def _binary_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return rows[:, 0].astype(np.int64), rows[:, 1:]


class _DType:
    """Stands for numpy.dtype("u1") in a pickle."""


class _Array:
    """Stands for an array in a pickle."""

    def __init__(self, pixels: np.ndarray | None = None):
        self.pixels = pixels


def _python_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads the pickle of a batch as Python 2 wrote it: a dict of names, labels, file names and one array of bytes.

    Raises:
      ValueError: anything else in it.
    """
    batch = read_pickle(io.BytesIO(content), _NUMPY)
    labels, array = (batch.get(key) for key in ("labels", "data")) if isinstance(batch, dict) else (None, None)
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise ValueError("its labels are not a list of small numbers")
    if not isinstance(array, _Array) or array.pixels is None or len(array.pixels) != len(labels):
        raise ValueError("its data are not an array with a row of bytes for each label")
    return np.array(labels, np.int64), array.pixels


def _new_array(kind: Any, shape: Any, code: Any) -> _Array:
    if (kind, shape, code) != (Name("numpy.ndarray"), (0,), "b"):
        raise WeightsError("its pickle makes something else than an array")
    return _Array()


def _new_dtype(*arguments: Any) -> _DType:
    if arguments != ("u1", 0, 1):
        raise WeightsError("its pickle makes an array of something else than bytes")
    return _DType()


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, _DType) and state == (3, "|", None, None, None, -1, -1, 0):
        return
    if not isinstance(target, _Array) or not isinstance(state, tuple) or len(state) != 5:
        raise WeightsError("its pickle makes something else than an array of bytes")
    version, shape, dtype, is_fortran, content = state
    if version != 1 or not isinstance(dtype, _DType) or is_fortran is not False or not isinstance(content, str):
        raise WeightsError("its pickle makes something else than an array of bytes")
    if shape != (_IN_BATCH, _PIXELS) or len(content) != _IN_BATCH * _PIXELS:
        raise WeightsError(f"its array is not {_IN_BATCH:,} images of {_SIDE} x {_SIDE}")
    target.pixels = np.frombuffer(content.encode("latin-1"), np.uint8).reshape(shape)


_NUMPY = Dialect(
    {"numpy.core.multiarray._reconstruct": _new_array, "numpy.dtype": _new_dtype}, ("numpy.ndarray",), _set_state
)


def _record(pixels_3072: np.ndarray, label: int, file_name: str) -> Record:
    encoded = io.BytesIO()
    Image.fromarray(pixels_3072.reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)).save(encoded, "PNG")
    return {"image": encoded.getvalue(), "label": label, "file_name": file_name.encode()}
