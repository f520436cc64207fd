"""The paper's optimizer as an optax chain: L2, learning rate, momentum (Paper §3.1).

Together they are Krizhevsky's update: v <- 0.9 v - lr (g + 5e-4 w), w <- w + v. The momentum buffer holds updates that
are scaled already, so a drop of the rate takes effect gradually.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from vgg_jax.recipe import Recipe


def make_optimizer(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """Returns the chain for a configuration; its state is a dict of the parts' states, by name.

    `update` takes the learning rate in force as the keyword `learning_rate`, a float32 scalar
    (`vgg_jax.training.schedules`).
    """
    mask = _is_kernel if recipe.optimizer.l2_mask == "kernels" else None
    clip = [("clip", optax.clip_by_global_norm(recipe.optimizer.clip_norm))] if recipe.optimizer.clip_norm else []
    decay = ("l2", optax.add_decayed_weights(recipe.optimizer.l2, mask))
    rate = ("learning_rate", _scale_by_learning_rate(recipe))
    if recipe.optimizer.name == "adamw":
        return optax.named_chain(*clip, ("adam", optax.scale_by_adam()), decay, rate)
    # L2 joins the gradient before the momentum: classical, not decoupled. Kernels only (docs/decisions.md).
    return optax.named_chain(*clip, decay, rate, ("momentum", optax.trace(recipe.optimizer.momentum)))


def _scale_by_learning_rate(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """Scales by minus the rate in force, times the layer's factor."""
    factors = dict(recipe.optimizer.lr_factors)

    def update(updates: Any, state: Any, params: Any = None, *, learning_rate: jax.Array, **_: Any) -> tuple[Any, Any]:
        del params

        def scaled(path: Any, update: jax.Array) -> jax.Array:
            return (-learning_rate * factors.get(path[-2].key, 1.0) * update).astype(update.dtype)

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _is_kernel(params: optax.Params) -> optax.Params:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
