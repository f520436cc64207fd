"""`.npz` of NumPy: arrays of numbers alone, as `numpy.savez` writes them; nothing is unpickled."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vgg_jax.weights.tensors import Tensor, TensorFile, WeightsError, check_sizes, short

_ENDING = ".npy"
_LONGEST_HEADER = 10_000  # bytes; one array's has a hundred
_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    OSError,
    ValueError,
)


def matches(path: Path) -> bool:
    """Returns whether a zip is an .npz."""
    with contextlib.suppress(*_FAULTS), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        return bool(names) and all(name.endswith(_ENDING) for name in names)
    return False


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Opens the arrays by their names.

    Raises:
      WeightsError: damage (each array has a CRC), compression, or anything but numbers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tensors: dict[str, Tensor] = {}
            itemsizes: dict[str, int] = {}
            for info in archive.infolist():
                name = info.filename.removesuffix(_ENDING)
                if (
                    info.compress_type != zipfile.ZIP_STORED
                    or info.file_size != info.compress_size
                    or info.flag_bits & 1
                ):
                    raise WeightsError(f"its {short(name)} is compressed; write it again with numpy.savez")
                if name in tensors:
                    raise WeightsError(f"it has {short(name)} twice")
                tensors[name], dtype = _tensor(archive, info, name)
                itemsizes[dtype.name] = dtype.itemsize
            check_sizes(tensors, path.stat().st_size, itemsizes)
            yield TensorFile("an .npz of NumPy", tensors, {})
    except WeightsError:
        raise
    except _FAULTS as error:
        raise WeightsError(f"its zip is damaged ({short(str(error))})") from error


def _tensor(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> tuple[Tensor, np.dtype]:
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
        try:
            content = archive.read(info)[begin:]
        except _FAULTS as error:
            raise WeightsError(f"its {short(name)} is damaged ({short(str(error))})") from error
        if len(content) != dtype.itemsize * int(np.prod(shape, dtype=object)):
            raise WeightsError(f"its {short(name)} has another size than its shape says")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")

    return Tensor(tuple(shape), dtype.newbyteorder("=").name, read), dtype
