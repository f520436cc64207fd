"""The directories that training makes: names of their files, and the one reader of each, for runs of all versions."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vgg_jax.config import default_config, flatten, nested
from vgg_jax.models import CONFIGURATIONS
from vgg_jax.recipe import Recipe
from vgg_jax.runtime.compilation import COMPILED
from vgg_jax.runtime.exceptions import UserError, plain_name, quoted
from vgg_jax.runtime.files import is_unfinished, read_json, write_json
from vgg_jax.runtime.lock import LOCK
from vgg_jax.validation import check_values
from vgg_jax.value_parsers import epochs_text, parse_epochs

_CONFIG, _DATASET, _SUMMARY, _METRICS = "config.json", "dataset.json", "summary.json", "metrics.jsonl"
_CHECKPOINTS, _EVALUATION, _TENSORBOARD = "checkpoints", "evaluation", "tensorboard"
# Files of a run that was killed before its config.json was written.
_OWN = (_CONFIG, _DATASET, _METRICS, _SUMMARY, _TENSORBOARD, _CHECKPOINTS, LOCK, COMPILED)
_MOST_BITS = 63  # of an integer
_COPY = "bring it back from a copy"
_OPTIONAL_NUMBER = (float, NoneType)
_TEXTS = "texts"  # stands for a list of texts
# `evaluation.protocol.Request` as its results hold it.
_REQUEST: dict[str, Any] = {
    **dict.fromkeys(("workdirs", "weights"), _TEXTS),
    **dict.fromkeys(("protocol", "scales", "split", "data_name", "data_dir", "data_root", "dtype"), str),
    **dict.fromkeys(("maps", "class_numbers", "output", "directory"), str),
    **dict.fromkeys(("batch_size", "num_maps"), int),
    "averages": bool,
    "exif": (bool, NoneType),
}


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The workdir of one run, `<path>/{config,dataset,summary}.json`, metrics.jsonl, checkpoints/ and evaluation/.

    Every reader completes what earlier versions wrote, checks it, and raises UserError where a file is missing,
    unreadable or damaged.

    Args:
      path: of the directory.
      remedy: the end of the sentence where a file cannot be read.
    """

    path: Path
    remedy: str = _COPY

    @classmethod
    def containing(cls, source: Path, remedy: str = _COPY) -> RunDir:
        """Returns the run of a workdir, or of one of its checkpoints/<step>."""
        is_workdir = source.parent.name != _CHECKPOINTS or (source / _CHECKPOINTS).is_dir()
        return cls(source if is_workdir else source.parent.parent, remedy)

    @property
    def config_file(self) -> Path:
        return self.path / _CONFIG

    @property
    def dataset_file(self) -> Path:
        return self.path / _DATASET

    @property
    def metrics_file(self) -> Path:
        return self.path / _METRICS

    @property
    def tensorboard(self) -> Path:
        return self.path / _TENSORBOARD

    @property
    def checkpoints(self) -> Path:
        return self.path / _CHECKPOINTS

    def evaluation(self, checkpoint: str, split: str) -> Path:
        """Returns the directory of a checkpoint's evaluations on a split."""
        return self.path / _EVALUATION / checkpoint / split

    def is_run(self) -> bool:
        """Returns whether the run has begun."""
        return self.config_file.is_file()

    def is_finished(self) -> bool:
        return (self.path / _SUMMARY).exists()

    def foreign_files(self) -> list[str]:
        """Returns the names in the directory that are not a run's, ascending."""
        if not self.path.is_dir():
            return []
        return sorted({path.name for path in self.path.iterdir() if not is_unfinished(path)}.difference(_OWN))

    def checkpoint_steps(self) -> list[int]:
        """Returns the steps of all finished checkpoints, ascending."""
        names = [entry.name for entry in self.checkpoints.iterdir()] if self.checkpoints.is_dir() else []
        return sorted(int(name) for name in names if name.isdigit())

    def config(self) -> ConfigDict:
        """Returns the run's configuration; keys that its version did not have get their defaults.

        Runs of version 0.4 and earlier have no `optimizer.norms_follow`, which is False for them.
        """
        content = _read_object(self.config_file, self.remedy)
        config = default_config()
        try:
            flat = flatten(ConfigDict(content))
            check_values(flat)
            if flat.get("model.num_classes", 2) < 2:
                raise ValueError(f"model.num_classes is {flat['model.num_classes']}; a run has at least 2")
            config.update(content)
            config.optimizer.norms_follow = flat.get("optimizer.norms_follow", False)
            config.schedule.drop_epochs = epochs_text(parse_epochs(config.schedule.drop_epochs))
        except (TypeError, ValueError, AttributeError, OverflowError, UserError) as error:
            raise UserError(f"{self.config_file} is not a run's configuration: {str(error).rstrip('.')}.") from error
        if "model.configuration" not in flat:
            raise UserError(
                f"{self.config_file} is not a run's configuration: model.configuration is missing; {_COPY}."
            )
        return config

    def dataset(self) -> dict[str, Any]:
        """Returns the description of the run's data, class names as `plain_name` has them.

        Runs of version 0.4 and earlier have no "image_digests".
        """
        content = _read_object(self.dataset_file, self.remedy)
        counts = [key for key in ("train_images", "validation_images") if key in content]
        _check_kinds(self.dataset_file, content, {"class_names": _TEXTS} | dict.fromkeys(counts, int))
        return content | {"class_names": [plain_name(name) for name in content["class_names"]]}

    def colors(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean colour [3] of the run's training images and their colour vectors [3, 3], float32."""
        dataset = self.dataset()
        try:
            mean_rgb, vectors = (np.array(dataset[key], np.float64) for key in ("mean_rgb", "color_vectors"))
            if (mean_rgb.shape, vectors.shape) != ((3,), (3, 3)):
                raise ValueError("mean_rgb must be 3 colours, and color_vectors 3 x 3 numbers")
            if not (abs(np.vstack([mean_rgb, vectors])) <= 1e4).all():
                raise ValueError("mean_rgb and color_vectors must be finite and at most 10,000")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.dataset_file} is not a data set's description ({error!r}).") from error
        return mean_rgb.astype(np.float32), vectors.astype(np.float32)

    def summary(self) -> dict[str, Any] | None:
        """Returns the summary of a finished run; None before that."""
        if not self.is_finished():
            return None
        content = _read_object(self.path / _SUMMARY, self.remedy)
        _check_kinds(self.path / _SUMMARY, content, {"steps": int, "seconds": float, "lr_drops": (int, NoneType)})
        return content

    def metrics(self) -> tuple[list[dict[str, float]], int]:
        """Returns the logged rows in the file's order, and the number of damaged lines.

        A row is {"step": int, name: float, ...}, with NaN for null. A last line without its end was being written and
        is not counted. A missing file has no rows.
        """
        rows, damaged = [], 0
        try:
            lines = self.metrics_file.read_bytes().splitlines(keepends=True) if self.metrics_file.exists() else []
        except OSError as error:
            raise UserError(f"{self.metrics_file} cannot be read ({error}); {self.remedy}.") from error
        for line in lines:
            row = _metrics_row(line)
            if row is not None and line.endswith(b"\n"):
                rows.append(row)
            else:
                damaged += line.endswith(b"\n")
        return rows, damaged

    def evaluations(self) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
        """Returns (file, content) of the results of evaluations, and a note on each that is damaged."""
        evaluations, notes = [], []
        for path in sorted(self.path.glob(f"{_EVALUATION}/*/*/results-*.json")):
            try:
                content = _read_object(path, self.remedy)
                _check_evaluation(path, content)
                evaluations.append((path, content))
            except UserError as error:
                notes.append(f"An evaluation is left out: {error}")
        return evaluations, notes

    def write_config(self, recipe: Recipe) -> None:
        write_json(self.config_file, nested(recipe.given))

    def write_dataset(self, dataset: dict[str, Any]) -> None:
        write_json(self.dataset_file, dataset)

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_json(self.path / _SUMMARY, summary)


@dataclasses.dataclass(frozen=True)
class PlanDir:
    """The directory of a reproduction: plan.json, tables.json, tables.md and the workdirs seed<k>/<stage>."""

    path: Path

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def tables_file(self) -> Path:
        return self.path / "tables.json"

    @property
    def tables_text(self) -> Path:
        return self.path / "tables.md"

    def run(self, stage: str, seed: int) -> RunDir:
        """Returns the run of a stage, <path>/seed0/D-256."""
        return RunDir(self.path / f"seed{seed}" / stage)

    def is_plan(self) -> bool:
        return self.plan_file.is_file()

    def plan(self) -> dict[str, Any]:
        """Returns {"seeds": [...], "stages": [{"name", "configuration", "scales", "starts_from", ...}], ...}.

        Raises:
          UserError: the file is missing or damaged.
        """
        content = _read_object(self.plan_file, _COPY)
        try:
            if not content["seeds"] or not content["stages"]:
                raise ValueError("it has no stages or no seeds")
            if not all(_is_kind(seed, int) for seed in content["seeds"]):
                raise ValueError(f"its seeds are {quoted(content['seeds'])}")
            for stage in content["stages"]:
                scales = [int(scale) for scale in stage["scales"]]
                if stage["configuration"] not in CONFIGURATIONS or len(scales) != 2:
                    raise ValueError(f"stage {stage['name']!r} has {stage['configuration']!r} at scales {scales}")
                str(stage["name"]), str(stage["starts_from"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.plan_file} is not a plan of a reproduction ({error!r}).") from error
        return content

    def tables(self) -> dict[str, Any]:
        """Returns {"tables": [{"heading", "title", "rows"}], "missing": [...]}; both empty before they are made.

        Raises:
          UserError: the file is damaged.
        """
        if not self.tables_file.exists():
            return {"tables": [], "missing": []}
        content = _read_object(self.tables_file, _COPY)
        try:
            for table in content.get("tables", []):
                if "heading" not in table:  # as versions before 0.4 wrote them
                    table["heading"] = f"Table {table['number']}"
                table["title"]
                for row in table["rows"]:
                    row["model"], row["top1_error"], row["top5_error"]
                    for key in ("images", "top1_error", "top1_spread", "top5_error", "top5_spread"):
                        if not isinstance(row.get(key, 0), int | float | None):
                            raise TypeError(f"{key} is {row[key]!r}")
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.tables_file} holds no tables of a reproduction ({error!r}); make them again."
            ) from error
        return {"tables": content.get("tables", []), "missing": [str(line) for line in content.get("missing", [])]}


def _read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a JSON object whose integers fit into 64 bits; raises UserError for anything else."""
    content = read_json(path, remedy)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object, but {type(content).__name__}; it is not a file of this program.")
    _check_sizes(path, content)
    return content


def _check_sizes(path: Path, value: Any) -> None:
    """Raises UserError at a number that no float holds."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise UserError(f"{path} has {quoted(value)}, which is not of this program; {_COPY}.")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_sizes(path, part)


def _check_kinds(path: Path, content: Any, kinds: dict[str, Any]) -> None:
    """Raises UserError where a value is not of its kind, or not of one of several; see `_is_kind`."""
    for key, kind in kinds.items():
        value = content.get(key) if isinstance(content, dict) else None
        if kind is _TEXTS:
            if not isinstance(value, list):
                raise _wrong(path, key, value)
            for text in value:
                _check_kinds(path, {key: text}, {key: str})
        elif not any(_is_kind(value, one) for one in (kind if isinstance(kind, tuple) else (kind,))):
            raise _wrong(path, key, value)


def _wrong(path: Path, key: str, value: Any) -> UserError:
    return UserError(f"{path} has {key!r} as {quoted(value)}, which is not of this program; {_COPY}.")


def _is_kind(value: Any, kind: type) -> bool:
    """Returns whether a value is of a type; `int` stands for a count, `float` for a finite number."""
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and value >= 0
    return isinstance(value, kind)


def _metrics_row(line: bytes) -> dict[str, float] | None:
    """Returns a line of metrics.jsonl; None where it is damaged."""
    try:
        row = {name: math.nan if value is None else value for name, value in json.loads(line).items()}
        is_sound = type(row["step"]) is int and all(type(value) in (int, float) for value in row.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    fits = not any(isinstance(value, int) and value.bit_length() > _MOST_BITS for value in row.values())
    return row if is_sound and fits else None


def _check_evaluation(path: Path, content: dict[str, Any]) -> None:
    """Raises UserError where results of an evaluation are not as `protocol.evaluate` writes them."""
    _check_kinds(path, content, {"rows": list, "models": list, "data": dict, "request": dict})
    _check_kinds(path, content["data"], {"name": str, "split": str})
    for model in content["models"]:
        _check_kinds(path, model, {"checkpoint": str, "params_sha256": str, "dtype": str, "passes": list})
        for eval_pass in model["passes"]:
            _check_kinds(path, eval_pass, {"method": str, "scale": int, "crop": int, "mirrored": bool})
    row_kinds = dict.fromkeys(("models", "protocol", "scales"), str) | {"images": int, "top1_error": float}
    for row in content["rows"]:
        _check_kinds(path, row, row_kinds | {"top5_error": _OPTIONAL_NUMBER, "paper": (dict, NoneType)})
        if row.get("paper"):
            _check_kinds(path, row["paper"], dict.fromkeys(("top1", "top5"), _OPTIONAL_NUMBER))
    request = content["request"]
    _check_kinds(path, request, {key: kind for key, kind in _REQUEST.items() if key in request})
