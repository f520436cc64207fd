"""`.h5` of Keras: data sets only; what a file says of code, of other files or of compression is not followed."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vgg_jax.exceptions import UserError
from vgg_jax.weights.tensors import Tensor, TensorFile, WeightsError, check_sizes, short

START = b"\x89HDF\r\n\x1a\n"
_DEEPEST = 4  # groups within groups
_MOST = 1000  # things in a file; a VGG has a hundred


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Opens the tensors, named <layer>/kernel and <layer>/bias for every version of Keras.

    Raises:
      UserError: h5py is not installed.
      WeightsError: damage, links out of the file, compressed or foreign data sets.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{path} is an HDF5 file, which h5py reads, and that is not installed: pip install 'vgg-jax[h5]', or pip "
            "install h5py."
        ) from error
    num_bytes = path.stat().st_size
    try:
        with h5py.File(path, "r") as file:
            root = file
            if file.get("model_weights", getlink=True) is not None:  # a whole model, of which only this is read
                root = _entry(h5py, file, "model_weights", "")
            tensors: dict[str, Tensor] = {}
            _collect(h5py, root, "", 0, tensors, itertools.count())
            check_sizes(tensors, num_bytes, {"float32": 4, "float16": 2})
            yield TensorFile("an .h5 of Keras", tensors, {})
    except (WeightsError, UserError):
        raise
    except Exception as error:  # of many kinds, as they come out of the HDF5 library
        raise WeightsError(f"its HDF5 is damaged ({short(str(error))})") from error


def _entry(h5py: Any, group: Any, name: str, prefix: str) -> Any:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise WeightsError(f"its {short(prefix + name)} is a link, which is not followed")
    return group[name]


def _collect(h5py: Any, group: Any, prefix: str, depth: int, tensors: dict[str, Tensor], visits: Iterator[int]) -> None:
    if not isinstance(group, h5py.Group) or depth > _DEEPEST or len(group) > _MOST:
        raise WeightsError(f"its groups are none of Keras's ({short(prefix) or 'its root'})")
    for name in group:
        if next(visits) > _MOST:  # hard links can make many paths of few groups
            raise WeightsError(f"it has more groups and data sets than {_MOST:,}, far more than any VGG")
        item = _entry(h5py, group, name, prefix)
        if isinstance(item, h5py.Dataset):
            key = _name(prefix, name)
            if key in tensors:
                raise WeightsError(f"it has {short(key)} twice")
            tensors[key] = _tensor(item, key)
        else:
            _collect(h5py, item, f"{prefix}{name}/", depth + 1, tensors, visits)


def _name(group: str, name: str) -> str:
    """Returns fc1/kernel for fc1/fc1_W_1:0 (2016) and fc1/fc1/kernel:0 (later); other names unchanged."""
    layer, last = group.split("/")[0], name.removesuffix(":0")
    for kind in ("kernel", "bias"):
        if re.fullmatch(f"{kind}|{re.escape(layer)}_{'W' if kind == 'kernel' else 'b'}(_1)?", last):
            return f"{layer}/{kind}"
    return group + name


def _tensor(data: Any, name: str) -> Tensor:
    properties = data.id.get_create_plist()
    if data.is_virtual or properties.get_external_count():
        raise WeightsError(f"its {short(name)} lies in another file, which is not followed")
    if properties.get_nfilters():
        raise WeightsError(f"its {short(name)} is compressed; write it again without")
    shape = tuple(data.shape or ())
    if data.dtype.kind in "f" and data.id.get_storage_size() != data.dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise WeightsError(f"its {short(name)} is not all there")

    def read() -> np.ndarray:
        try:
            return data[()]
        except Exception as error:
            raise WeightsError(f"its {short(name)} cannot be read ({short(str(error))})") from error

    return Tensor(shape, data.dtype.newbyteorder("=").name, read)
