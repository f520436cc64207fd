"""Whose directory a workdir is: it holds one run, and only the run that made it may go on there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vgg_jax.config import flatten, resumed_run_may_differ_in
from vgg_jax.errors import UserError, writing_to
from vgg_jax.logbook import write_json


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the workdir, or finds in it the same run; writes `config.json`.

    Raises:
      UserError: it holds another configuration's run, holds something else, or cannot be written. Nothing in it has
        been changed.
    """
    with writing_to(workdir, "choose another --workdir"):
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    kept = workdir / "config.json"
    if kept.exists():
        _same_run(workdir, "config.json", flatten(ConfigDict(_read(kept))), flatten(config))
    elif any(workdir.iterdir()):
        raise UserError(
            f"--workdir={workdir} holds files, but no config.json, so it is no run's directory; choose an empty one."
        )
    write_json(kept, config.to_dict())


def keep_description(workdir: Path, description: dict[str, Any]) -> None:
    """Writes `dataset.json`; raises UserError where the run began with other data."""
    kept = workdir / "dataset.json"
    if kept.exists():
        _same_run(workdir, "dataset.json", {**_read(kept), "name": ""}, {**description, "name": ""})
    write_json(kept, description)


def _same_run(workdir: Path, file: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    different = [
        f"{key} is {_short(new.get(key))}, there it is {_short(old.get(key))}"
        for key in {**new, **old}
        if new.get(key) != old.get(key) and key not in resumed_run_may_differ_in()
    ]
    if different:
        raise UserError(
            f"--workdir={workdir} holds another run ({file}): {'; '.join(different)}. Choose another --workdir, or give "
            "that run's values to go on with it. Nothing there was changed."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); choose another --workdir.") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
