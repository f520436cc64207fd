"""`.caffemodel` of Caffe: the fields of its NetParameter that hold weights, read from the protocol buffer.

The file is mapped, and tensors are views of it: a 553 MB file takes 0.6 GB while all its tensors are read. The package
protobuf copies it first and takes 1.6 GB, and 2.5 GB for a hostile file of 120 MB.

Field numbers, from caffe.proto. NetParameter: name 1, layers 2 (as in 2014), layer 100 (since 2015). V1LayerParameter:
name 4, blobs 6. LayerParameter: name 1, blobs 7. BlobProto: num, channels, height, width 1 to 4 (as in 2014), data 5,
diff 6, shape 7, double_data 8, double_diff 9. BlobShape: dim 1.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vgg_jax.weights.tensors import Tensor, TensorFile, WeightsError, short, tensor_file, unique

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Number of a layer's field -> numbers of its name's and its blobs' fields.
_LAYERS = {2: (4, 6), 100: (1, 7)}
# Limit of fields in a file; a VGG has one or two thousand.
_MOST_FIELDS = 100_000
_MOST_DIMENSIONS = 8


def matches(start: bytes, path: Path) -> bool:
    """Returns whether a file is Caffe's, by its suffix or its first field: protocol buffers have no mark."""
    if path.suffix == ".caffemodel":
        return True
    return len(start) > 2 and start[0] == 0x0A and 0 < start[1] < 128 and start[2 : 2 + start[1]].isascii()


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Opens the tensors, named <layer>/0 (kernel) and <layer>/1 (bias); metadata: the model's name under "name".

    Raises:
      WeightsError: damage, or the layers of a Caffe before 2014.
    """
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise WeightsError("it is empty")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Not closed here: arrays that were made of it may live on, and it goes with the last of them.
    yield _Reader(content).contents()


class _Reader:
    """Goes through a file once, and counts its fields."""

    def __init__(self, content: mmap.mmap):
        self._content, self._count = content, 0

    def contents(self) -> TensorFile:
        """Returns the tensors of all layers."""
        tensors: list[tuple[str, Tensor]] = []
        metadata = {}
        for number, value in self._fields(range(len(self._content))):
            if number == 1 and isinstance(value, range):
                metadata["name"] = short(self._text(value))
            elif number in _LAYERS and isinstance(value, range):
                tensors += self._layer(value, *_LAYERS[number])
        return tensor_file("a .caffemodel of Caffe", unique(tensors), len(self._content), metadata)

    def _layer(self, layer: range, name_number: int, blobs_number: int) -> list[tuple[str, Tensor]]:
        name, blobs = "", []
        for number, value in self._fields(layer):
            if number == name_number and isinstance(value, range):
                name = self._text(value)
            elif number == blobs_number and isinstance(value, range):
                blobs.append(self._blob(value))
        return [(f"{name}/{i}", blob) for i, blob in enumerate(blobs)]

    def _blob(self, blob: range) -> Tensor:
        old: dict[int, int] = {}
        shape, data, is_double = None, range(0), False
        for number, value in self._fields(blob):
            if number <= 4 and isinstance(value, int):
                old[number] = value
            elif number == 7 and isinstance(value, range):
                shape = self._dimensions(value)
            elif number in (5, 8):
                if isinstance(value, int) or data:
                    raise WeightsError("the numbers of a blob are not in one piece")
                data, is_double = value, number == 8
        if shape is None:
            shape = tuple(old.get(i, 1) for i in range(1, 5)) if old else ()
        if not data or is_double:
            return Tensor(shape, "float64" if data else "nothing", lambda: np.zeros(0))
        count = int(np.prod(shape, dtype=object))
        if count * 4 != len(data):
            raise WeightsError(f"a blob of shape {short(list(shape))} has {len(data):,} bytes")
        return Tensor(shape, "float32", lambda: np.frombuffer(self._content, "<f4", count, data.start).reshape(shape))

    def _dimensions(self, shape: range) -> tuple[int, ...]:
        dimensions: list[int] = []
        for number, value in self._fields(shape):
            if number != 1:
                continue
            if isinstance(value, int):
                dimensions.append(value)
            else:
                at = value.start
                while at < value.stop and len(dimensions) <= _MOST_DIMENSIONS:
                    dimension, at = self._varint(at, value.stop)
                    dimensions.append(dimension)
        if len(dimensions) > _MOST_DIMENSIONS:
            raise WeightsError("a blob has more than eight dimensions")
        return tuple(dimensions)

    def _fields(self, message: range) -> Iterator[tuple[int, int | range]]:
        """Yields number and value of a message's fields: a varint, or the positions in the file of other bytes."""
        at, end = message.start, message.stop
        while at < end:
            self._count += 1
            if self._count > _MOST_FIELDS:
                raise WeightsError(f"it has more than {_MOST_FIELDS:,} fields, far more than any VGG")
            tag, at = self._varint(at, end)
            number, kind = tag >> 3, tag & 7
            if number == 0 or kind not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
                raise WeightsError(f"byte {at - 1:,} is not a field of a protocol buffer")
            if kind == _VARINT:
                value, at = self._varint(at, end)
                yield number, value
                continue
            length = 4 if kind == _FIXED32 else 8
            if kind == _BYTES:
                length, at = self._varint(at, end)
            if length > end - at:
                raise WeightsError(f"the field at byte {at:,} reaches {length - (end - at):,} bytes too far")
            yield number, range(at, at + length)
            at += length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Returns the number at a position, and the position behind it."""
        value = 0
        for shift, byte in enumerate(self._content[at : min(end, at + 10)]):
            value |= (byte & 127) << 7 * shift
            if byte < 128:
                return value, at + shift + 1
        raise WeightsError(f"the number at byte {min(end, at + 10):,} has no end")

    def _text(self, value: range) -> str:
        if len(value) > 1000:
            raise WeightsError("a name in it is longer than 1,000 bytes")
        try:
            return self._content[value.start : value.stop].decode()
        except UnicodeDecodeError as error:
            raise WeightsError("a name in it is not text") from error
