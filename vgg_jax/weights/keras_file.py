"""`.h5`, `.weights.h5` and `.keras` of Keras: data sets only.

Code and references to other files are not followed; compressed data sets are refused.
"""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vgg_jax.models import NetworkSpec
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights import archives
from vgg_jax.weights.tensors import Tensor, TensorFile, WeightsError, refusing, short, tensor_file, unique

START = b"\x89HDF\r\n\x1a\n"
# The weights in a .keras, which is a zip.
ARCHIVED = "model.weights.h5"
# Limit of nested groups; a model within a model has six.
_DEEPEST = 6
# Limit of groups and data sets in a file; a VGG has a hundred.
_MOST = 1000


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Opens the tensors of an .h5, named <layer>/kernel and <layer>/bias for every version of Keras.

    Raises:
      UserError: h5py is not installed.
      WeightsError: damage, links out of the file, compressed or foreign data sets.
    """
    with _opened(path, path, path.stat().st_size) as contents:
        yield contents


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[TensorFile]:
    """Opens the tensors of a .keras, as `open_tensors`; what it says of layers and code is not read."""
    with archives.open_archive(path) as archive:
        info = archive.getinfo(ARCHIVED)
        archives.check_stored(info, path.stat().st_size, ", which Keras never does")
        content = archive.read(info)
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
    # The HDF5 library raises exceptions of many kinds.
    with refusing("its HDF5 is damaged", Exception), h5py.File(source, "r") as file:
        # Of a whole model only the weights are read.
        is_model = file.get("model_weights", getlink=True) is not None
        root = _entry(file, "model_weights", "") if is_model else file
        tensors: dict[str, Tensor] = {}
        groups = _collect(root, "", tensors, itertools.count())
        yield tensor_file("an .h5 of Keras", _with_pooled_head(_by_layer(_by_name(tensors)), groups), num_bytes)


def _entry(group: Any, name: str, prefix: str) -> Any:
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise WeightsError(f"its {short(prefix + name)} is a link, which is not followed")
    return group[name]


def _collect(group: Any, prefix: str, tensors: dict[str, Tensor], visits: Iterator[int]) -> list[str]:
    """Adds the data sets below a group to `tensors` by their paths, and returns the names of all groups."""
    import h5py

    groups = [prefix.rstrip("/").split("/")[-1]]
    if not isinstance(group, h5py.Group) or prefix.count("/") > _DEEPEST or len(group) > _MOST:
        raise WeightsError(f"its groups are not Keras's ({short(prefix) or 'its root'})")
    for name in group:
        # Hard links can make many paths of few groups.
        if next(visits) > _MOST:
            raise WeightsError(f"it has more groups and data sets than {_MOST:,}, far more than any VGG")
        item = _entry(group, name, prefix)
        if isinstance(item, h5py.Dataset):
            tensors[prefix + name] = _tensor(item, prefix + name)
        else:
            groups += _collect(item, f"{prefix}{name}/", tensors, visits)
    return groups


def _by_name(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors by layer and kind; other names unchanged.

    fc1/fc1_W_1:0 (2016) and fc1/fc1/kernel:0 (later) become fc1/kernel. Of a model within a model, whose group has
    several kernels, vgg16/block1_conv1/kernel:0 becomes block1_conv1/kernel.
    """
    kernels = collections.Counter(path.split("/")[0] for path in tensors if re.search(r"/kernel(:0)?$", path))
    renamed: list[tuple[str, Tensor]] = []
    for path, tensor in tensors.items():
        *groups, last = path.removesuffix(":0").split("/")
        layer, name = (groups[-1 if kernels[groups[0]] > 1 else 0] if groups else ""), path
        for kind in ("kernel", "bias"):
            if re.fullmatch(f"{kind}|{re.escape(layer)}_{'W' if kind == 'kernel' else 'b'}(_1)?", last):
                name = f"{layer}/{kind}"
        renamed.append((name, tensor))
    return unique(renamed)


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


# Keras 3 numbers layers by kind, in the order of computation: layers/conv2d, layers/conv2d_1, ..., layers/dense; or
# names them. A model within a model has a group of its kind or name before these.
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
    stems_of_kind = {"conv2d": convolutions, "dense": tops}
    renamed: list[tuple[str, Tensor]] = []
    for name, match in matches.items():
        kind, number, layer, leaf = match.groups()  # type: ignore[union-attr]
        stems = stems_of_kind.get(kind, [])
        position = int(number or 0)
        if kind and position >= len(stems):
            return tensors
        stem = stems[position] if kind else layer
        renamed.append((f"{stem}/{'bias' if leaf == '1' else 'kernel'}", of_model[name]))
    return unique(renamed)


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
        with refusing(f"its {short(name)} cannot be read", Exception):
            return data[()]

    return Tensor(shape, data.dtype.newbyteorder("=").name, read)
