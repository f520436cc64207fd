"""Weights files of other frameworks, written byte by byte without them: what the tests of reading begin with."""

import struct
import zipfile

import numpy as np
import pytest

from vgg_jax.models import NetworkSpec
from vgg_jax.models.description import layer_names
from vgg_jax.weights.layouts import Size, StoredModel, from_variables, shapes

NARROW = Size(width_multiplier=1 / 16, fc_width=16, num_classes=5, side=2)


def kernel_shapes(configuration, size):
    """The shape of every layer's kernel."""
    params = shapes(StoredModel("vgg_jax", NetworkSpec(configuration), size))["params"]
    return {layer: params[layer]["kernel"].shape for layer in layer_names(NetworkSpec(configuration).layers())}


def random_params(configuration="D", size=NARROW, seed=0):
    """{layer: {"kernel", "bias"}} in this project's layout, as NumPy, with logits that are neither flat nor huge."""
    rng, params = np.random.default_rng(seed), {}
    for layer, shape in kernel_shapes(configuration, size).items():
        std = (2 / np.prod(shape[:3])) ** 0.5
        params[layer] = {
            "kernel": (std * rng.standard_normal(shape)).astype(np.float32),
            "bias": (0.1 * rng.standard_normal(shape[3])).astype(np.float32),
        }
    return params


def as_laid_out(params, layout, configuration="D"):
    """The tensors of another framework, by the package's own table: for tests of files, not of the table."""
    tensors = from_variables({"params": params}, layout, NetworkSpec(configuration))
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


# torch.save


def _text(word):
    encoded = word.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _ints(numbers):
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"


def _strides(shape):
    return [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]


def pickled(shapes, storage="FloatStorage", view_metadata=b""):
    """A state dictionary's pickle: {name: shape}, each with a storage of its own, numbered in order."""
    empty = b"ccollections\nOrderedDict\n)R"
    parts = [b"\x80\x02", empty, b"("]
    for key, (name, shape) in enumerate(shapes.items()):
        identity = (
            b"("
            + _text("storage")
            + f"ctorch\n{storage}\n".encode()
            + _text(str(key))
            + _text("cpu")
            + b"J"
            + struct.pack("<i", int(np.prod(shape)))
            + view_metadata
            + b"tQ"
        )
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", identity, b"J\0\0\0\0"]
        parts += [_ints(shape), _ints(_strides(shape)), b"\x89", empty, b"tR"]
    return b"".join([*parts, b"u."])


def nested(body, key="state_dict"):
    """A training script's checkpoint: a state dictionary's pickle under a key, next to the epoch."""
    return b"\x80\x02}" + _text(key) + body[2:-1] + b"s" + _text("epoch") + b"K\x05s."


def write_pth(path, tensors, pickle=None):
    """The zip form (since torch 1.6)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle or pickled({name: a.shape for name, a in tensors.items()}))
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def write_old_pth(path, tensors, pickle=None):
    """The form before torch 1.6."""
    magic = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
    protocol = b"\x80\x02M\xe9\x03."
    system = (
        b"\x80\x02}("
        + _text("protocol_version")
        + b"M\xe9\x03"
        + _text("little_endian")
        + b"\x88"
        + _text("type_sizes")
        + b"}("
        + _text("int")
        + b"K\x04uu."
    )
    keys = b"\x80\x02](" + b"".join(_text(str(i)) for i in range(len(tensors))) + b"e."
    body = pickle or pickled({name: a.shape for name, a in tensors.items()}, view_metadata=b"N")
    data = b"".join(struct.pack("<q", a.size) + a.tobytes() for a in tensors.values())
    path.write_bytes(magic + protocol + system + body + keys + data)
    return path


# Caffe


def _varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def _field(number, content):
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _blob(array, old):
    if old:  # four dimensions, as before Caffe had shapes
        dims = [1] * (4 - array.ndim) + list(array.shape)
        shape = b"".join(_varint(i << 3) + _varint(n) for i, n in enumerate(dims, start=1))
    else:
        shape = _field(7, _field(1, b"".join(map(_varint, array.shape))))
    return shape + _field(5, array.astype("<f4").tobytes())


def write_caffemodel(path, tensors, name="VGG_ILSVRC_16_layers", old=True):
    """As Caffe wrote it in 2014 (`layers`), or since (`layer`); with a layer that has no weights between each two."""
    grouped = {}
    for key, array in tensors.items():
        grouped.setdefault(key.rsplit("/", 1)[0], []).append(array)
    out = _field(1, name.encode())
    for layer, arrays in grouped.items():
        blobs = b"".join(_field(6 if old else 7, _blob(array, old)) for array in arrays)
        out += _field(2 if old else 100, _field(4 if old else 1, layer.encode()) + blobs)
        out += _field(2 if old else 100, _field(4 if old else 1, b"relu_" + layer.encode()))
    path.write_bytes(out)
    return path


# Keras


def write_h5(path, tensors, form="2016"):
    """`save_weights` of 2016 (fc1/fc1_W_1:0), of later versions (fc1/fc1/kernel:0), or a whole model of those."""
    h5py = pytest.importorskip("h5py", reason="writes .h5, which needs h5py (pip install 'vgg-jax[h5]')")
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if form == "model" else file
        root.create_group("flatten")
        for key, array in tensors.items():
            layer, kind = key.split("/")
            old = f"{layer}/{layer}_{'W' if kind == 'kernel' else 'b'}_1:0"
            root[old if form == "2016" else f"{layer}/{layer}/{kind}:0"] = array
        if form == "model":
            file.attrs["model_config"] = '{"class_name": "Lambda"}'
            file.create_group("optimizer_weights")["x"] = np.zeros(3)
    return path
