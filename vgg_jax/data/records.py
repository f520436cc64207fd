"""The records of a prepared data set: how this package writes them, and random access to those of one split."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from vgg_jax.errors import UserError

Record = dict[str, Any]

# One record to a chunk, for random access. JPEGs do not get smaller, and unpacking them would cost time at every reading.
WRITER_OPTIONS = "group_size:1,uncompressed"


class UncompressedWriter(writer.ExampleWriter):
    """Writes records as they are, where a builder's `_example_writer` returns one; TFDS's own compresses them."""

    def __init__(self) -> None:
        super().__init__(tfds.core.FileFormat.ARRAY_RECORD)

    def write(self, path: Any, examples: Any) -> None:
        records = ArrayRecordWriter(str(path), WRITER_OPTIONS)
        for _, record in examples:
            records.write(record)
        records.close()


class Records(Sequence[Record]):
    """Records are dicts: image (encoded bytes), label (int), file_name (bytes, where the data set has one).

    Can be pickled, for processes that decode. ArrayRecord files carry checksums: a byte that has changed on the disk
    is noticed when its record is read.

    Args:
      builder: of a data set that is prepared as ArrayRecord.
      split: a TFDS split expression, as `train` or `train[:90%]`.

    Raises:
      ValueError, KeyError: of TFDS, for a split that is not there.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        # A builder that knows nothing but the directory: it can be pickled, which one of a folder's own cannot.
        builder = tfds.builder_from_directory(builder.data_dir)
        # The pictures stay encoded: the crops' geometry decides how they are decoded. TFDS would take apart what else
        # there is in four times the time that it takes here.
        self._source = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        self._split = f"{builder.info.full_name}, {split}"
        files = builder.info.splits[split].file_instructions
        if any(file.take <= 0 for file in files):  # as of train[50%:10%]
            raise ValueError(f"{split} has 0 length")
        self._files = [(file.filename, file.skip) for file in files]
        self._ends = list(accumulate(file.take for file in files))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        """A record; raises UserError, with the place, where its bytes are not those that were written."""
        try:
            example = self._source[index]
            return _plainly_laid_out(example) or _parsed(example)
        except IndexError:
            raise
        except Exception as error:  # of several kinds, as they come out of C++
            raise UserError(
                f"{self.place(index)} cannot be read: {' '.join(str(error).split())}. The file has changed since it was "
                "prepared: bring it back from a copy, or delete its directory and prepare the data again."
            ) from error

    def in_common(self, other: Records) -> int:
        """How many of these records are among the other ones too, those that are here several times counted so."""
        return sum(
            max(0, min(end, other_end) - max(start, other_start))
            for file, start, end in self._parts()
            for other_file, other_start, other_end in other._parts()
            if file == other_file
        )

    def _parts(self) -> list[tuple[str, int, int]]:
        """(file, first record, record after the last) of everything that is read."""
        sizes = [end - start for start, end in pairwise([0, *self._ends])]
        return [(str(file), skip, skip + size) for (file, skip), size in zip(self._files, sizes, strict=True)]

    def place(self, index: int) -> str:
        """In words: which record of what, and in which file it lies."""
        number = bisect_right(self._ends, index)
        name, skip = self._files[number]
        position = skip + index - (self._ends[number - 1] if number else 0)
        return f"record {index} of {self._split} (number {position} in {name})"


def _parsed(example: bytes) -> Record:
    """The record in a serialised tf.train.Example of any layout."""
    features = tf_example_pb2.Example.FromString(example).features.feature
    record = {"image": features["image"].bytes_list.value[0], "label": features["label"].int64_list.value[0]}
    if "file_name" in features:
        record["file_name"] = features["file_name"].bytes_list.value[0]
    return record


_LISTS = {b"image": 0x0A, b"label": 0x1A, b"file_name": 0x0A}  # of bytes or of integers: the list's tag in a Feature


def _plainly_laid_out(example: bytes) -> Record | None:
    """As `_parsed`, of an Example as TFDS writes it: one value to a feature, keys first. None for any other.

    Protobuf copies the picture twice on its way, which evicts from the cache what decoding needs.
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
                    record["label"], value_read = _varint(example, at)
                else:
                    record[name.decode()], value_read = example[at:value], value
                if not entry == feature == values == value == value_read:
                    return None
            at = entry
    except (IndexError, ValueError):
        return None
    return record if at == end == len(example) and {"image", "label"} <= record.keys() else None


def _field(data: bytes, at: int, tag: int) -> tuple[int, int]:
    """Where the content of a field with such a tag ends and begins; raises ValueError where another tag stands."""
    if data[at] != tag:
        raise ValueError
    length, start = _varint(data, at + 1)
    return start + length, start


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of up to 28 bits, and where it ends; raises ValueError for a longer one."""
    value = 0
    for shift in (0, 7, 14, 21):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError
