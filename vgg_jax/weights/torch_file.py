"""`.pth` of torch.save, in its zip form (since torch 1.6) and in the form before."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vgg_jax.weights import archives
from vgg_jax.weights.pickles import Storage, View, read_pickle
from vgg_jax.weights.tensors import Tensor, TensorFile, WeightsError, short, tensor_file, unique

# The first pickle of the older form: protocol 2, the number 0x1950a86a20f9469cfc6c.
OLD_START = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
# Bytes; a VGG has a pickle of six thousand.
_MAX_PICKLE = 2**20
_DTYPES = {
    name: np.dtype(name) for name in ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8")
}
_DTYPES |= {"bool": np.dtype(np.uint8), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[TensorFile]:
    """Opens the tensors of a state dictionary in a zip.

    Raises:
      WeightsError: damage (each part has a CRC), compression, or anything but a flat dictionary of tensors.
    """
    with archives.open_archive(path) as archive:
        yield _from_zip(archive, path.stat().st_size)


def _from_zip(archive: zipfile.ZipFile, num_bytes: int) -> TensorFile:
    for info in archive.infolist():
        archives.check_stored(info, num_bytes, ", which torch never does")
    parts = unique((info.filename, info) for info in archive.infolist())
    if sum(info.file_size for info in parts.values()) > num_bytes:
        raise WeightsError("its zip claims more than the file holds")
    pickles = [name for name in parts if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError("it is a zip, but not one of torch.save: there is no data.pkl in it")
    root = pickles[0].removesuffix("data.pkl")
    if root + "constants.pkl" in parts:
        raise WeightsError("it is a TorchScript program; save the state dictionary of its module instead")
    for name, info in parts.items():
        # Storages are checked as they are read.
        if not name.startswith(root + "data/"):
            if info.file_size > _MAX_PICKLE:
                raise WeightsError(f"its part {short(name)} has {info.file_size:,} bytes, far more than a VGG needs")
            content = archive.read(info)
            if name == root + "byteorder" and content != b"little":
                raise WeightsError("it was written on a big-endian machine")
            if name == root + "data.pkl":
                value = read_pickle(io.BytesIO(content))

    def storage_bytes(storage: Storage) -> bytes:
        info = parts.get(f"{root}data/{storage.key}")
        if info is None:
            raise WeightsError(f"its storage {short(storage.key)} is missing")
        if info.file_size != _num_bytes(storage):
            raise WeightsError(f"its storage {short(storage.key)} has another size than the pickle says")
        return archives.read_part(archive, info, f"storage {short(storage.key)}")

    return _contents("a .pth of torch", value, num_bytes, storage_bytes)


@contextlib.contextmanager
def open_old(path: Path) -> Iterator[TensorFile]:
    """Opens the form that torch wrote before 1.6, as `open_zip`: five pickles, then the storages. No checksums."""
    num_bytes = path.stat().st_size
    with open(path, "rb") as file:
        stream = io.BytesIO(file.read(_MAX_PICKLE))
        # The magic number, by which the file was recognised.
        read_pickle(stream)
        protocol, system, value, keys = (read_pickle(stream) for _ in range(4))
        if protocol != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise WeightsError("it was not written by torch on a little-endian machine")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
            raise WeightsError("its list of storages is damaged")
        storages: dict[str, Storage] = {}
        for view in _all_views(value):
            if storages.setdefault(view.storage.key, view.storage) != view.storage:
                raise WeightsError(f"its storage {short(view.storage.key)} has two sizes or kinds")
        if set(storages) != set(keys):
            raise WeightsError("its list of storages does not match its tensors")
        offsets, at = {}, stream.tell()
        for key in keys:
            file.seek(at)
            header = file.read(8)
            if header != storages[key].numel.to_bytes(8, "little"):
                raise WeightsError(f"its storage {short(key)} is cut off or has another size than the pickle says")
            offsets[key] = at + 8
            at += 8 + _num_bytes(storages[key])
        if at != num_bytes:
            raise WeightsError(f"it should have {at:,} bytes and has {num_bytes:,}")

        def storage_bytes(storage: Storage) -> bytes:
            file.seek(offsets[storage.key])
            return file.read(_num_bytes(storage))

        yield _contents("a .pth of torch, in the form before 1.6", value, num_bytes, storage_bytes)


def _num_bytes(storage: Storage) -> int:
    return storage.numel * _DTYPES[storage.dtype].itemsize


def _all_views(value: Any) -> Iterator[View]:
    """Yields the tensors within a pickle's value, the optimizer's too; each list once, as it may hold itself."""
    waiting, seen = [value], set[int]()
    while waiting:
        item = waiting.pop()
        if isinstance(item, View):
            yield item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, dict) else item


def _views(value: Any) -> tuple[dict[str, View], str]:
    """Returns the tensors by name, and the key under which they lay; "" where they are the whole."""
    inner = ""
    if isinstance(value, dict):
        nested = {key: len(value[key]) for key in _NESTED if isinstance(value.get(key), dict)}
        # An average of the parameters alone lacks the statistics of the whole that is next to it.
        whole = max((count for key, count in nested.items() if key not in _AVERAGES), default=0)
        inner = next((key for key, count in nested.items() if key not in _AVERAGES or count >= whole), "")
        value = value[inner] if inner else value
    if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        odd = [key for key, item in value.items() if not isinstance(item, View)]
        if not odd:
            return value, inner
        raise WeightsError(f"it is not a plain state dictionary: {short(odd[0])} is not a tensor")
    raise WeightsError("it is not a state dictionary; save one: torch.save(model.state_dict(), FILE)")


# Where training scripts put it, next to the optimizer's state. A running average comes first, as it is what they test.
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict")
_NESTED = (*_AVERAGES, "state_dict", "model_state_dict", "model", "net")


def _contents(kind: str, value: Any, num_bytes: int, storage_bytes: Callable[[Storage], bytes]) -> TensorFile:
    def tensor(name: str, view: View) -> Tensor:
        last = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
        count = int(np.prod(view.shape, dtype=object))
        if last >= view.storage.numel or count > view.storage.numel:
            raise WeightsError(f"{short(name)} reaches beyond its storage")

        def read() -> np.ndarray:
            dtype = _DTYPES[view.storage.dtype]
            flat = np.frombuffer(storage_bytes(view.storage), dtype)
            if last >= len(flat):
                raise WeightsError(f"{short(name)} is not all there")
            flat = flat[view.offset :]
            strides = [s * dtype.itemsize for s in view.strides]
            return np.lib.stride_tricks.as_strided(flat, view.shape, strides, writeable=False)

        return Tensor(view.shape, view.storage.dtype, read)

    views, inner = _views(value)
    tensors = {name: tensor(name, view) for name, view in views.items()}
    origin = f", the running average under {inner!r}" if inner in _AVERAGES else f", under {inner!r}" if inner else ""
    return tensor_file(kind + origin, tensors, num_bytes)
