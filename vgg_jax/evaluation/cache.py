"""On-disk cache of probabilities, which makes an evaluation resumable.

A pass over a split is `<pass>.npz` (keys, labels, probs, skipped) next to `<pass>.json`, its settings. While it is being
computed, its shards are `<pass>.part-<n>.npz` with `<pass>.part.json`. Each file is written whole or not at all; the .json
of a finished pass comes last, so without it the pass counts as unfinished.
"""

from __future__ import annotations

import glob
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vgg_jax.exceptions import writing_to
from vgg_jax.files import FREE_SPACE, write_atomically, write_json

_MOST = 1.001  # of a probability, as it is rounded


class Probs(NamedTuple):
    """Probabilities of all images of a split, in its order."""

    keys: np.ndarray  # [N] str: file names, or positions in the split where there are none
    labels: np.ndarray  # [N] int32; -1 where there is no label
    probs: np.ndarray  # [N, K] float32; zeros where skipped
    skipped: np.ndarray  # [N] bool: too large to be computed


class Cache:
    """The file of one pass, `<directory>/<name>.npz`.

    Args:
      directory: made when something is written.
      name: of the pass.
      settings: everything the probabilities depend on, as JSON holds it; files of other settings are not used.
      num_classes: K.
      warn: is called with one line where a file has these settings and yet does not fit; it is then not used.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        settings: dict[str, Any],
        num_classes: int,
        warn: Callable[[str], None] = print,
    ):
        self._directory, self._name, self._settings, self._num_classes = directory, name, settings, num_classes
        self._warn = warn

    def load(self) -> Probs | None:
        """Returns what was finished with these settings; None where there is nothing sound."""
        if not self._has_settings(self._path(".json")):
            return None
        arrays = _read(self._path(".npz"))
        if arrays is None or not self._fits(arrays):
            self._warn(f"{self._path('.npz')} is damaged; it is computed again")
            return None
        return Probs(**arrays)

    def shards(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns what was computed with these settings before an interruption: indices [n], each once, and probs [n, K]."""
        indices, probs = [np.zeros(0, np.int64)], [np.zeros((0, self._num_classes), np.float32)]
        if self._has_settings(self._path(".part.json")):
            for path in self._shard_paths():
                arrays = _read(path)
                if arrays is None or not self._fits_shard(arrays):
                    self._warn(f"{path} is damaged; it is computed again")
                    continue
                indices.append(arrays["indices"])
                probs.append(arrays["probs"])
        unique, first = np.unique(np.concatenate(indices), return_index=True)
        return unique, np.concatenate(probs)[first]

    def add_shard(self, indices: np.ndarray, probs: np.ndarray) -> None:
        """Writes probabilities of some images; shards of other settings are removed with the first."""
        with writing_to(self._directory, FREE_SPACE):
            if not self._has_settings(self._path(".part.json")):
                self._remove_shards()
                write_json(self._path(".part.json"), self._settings)
            numbers = [int(path.name.split(".part-")[1].split(".")[0]) for path in self._shard_paths()]
            self._write(f".part-{max(numbers, default=-1) + 1:05d}.npz", indices=indices, probs=probs)

    def finish(self, probs: Probs) -> None:
        """Writes the whole, then removes the shards."""
        with writing_to(self._directory, FREE_SPACE):
            self._path(".json").unlink(missing_ok=True)  # of other settings
            self._write(".npz", **probs._asdict())
            write_json(self._path(".json"), self._settings)
            self._remove_shards()

    def _fits(self, arrays: dict[str, np.ndarray]) -> bool:
        n, k = self._settings["images"], self._num_classes
        return (
            set(arrays) == set(Probs._fields)
            and _is_sound(arrays["keys"], "U", (n,))
            and _is_sound(arrays["labels"], "i", (n,), -1, k - 1)
            and _is_sound(arrays["probs"], "f", (n, k), 0, _MOST)
            and _is_sound(arrays["skipped"], "b", (n,))
        )

    def _fits_shard(self, arrays: dict[str, np.ndarray]) -> bool:
        if set(arrays) != {"indices", "probs"}:
            return False
        n, k, shape = self._settings["images"], self._num_classes, arrays["indices"].shape[:1]
        return _is_sound(arrays["indices"], "i", shape, 0, n - 1) and _is_sound(
            arrays["probs"], "f", (*shape, k), 0, _MOST
        )

    def _path(self, suffix: str) -> Path:
        return self._directory / (self._name + suffix)

    def _shard_paths(self) -> list[Path]:
        return sorted(self._directory.glob(f"{glob.escape(self._name)}.part-{'[0-9]' * 5}.npz"))

    def _remove_shards(self) -> None:
        for path in [self._path(".part.json"), *self._shard_paths()]:
            path.unlink(missing_ok=True)

    def _has_settings(self, path: Path) -> bool:
        try:
            return json.loads(path.read_text()) == self._settings
        except (OSError, ValueError):
            return False

    def _write(self, suffix: str, **arrays: np.ndarray) -> None:
        with write_atomically(self._path(suffix)) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


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
        LookupError,
        TypeError,
        SyntaxError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
    ):
        return None


def _is_sound(array: np.ndarray, kind: str, shape: tuple[int, ...], least: float = 0, most: float = 0) -> bool:
    """Returns whether an array has this kind of dtype and shape, and numbers only from `least` to `most`."""
    fits = array.dtype.kind == kind and array.shape == shape
    return bool(fits and (kind not in "if" or ((array >= least) & (array <= most)).all()))
