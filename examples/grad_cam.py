"""Grad-CAM over a folder: each image with its most likely class, and the evidence for it in red.

python examples/grad_cam.py --weights=torchvision:vgg16 --folder=photos --output=cams
"""

from pathlib import Path

import jax
import numpy as np
from PIL import Image

import vgg_jax
from vgg_jax import features
from vgg_jax.commands import cli
from vgg_jax.data.crops import read_rescaled
from vgg_jax.data.image_kinds import is_named_like_an_image
from vgg_jax.runtime.exceptions import UserError, writing_to

flags = cli.Flags()
_WEIGHTS = flags.DEFINE_string("weights", None, "Weights: a file, a run or a name.", required=True)
_FOLDER = flags.DEFINE_string("folder", None, "Folder of images.", required=True)
_OUTPUT = flags.DEFINE_string("output", "cams", "Directory for the pictures.")


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--folder=photos")
    model, output = vgg_jax.load(_WEIGHTS.value), Path(_OUTPUT.value).expanduser()
    paths = sorted(path for path in Path(_FOLDER.value).expanduser().glob("*") if is_named_like_an_image(path))
    if not paths:
        raise UserError(f"--folder={_FOLDER.value} has no images; give a folder of images.")
    # Compiled once for each shape of images.
    cam = jax.jit(features.grad_cam)
    with writing_to(output, "choose another --output"):
        output.mkdir(parents=True, exist_ok=True)
    for path in paths:
        image = read_rescaled(path, model.training_scales[0])
        map_hxw, predicted = cam(model, image.astype(np.float32))
        with writing_to(output, "choose another --output"):
            overlay(image, np.asarray(map_hxw)).save(output / f"{path.stem}.png")
        print(f"{path.name}: {model.class_titles[predicted] or model.class_names[predicted]}")


def overlay(image_HxWx3: np.ndarray, map_hxw: np.ndarray) -> Image.Image:
    """Lays red over an image, as opaque as the map is large, up to 70 %."""
    opacity = Image.fromarray(np.uint8(178 * map_hxw / max(map_hxw.max(), 1e-12)))
    height, width, _ = image_HxWx3.shape
    red = Image.new("RGB", (width, height), (255, 0, 0))
    return Image.composite(red, Image.fromarray(image_HxWx3), opacity.resize((width, height), Image.Resampling.BICUBIC))


if __name__ == "__main__":
    cli.run(main, flags)
