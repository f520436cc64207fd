"""Style transfer (Gatys et al. 2016): paints one image in the style of another.

    python examples/style_transfer.py --weights=vgg19.safetensors --content=photo.jpg \\
      --style=painting.jpg --output=painted.png

The optimisation starts from the photograph and changes its pixels. It reduces three losses:

- content: the last activations of block 4 approach the photograph's
- style: the Gram matrices of each block's first layer approach the painting's
- smoothness: the mean squared difference of neighbours

The first two are divided by their goal's mean square, so the weights mean the same for any model.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

import vgg_jax
from vgg_jax import features
from vgg_jax.commands import cli
from vgg_jax.data.crops import rescaled
from vgg_jax.data.decode import size_of
from vgg_jax.data.image_kinds import read_file
from vgg_jax.models.description import endpoint_names
from vgg_jax.runtime.exceptions import UserError, writing_to

LONGEST = 8  # times the shorter side

flags = cli.Flags()
_WEIGHTS = flags.DEFINE_string("weights", None, "Weights file (vgg-jax convert).", required=True)
_CONTENT = flags.DEFINE_string("content", None, "Image to paint.", required=True)
_STYLE = flags.DEFINE_string("style", None, "Image whose style is taken.", required=True)
_OUTPUT = flags.DEFINE_string("output", "painted.png", "File for the painted image.")
_AVERAGE_POOLING = flags.DEFINE_bool(
    "average_pooling", False, "Average pooling in place of max pooling, as in the paper."
)
_SIZE = flags.DEFINE_integer("size", 256, "Shorter side of both images, pixels.", lower_bound=32, upper_bound=4096)
_STEPS = flags.DEFINE_integer("steps", 300, "Number of updates of the pixels.", lower_bound=1)
_STYLE_WEIGHT = flags.DEFINE_float("style_weight", 10.0, "Weight of the style against the content.", lower_bound=0)
_SMOOTHNESS = flags.DEFINE_float(
    "smoothness", 1e-4, "Weight of the mean squared difference of neighbours.", lower_bound=0
)
_RATE = flags.DEFINE_float("learning_rate", 4.0, "Adam's learning rate, for pixel values on 0 to 255.", lower_bound=0)


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--content=photo.jpg")
    if Path(_OUTPUT.value).suffix.lower() not in Image.registered_extensions():
        cli.fail(f"--output={_OUTPUT.value} ends as no kind of picture does; write a name as painted.png.")
    model = vgg_jax.load(_WEIGHTS.value)
    if _AVERAGE_POOLING.value:
        model = features.with_average_pooling(model)
    content, style = (jnp.asarray(photo(name, _SIZE.value)) for name in (_CONTENT.value, _STYLE.value))
    relus = [name for name in endpoint_names(model.network.layers) if name.startswith("relu") and "_" in name]
    style_layers = [name for name in relus if name.endswith("_1")]
    content_layers = [name for name in relus if name.startswith("relu4_")][-1:]

    # What the model sees in the images themselves, once; the updates take it as arguments, as XLA would try
    # to compute with constants while it compiles.
    @jax.jit
    def goals(model, content, style):
        grams = jax.tree.map(features.gram, features.activations(model, style, style_layers))
        return features.activations(model, content, content_layers), grams

    def loss(image, model, of_content, grams):
        seen = features.activations(model, image, (*style_layers, *content_layers))
        content_loss = mean([relative(seen[layer], goal) for layer, goal in of_content.items()])
        style_loss = mean([relative(features.gram(seen[layer]), goal) for layer, goal in grams.items()])
        total = content_loss + _STYLE_WEIGHT.value * style_loss + _SMOOTHNESS.value * features.total_variation(image)
        return total, (content_loss, style_loss)

    optimizer = optax.adam(_RATE.value)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(image, state, model, of_content, grams):
        (_, parts), gradient = jax.value_and_grad(loss, has_aux=True)(image, model, of_content, grams)
        updates, state = optimizer.update(gradient, state)
        return jnp.clip(optax.apply_updates(image, updates), 0, 255), state, parts

    of_content, grams = goals(model, content, style)
    image = content.copy()
    state = optimizer.init(image)
    for step in range(1, _STEPS.value + 1):
        image, state, (content_loss, style_loss) = update(image, state, model, of_content, grams)
        if step in (1, _STEPS.value) or step % 50 == 0:
            print(f"step {step}/{_STEPS.value}: content {content_loss:.4f}, style {style_loss:.4f}", flush=True)
    with writing_to(_OUTPUT.value, "choose another --output"):
        Image.fromarray(np.asarray(image).round().astype(np.uint8)).save(_OUTPUT.value)
    print(f"written: {_OUTPUT.value}")


def relative(found: jax.Array, goal: jax.Array) -> jax.Array:
    """Computes the mean squared difference, divided by the goal's mean square."""
    return jnp.square(found - goal).mean() / jnp.square(goal).mean()


def mean(values: list[jax.Array]) -> jax.Array:
    return sum(values, start=jnp.float32(0)) / len(values)


def photo(name: str, size: int) -> np.ndarray:
    """Reads an image and rescales its shorter side to `size`: [H, W, 3] float32, RGB on 0 to 255.

    Raises:
      UserError: it cannot be read, or its longer side is more than LONGEST times the shorter one.
    """
    try:
        encoded = read_file(Path(name).expanduser())
        width, height = size_of(encoded)
        if max(width, height) > LONGEST * min(width, height):
            raise UserError(
                f"{name} has {width} x {height} pixels, and one side may be at most {LONGEST} times as long as the "
                "other; cut it, or give another image."
            )
        return rescaled(encoded, size).astype(np.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be read: {error}; give another image.") from error


if __name__ == "__main__":
    cli.run(main, flags)
