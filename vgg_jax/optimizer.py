"""The paper's optimizer as an optax chain: L2, plateau schedule, learning rate, momentum (Paper §3.1).

Together they are Krizhevsky's update: v <- 0.9 v - lr (g + 5e-4 w), w <- w + v. The learning rate is inside the
momentum buffer, so a drop of the rate takes effect as the buffer fades, not at once.
"""

from __future__ import annotations

import fnmatch
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vgg_jax.config import lr_factors


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The chain for a configuration; its state is a dict of the four parts' states, by name."""
    mask = _is_kernel if config.optimizer.l2_mask == "kernels" else None
    return optax.named_chain(
        # L2 joins the gradient before the momentum: classical, not decoupled. Kernels only (PAPER.md §5.3).
        ("l2", optax.add_decayed_weights(config.optimizer.l2, mask)),
        ("plateau", _scale_by_plateau(config)),
        ("learning_rate", _scale_by_learning_rate(config)),
        ("momentum", optax.trace(config.optimizer.momentum)),
    )


def lr_factor(config: ConfigDict, layer: str) -> float:
    """The factor on the learning rate of a layer, by `config.optimizer.lr_factors`; 0 where it is frozen."""
    return next((factor for pattern, factor in lr_factors(config) if fnmatch.fnmatchcase(layer, pattern)), 1.0)


def observe_error(opt_state: dict, error: float, images: int, config: ConfigDict) -> dict:
    """Tells the plateau schedule the validation top-1 error of one evaluation.

    After `plateau.patience` evaluations in a row that did not better the least error by at least
    `plateau.min_improvement`, the learning rate is multiplied by `plateau.factor`.

    Args:
      opt_state: of `make_optimizer`.
      error: fraction in [0, 1].
      images: validation images that the error is a fraction of.
      config: the run's.

    Returns:
      The new optimizer state; only its plateau part differs.
    """
    plateau = opt_state["plateau"]
    best, count, scale = (x.item() for x in jax.device_get((plateau.best_value, plateau.plateau_count, plateau.scale)))
    # Counted in images, because float32 does not hold the errors exactly and an improvement may be exactly the least one.
    fewer = round(best * images) - round(error * images) if math.isfinite(best) else math.inf
    if fewer >= config.plateau.min_improvement * images - 1e-6:
        best, count = error, 0
    else:
        count += 1
    if count == config.plateau.patience:
        scale, count = np.float32(scale) * np.float32(config.plateau.factor), 0
    new = {"best_value": np.float32(best), "plateau_count": np.int32(count), "scale": np.float32(scale)}
    placed = {name: jax.device_put(value, getattr(plateau, name).sharding) for name, value in new.items()}
    return opt_state | {"plateau": plateau._replace(**placed)}


def learning_rate(opt_state: dict, config: ConfigDict) -> jax.Array:
    """The rate in force, a float32 scalar."""
    return config.optimizer.learning_rate * opt_state["plateau"].scale


def lr_drops(opt_state: dict, config: ConfigDict) -> int:
    """How often the rate has dropped so far, at most `plateau.max_drops`."""
    return min(_plateaus(opt_state, config), config.plateau.max_drops)


def plateaued_for_good(opt_state: dict, config: ConfigDict) -> bool:
    """Whether the error has stopped improving at the last learning rate too, which ends training (PAPER.md §5.4)."""
    return _plateaus(opt_state, config) > config.plateau.max_drops


def _plateaus(opt_state: dict, config: ConfigDict) -> int:
    return round(math.log(float(opt_state["plateau"].scale)) / math.log(config.plateau.factor))


def _scale_by_plateau(config: ConfigDict) -> optax.GradientTransformation:
    """Scales updates by the schedule's scale, which `observe_error` moves.

    optax's own update would need an error at every step, and compares in float32.
    """
    # No least scale: the plateau after the last drop must show, and training ends with it before a step is taken.
    schedule = optax.contrib.reduce_on_plateau(
        factor=config.plateau.factor, patience=config.plateau.patience, rtol=0.0, atol=config.plateau.min_improvement
    )

    def init(params: optax.Params) -> optax.contrib.ReduceLROnPlateauState:
        del params
        return schedule.init(jnp.float32(0))  # float32, whatever the parameters are

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree.map(lambda u: (state.scale * u).astype(u.dtype), updates), state

    return optax.GradientTransformation(init, update)


def _scale_by_learning_rate(config: ConfigDict) -> optax.GradientTransformation:
    """Minus the starting rate, times the layer's factor."""
    rate = config.optimizer.learning_rate

    def scaled(path: Any, update: jax.Array) -> jax.Array:
        return -rate * lr_factor(config, path[-2].key) * update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))


def _is_kernel(params: optax.Params) -> optax.Params:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
