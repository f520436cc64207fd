"""Starting from another net's parameters: pure pytree surgery, by layer name."""

from __future__ import annotations

from pathlib import Path

import jax

from vgg_jax.checkpoints import load_params
from vgg_jax.errors import UserError


def start_from(source: str, params: dict) -> tuple[dict, str]:
    """Replaces freshly initialised parameters by those of a checkpoint of the same configuration.

    Args:
      source: a run's workdir (its best checkpoint is taken), or one of its checkpoints/<step>.
      params: of the new net; the result lies on the devices as they do.

    Returns:
      The new parameters, and a line that says what was taken from where.

    Raises:
      UserError: nothing to read there, or layers or shapes that differ: each is named.
    """
    try:
        path, loaded = load_params(Path(source).expanduser())
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    different = [
        f"{layer}/{name} is {_shape(loaded, layer, name)} there and {_shape(params, layer, name)} here"
        for layer in sorted({**params, **loaded})
        for name in ("kernel", "bias")
        if _shape(loaded, layer, name) != _shape(params, layer, name)
    ]
    if different:
        raise UserError(f"config.init_from: {path} does not fit: {'; '.join(different)}.")
    copied = jax.tree.map(lambda new, old: jax.device_put(old.astype(new.dtype), new.sharding), params, loaded)
    return copied, f"all layers start from {path}"


def _shape(params: dict, layer: str, name: str) -> str:
    return str(list(params[layer][name].shape)) if layer in params else "missing"
