"""CIFAR-10 from its official archives to ArrayRecord in TFDS's own layout, without TensorFlow.

cifar-10-python.tar.gz holds pickles, cifar-10-binary.tar.gz a label and 3,072 bytes of pixels, channel by channel, for each image
(https://www.cs.toronto.edu/~kriz/cifar.html). Both give the same images in the same order.
"""

from __future__ import annotations

import io
import lzma
import pickle
import tarfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from vgg_jax.data import prepared
from vgg_jax.data.records import Record
from vgg_jax.exceptions import UserError, first_line

NAME = "cifar10"
_FULL_NAME = f"{NAME}/3.0.2"  # the version of TFDS's layout of it
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_SIDE, _IN_BATCH = 32, 10_000
_PIXELS = 3 * _SIDE**2


def prepare(archive: Path, data_dir: epath.Path) -> prepared.Prepared:
    """Makes `<data_dir>/cifar10/3.0.2/`; does nothing where it is there.

    Args:
      archive: one of the two official ones.
      data_dir: where prepared data lies.

    Raises:
      UserError: no such file, another archive, or a damaged one.
    """
    if there := prepared.read(data_dir / _FULL_NAME):
        return there
    splits = {split: _entries(archive, split, names) for split, names in _BATCHES.items()}
    return prepared.pack(data_dir / _FULL_NAME, _FULL_NAME, str(__doc__), CLASS_NAMES, splits, "png")


def _entries(archive: Path, split: str, batches: list[str]) -> list[prepared.Entry]:
    entries: list[prepared.Entry] = []
    for name in batches:
        labels_N, pixels_Nx3072 = _batch(archive, name)
        for label, pixels in zip(labels_N.tolist(), pixels_Nx3072, strict=True):
            file_name = f"{split}_{len(entries):05d}.png"
            entries.append(prepared.Entry(file_name, 2500, partial(_record, pixels, label, file_name)))
    return entries


def _batch(archive: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels [10000] and pixels [10000, 3072] uint8, red, green, blue, of one of the archive's files."""
    try:
        with tarfile.open(archive) as tar:
            members = {Path(member.name).name: member for member in tar.getmembers() if member.isfile()}
            member = members.get(name) or members.get(f"{name}.bin")
            content = tar.extractfile(member).read() if member else None  # type: ignore[union-attr]
        if content is None:
            raise ValueError(f"it holds no {name}")
        if name in members:
            batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
            labels, pixels = np.asarray(batch[b"labels"], np.int64), np.asarray(batch[b"data"], np.uint8)
        else:
            rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
            labels, pixels = rows[:, 0].astype(np.int64), rows[:, 1:]
        if (
            labels.shape != (_IN_BATCH,)
            or pixels.shape != (_IN_BATCH, _PIXELS)
            or not 0 <= labels.min() <= labels.max() < 10
        ):
            raise ValueError(f"{name} is not {_IN_BATCH:,} images of {_SIDE} x {_SIDE} in ten classes")
    except _DAMAGE as error:
        raise UserError(
            f"--root={archive} is not one of CIFAR-10's archives as published ({first_line(error).rstrip('.')}); give "
            "cifar-10-python.tar.gz or cifar-10-binary.tar.gz, whole."
        ) from error
    return labels, pixels


# What reading a damaged archive raises, compressed in any way, with a damaged pickle in it.
_DAMAGE = (
    *(OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError, pickle.UnpicklingError),
    *(KeyError, IndexError, AttributeError, TypeError, ValueError),
)


class _Unpickler(pickle.Unpickler):
    """Reads the dictionaries of lists and arrays that the archive holds, and runs nothing else that a pickle may name."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"a pickle that names {module}.{name}")


def _record(pixels_3072: np.ndarray, label: int, file_name: str) -> Record:
    encoded = io.BytesIO()
    Image.fromarray(pixels_3072.reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)).save(encoded, "PNG")
    return {"image": encoded.getvalue(), "label": label, "file_name": file_name.encode()}
