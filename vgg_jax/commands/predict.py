"""`vgg-jax predict --weights=FILE PICTURE...`: what a model sees in images, its five likeliest classes.

    vgg-jax predict --weights=vgg16.safetensors photo.jpg folder 'more/*.png'
    vgg-jax predict --workdir=runs/vgg16 --protocol=dense+multi_crop --maps=maps --json=found.json photo.jpg

Each is printed as soon as it is done, in whatever order is cheapest, and --json is written every few seconds. An image that
cannot be read is reported, the others are still processed, and the exit status is then 1.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_jax.commands import cli

if TYPE_CHECKING:
    from vgg_jax.evaluation.prediction import Failure, Prediction

_SECONDS_BETWEEN_WRITES = 5.0  # of --json

flags = cli.Flags()
_WEIGHTS = flags.DEFINE_string(
    "weights",
    "",
    "A file of weights (vgg-jax convert), or "
    "the name of published ones: torchvision:vgg16, keras:vgg16, hf://timm/vgg16.tv_in1k.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Or a run's directory (its best checkpoint is taken), or RUN/checkpoints/STEP."
)
_PROTOCOL = flags.DEFINE_enum(
    "protocol", "dense", ["center_crop", "ten_crop", "dense", "multi_crop", "square_crop", "dense+multi_crop"], "What is averaged, as in evaluate: "
    "one crop; corners and centre; the class score map of the whole image (Paper 3.2); 5 x 5 crops (Paper 4.3); the 144 crops of GoogLeNet; the map and 5 x 5 crops."
)  # fmt: skip
_SCALES = flags.DEFINE_string(
    "scales",
    "",
    "Test scales Q, the shorter side in pixels, as in evaluate: `single`, `multi`, or numbers: 256,384,512.",
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 0, "Images of the crop's size that the model sees at once, over all devices; it bounds memory and changes "
    "no result. Default: 64 a device.", lower_bound=0
)  # fmt: skip
_DTYPE = flags.DEFINE_enum("dtype", "", ["", "float32", "bfloat16"], "Of the computation. Default: as trained.")
_MAPS = flags.DEFINE_string("maps", "", "A directory for the class score maps laid over each image (PNG).")
_GRAD_CAM = flags.DEFINE_bool(
    "grad_cam", False, "Next to each of the --maps, Grad-CAM of the same class; both also as arrays (NPZ)."
)
_EXIF = flags.DEFINE_bool(
    "exif", None, "Turn images as their EXIF orientation says. Default: config.data.exif of the run."
)
_JSON = flags.DEFINE_string("json", "", "A file for the same as JSON.")


def main(arguments: list[str]) -> None:
    if bool(_WEIGHTS.value) == bool(_WORKDIR.value):
        cli.fail("say which model, one of: --weights=FILE, --workdir=RUN; --help lists the flags.")
    if not arguments:
        cli.fail("say which images: files, folders or patterns, as photo.jpg or 'photos/*.jpg'.")
    if _GRAD_CAM.value and not _MAPS.value:
        cli.fail("--grad_cam draws into the directory of --maps; give --maps=DIR as well.")
    # Imported here, so that --help answers at once.
    from vgg_jax.evaluation.prediction import list_images, predict
    from vgg_jax.evaluation.trained_model import load_trained
    from vgg_jax.runtime.compilation import check_devices, keep_compiled, warn_of_unseen_gpu
    from vgg_jax.runtime.console import Console
    from vgg_jax.runtime.exceptions import printable, writing_to
    from vgg_jax.runtime.files import write_json

    paths = list_images(arguments, lambda line: print(line, file=sys.stderr))
    check_devices()
    keep_compiled()
    warn_of_unseen_gpu()
    trained = load_trained(_WEIGHTS.value or _WORKDIR.value, _DTYPE.value)
    exif = trained.config.data.exif if _EXIF.value is None else _EXIF.value
    output = Path(_JSON.value).expanduser()
    if _JSON.value:
        if output.is_dir():
            cli.fail(f"--json={output} is a directory; name a file in it.")
        with writing_to(output.parent, "choose another --json"):
            output.parent.mkdir(parents=True, exist_ok=True)
    console, written_at = Console(), -math.inf
    entries: list[dict[str, Any]] = []

    def write(failures: Sequence[Failure]) -> None:
        order = {str(path): i for i, path in enumerate(paths)}
        content = {
            "model": str(trained.checkpoint),
            "params_sha256": trained.digest,
            "protocol": _PROTOCOL.value,
            "scales": _SCALES.value,
            "exif": exif,
            "predictions": sorted(entries, key=lambda entry: order[entry["image"]]),
            "failures": [{"image": str(failure.path), "reason": failure.reason} for failure in failures],
        }
        write_json(output, content)

    def done(prediction: Prediction) -> None:
        nonlocal written_at
        classes = [
            {"class": trained.class_names[i], "title": trained.class_titles[i], "probability": float(p)}
            for i, p in zip(prediction.classes, prediction.probabilities, strict=True)
        ]
        map_file = {"map": prediction.map} if prediction.map else {}
        entries.append({"image": str(prediction.path), "classes": classes, **map_file})
        if _JSON.value and time.monotonic() - written_at > _SECONDS_BETWEEN_WRITES:
            write(())
            written_at = time.monotonic()
        lines = [f"  {entry['probability']:6.1%}  {entry['title']}" for entry in classes]
        console.print("\n".join([printable(str(prediction.path)), *lines]))

    try:
        _, failures = predict(
            trained,
            paths,
            _PROTOCOL.value,
            _SCALES.value,
            _BATCH_SIZE.value,
            _MAPS.value,
            _GRAD_CAM.value,
            exif=exif,
            console=console,
            done=done,
        )
    except BaseException:
        if entries and _JSON.value:
            write(())
        raise
    if _JSON.value:
        write(failures)
    if failures:
        lines = "".join(f"\n  {printable(str(failure.path))}: {failure.reason}" for failure in failures)
        cli.fail(f"{len(failures)} of {len(paths)} images could not be read:{lines}", status=1)


if __name__ == "__main__":
    cli.run(main, flags)
