"""Perceptual loss in a training loop (Johnson et al. 2016): a small upscaler, trained on drawn images.

python examples/perceptual_loss.py --weights=torchvision:vgg16 --output=upscaled.png
"""

import jax
import numpy as np
import optax
from flax import linen as nn
from PIL import Image

import vgg_jax
from vgg_jax.commands import cli
from vgg_jax.data.builtin import render

flags = cli.Flags()
_WEIGHTS = flags.DEFINE_string("weights", None, "Weights of D or E: a file, a run or a name.", required=True)
_STEPS = flags.DEFINE_integer("steps", 200, "Number of updates.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "upscaled.png", "Picture: enlarged linearly, by the upscaler, original.")


class Upscaler(nn.Module):
    @nn.compact
    def __call__(self, small: jax.Array) -> jax.Array:
        """Doubles height and width of [B, H, W, 3] on 0 to 255. Without training it is linear interpolation."""
        x = nn.relu(nn.Conv(32, (5, 5))(small / 255 - 0.5))
        details = nn.ConvTranspose(3, (4, 4), (2, 2), kernel_init=nn.initializers.zeros)(x)
        return (jax.image.resize(small, details.shape, "linear") + 255 * details).clip(0, 255)


def drawn(first: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws images, RGB on 0 to 255, in two sizes: [8, 32, 32, 3] and [8, 64, 64, 3]."""
    return tuple(np.array([render(first + i)[0].resize((n, n)) for i in range(8)], np.float32) for n in (32, 64))


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--weights=vgg16.safetensors")
    model, upscaler, optimizer = vgg_jax.load(_WEIGHTS.value), Upscaler(), optax.adam(1e-3)

    def loss(params, model, small, large):
        return vgg_jax.features.perceptual_loss(model, upscaler.apply(params, small), large, ("relu1_2", "relu2_2"))

    @jax.jit
    def update(params, state, model, small, large):
        updates, state = optimizer.update(jax.grad(loss)(params, model, small, large), state)
        return optax.apply_updates(params, updates), state

    small, large = drawn(2**31)
    start = params = upscaler.init(jax.random.key(0), small)
    state = optimizer.init(params)
    for step in range(_STEPS.value):
        params, state = update(params, state, model, *drawn(8 * step))
    before, after = (loss(p, model, small, large) for p in (start, params))
    print(f"loss on new images: {before:.4g} of linear interpolation, {after:.4g} of the upscaler")
    columns = (upscaler.apply(start, small), upscaler.apply(params, small), large)
    Image.fromarray(np.hstack([np.uint8(x.round()).reshape(-1, 64, 3) for x in columns])).save(_OUTPUT.value)


if __name__ == "__main__":
    cli.run(main, flags)
