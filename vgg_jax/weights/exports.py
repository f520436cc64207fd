"""Weights out: to torchvision's names, and as a compiled-anywhere program (StableHLO) with the preprocessing inside."""

from __future__ import annotations

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vgg_jax.errors import UserError
from vgg_jax.weights import preprocessing
from vgg_jax.weights.file import Weights, folded_params, make_model
from vgg_jax.weights.layouts import LAYOUTS, form_of
from vgg_jax.weights.preprocessing import Preprocessing

TORCHVISION_NETS = {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}
# What a stored program may be run on; it is compiled where it is loaded.
PLATFORMS = ("cpu", "cuda", "tpu")


def to_torchvision(weights: Weights) -> tuple[dict[str, np.ndarray], Preprocessing]:
    """The state dictionary of torchvision's net, and what it expects of pixels.

    Weights that expect RGB on 0 to 1 stay as they are, to the last bit. Others are changed in conv1_1 alone so that
    they do: torchvision's std, and as mean the colour that was zero before, which keeps the borders exact.

    Raises:
      UserError: a configuration that torchvision does not have.
    """
    if weights.configuration not in TORCHVISION_NETS:
        raise UserError(
            f"torchvision has no net of configuration {weights.configuration}; it has those of "
            f"{', '.join(TORCHVISION_NETS)}."
        )
    params, expected = weights.params, weights.preprocessing
    if (expected.order, expected.scale) != ("RGB", 1.0):
        red, green, blue = map(float, expected.mean_rgb().astype(np.float64) / 255)
        expected = Preprocessing("RGB", 1.0, (red, green, blue), preprocessing.KNOWN["torchvision"].std)
        params = folded_params(weights)
        kernel = preprocessing.unfolded(params["conv1_1"]["kernel"], expected)
        params = {**params, "conv1_1": {**params["conv1_1"], "kernel": kernel}}
    layout, tensors = LAYOUTS["torchvision"], {}
    for layer, (kernel_name, bias_name) in layout.names(weights.configuration).items():
        tensors[kernel_name] = form_of(layout, layer).to_theirs(params[layer]["kernel"])
        tensors[bias_name] = params[layer]["bias"]
    return tensors, expected


def to_stablehlo(weights: Weights) -> bytes:
    """A program for jax.export.deserialize: uint8 RGB crops [b, crop, crop, 3], any b -> probabilities [b, K] float32.

    Parameters and preprocessing are inside; nothing of this project is needed to run it.

    Raises:
      UserError: flatbuffers, with which JAX writes programs, is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            "jax.export writes programs with flatbuffers, which is not installed: pip install 'vgg-jax[export]', or pip "
            "install flatbuffers."
        )
    model, params, mean = make_model(weights), folded_params(weights), weights.preprocessing.mean_rgb()

    def probabilities(images_BxHxWx3: jax.Array) -> jax.Array:
        scores: Any = model.apply({"params": params}, images_BxHxWx3.astype(jnp.float32) - mean)
        return jax.nn.softmax(scores)

    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, weights.crop, weights.crop, 3), jnp.uint8)
    return bytes(export.export(jax.jit(probabilities), platforms=PLATFORMS)(images).serialize())
