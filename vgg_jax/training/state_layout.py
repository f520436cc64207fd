"""Layout of a train state in checkpoints: the names of its parts, now and in earlier versions.

Versions before 0.6 have the averages of variables in the optimizer's state, as opt_state/ema.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

from vgg_jax.training.state import TrainState

_AVERAGES, _OLD_AVERAGES = "averages", "ema"


def has_old_averages(names: Iterable[str]) -> bool:
    """Returns whether arrays of these names are a state whose averages lie where earlier versions have them."""
    return any(name.startswith(f"opt_state/{_OLD_AVERAGES}/") for name in names)


def to_tree(state: TrainState, is_old: bool = False) -> dict[str, Any]:
    """Returns a state as a checkpoint holds it, without averages where it has none.

    Args:
      state: arrays, or jax.ShapeDtypeStruct.
      is_old: place the averages where earlier versions have them.
    """
    tree = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    averages = tree.pop(_AVERAGES)
    if averages is None:
        return tree
    if is_old:
        opt_state = copy.copy(state.opt_state)  # an OrderedDict, and stays one
        opt_state[_OLD_AVERAGES] = averages
        return tree | {"opt_state": opt_state}
    return tree | {_AVERAGES: averages}


def to_state(tree: dict[str, Any]) -> TrainState:
    """Returns the state of a checkpoint's tree, of this version or an earlier one."""
    opt_state = copy.copy(tree["opt_state"])
    averages = opt_state.pop(_OLD_AVERAGES, None)
    return TrainState(**{_AVERAGES: averages} | tree | {"opt_state": opt_state})


def variables_part(tree: dict[str, Any], averages: bool) -> dict[str, Any]:
    """Returns the part of a checkpoint's tree that `to_variables` needs.

    It holds the averages if they are asked for and saved, else the params. Checkpoints of versions before 0.3 have
    no model state.
    """
    old = tree.get("opt_state", {}).get(_OLD_AVERAGES)
    if averages and _AVERAGES in tree:
        return {_AVERAGES: tree[_AVERAGES]}
    if averages and old:
        return {"opt_state": {_OLD_AVERAGES: old}}
    return {name: tree[name] for name in ("params", "model_state") if tree.get(name)}


def to_variables(part: dict[str, Any]) -> dict[str, Any]:
    """Returns the first argument of `model.apply`, of a part that `variables_part` chose."""
    if "params" in part:
        return {"params": part["params"], **part.get("model_state", {})}
    return part[_AVERAGES] if _AVERAGES in part else part["opt_state"][_OLD_AVERAGES]
