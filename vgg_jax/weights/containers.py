"""Opens a weights file of any kind, which its first bytes tell, and reads its arrays."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights import archives, caffe_file, keras_file, npz_file, safetensors_file, torch_file
from vgg_jax.weights.dialects import as_torchvision_names
from vgg_jax.weights.tensors import TensorFile, WeightsError, short

KINDS = ".safetensors, .pth of torch, .h5 and .keras of Keras, .caffemodel of Caffe, .npz of NumPy"
# Suffixes of the names of variances, here and in torch.
_VARIANCES = ("/var", ".running_var")
# The last two become float32, which holds all their values.
_DTYPES = ("float32", "float16", "bfloat16")


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Opens a file; any fault of it within the `with` becomes a UserError that names the file.

    Raises:
      UserError: it cannot be read, is of an unknown kind, or is damaged.
    """
    try:
        with contextlib.ExitStack() as stack:
            yield as_torchvision_names(stack.enter_context(_kind(path)(path)))
    except WeightsError as error:
        raise UserError(f"{path}: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _kind(path: Path) -> Callable[[Path], contextlib.AbstractContextManager[TensorFile]]:
    if path.is_dir() and list(path.glob("*.safetensors")):
        raise WeightsError(
            "it is a directory with .safetensors in it; give one such file, parts of one model put together"
        )
    if path.is_dir():
        raise WeightsError("it is a directory; give a file of weights, or to convert a run, its workdir")
    if path.exists() and not path.is_file():
        raise WeightsError("it is not a regular file")
    with open(path, "rb") as file:
        start = file.read(512)
    if start.startswith(archives.START):
        names = archives.part_names(path)
        if npz_file.matches(names):
            return npz_file.open_tensors
        return keras_file.open_archive if keras_file.ARCHIVED in names else torch_file.open_zip
    if start.startswith(torch_file.OLD_START):
        return torch_file.open_old
    if start.startswith(keras_file.START):
        return keras_file.open_tensors
    if safetensors_file.matches(start):
        return safetensors_file.open_tensors
    if caffe_file.matches(start, path):
        return caffe_file.open_tensors
    if path.name.endswith(".index.json"):
        raise WeightsError("it lists the parts of a model in several .safetensors; put these together into one file")
    beginning = "it is empty" if not start else f"it begins with {short(repr(start[:8]))}"
    raise WeightsError(f"it is of an unknown kind ({beginning}); known are {KINDS}")


def sha256_and_md5(path: Path) -> tuple[str, str]:
    """Returns a file's SHA-256 and, of HDF5, whose MD5 Keras publishes, its MD5 (else ""), as hexadecimal digits.

    Raises:
      UserError: it cannot be read.
    """
    digest, md5 = hashlib.sha256(), None
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file; give a file of weights.")
    try:
        with open(path, "rb") as file:
            if file.peek(8).startswith(keras_file.START):
                # It takes twice the time of SHA-256.
                md5 = hashlib.md5(usedforsecurity=False)
            while block := file.read(2**20):
                digest.update(block)
                if md5:
                    md5.update(block)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; give a file of weights.") from error
    return digest.hexdigest(), md5.hexdigest() if md5 else ""


def read_array(contents: TensorFile, name: str) -> np.ndarray:
    """Returns a tensor as float32.

    Raises:
      WeightsError: another dtype, numbers that are not finite, or negative variances.
    """
    tensor = contents.tensors[name]
    if tensor.dtype not in _DTYPES:
        raise WeightsError(f"{short(name)} is of {short(tensor.dtype)}; weights are {', '.join(_DTYPES)}")
    array = tensor.read()
    if array.shape != tensor.shape:
        raise WeightsError(f"{short(name)} is not all there")
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise WeightsError(f"{short(name)} has numbers that are not finite")
    if name.endswith(_VARIANCES) and (array < 0).any():
        raise WeightsError(f"{short(name)} has negative numbers, and a variance cannot be negative")
    return array
