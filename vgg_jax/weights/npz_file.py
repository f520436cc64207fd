"""`.npz` of NumPy: arrays of numbers alone, as `numpy.savez` writes them; nothing is unpickled."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from vgg_jax.weights import archives
from vgg_jax.weights.tensors import Tensor, TensorFile, WeightsError, short, tensor_file, unique

_ENDING = ".npy"
# Bytes; an array has a header of a hundred.
_LONGEST_HEADER = 10_000


def matches(part_names: Collection[str]) -> bool:
    """Returns whether a zip with these parts is an .npz."""
    return bool(part_names) and all(name.endswith(_ENDING) for name in part_names)


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Opens the arrays by their names.

    Raises:
      WeightsError: damage (each array has a CRC), compression, or anything but numbers.
    """
    num_bytes = path.stat().st_size
    with archives.open_archive(path) as archive:
        for info in archive.infolist():
            archives.check_stored(info, num_bytes, "; write it again with numpy.savez")
        infos = unique((info.filename.removesuffix(_ENDING), info) for info in archive.infolist())
        tensors = {name: _tensor(archive, info, name) for name, info in infos.items()}
        yield tensor_file("an .npz of NumPy", tensors, num_bytes)


def _tensor(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Tensor:
    with archive.open(info) as file:
        start = io.BytesIO(file.read(_LONGEST_HEADER))
    version = np.lib.format.read_magic(start)
    if version not in ((1, 0), (2, 0)):
        raise WeightsError(f"its {short(name)} is of the unknown form {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(start, max_header_size=_LONGEST_HEADER)
    if dtype.kind not in "fiub" or dtype.hasobject:
        raise WeightsError(f"its {short(name)} is of {short(str(dtype))}, and not of numbers")
    begin = start.tell()

    def read() -> np.ndarray:
        content = archives.read_part(archive, info, short(name))[begin:]
        if len(content) != dtype.itemsize * int(np.prod(shape, dtype=object)):
            raise WeightsError(f"its {short(name)} has another size than its shape says")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")

    return Tensor(tuple(shape), dtype.newbyteorder("=").name, read)
