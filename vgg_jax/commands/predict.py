"""`vgg-jax predict --weights=FILE IMAGE... [flags]`: the five likeliest classes of each image.

    vgg-jax predict --weights=vgg16.safetensors photo.jpg folder 'more/*.png'
    vgg-jax predict --workdir=runs/vgg16 --protocol=dense+multi_crop --maps=maps --json=found.json photo.jpg

Each image is printed as soon as it is done, in the cheapest order, and --json is written every few seconds. An image
that cannot be read is reported, the others are still processed, and the exit status is then 1.
"""

from __future__ import annotations

from vgg_jax.commands import cli, protocols
from vgg_jax.runtime.exceptions import printable

flags = cli.Flags()
_WEIGHTS = flags.DEFINE_string(
    "weights",
    "",
    "A file of weights (vgg-jax convert), or the name of published ones: torchvision:vgg16, keras:vgg16, "
    "hf://timm/vgg16.tv_in1k.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "In place of --weights: a run's directory (its best checkpoint is taken), or RUN/checkpoints/STEP.",
)
protocols.define(flags)
_MAPS = flags.DEFINE_string("maps", "", "A directory for the class score maps laid over each image (PNG).")
_GRAD_CAM = flags.DEFINE_bool(
    "grad_cam", False, "Next to each of the --maps, draw Grad-CAM of the same class; write both as arrays too (NPZ)."
)
flags.DEFINE_string("json", "", "A file for the predictions as JSON.")


def main(arguments: list[str]) -> None:
    if bool(_WEIGHTS.value) == bool(_WORKDIR.value):
        cli.fail("say which model, one of: --weights=FILE, --workdir=RUN; --help lists the flags.")
    if not arguments:
        cli.fail("say which images: files, folders or patterns, as photo.jpg or 'photos/*.jpg'.")
    if _GRAD_CAM.value and not _MAPS.value:
        cli.fail("--grad_cam draws into the directory of --maps; give --maps=DIR as well.")
    from vgg_jax.evaluation.prediction import PredictRequest, predict_files

    source = _WEIGHTS.value or _WORKDIR.value
    request = flags.request(PredictRequest, images=tuple(arguments), source=source)
    with cli.devices():
        predictions, failures = predict_files(request)
    if failures:
        lines = "".join(f"\n  {printable(str(failure.path))}: {failure.reason}" for failure in failures)
        count = len(predictions) + len(failures)
        cli.fail(f"{len(failures)} of {count} images could not be read:{lines}", status=1)
