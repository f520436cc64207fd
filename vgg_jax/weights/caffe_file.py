"""`.caffemodel`: the few fields of Caffe's NetParameter that hold weights, read straight from the protocol buffer.

Field numbers, from caffe.proto. NetParameter: name 1, layers 2 (as in 2014), layer 100 (since 2015). V1LayerParameter:
name 4, blobs 6. LayerParameter: name 1, blobs 7. BlobProto: num, channels, height, width 1 to 4 (as in 2014), data 5,
diff 6, shape 7, double_data 8, double_diff 9. BlobShape: dim 1.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vgg_jax.weights.tensors import Tensor, TensorFile, WeightsError, check_sizes, short

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Where a layer's name and blobs are, by the field that the layer itself is.
_LAYERS = {2: (4, 6), 100: (1, 7)}
_MOST_FIELDS = 100_000  # in a file; a VGG has a thousand or two


class _Field(NamedTuple):
    number: int
    kind: int
    value: int  # of a varint
    start: int  # of the bytes, in the file
    end: int


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
    num_bytes = path.stat().st_size
    with open(path, "rb") as file:
        if not num_bytes:
            raise WeightsError("it is empty")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Not closed here: arrays that were made of it may live on, and it goes with the last of them.
    try:
        yield _Reader(content).contents()
    except UnicodeDecodeError as error:
        raise WeightsError("a name in it is no text") from error


class _Reader:
    """Goes through a file once, and counts how much there is."""

    def __init__(self, content: mmap.mmap):
        self._content, self._count = content, 0

    def contents(self) -> TensorFile:
        tensors: dict[str, Tensor] = {}
        metadata = {}
        for field in self._fields(0, len(self._content)):
            if field.number == 1 and field.kind == _BYTES:
                metadata["name"] = short(_text(self._content, field))
            if field.number not in _LAYERS or field.kind != _BYTES:
                continue
            name_at, blobs_at = _LAYERS[field.number]
            name, blobs = "", []
            for part in self._fields(field.start, field.end):
                if part.number == name_at and part.kind == _BYTES:
                    name = _text(self._content, part)
                elif part.number == blobs_at and part.kind == _BYTES:
                    blobs.append(self._blob(part))
            for i, blob in enumerate(blobs):
                if f"{name}/{i}" in tensors:
                    raise WeightsError(f"it has {short(name)} twice")
                tensors[f"{name}/{i}"] = blob
        check_sizes(tensors, len(self._content), {"float32": 4})
        return TensorFile("a .caffemodel of Caffe", tensors, metadata)

    def _blob(self, blob: _Field) -> Tensor:
        old, shape, data, doubles = {}, None, None, False
        for field in self._fields(blob.start, blob.end):
            if field.number <= 4 and field.kind == _VARINT:
                old[field.number] = field.value
            elif field.number == 7 and field.kind == _BYTES:
                shape = self._dims(field)
            elif field.number in (5, 8):
                if field.kind != _BYTES or data is not None:
                    raise WeightsError("the numbers of a blob are not in one piece")
                data, doubles = field, field.number == 8
        if shape is None:
            shape = tuple(old.get(i, 1) for i in range(1, 5)) if old else ()
        if data is None or doubles:
            size = data.end - data.start if data else 0
            return Tensor(shape, "float64" if size else "nothing", lambda: np.zeros(0))
        count = int(np.prod(shape, dtype=object))
        if count * 4 != data.end - data.start:
            raise WeightsError(f"a blob of shape {short(list(shape))} has {data.end - data.start:,} bytes")

        def read() -> np.ndarray:
            return np.frombuffer(self._content, "<f4", count, data.start).reshape(shape)

        return Tensor(shape, "float32", read)

    def _dims(self, shape: _Field) -> tuple[int, ...]:
        dims: list[int] = []
        for field in self._fields(shape.start, shape.end):
            if field.number != 1:
                continue
            if field.kind == _VARINT:
                dims.append(field.value)
                continue
            at = field.start
            while at < field.end and len(dims) < 9:
                value, at = _varint(self._content, at, field.end)
                dims.append(value)
        if len(dims) > 8:
            raise WeightsError("a blob has more than eight dimensions")
        return tuple(dims)

    def _fields(self, at: int, end: int) -> Iterator[_Field]:
        """Yields the fields of the message at these bytes."""
        while at < end:
            self._count += 1
            if self._count > _MOST_FIELDS:
                raise WeightsError(f"it has more than {_MOST_FIELDS:,} fields, far more than any VGG")
            tag, at = _varint(self._content, at, end)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                raise WeightsError(f"byte {at - 1:,} is no field of a protocol buffer")
            if kind == _VARINT:
                value, at = _varint(self._content, at, end)
                yield _Field(number, kind, value, at, at)
                continue
            if kind == _BYTES:
                length, at = _varint(self._content, at, end)
            elif kind in (_FIXED32, _FIXED64):
                length = 4 if kind == _FIXED32 else 8
            else:
                raise WeightsError(f"byte {at - 1:,} is no field of a protocol buffer")
            if length > end - at:
                raise WeightsError(f"the field at byte {at:,} reaches {length - (end - at):,} bytes too far")
            yield _Field(number, kind, 0, at, at + length)
            at += length


def _varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise WeightsError(f"the number at byte {at:,} has no end")


def _text(content: mmap.mmap, field: _Field) -> str:
    if field.end - field.start > 1000:
        raise WeightsError("a name in it is longer than 1,000 bytes")
    return content[field.start : field.end].decode()
