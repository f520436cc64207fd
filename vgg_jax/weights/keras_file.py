"""`.h5`, `.weights.h5` and `.keras` of Keras: data sets only; what a file says of code, of other files or of compression is not
followed."""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vgg_jax.models import NetworkSpec
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights.tensors import Tensor, TensorFile, WeightsError, check_sizes, short

START = b"\x89HDF\r\n\x1a\n"
ARCHIVED = "model.weights.h5"  # the weights in a .keras, which is a zip
_DEEPEST = 6  # groups within groups; a model within a model has six
_MOST = 1000  # things in a file; a VGG has a hundred


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Opens the tensors of an .h5, named <layer>/kernel and <layer>/bias for every version of Keras.

    Raises:
      UserError: h5py is not installed.
      WeightsError: damage, links out of the file, compressed or foreign data sets.
    """
    with _opened(path, path, path.stat().st_size) as contents:
        yield contents


def is_archive(path: Path) -> bool:
    """Returns whether a zip is a .keras."""
    with contextlib.suppress(zipfile.BadZipFile, ValueError, NotImplementedError), zipfile.ZipFile(path) as archive:
        return ARCHIVED in archive.namelist()
    return False


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[TensorFile]:
    """Opens the tensors of a .keras, as `open_tensors`; what it says of layers and code is not read."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(ARCHIVED)
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size > path.stat().st_size:
                raise WeightsError(f"its part {ARCHIVED} is compressed or encrypted, which Keras never does")
            content = archive.read(info)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise WeightsError(f"its zip is damaged ({short(str(error))})") from error
    with _opened(io.BytesIO(content), path, len(content)) as contents:
        yield contents._replace(kind="a .keras")


@contextlib.contextmanager
def _opened(source: Path | io.BytesIO, path: Path, num_bytes: int) -> Iterator[TensorFile]:
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{path} is an HDF5 file, which h5py reads, and that is not installed: pip install 'vgg-jax[h5]', or pip "
            "install h5py."
        ) from error
    try:
        with h5py.File(source, "r") as file:
            root = file
            if file.get("model_weights", getlink=True) is not None:  # a whole model, of which only this is read
                root = _entry(h5py, file, "model_weights", "")
            tensors: dict[str, Tensor] = {}
            groups = _collect(h5py, root, "", 0, tensors, itertools.count())
            check_sizes(tensors, num_bytes, {"float32": 4, "float16": 2})
            yield TensorFile("an .h5 of Keras", _with_pooled_head(_by_layer(_by_name(tensors)), groups), {})
    except (WeightsError, UserError):
        raise
    except Exception as error:  # of many kinds, as they come out of the HDF5 library
        raise WeightsError(f"its HDF5 is damaged ({short(str(error))})") from error


def _entry(h5py: Any, group: Any, name: str, prefix: str) -> Any:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise WeightsError(f"its {short(prefix + name)} is a link, which is not followed")
    return group[name]


def _collect(
    h5py: Any, group: Any, prefix: str, depth: int, tensors: dict[str, Tensor], visits: Iterator[int]
) -> list[str]:
    """Adds the data sets below a group to `tensors` by their paths, and returns the names of all groups."""
    groups = [prefix.rstrip("/").split("/")[-1]]
    if not isinstance(group, h5py.Group) or depth > _DEEPEST or len(group) > _MOST:
        raise WeightsError(f"its groups are none of Keras's ({short(prefix) or 'its root'})")
    for name in group:
        if next(visits) > _MOST:  # hard links can make many paths of few groups
            raise WeightsError(f"it has more groups and data sets than {_MOST:,}, far more than any VGG")
        item = _entry(h5py, group, name, prefix)
        if isinstance(item, h5py.Dataset):
            tensors[prefix + name] = _tensor(item, prefix + name)
        else:
            groups += _collect(h5py, item, f"{prefix}{name}/", depth + 1, tensors, visits)
    return groups


def _by_name(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns fc1/kernel for fc1/fc1_W_1:0 (2016) and fc1/fc1/kernel:0 (later); of a model within a model, whose group has
    several kernels, block1_conv1/kernel for vgg16/block1_conv1/kernel:0; other names unchanged."""
    kernels = collections.Counter(path.split("/")[0] for path in tensors if re.search(r"/kernel(:0)?$", path))
    renamed: dict[str, Tensor] = {}
    for path, tensor in tensors.items():
        *groups, last = path.removesuffix(":0").split("/")
        layer, name = (groups[-1 if kernels[groups[0]] > 1 else 0] if groups else ""), path
        for kind in ("kernel", "bias"):
            if re.fullmatch(f"{kind}|{re.escape(layer)}_{'W' if kind == 'kernel' else 'b'}(_1)?", last):
                name = f"{layer}/{kind}"
        if name in renamed:
            raise WeightsError(f"it has {short(name)} twice")
        renamed[name] = tensor
    return renamed


def _with_pooled_head(tensors: dict[str, Tensor], groups: list[str]) -> dict[str, Tensor]:
    """Returns the one FC layer behind global average pooling as `predictions`; other names unchanged.

    Layers without weights have groups too, named by their kind unless somebody named them.
    """
    others = [name for name in tensors if not re.match(r"block\d_conv\d/", name)]
    layer = others[0].partition("/")[0] if others else ""
    is_pooled = any(re.search("average|avg|gap", group.lower()) for group in groups)
    if not is_pooled or any("global_max" in group for group in groups):
        return tensors
    if set(others) != {f"{layer}/kernel", f"{layer}/bias"} or len(tensors[f"{layer}/kernel"].shape) != 2:
        return tensors
    return {name.replace(f"{layer}/", "predictions/") if name in others else name: t for name, t in tensors.items()}


# Keras 3 numbers layers by kind, in the order of computation: layers/conv2d, layers/conv2d_1, ..., layers/dense; or names them.
# A model within a model has the group of its own kind or name before these.
_OF_KERAS_3 = re.compile(
    r"(?:(?:_layer_checkpoint_dependencies|layers)/(?:\w+/layers/)?)(?:(conv2d|dense)(?:_(\d+))?|(\w+))/vars/([01])"
)
_CONVOLUTIONS = {13: "D", 16: "E"}


def _by_layer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of a Keras 3 model by the layers that VGG16 and VGG19 have; others unchanged."""
    of_model = {name: tensor for name, tensor in tensors.items() if not name.startswith(("optimizer/", "metrics/"))}
    matches = {name: _OF_KERAS_3.fullmatch(name) for name in of_model}
    if not matches or not all(matches.values()):
        return tensors
    count = sum(match is not None and match[1] == "conv2d" and match[4] == "0" for match in matches.values())
    convolutions = [
        f"block{layer.block}_conv{layer.position}"
        for layer in (NetworkSpec(_CONVOLUTIONS[count]).layers() if count in _CONVOLUTIONS else ())
        if layer.kind == "conv"
    ]
    dense = {match[2] for match in matches.values() if match is not None and match[1] == "dense"}
    tops = ["fc1", "fc2", "predictions"] if len(dense) == 3 else [f"dense_{i}" for i in range(len(dense))]
    places = {"conv2d": convolutions, "dense": tops}
    renamed: dict[str, Tensor] = {}
    for name, match in matches.items():
        kind, number, layer, leaf = match.groups()  # type: ignore[union-attr]
        stems = places.get(kind, [])
        position = int(number or 0)
        if kind and position >= len(stems):
            return tensors
        theirs = f"{stems[position] if kind else layer}/{'bias' if leaf == '1' else 'kernel'}"
        if theirs in renamed:
            raise WeightsError(f"it has {short(theirs)} twice")
        renamed[theirs] = of_model[name]
    return renamed


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
