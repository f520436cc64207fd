"""Ensures that a workdir belongs to one run: one configuration and one data set.

`runtime.lock` admits one process at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vgg_jax.config import flatten
from vgg_jax.recipe import KEYS, Recipe, may_change
from vgg_jax.runs import RunDir
from vgg_jax.runtime.exceptions import UserError, differences, writing_to
from vgg_jax.runtime.provenance import code_version
from vgg_jax.training import schedules

_REMEDY = "choose another --workdir"
_COLORS = ("mean_rgb", "color_vectors")
_NOT_SHOWN = ("name", "image_digests", *_COLORS)  # in a sentence


def check_workdir(workdir: Path, recipe: Recipe) -> None:
    """Checks that this configuration may run in a workdir; changes nothing.

    Raises:
      UserError: it holds a checkpoint of another configuration, holds other files than a run's, or cannot be written.
    """
    if re.match(r"\w{2,}:/", str(workdir)):
        raise UserError(
            f"--workdir={str(workdir).replace(':/', '://', 1)}: a workdir is a directory; mount the bucket, as "
            "`launch/` does (docs/launch.md), and name the directory."
        )
    existing = next(path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--workdir={workdir} cannot be made: {existing} is a file; {_REMEDY}.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir} cannot be written: no permission for {existing}; {_REMEDY}.")
    run = RunDir(workdir, _REMEDY)
    if run.checkpoint_steps():
        _check_same_config(run, recipe)
    elif not run.is_run() and (foreign := run.foreign_files()):
        raise UserError(
            f"--workdir={workdir} holds files, but no {run.config_file.name}, so it is not a run's directory "
            f"({foreign[0]!r} is not one of a run's files); choose an empty one."
        )


def continued_recipe(workdir: Path, recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Returns the recipe with the values that a run in `workdir` keeps, and a line for each difference."""
    run = RunDir(workdir, _REMEDY)
    if not run.checkpoint_steps():
        return recipe, []
    follow = run.config().optimizer.norms_follow
    if recipe.optimizer.norms_follow == follow:
        return recipe, []
    recipe = recipe.with_values({"optimizer.norms_follow": follow})
    if not (recipe.given["optimizer.lr_factors"] and recipe.model.network.has_norms):
        return recipe, []
    return recipe, [
        "normalisation layers that config.optimizer.lr_factors does not name keep factor 1, as this run was begun "
        "by an earlier version; new runs give them their convolution's factor."
    ]


def check_end(workdir: Path, recipe: Recipe, steps_per_epoch: float) -> None:
    """Raises UserError where the run's checkpoints are beyond its end."""
    end = schedules.total_steps(recipe, steps_per_epoch)
    if (step := max(RunDir(workdir).checkpoint_steps(), default=0)) > end:
        raise UserError(
            f"config.num_epochs={recipe.num_epochs:g} ends at step {end}, but the run in {workdir} is already at "
            f"step {step}; give at least {schedules.epochs_text(step, steps_per_epoch)} epochs. Nothing there was "
            "changed."
        )


def claim_workdir(workdir: Path, recipe: Recipe, dataset: dict[str, Any], write: bool = True) -> None:
    """Writes a run's configuration and the description of its data into a workdir.

    Args:
      workdir: that `check_workdir` has let pass.
      recipe: the run's.
      dataset: the description of the data.
      write: False in a process that leaves writing to another one, and only checks that it is the same run.

    Raises:
      UserError: the run in it was begun on other data, or nothing can be written there.
    """
    run = RunDir(workdir, _REMEDY)
    if run.checkpoint_steps():
        _check_same_data(run, dataset)
    if not write:
        return
    with writing_to(workdir, _REMEDY):
        workdir.mkdir(parents=True, exist_ok=True)
    run.write_config(recipe)
    run.write_dataset(dataset)


def facts(given: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """Returns the facts that all processes of a run must share before they begin."""
    values = {f"config.{name}": given.get(name) for name, key in KEYS.items() if not key.is_local}
    return {"the code": code_version(), "jax": jax.__version__, "--workdir": str(workdir), **values}


def data_facts(description: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts about the data that all processes must share, of the content of dataset.json."""
    facts = dict(description)
    colors = json.dumps([facts.pop("mean_rgb"), facts.pop("color_vectors")])  # whose many digits would not say more
    return {**facts, "the images' colours": hashlib.sha256(colors.encode()).hexdigest()[:8]}


def _check_same_config(run: RunDir, recipe: Recipe) -> None:
    """Raises UserError where a run has another value of a key that a continued run may not change."""
    new, old = (
        {key: value for key, value in values.items() if not may_change(key, recipe)}
        for values in (recipe.given, flatten(run.config()))
    )
    different = differences(new, old, "{key} is {first}, there it is {second}")
    if different:
        raise UserError(
            f"--workdir={run.path} holds another run ({run.config_file.name}): {'; '.join(different)}. Choose another "
            "--workdir, or give that run's values to continue with it. Nothing there was changed."
        )


def _check_same_data(run: RunDir, new: dict[str, Any]) -> None:
    """Raises UserError where a run was begun on other data.

    Compares the digests of all images by split, classes, numbers of images and colours (to rounding), and not the
    name: data may have been prepared again. A run of version 0.4 has no digests; the rest is compared.
    """
    old = run.dataset()
    before, now = old.get("image_digests", {}), new.get("image_digests", {})
    changed = [split for split in now if split in before and before[split] != now[split]]
    different = [f"the images of {' and '.join(changed)} have changed"] if changed else []
    first, second = ({key: value for key, value in data.items() if key not in _NOT_SHOWN} for data in (new, old))
    different += differences(first, second, "{key} is {first}, there it is {second}")
    if not different:
        different = [f"another {key}" for key in _COLORS if not _is_close(new.get(key), old.get(key))]
    if different:
        raise UserError(
            f"--workdir={run.path} holds a run on other images ({run.dataset_file.name}): {'; '.join(different)}. To "
            "continue it, bring the earlier images back; or train on these in another --workdir, from that run's "
            f"parameters with --config.init_from={shlex.quote(str(run.path))}. Nothing there was changed."
        )


def _is_close(first: Any, second: Any) -> bool:
    """Returns whether two lists of numbers agree up to the rounding of different linear algebra libraries."""
    try:
        return first == second or bool(np.allclose(first, second, rtol=1e-4, atol=1e-3))
    except (TypeError, ValueError):
        return False
