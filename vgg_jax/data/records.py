"""Random access to the records of one split of a prepared data set."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from vgg_jax.errors import UserError

Record = dict[str, Any]


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
        self._files = [(file.filename, file.skip) for file in files]
        self._ends = list(accumulate(file.take for file in files))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        """A record; raises UserError, with the place, where its bytes are not those that were written."""
        try:
            features = tf_example_pb2.Example.FromString(self._source[index]).features.feature
            record = {"image": features["image"].bytes_list.value[0], "label": features["label"].int64_list.value[0]}
            if "file_name" in features:
                record["file_name"] = features["file_name"].bytes_list.value[0]
            return record
        except IndexError:
            raise
        except Exception as error:  # of several kinds, as they come out of C++
            raise UserError(
                f"{self.place(index)} cannot be read: {' '.join(str(error).split())}. The file has changed since it was "
                "prepared: bring it back from a copy, or delete its directory and prepare the data again."
            ) from error

    def place(self, index: int) -> str:
        """In words: which record of what, and in which file it lies."""
        number = bisect_right(self._ends, index)
        name, skip = self._files[number]
        position = skip + index - (self._ends[number - 1] if number else 0)
        return f"record {index} of {self._split} (number {position} in {name})"
