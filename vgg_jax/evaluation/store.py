"""Posteriors on the disk: kept so that nothing is computed twice, and so that an interrupted evaluation goes on.

One view of one split is `<view>.npz` (keys, labels, posteriors, refused) with `<view>.json` beside, which says what
they are of. While it is being computed its parts are `<view>.part-<n>.npz` with `<view>.part.json`. Each file is written
whole or not at all; the .json of a finished view comes last, so without it there is none.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vgg_jax.errors import writing_to
from vgg_jax.logbook import write_json

_REMEDY = "free some space or mend the permissions and give the same command again"


class Posteriors(NamedTuple):
    """Of all pictures of a split, in its order."""

    keys: np.ndarray  # [N] str: file names, or places in the split where there are none
    labels: np.ndarray  # [N] int32; -1 where there is no label
    posteriors: np.ndarray  # [N, K] float32; zeros where refused
    refused: np.ndarray  # [N] bool: too large to be computed


class Store:
    """The file of one view, `<directory>/<name>.npz`.

    Args:
      directory: made when something is written.
      name: of the view.
      settings: everything the posteriors depend on, as JSON holds it; files of other settings count as none.
      classes: K.
    """

    def __init__(self, directory: Path, name: str, settings: dict[str, Any], classes: int):
        self._directory, self._name, self._settings, self._classes = directory, name, settings, classes

    def load(self) -> Posteriors | None:
        """What was finished with these settings; None where there is nothing, or nothing sound."""
        if not self._is_of(self._path(".json")):
            return None
        arrays = _read(self._path(".npz"))
        if arrays is None or set(Posteriors._fields) - set(arrays):
            return None
        found = Posteriors(**{name: arrays[name] for name in Posteriors._fields})
        if found.posteriors.shape != (self._settings["images"], self._classes):
            return None
        return found

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """What was computed with these settings before an interruption: indices [n], posteriors [n, K]."""
        indices, posteriors = [np.zeros(0, np.int64)], [np.zeros((0, self._classes), np.float32)]
        if self._is_of(self._path(".part.json")):
            for path in self._part_paths():
                arrays = _read(path)
                if arrays is not None:
                    indices.append(arrays["indices"])
                    posteriors.append(arrays["posteriors"])
        return np.concatenate(indices), np.concatenate(posteriors)

    def add_part(self, indices: np.ndarray, posteriors: np.ndarray) -> None:
        """Keeps some pictures' posteriors; those of other settings are given up with the first."""
        with writing_to(self._directory, _REMEDY):
            self._directory.mkdir(parents=True, exist_ok=True)
            if not self._is_of(self._path(".part.json")):
                self._remove_parts()
                write_json(self._path(".part.json"), self._settings)
            taken = [int(path.name.split(".part-")[1].split(".")[0]) for path in self._part_paths()]
            self._write(f".part-{max(taken, default=-1) + 1:05d}.npz", indices=indices, posteriors=posteriors)

    def finish(self, found: Posteriors) -> None:
        """Writes the whole, then removes the parts."""
        with writing_to(self._directory, _REMEDY):
            self._directory.mkdir(parents=True, exist_ok=True)
            self._path(".json").unlink(missing_ok=True)  # of other settings
            self._write(".npz", **found._asdict())
            write_json(self._path(".json"), self._settings)
            self._remove_parts()

    def _path(self, suffix: str) -> Path:
        return self._directory / (self._name + suffix)

    def _part_paths(self) -> list[Path]:
        return sorted(self._directory.glob(f"{self._name}.part-*.npz"))

    def _remove_parts(self) -> None:
        for path in [self._path(".part.json"), *self._part_paths()]:
            path.unlink(missing_ok=True)

    def _is_of(self, path: Path) -> bool:
        try:
            return json.loads(path.read_text()) == self._settings
        except (OSError, ValueError):
            return False

    def _write(self, suffix: str, **arrays: np.ndarray) -> None:
        unfinished = self._path(suffix + ".unfinished")
        with open(unfinished, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path(suffix))


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:  # checks each array's CRC
            return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
