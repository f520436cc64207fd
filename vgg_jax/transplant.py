"""Starting from another net's parameters: pure pytree surgery, by layer name."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from vgg_jax.checkpoints import load_params
from vgg_jax.errors import UserError
from vgg_jax.weights.file import folded_params, load_weights


def start_from(source: str, params: dict, mean_rgb: np.ndarray) -> tuple[dict, str]:
    """Replaces freshly initialised parameters by those of a checkpoint or a weights file of the same configuration.

    Args:
      source: a run's workdir (its best checkpoint is taken), one of its checkpoints/<step>, or a weights file of
        `python -m vgg_jax.convert`, whose preprocessing becomes part of conv1_1.
      params: of the new net; the result lies on the devices as they do.
      mean_rgb: that the new net's pixels will be without, [3], 0 to 255.

    Returns:
      The new parameters, and a line that says what was taken from where.

    Raises:
      UserError: nothing to read there, or layers or shapes that differ: each is named.
    """
    place = Path(source).expanduser()
    try:
        path, loaded = (place, _of_file(place, mean_rgb)) if place.is_file() else load_params(place)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    different = [
        f"{layer}/{name} is {_shape(loaded, layer, name)} there and {_shape(params, layer, name)} here"
        for layer in sorted({**params, **loaded})
        for name in ("kernel", "bias")
        if _shape(loaded, layer, name) != _shape(params, layer, name)
    ]
    if different:
        advice = ""
        if place.is_file() and all(text.startswith("fc8/") for text in different):
            classes = params["fc8"]["bias"].shape[0]
            advice = (
                f". To keep the body and replace the head: python -m vgg_jax.convert {source} NAME.safetensors "
                f"--num_classes={classes}, and start from that"
            )
        raise UserError(f"config.init_from: {path} does not fit: {'; '.join(different)}{advice}.")
    copied = jax.tree.map(lambda new, old: jax.device_put(old.astype(new.dtype), new.sharding), params, loaded)
    return copied, f"all layers start from {path}"


def _of_file(path: Path, mean_rgb: np.ndarray) -> dict:
    """The parameters of a weights file for pixels without another mean than its own.

    conv1_1's bias takes up the difference of the means, which is exact but at the borders: there zero padding now stands
    for the new mean. Where both means are equal nothing changes.
    """
    weights = load_weights(path)
    params = folded_params(weights)
    kernel, bias = params["conv1_1"]["kernel"], params["conv1_1"]["bias"]
    difference = np.asarray(mean_rgb, np.float64) - weights.preprocessing.mean_rgb()
    bias = (bias + np.einsum("hwcf,c->f", kernel.astype(np.float64), difference)).astype(np.float32)
    return {**params, "conv1_1": {"kernel": kernel, "bias": bias}}


def _shape(params: dict, layer: str, name: str) -> str:
    return str(list(params[layer][name].shape)) if layer in params else "missing"
