"""`vgg-jax convert SOURCE DEST`: weights of other frameworks into this project's file, and out again.

    vgg-jax convert vgg16-397923af.pth vgg16.safetensors              torchvision's, timm's, Keras's or Caffe's
    vgg-jax convert runs/vgg16 vgg16.safetensors                      a run's best checkpoint
    vgg-jax convert vgg16.safetensors mine.safetensors --num_classes=10   the same body, a new head
    vgg-jax convert runs/vgg16 torch.safetensors --to=torchvision
    vgg-jax convert vgg16.safetensors vgg16.stablehlo --to=stablehlo
    vgg-jax convert vgg16.safetensors vgg16.onnx --to=onnx
    vgg-jax convert torchvision:vgg16 vgg16.safetensors               published weights by name, also keras:vgg16
    vgg-jax convert runs/vgg16 folder --to=hf                         a folder for the Hugging Face hub

The kind is told by the content. Names, shapes, dtypes and finiteness are checked, and no code of a file is ever run.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_jax.commands import cli

if TYPE_CHECKING:
    import numpy as np

    from vgg_jax.weights.file import Weights
    from vgg_jax.weights.model_config import ModelConfig

flags = cli.Flags()
_TO = flags.DEFINE_enum(
    "to", "vgg_jax", ["vgg_jax", "torchvision", "keras", "onnx", "stablehlo", "hf"], "What to write: this project's file, torchvision's "
    "names (.safetensors), Keras 3's (.weights.h5), a program for jax.export, or a folder with a model card for the Hugging Face hub."
)  # fmt: skip
_PREPROCESSING = flags.DEFINE_string(
    "preprocessing", "", "What the model expects of pixels, where the file does not say: torchvision, caffe, mean_rgb, or "
    "ORDER:SCALE:MEAN:STD, as RGB:1:0.485,0.456,0.406:0.229,0.224,0.225."
)  # fmt: skip
_CONFIGURATION = flags.DEFINE_string(
    "configuration", "", "The configuration of the paper that SOURCE is. Default: what its names and shapes say (A, "
    "where they would do for A-LRN as well)."
)  # fmt: skip
_LAYERS = flags.DEFINE_string(
    "layers", "", "For a file with names of its own: patterns of the names of a trunk's convolutions, with commas between, as "
    "'block*'; in natural order they are conv1_1, conv1_2, ..."
)  # fmt: skip
_SHA256 = flags.DEFINE_string("sha256", "", "What the SHA-256 of SOURCE must be, or at least its first eight digits.")
_CLASS_NAMES = flags.DEFINE_string(
    "class_names", "", "A file with the names of the classes, one a line, in the model's order; or with lines as "
    "`n01440764 tench`. Default: as known of SOURCE."
)  # fmt: skip
_TRAINING_SCALES = flags.DEFINE_string(
    "training_scales", "", "S, the shorter side in pixels that the model was trained at: 256, or 256,512 for jitter. "
    "Default: as known of SOURCE, else 256 at crop 224."
)  # fmt: skip
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", 0, "Keep the body and replace the head by a random one for so many classes, to be fine-tuned.",
    lower_bound=0, upper_bound=2**20,
)  # fmt: skip
_NORMALIZE_ACTIVATIONS = flags.DEFINE_string(
    "normalize_activations", "", "A directory of images over which each channel's mean activation becomes 1, as style transfer "
    "prefers; logits stay as they are."
)  # fmt: skip
_SEED = flags.DEFINE_integer("seed", 0, "Of the new head.", lower_bound=0, upper_bound=2**32 - 1)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace DEST where it exists.")


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        cli.fail(
            "give two names, from what and to what: vgg-jax convert vgg16-397923af.pth vgg16.safetensors; "
            "--help lists the flags."
        )
    source, dest = (Path(argument).expanduser() for argument in arguments)
    if not source.exists() and not arguments[0].startswith("timm/") and ":" not in arguments[0]:
        cli.fail(f"{source}: there is no such file or run.")
    if _TO.value in ("vgg_jax", "torchvision") and dest.suffix != ".safetensors":
        cli.fail(f"{dest}: what is written is a safetensors file; give it a name that ends in .safetensors.")
    if _TO.value == "keras" and not dest.name.endswith(".weights.h5"):
        cli.fail(f"{dest}: Keras reads weights from names that end in .weights.h5; give it one.")
    if dest.exists() and (dest.is_dir() or (source.exists() and dest.samefile(source))):
        cli.fail(f"{dest} is a directory, or SOURCE itself; choose another name.")
    if dest.exists() and not _OVERWRITE.value:
        cli.fail(f"{dest} exists; choose another name, or say --overwrite.")
    if _NUM_CLASSES.value == 1:
        cli.fail("--num_classes=1: a model tells at least two classes apart.")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here needs a device, and a busy one would be in the way

    from vgg_jax.runtime.compilation import check_devices  # JAX, after --help and mistakes have been answered
    from vgg_jax.weights import containers, hub, imports
    from vgg_jax.weights.file import is_own

    check_devices()
    config = None
    if not source.exists():
        if not hub.is_name(arguments[0]):
            cli.fail(f"{source}: there is no such file or run, and no published weights are named so.")
        source = hub.fetch(arguments[0])
        config = None if is_own(source) else hub.model_config_of(arguments[0])
    weights = _read(source, config)
    if _NUM_CLASSES.value:
        before = weights.num_classes
        weights = imports.with_new_head(weights, _NUM_CLASSES.value, _SEED.value)
        print(f"new head: {_NUM_CLASSES.value} classes in place of {before}, random; fine-tune it with init_from")
    if _NORMALIZE_ACTIVATIONS.value:
        weights = _with_normalized_activations(weights, Path(_NORMALIZE_ACTIVATIONS.value).expanduser())
    if _CLASS_NAMES.value:
        weights = imports.with_class_names(weights, _listing(_CLASS_NAMES.value), _CLASS_NAMES.value)

    dest = _write(weights, dest)
    print(f"written: {dest}, {dest.stat().st_size:,} bytes, sha256 {containers.sha256_and_md5(dest)[0]}")


def _write(weights: Weights, dest: Path) -> Path:
    """Writes what --to asks for, says how it is used, and returns the file of weights."""
    from vgg_jax.weights.file import EXPORTED_KEY, save_weights, write_safetensors

    if _TO.value == "torchvision":
        from vgg_jax.weights.exports import to_torchvision, torchvision_name

        tensors, expected = to_torchvision(weights)
        write_safetensors(dest, tensors, {EXPORTED_KEY: json.dumps(expected._asdict())})
        model = torchvision_name(weights)
        classes = "" if weights.num_classes in (0, 1000) else f"num_classes={weights.num_classes}"
        strict = "" if weights.num_classes else ", strict=False"  # the FC layers stay as they are
        print(
            f"torchvision.models.{model}({classes}).load_state_dict(safetensors.torch.load_file({str(dest)!r}){strict})"
        )
        print(f"its pixels: torchvision.transforms.Normalize(mean={list(expected.mean)}, std={list(expected.std)})")
        if not has_published_shape(weights):
            print(f"{_OTHER_SHAPE} torchvision's class must be changed to take it")
    elif _TO.value == "keras":
        from vgg_jax.weights.exports import KERAS_NETS, write_keras

        expected = write_keras(dest, weights)
        top = f"classes={weights.num_classes}" if weights.num_classes else "include_top=False"
        print(
            f"keras.applications.{KERAS_NETS[weights.configuration]}(weights=None, {top}).load_weights({str(dest)!r})"
        )
        print(f"its pixels: blue first, minus {list(expected.mean)}")
        if not has_published_shape(weights):
            print(f"{_OTHER_SHAPE} that of keras.applications must be changed to take it")
    elif _TO.value == "onnx":
        from vgg_jax.weights.onnx_file import write_onnx

        write_onnx(dest, weights)
        result = f"probabilities [b, {weights.num_classes}]" if weights.num_classes else "features [b, C, h, w]"
        print(
            f"onnxruntime.InferenceSession({str(dest)!r}).run(None, {{'images': images}}): uint8 RGB [b, height, width, 3], from "
            f"{weights.crop} x {weights.crop} up -> {result}"
        )
    elif _TO.value == "stablehlo":
        from vgg_jax.runtime.files import ANOTHER_PLACE, write_atomically
        from vgg_jax.weights.exports import PLATFORMS, to_stablehlo

        program = to_stablehlo(weights)
        result = f"probabilities [b, {weights.num_classes}]" if weights.num_classes else "features [b, C]"
        with write_atomically(dest, ANOTHER_PLACE) as unfinished:
            unfinished.write_bytes(program)
        print(
            f"jax.export.deserialize(bytearray(open({str(dest)!r}, 'rb').read())).call(images): uint8 RGB [b, {weights.crop}, "
            f"{weights.crop}, 3] -> {result}, on {', '.join(PLATFORMS)}"
        )
        print("JAX promises to read it for six months; docs/weights.md says more. Keep the weights next to it.")
    elif _TO.value == "hf":
        from vgg_jax.weights.exports import write_hub_folder

        dest = write_hub_folder(dest, weights)
        print(f"upload it with: hf upload OWNER/REPOSITORY {shlex.quote(str(dest.parent))}")
    else:
        save_weights(dest, weights)
    return dest


_OTHER_SHAPE = "this model is not of the published width and crop, so"


def has_published_shape(weights: Weights) -> bool:
    """Returns whether the published class of a network, made for crops of 224, takes its parameters."""
    has_fc6 = "fc6" in weights.params
    return weights.width_multiplier == 1 and (not has_fc6 or (weights.fc_width, weights.crop // 32) == (4096, 7))


def _read(source: Path, config: ModelConfig | None) -> Weights:
    """Weights of a file, with what the hub says of it, or of a run; says what they are."""
    if source.is_dir() and not list(source.glob("*.safetensors")):
        for flag in (_SHA256, _PREPROCESSING, _CONFIGURATION, _TRAINING_SCALES, _LAYERS):
            if flag.value:
                cli.fail(f"--{flag.name} is for files; {source} is a run, which says it itself.")
        from vgg_jax.evaluation.trained_model import weights_of_run

        weights = weights_of_run(source)
        print(f"{source}: configuration {weights.configuration}, {weights.source}")
    else:
        from vgg_jax.weights import containers, imports

        digests = imports.Digests(*containers.sha256_and_md5(source))
        print(f"read: {source}, {source.stat().st_size:,} bytes, sha256 {digests.sha256}", flush=True)
        _check_digest(source, digests.sha256)
        weights, what = imports.import_weights(
            source,
            digests,
            _CONFIGURATION.value,
            _PREPROCESSING.value,
            _TRAINING_SCALES.value,
            _LAYERS.value,
            config,
        )
        print(what)
    parameters = sum(array.size for layer in weights.params.values() for array in layer.values())
    named = "their names are known" if weights.class_names else "without names (--class_names=FILE)"
    classes = f"{weights.num_classes} classes, {named}" if weights.num_classes else "no classifier"
    print(
        f"{parameters:,} parameters, crop {weights.crop}, S {' to '.join(map(str, weights.training_scales))}, {classes}"
    )
    return weights


def _with_normalized_activations(weights: Weights, directory: Path) -> Weights:
    """Scales kernels so that each channel's mean activation over a directory's images is 1, and logits stay as they are.

    The images, in any directories below, are seen at S in their central crop (`features.with_normalized_activations`).

    Raises:
      UserError: no image there, one that cannot be read, or another network than a VGG without normalisation layers.
    """
    import jax
    import jax.numpy as jnp

    from vgg_jax import features
    from vgg_jax.data.crops import center_crop
    from vgg_jax.data.decode import DecodeError, read_file
    from vgg_jax.data.folder import files_below, is_named_like_a_picture
    from vgg_jax.data.parallel import parallel_map, progress
    from vgg_jax.runtime.exceptions import UserError
    from vgg_jax.weights.preprocessing import Preprocessing

    paths = [path for path in files_below(directory) if is_named_like_a_picture(path)] if directory.is_dir() else []
    if not paths:
        raise UserError(f"--normalize_activations={directory}: there are no images; name a directory of some.")

    def pixels(path: Path) -> np.ndarray:
        try:
            return center_crop(read_file(path), weights.training_scales[0], weights.crop)
        except (OSError, DecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}; leave it out.") from error

    crops = progress(parallel_map(pixels, paths), len(paths), "activations")
    backbone = features.with_normalized_activations(features.from_weights(weights), map(jnp.asarray, crops))
    return weights._replace(
        params=jax.device_get(backbone.params),
        preprocessing=Preprocessing("RGB", 255.0, tuple(backbone.mean_rgb.tolist()), (1.0, 1.0, 1.0)),
        source=f"{weights.source}; mean activations 1 over {len(paths):,} images of {directory}",
    )


def _check_digest(source: Path, digest: str) -> None:
    expected = _SHA256.value.lower()
    if not expected:
        return
    if len(expected) < 8 or set(expected) - set("0123456789abcdef"):
        cli.fail(f"--sha256={_SHA256.value} is not at least eight hexadecimal digits.")
    if not digest.startswith(expected):
        cli.fail(f"{source} is not the file that was meant: its SHA-256 is {digest}, not {expected}; fetch it again.")


def _listing(file: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        cli.fail(f"--class_names={file} cannot be read: {error}.")


if __name__ == "__main__":
    cli.run(main, flags)
