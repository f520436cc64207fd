"""Ensures that a workdir belongs to one run: one configuration and one data set. `runtime.lock` admits one process at a time."""

from __future__ import annotations

import copy
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vgg_jax.config import default_config, flatten, has_batch_norm, may_change
from vgg_jax.runtime.compilation import COMPILED
from vgg_jax.runtime.exceptions import UserError, differences, plain_name, writing_to
from vgg_jax.runtime.files import is_unfinished, read_json, write_json
from vgg_jax.runtime.lock import LOCK

CHECKPOINTS = "checkpoints"
# Files that a run makes. A run that was killed before its config.json was there leaves no other ones.
_OWN = ("config.json", "dataset.json", "metrics.jsonl", "summary.json", "tensorboard", CHECKPOINTS, LOCK, COMPILED)
_COLORS = ("mean_rgb", "color_vectors")
_NOT_SHOWN = ("name", "image_digests", *_COLORS)  # in a sentence


def check(workdir: Path, config: ConfigDict) -> None:
    """Finds out whether this configuration may run in a workdir, and changes nothing.

    Raises:
      UserError: it holds a checkpoint of another configuration, holds something else than a run, or cannot be written.
    """
    if re.match(r"\w{2,}:/", str(workdir)):
        raise UserError(
            f"--workdir={str(workdir).replace(':/', '://', 1)}: a workdir is a directory; mount the bucket, as `launch/` does "
            "(docs/launch.md), and name the directory."
        )
    existing = next(path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--workdir={workdir} cannot be made: {existing} is a file; choose another --workdir.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"--workdir={workdir} cannot be written: no permission for {existing}; choose another --workdir."
        )
    config_file = workdir / "config.json"
    if checkpoint_steps(workdir):
        # A key that an earlier version did not have counts as its default.
        old, new = flatten(default_config()) | flatten(ConfigDict(_read(config_file))), flatten(config)
        _same_run(
            config_file,
            *({key: value for key, value in flat.items() if not may_change(key, config)} for flat in (old, new)),
        )
    elif workdir.is_dir() and not config_file.exists():
        foreign = sorted({path.name for path in workdir.iterdir() if not is_unfinished(path)}.difference(_OWN))
        if foreign:
            raise UserError(
                f"--workdir={workdir} holds files, but no config.json, so it is no run's directory ({foreign[0]!r} is none "
                "of a run's files); choose an empty one."
            )


def continued(workdir: Path, config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """Returns the configuration with what a run in `workdir` keeps from its beginning, and a line for each difference."""
    if not checkpoint_steps(workdir):
        return config, []
    config, stored = copy.deepcopy(config), _read(workdir / "config.json")
    follow = stored.get("optimizer", {}).get("norms_follow", False)
    differs = config.optimizer.norms_follow != follow
    config.optimizer.norms_follow = follow
    if not (differs and config.optimizer.lr_factors and has_batch_norm(config)):
        return config, []
    return config, [
        "normalisation layers that config.optimizer.lr_factors does not name keep factor 1, as this run was begun "
        "by an earlier version; new runs give them their convolution's factor."
    ]


def claim(workdir: Path, config: ConfigDict, dataset: dict[str, Any], write: bool = True) -> None:
    """Makes the workdir a run's: `config.json` and `dataset.json`.

    Args:
      workdir: that `check` has let pass.
      config: the run's.
      dataset: what `dataset.json` shall say.
      write: False in a process that leaves writing to another one, and only finds out whether it is the same run.

    Raises:
      UserError: the run in it was begun on other data, or nothing can be written there.
    """
    dataset_file = workdir / "dataset.json"
    if checkpoint_steps(workdir):
        _same_data(dataset_file, _read(dataset_file), dataset)
    if not write:
        return
    with writing_to(workdir, "choose another --workdir"):
        workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", config.to_dict())
    write_json(dataset_file, dataset)


def checkpoint_steps(workdir: Path) -> list[int]:
    """Returns the steps of all finished checkpoints, ascending."""
    directory = workdir / CHECKPOINTS
    return (
        sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit()) if directory.is_dir() else []
    )


def _same_run(file: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    different = differences(new, old, "{key} is {first}, there it is {second}")
    if different:
        raise UserError(
            f"--workdir={file.parent} holds another run ({file.name}): {'; '.join(different)}. Choose another --workdir, "
            "or give that run's values to continue with it. Nothing there was changed."
        )


def _same_data(file: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises UserError where a run was begun on other data.

    Compares the digests of all images by split, classes, numbers of images and colours (to rounding), and not the name:
    data may have been prepared again. A run of version 0.4 has no digests; the rest is compared.
    """
    old = old | {"class_names": [plain_name(str(name)) for name in old.get("class_names", ())]}  # as they are read
    before, now = old.get("image_digests", {}), new.get("image_digests", {})
    changed = [split for split in now if split in before and before[split] != now[split]]
    different = [f"the images of {' and '.join(changed)} have changed"] if changed else []
    first, second = ({key: value for key, value in data.items() if key not in _NOT_SHOWN} for data in (new, old))
    different += differences(first, second, "{key} is {first}, there it is {second}")
    if not different:
        different = [f"another {key}" for key in _COLORS if not _is_close(new.get(key), old.get(key))]
    if different:
        workdir = file.parent
        raise UserError(
            f"--workdir={workdir} holds a run on other images ({file.name}): {'; '.join(different)}. To continue it, bring "
            "the earlier images back; or train on these in another --workdir, from that run's parameters with "
            f"--config.init_from={shlex.quote(str(workdir))}. Nothing there was changed."
        )


def _is_close(first: Any, second: Any) -> bool:
    """Returns whether two lists of numbers are the same but for rounding, in which libraries of linear algebra differ."""
    try:
        return first == second or bool(np.allclose(first, second, rtol=1e-4, atol=1e-3))
    except (TypeError, ValueError):
        return False


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "choose another --workdir")
