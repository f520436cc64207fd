"""The records of a prepared data set: their form, and random access to the records of one split."""

from __future__ import annotations

import contextlib
import resource
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource

from vgg_jax.runtime.console import print_error
from vgg_jax.runtime.exceptions import UserError

Record = dict[str, Any]

# One record to a chunk, for random access. JPEGs do not compress further; storing them raw makes reads cheaper.
WRITER_OPTIONS = "group_size:1,uncompressed"
_OPEN_FILES = 65_536
_CUT_SHORT_NAMED = 20  # images of a split


class Part(NamedTuple):
    """Successive records of one file, as ArrayRecordDataSource takes them."""

    filename: str
    skip: int  # records before the first
    take: int
    examples_in_shard: int


class CutShortWarnings:
    """Warnings of JPEGs that are cut short: of each image once, and of a few images alone."""

    def __init__(self) -> None:
        self._images: set[str] = set()

    def warn(self, image: str) -> None:
        """Prints that an image is cut short; `image` says which one, and where it lies."""
        if image in self._images or len(self._images) == _CUT_SHORT_NAMED:
            return
        self._images.add(image)
        more = "; further ones are not named" if len(self._images) == _CUT_SHORT_NAMED else ""
        line = f"WARNING: {image}, is a JPEG that is cut short; its last rows are made up{more}."
        print_error(line)


class Records(Sequence[Record]):
    """Records are dicts: image (encoded bytes), label (int), file_name (bytes, where the data set has one).

    Can be pickled, for processes that decode. ArrayRecord files carry checksums: a byte that has changed on the disk
    is noticed when its record is read.

    Args:
      parts: of files that hold at least one record each.
      description: data set and split, for error messages.
    """

    def __init__(self, parts: Sequence[Part], description: str):
        _allow_open_files()
        self._source = ArrayRecordDataSource(parts)
        self._description, self._parts = description, parts
        self.cut_short = CutShortWarnings()
        self._ends = list(accumulate(part.take for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        """Returns a record; raises UserError, with its position, where its bytes have changed."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            example = self._source[index]
            return _parse_fast(example) or _parse(example)
        # Of several kinds, as they come out of C++.
        except Exception as error:
            reason = " ".join(str(error).split())
            remedy = (
                "The file has changed since it was prepared: bring it back from a copy, or delete its directory and "
                "prepare the data again."
            )
            if "Too many open files" in reason:
                remedy = "Each file of the data set stays open: let more be open, as with `ulimit -n 4096`."
            elif "open() failed" in reason or "Input/output error" in reason:
                remedy = "The file is not there or may not be read; mend that and give the same command again."
            raise UserError(f"{self.describe(index)} cannot be read: {reason}. {remedy}") from error

    def in_common(self, other: Records) -> int:
        """Returns how many of these records are among the other ones too, repeated ones counted each time."""
        return sum(
            max(0, min(part.skip + part.take, other_part.skip + other_part.take) - max(part.skip, other_part.skip))
            for part in self._parts
            for other_part in other._parts
            if part.filename == other_part.filename
        )

    def describe(self, index: int) -> str:
        """Returns in words which record of what it is, and in which file it lies."""
        number = bisect_right(self._ends, index)
        part = self._parts[number]
        position = part.skip + index - (self._ends[number - 1] if number else 0)
        return f"record {index} of {self._description} (number {position} in {part.filename})"


def _allow_open_files() -> None:
    """Raises the number of files that this process may have open as far as it may: ImageNet's 1,088 stay open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _parse(example: bytes) -> Record:
    """Parses a serialised tf.train.Example of any layout."""
    from tensorflow_datasets.proto import tf_example_pb2  # seconds, for what TFDS does not write

    features = tf_example_pb2.Example.FromString(example).features.feature
    record = {"image": features["image"].bytes_list.value[0], "label": features["label"].int64_list.value[0]}
    if "file_name" in features:
        record["file_name"] = features["file_name"].bytes_list.value[0]
    return record


_LISTS = {b"image": 0x0A, b"label": 0x1A, b"file_name": 0x0A}  # of bytes or of integers: the list's tag in a Feature


def _parse_fast(example: bytes) -> Record | None:
    """Parses an Example as TFDS writes it, one value to a feature and keys first; returns None for any other.

    Protobuf copies the image twice on its way, which evicts from the cache what decoding needs.
    """
    record: Record = {}
    try:
        end, at = _field(example, 0, 0x0A)
        while at < end:
            entry, at = _field(example, at, 0x0A)
            key, at = _field(example, at, 0x0A)
            name = example[at:key]
            if name in _LISTS:
                feature, at = _field(example, key, 0x12)
                values, at = _field(example, at, _LISTS[name])
                value, at = _field(example, at, 0x0A)
                if name == b"label":
                    record["label"], value_read = _varint(example, at, 64)
                else:
                    record[name.decode()], value_read = example[at:value], value
                if not entry == feature == values == value == value_read:
                    return None
            at = entry
    except (IndexError, ValueError):
        return None
    return record if at == end == len(example) and {"image", "label"} <= record.keys() else None


def _field(data: bytes, at: int, tag: int) -> tuple[int, int]:
    """Returns where the content of a field ends and begins; raises ValueError where another tag stands."""
    if data[at] != tag:
        raise ValueError
    length, start = _varint(data, at + 1)
    return start + length, start


def _varint(data: bytes, at: int, bits: int = 28) -> tuple[int, int]:
    """Returns a number of up to so many bits, of 64 a signed one, and its end; raises ValueError for a longer one."""
    value = 0
    for shift in range(0, bits, 7):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            value &= (1 << 64) - 1
            return value - (1 << 64 if value >> 63 else 0), at
    raise ValueError


def serialized(record: Record) -> bytes:
    """Serialises a record as a tf.train.Example, in the bytes that TFDS would write."""
    features = b""
    for name, value in sorted(record.items()):
        content = _number(value) if name == "label" else value
        values = _tagged(_LISTS[name.encode()], _tagged(0x0A, content))
        features += _tagged(0x0A, _tagged(0x0A, name.encode()) + _tagged(0x12, values))
    return _tagged(0x0A, features)


def _tagged(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + _number(len(content)) + content


def _number(value: int) -> bytes:
    """Encodes a 64 bit integer as a varint: seven bits to a byte, the lowest first."""
    value &= (1 << 64) - 1
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])
