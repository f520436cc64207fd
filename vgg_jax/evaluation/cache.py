"""On-disk cache of what a network computes of each image, which makes an evaluation or a transfer resumable.

A pass over a split is `<pass>.npz` (keys, labels, probs, skipped) next to `<pass>.json`, its settings. While it is
computed, its shards are `<pass>.part-<n>.npz` with `<pass>.part.json`. Each file is written whole or not at all. The
.json of a finished pass comes last, so without it the pass counts as unfinished. Each .npz holds a digest of its
settings and its arrays, and is used only if that fits. Several processes may compute the same pass at once.
"""

from __future__ import annotations

import glob
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vgg_jax.runtime.exceptions import UserError, writing_to
from vgg_jax.runtime.files import FREE_SPACE, read_json, write_atomically, write_json

_MOST = 1.001  # of a probability, as it is rounded
_DIGEST = "sha256"  # name of the array that holds it


class Probs(NamedTuple):
    """Probabilities of all images of a split, in its order."""

    keys: np.ndarray  # [N] str: file names, or positions in the split where there are none
    labels: np.ndarray  # [N] int32; -1 where there is no label
    probs: np.ndarray  # [N, K] float32; zeros where skipped
    skipped: np.ndarray  # [N] bool: too large to be computed


class Rows(NamedTuple):
    """The row of numbers that a pass computes for each image."""

    name: str  # of the array
    num_columns: int
    least: float
    most: float


class RowCache:
    """The file of one pass, `<directory>/<name>.npz`.

    Args:
      directory: made when something is written.
      name: of the pass.
      settings: everything the rows depend on, as JSON holds it, and the number of `images`; files of other settings are
        not used.
      rows: their form. Rows with a number outside its range, NaN and infinity included, are not used.
      warn: is called with one line where a file has these settings and yet does not fit; it is then not used.
    """

    _needs_digest = True

    def __init__(
        self, directory: Path, name: str, settings: dict[str, Any], rows: Rows, warn: Callable[[str], None] = print
    ):
        self._directory, self._name, self.settings, self._rows = directory, name, settings, rows
        self._warn = warn

    def load_arrays(self) -> dict[str, np.ndarray] | None:
        """Returns the arrays that were finished with these settings; None where there is nothing sound."""
        if not self._has_settings(self._path(".json")):
            return None
        arrays = self._read(self._path(".npz")) if self._path(".npz").exists() else None
        if arrays is None or not self._fits(arrays):
            self._warn(f"{self._path('.npz')} is damaged; it is computed again")
            return None
        return arrays

    def shards(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indices [n] and rows [n, K] that an interrupted pass has computed with these settings."""
        indices, rows = [np.zeros(0, np.int64)], [np.zeros((0, self._rows.num_columns), np.float32)]
        if self._has_settings(self._path(".part.json")):
            for path in self._shard_paths():
                try:
                    arrays = self._read(path)
                except FileNotFoundError:  # another process has just finished and removed it
                    continue
                if arrays is None or not self._fits_shard(arrays):
                    self._warn(f"{path} is damaged; it is computed again")
                    continue
                indices.append(arrays["indices"])
                rows.append(arrays[self._rows.name])
        unique, first = np.unique(np.concatenate(indices), return_index=True)
        return unique, np.concatenate(rows)[first]

    def add_shard(self, indices: np.ndarray, rows: np.ndarray) -> None:
        """Writes the rows of some images; shards of other settings are removed with the first."""
        with writing_to(self._directory, FREE_SPACE):
            if not self._has_settings(self._path(".part.json")):
                self._remove_shards()
                write_json(self._path(".part.json"), self.settings)
            numbers = [int(path.name.split(".part-")[1].split(".")[0]) for path in self._shard_paths()]
            self._write(f".part-{max(numbers, default=-1) + 1:05d}.npz", {"indices": indices, self._rows.name: rows})

    def finish_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Writes the whole, then removes the shards."""
        with writing_to(self._directory, FREE_SPACE):
            self._write(".npz", arrays)  # whose digest covers the settings, so an older .json does not fit it
            write_json(self._path(".json"), self.settings)
            self._remove_shards()

    def _fits(self, arrays: dict[str, np.ndarray]) -> bool:
        return set(arrays) == {self._rows.name} and self._is_sound_rows(arrays, self.settings["images"])

    def _fits_shard(self, arrays: dict[str, np.ndarray]) -> bool:
        if set(arrays) != {"indices", self._rows.name} or arrays["indices"].ndim != 1:
            return False
        indices = arrays["indices"]
        most = self.settings["images"] - 1
        return _is_sound(indices, "i", indices.shape, 0, most) and self._is_sound_rows(arrays, len(indices))

    def _is_sound_rows(self, arrays: dict[str, np.ndarray], count: int) -> bool:
        name, num_columns, least, most = self._rows
        return _is_sound(arrays[name], "f", (count, num_columns), least, most)

    def _path(self, suffix: str) -> Path:
        return self._directory / (self._name + suffix)

    def _shard_paths(self) -> list[Path]:
        return sorted(self._directory.glob(f"{glob.escape(self._name)}.part-{'[0-9]' * 5}.npz"))

    def _remove_shards(self) -> None:
        for path in [self._path(".part.json"), *self._shard_paths()]:
            path.unlink(missing_ok=True)

    def _has_settings(self, path: Path) -> bool:
        try:
            return json.loads(path.read_text()) == self.settings
        except (OSError, ValueError, RecursionError):
            return False

    def _digest(self, arrays: dict[str, np.ndarray]) -> str:
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
        for name, array in sorted(arrays.items()):
            digest.update(f"{name}\t{array.dtype.str}\t{array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def _write(self, suffix: str, arrays: dict[str, np.ndarray]) -> None:
        digest = {_DIGEST: np.array(self._digest(arrays))}
        with write_atomically(self._path(suffix)) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, **arrays, **digest)  # type: ignore[arg-type]

    def _read(self, path: Path) -> dict[str, np.ndarray] | None:
        """Returns a file's arrays without the digest; None where they cannot be read, or are not those it was made of.

        Raises:
          FileNotFoundError: there is no such file.
        """
        try:
            with open(path, "rb") as file:  # once, as another process may replace it
                with zipfile.ZipFile(file) as archive:
                    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                        return None  # not written here, and small files may become large
                file.seek(0)
                with np.load(file, allow_pickle=False) as saved:  # checks each array's CRC
                    arrays = dict(saved)
            digest = arrays.pop(_DIGEST, None)
            is_whole = not self._needs_digest if digest is None else digest.tolist() == self._digest(arrays)
        except FileNotFoundError:
            raise
        except Exception:  # of many kinds, as damaged bytes are read
            return None
        return arrays if is_whole else None


class Cache(RowCache):
    """Probabilities of one pass; arguments as of `RowCache`, of K classes."""

    _needs_digest = False  # which files of version 0.4 do not have; the CRCs of their arrays are checked

    def __init__(
        self,
        directory: Path,
        name: str,
        settings: dict[str, Any],
        num_classes: int,
        warn: Callable[[str], None] = print,
    ):
        super().__init__(directory, name, settings, Rows("probs", num_classes, 0, _MOST), warn)

    @classmethod
    def with_own_settings(cls, directory: Path, name: str, num_classes: int) -> Cache:
        """Returns the cache of a finished pass with the settings next to it; UserError where they cannot be read."""
        settings = read_json(directory / f"{name}.json", FREE_SPACE)
        if not isinstance(settings, dict):
            raise UserError(f"{directory / name}.json holds no settings of a pass.")
        return cls(directory, name, settings, num_classes)

    def load(self) -> Probs | None:
        """Returns what was finished with these settings; None where there is nothing sound."""
        arrays = self.load_arrays()
        return None if arrays is None else Probs(**arrays)

    def finish(self, probs: Probs) -> None:
        """Writes the whole, then removes the shards."""
        self.finish_arrays(probs._asdict())

    def _fits(self, arrays: dict[str, np.ndarray]) -> bool:
        n, k = self.settings["images"], self._rows.num_columns
        return (
            set(arrays) == set(Probs._fields)
            and _is_sound(arrays["keys"], "U", (n,))
            and _is_sound(arrays["labels"], "i", (n,), -1, k - 1)
            and self._is_sound_rows(arrays, n)
            and _is_sound(arrays["skipped"], "b", (n,))
        )


def _is_sound(array: np.ndarray, kind: str, shape: tuple[int, ...], least: float = 0, most: float = 0) -> bool:
    """Returns whether an array has this kind of dtype and shape, and numbers only from `least` to `most`."""
    fits = array.dtype.kind == kind and array.shape == shape
    return bool(fits and (kind not in "if" or ((array >= least) & (array <= most)).all()))
