"""Activations of named layers, and losses made of them, as pure functions.

    model = vgg_jax.load("vgg16.safetensors")
    maps = features.activations(model, images, ("relu2_2", "relu4_3"))
    distance = features.lpips(x, y)
    loss, gradient = jax.value_and_grad(features.perceptual_loss, argnums=1)(model, x, y, ("relu2_2",))

Images are float RGB on 0 to 255, [..., H, W, 3]; the weights' own preprocessing is applied. Everything works under jit,
grad and vmap; the model is a pytree, so it can be an argument of a jitted function.
"""

from vgg_jax.features.attribution import grad_cam
from vgg_jax.features.backbone import Backbone
from vgg_jax.features.endpoints import activations, with_average_pooling, with_normalized_activations
from vgg_jax.features.losses import (
    LPIPS_LAYERS,
    gram,
    load_lpips_heads,
    lpips,
    perceptual_loss,
    style_loss,
    total_variation,
)

__all__ = [
    "LPIPS_LAYERS",
    "Backbone",
    "activations",
    "grad_cam",
    "gram",
    "load_lpips_heads",
    "lpips",
    "perceptual_loss",
    "style_loss",
    "total_variation",
    "with_average_pooling",
    "with_normalized_activations",
]
