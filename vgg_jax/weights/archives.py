"""Zip archives as torch, NumPy and Keras write them: every part is stored without compression."""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from vgg_jax.weights.tensors import WeightsError, refusing, short

START = b"PK\x03\x04"
# The exceptions of zipfile on damaged or hostile bytes.
FAULTS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)


def part_names(path: Path) -> list[str]:
    """Returns the names of an archive's parts; none of a damaged one."""
    with contextlib.suppress(*FAULTS), zipfile.ZipFile(path) as archive:
        return archive.namelist()
    return []


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive; raises WeightsError for damage, also within the `with`."""
    with refusing("its zip is damaged", *FAULTS), zipfile.ZipFile(path) as archive:
        yield archive


def check_stored(info: zipfile.ZipInfo, num_bytes: int, remedy: str) -> None:
    """Raises WeightsError for a part that is compressed or encrypted, with `remedy`, or larger than its file."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise WeightsError(f"its part {short(info.filename)} is compressed or encrypted{remedy}")
    if info.file_size > num_bytes:
        raise WeightsError("its zip claims more than the file holds")


def read_part(archive: zipfile.ZipFile, info: zipfile.ZipInfo, title: str) -> bytes:
    """Returns the bytes of a part; raises WeightsError for damage (each part has a CRC)."""
    with refusing(f"its {title} is damaged", *FAULTS):
        return archive.read(info)
