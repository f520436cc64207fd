"""Posteriors on the disk: kept so that nothing is computed twice, and so that an interrupted evaluation goes on.

One view of one split is `<view>.npz` (keys, labels, posteriors, refused) with `<view>.json` beside, which says what
they are of. While it is being computed its parts are `<view>.part-<n>.npz` with `<view>.part.json`. Each file is written
whole or not at all; the .json of a finished view comes last, so without it there is none.
"""

from __future__ import annotations

import glob
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vgg_jax.exceptions import writing_to
from vgg_jax.files import write_json

_MOST = 1.001  # of a posterior, as it is rounded
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
      say: is given one line where files are of these settings and yet do not fit; they then count as none.
    """

    def __init__(
        self, directory: Path, name: str, settings: dict[str, Any], classes: int, say: Callable[[str], None] = print
    ):
        self._directory, self._name, self._settings, self._classes = directory, name, settings, classes
        self._say = say

    def load(self) -> Posteriors | None:
        """What was finished with these settings; None where there is nothing, or nothing sound."""
        if not self._is_of(self._path(".json")):
            return None
        arrays = _read(self._path(".npz"))
        if arrays is None or not self._fits(arrays):
            self._say(f"{self._path('.npz')} is damaged; it is computed anew")
            return None
        return Posteriors(**arrays)

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Reads what was computed with these settings before an interruption: indices [n], each once, and posteriors [n, K]."""
        indices, posteriors = [np.zeros(0, np.int64)], [np.zeros((0, self._classes), np.float32)]
        if self._is_of(self._path(".part.json")):
            for path in self._part_paths():
                arrays = _read(path)
                if arrays is None or not self._fits_part(arrays):
                    self._say(f"{path} is damaged; it is computed anew")
                    continue
                indices.append(arrays["indices"])
                posteriors.append(arrays["posteriors"])
        every, first = np.unique(np.concatenate(indices), return_index=True)
        return every, np.concatenate(posteriors)[first]

    def _fits(self, arrays: dict[str, np.ndarray]) -> bool:
        n, k = self._settings["images"], self._classes
        return (
            set(arrays) == set(Posteriors._fields)
            and _are(arrays["keys"], "U", (n,))
            and _are(arrays["labels"], "i", (n,), -1, k - 1)
            and _are(arrays["posteriors"], "f", (n, k), 0, _MOST)
            and _are(arrays["refused"], "b", (n,))
        )

    def _fits_part(self, arrays: dict[str, np.ndarray]) -> bool:
        if set(arrays) != {"indices", "posteriors"}:
            return False
        n, k = self._settings["images"], self._classes
        shape = arrays["indices"].shape
        return _are(arrays["indices"], "i", shape[:1], 0, n - 1) and _are(
            arrays["posteriors"], "f", (*shape[:1], k), 0, _MOST
        )

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
        return sorted(self._directory.glob(f"{glob.escape(self._name)}.part-{'[0-9]' * 5}.npz"))

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
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                return None  # not written here, and small files may become large
        with np.load(path, allow_pickle=False) as arrays:  # checks each array's CRC
            return dict(arrays)
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        SyntaxError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
    ):
        return None


def _are(array: np.ndarray, kind: str, shape: tuple[int, ...], least: float = 0, most: float = 0) -> bool:
    """Whether an array has this kind of dtype and shape, and, where it holds numbers, only such from `least` to `most`."""
    sound = array.dtype.kind == kind and array.shape == shape
    return bool(sound and (kind not in "if" or ((array >= least) & (array <= most)).all()))
