"""Whose directory a workdir is: it holds one run, and only the run that made it may go on there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vgg_jax.config import flatten, resumed_run_may_differ_in
from vgg_jax.errors import UserError, writing_to
from vgg_jax.logbook import write_json

CHECKPOINTS = "checkpoints"


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
    kept = workdir / "config.json"
    if _has_checkpoint(workdir):
        _same_run(kept, flatten(ConfigDict(_read(kept))), flatten(config))
    elif workdir.is_dir() and any(workdir.iterdir()) and not kept.exists():
        raise UserError(
            f"--workdir={workdir} holds files, but no config.json, so it is no run's directory; choose an empty one."
        )


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
    kept = workdir / "dataset.json"
    if _has_checkpoint(workdir):
        # Prepared anew, the same data may have another name.
        _same_run(kept, _read(kept) | {"name": ""}, dataset | {"name": ""})
    if not write:
        return
    with writing_to(workdir, "choose another --workdir"):
        workdir.mkdir(parents=True, exist_ok=True)
    write_json(kept, dataset)
    write_json(workdir / "config.json", config.to_dict())


def _has_checkpoint(workdir: Path) -> bool:
    directory = workdir / CHECKPOINTS
    return directory.is_dir() and any(entry.name.isdigit() for entry in directory.iterdir())


def _same_run(kept: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    different = [
        f"{key} is {_short(new.get(key))}, there it is {_short(old.get(key))}"
        for key in {**new, **old}
        if new.get(key) != old.get(key) and key not in resumed_run_may_differ_in()
    ]
    if different:
        raise UserError(
            f"--workdir={kept.parent} holds another run ({kept.name}): {'; '.join(different)}. Choose another --workdir, "
            "or give that run's values to go on with it. Nothing there was changed."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); choose another --workdir.") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
