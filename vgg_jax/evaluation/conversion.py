"""Weights of any supported source into this project's file, or into another project's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.data.crops import center_crop
from vgg_jax.data.image_kinds import DecodeError, is_named_like_an_image, read_file
from vgg_jax.data.listing import files_below
from vgg_jax.data.parallel import parallel_map
from vgg_jax.evaluation.trained_model import weights_of_run
from vgg_jax.features import with_normalized_activations
from vgg_jax.features.backbone import from_weights
from vgg_jax.runtime.compilation import check_devices
from vgg_jax.runtime.console import with_progress
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights import containers, hub, imagenet_classes, imports
from vgg_jax.weights.exports import EXPORTS, Export
from vgg_jax.weights.file import Weights, is_own, save_weights
from vgg_jax.weights.model_config import ModelConfig
from vgg_jax.weights.preprocessing import Preprocessing

OWN = "vgg_jax"


class ConvertRequest(NamedTuple):
    """Weights, what is changed in them, and what is written."""

    source: str  # a file, a run, one of its checkpoints, or the name of published weights
    dest: str
    to: str = OWN  # or a key of `exports.EXPORTS`
    dtype: str = "float32"  # of the numbers in a file of this project, one of `weights.file.DTYPES`
    configuration: str = ""  # see `imports.FileHints`, as the next three
    preprocessing: str = ""
    training_scales: str = ""
    layers: str = ""
    sha256: str = ""  # of the source, at least its first eight digits; "" for any
    class_names: str = ""  # a file, see `imports.with_class_names`, or imagenet
    num_classes: int = 0  # of a new, random head; 0 keeps the head
    seed: int = 0  # of the new head
    normalize_activations: str = ""  # a directory of images over which each channel's mean activation becomes 1
    overwrite: bool = False


def convert(request: ConvertRequest, say: Callable[[str], None] = print) -> Path:
    """Reads weights, changes them as asked for, and writes them.

    Args:
      request: from what, to what.
      say: is called with each line for the user.

    Returns:
      The written file of weights.

    Raises:
      UserError: a source that cannot be read or does not fit, or a destination that cannot or shall not be written.
    """
    source, dest = Path(request.source).expanduser(), Path(request.dest).expanduser()
    _check_paths(request, source, dest)
    check_devices()
    config = None
    if not source.exists():
        if not hub.is_name(request.source):
            raise UserError(f"{source}: there is no such file or run, and no published weights are named so.")
        source = hub.fetch(request.source)
        config = None if is_own(source) else hub.model_config_of(request.source)
    is_run = source.is_dir() and not list(source.glob("*.safetensors"))
    weights = _read_run(source, request, say) if is_run else _read_file(source, request, config, say)
    say(_summary(weights))
    if request.num_classes:
        before = weights.num_classes
        weights = imports.with_new_head(weights, request.num_classes, request.seed)
        say(f"new head: {request.num_classes} classes in place of {before}, random; fine-tune it with init_from")
    if request.normalize_activations:
        weights = _with_normalized_activations(weights, Path(request.normalize_activations).expanduser())
    if request.class_names:
        weights = imports.with_class_names(weights, _listing(request.class_names), request.class_names)
    if request.to == OWN:
        save_weights(dest, weights, request.dtype)
        export = Export(dest)
    else:
        export = EXPORTS[request.to](dest, weights)
    file, usage = export
    for line in usage:
        say(line)
    say(f"written: {file}, {file.stat().st_size:,} bytes, sha256 {containers.sha256_and_md5(file)[0]}")
    return file


def _check_paths(request: ConvertRequest, source: Path, dest: Path) -> None:
    """Raises UserError where the names of the source and the destination cannot be."""
    if not source.exists() and not request.source.startswith("timm/") and ":" not in request.source:
        raise UserError(f"{source}: there is no such file or run.")
    if request.to in (OWN, "torchvision") and dest.suffix != ".safetensors":
        raise UserError(f"{dest}: what is written is a safetensors file; give it a name that ends in .safetensors.")
    if request.to == "keras" and not dest.name.endswith(".weights.h5"):
        raise UserError(f"{dest}: Keras reads weights from names that end in .weights.h5; give it one.")
    if dest.exists() and (dest.is_dir() or (source.exists() and dest.samefile(source))):
        raise UserError(f"{dest} is a directory, or SOURCE itself; choose another name.")
    if dest.exists() and not request.overwrite:
        raise UserError(f"{dest} exists; choose another name, or say --overwrite.")
    if request.dtype != "float32" and request.to != OWN:
        raise UserError(f"--dtype={request.dtype} is for this project's own file; leave out --to={request.to}.")
    if request.num_classes == 1:
        raise UserError("--num_classes=1: a model tells at least two classes apart.")


def _read_run(source: Path, request: ConvertRequest, say: Callable[[str], None]) -> Weights:
    for field in ("sha256", "preprocessing", "configuration", "training_scales", "layers"):
        if getattr(request, field):
            raise UserError(f"--{field} is for files; {source} is a run, which says it itself.")
    weights = weights_of_run(source)
    say(f"{source}: configuration {weights.configuration}, {weights.source}")
    return weights


def _read_file(
    source: Path, request: ConvertRequest, config: ModelConfig | None, say: Callable[[str], None]
) -> Weights:
    digests = imports.Digests(*containers.sha256_and_md5(source))
    say(f"read: {source}, {source.stat().st_size:,} bytes, sha256 {digests.sha256}")
    _check_digest(source, digests.sha256, request.sha256)
    hints = imports.FileHints(request.configuration, request.preprocessing, request.training_scales, request.layers)
    weights, description = imports.import_weights(source, digests, hints, config)
    say(description)
    return weights


def _check_digest(source: Path, digest: str, expected: str) -> None:
    if expected and (len(expected) < 8 or set(expected.lower()) - set("0123456789abcdef")):
        raise UserError(f"--sha256={expected} is not at least eight hexadecimal digits.")
    if not digest.startswith(expected.lower()):
        raise UserError(
            f"{source} is not the file that was meant: its SHA-256 is {digest}, not {expected.lower()}; fetch it again."
        )


def _summary(weights: Weights) -> str:
    parameters = sum(array.size for layer in weights.params.values() for array in layer.values())
    named = "their names are known" if weights.class_names else "without names (--class_names=FILE)"
    classes = f"{weights.num_classes} classes, {named}" if weights.num_classes else "no classifier"
    scales = " to ".join(map(str, weights.training_scales))
    return f"{parameters:,} parameters, crop {weights.crop}, S {scales}, {classes}"


def _with_normalized_activations(weights: Weights, directory: Path) -> Weights:
    """Scales kernels so that each channel's mean activation over a directory's images is 1, and logits stay as they
    are.

    The images, in any directories below, are seen at S in their central crop (`features.with_normalized_activations`).

    Raises:
      UserError: no image there, one that cannot be read, or another network than a VGG without normalisation layers.
    """
    paths = [path for path in files_below(directory) if is_named_like_an_image(path)] if directory.is_dir() else []
    if not paths:
        raise UserError(f"--normalize_activations={directory}: there are no images; name a directory of some.")

    def pixels(path: Path) -> np.ndarray:
        try:
            return center_crop(read_file(path), weights.training_scales[0], weights.crop)
        except (OSError, DecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}; leave it out.") from error

    crops = with_progress(parallel_map(pixels, paths), len(paths), "activations")
    model = with_normalized_activations(from_weights(weights), map(jnp.asarray, crops))
    return weights._replace(
        params=jax.device_get(model.params),
        preprocessing=Preprocessing("RGB", 255.0, tuple(model.mean_rgb.tolist()), (1.0, 1.0, 1.0)),
        source=f"{weights.source}; mean activations 1 over {len(paths):,} images of {directory}",
    )


def _listing(file: str) -> str:
    """Returns the text of a file of class names, or of ImageNet's for "imagenet" where no such file is there."""
    if file == "imagenet" and not Path(file).exists():
        return imagenet_classes.listing()
    try:
        return Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"--class_names={file} cannot be read: {error}.") from error
