"""The posteriors of a net's views: from the disk where they are kept, else computed, and kept as they come."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vgg_jax.console import Console, duration
from vgg_jax.data.records import Records
from vgg_jax.evaluation.compute import Computer, Costs, Survey, survey
from vgg_jax.evaluation.nets import Net
from vgg_jax.evaluation.store import Posteriors, Store
from vgg_jax.evaluation.views import View
from vgg_jax.exceptions import UserError

UNLABELLED = "unlabelled"  # a folder whose only class has this name has no labels
_FORM = 1  # of what is stored; posteriors of another form are computed anew
_PART_SECONDS = 15  # of work that being killed may cost
_LOG_SECONDS = 10  # between lines where there is no terminal
_DEFAULT_BATCH = 64  # images of the crop's size, a device


class Source:
    """A split that is evaluated; what it holds is looked through once, and only if something must be computed.

    Args:
      data: full name of the data set, with its version.
      split: its name, or a TFDS expression.
      records: of the split.
      class_names: of the data set, in the order of its labels.
      console: shows progress.
    """

    def __init__(self, data: str, split: str, records: Records, class_names: list[str], console: Console):
        self.data, self.split, self.records, self.class_names = data, split, records, class_names
        self._console = console
        self._survey: Survey | None = None

    def survey(self, threads: int) -> Survey:
        if self._survey is None:
            count = len(self.records)
            self._console.log(f"looking through {count:,} pictures")
            self._console.start(0, count)
            try:
                self._survey = survey(
                    self.records,
                    threads,
                    lambda done: self._console.progress(done, "looking through the pictures"),
                )
            finally:
                self._console.close()
        return self._survey


def directory(net: Net, source: Source) -> Path:
    """Where the evaluations of a net on a split are kept: <workdir>/evaluation/<checkpoint>/<data>-<split>."""
    place = re.sub(r"[^\w.=-]+", "_", f"{source.data}-{source.split}")
    return net.workdir / "evaluation" / net.checkpoint.name / place


def view_name(net: Net, view: View) -> str:
    """dense-Q256; dense-bfloat16-Q256 where the computation was not in float32."""
    dtype = "" if net.config.model.dtype == "float32" else f"-{net.config.model.dtype}"
    return f"{view.part}{dtype}-Q{view.scale}"


def posteriors_of(
    net: Net, wanted: Sequence[View], source: Source, batch_size: int, costs: Costs, console: Console, which: str = ""
) -> dict[View, Posteriors]:
    """All views of one net.

    Args:
      net: of `nets.load_net`.
      wanted: of `views.views`.
      source: the split.
      batch_size: see `compute.Computer`; 0 for 64 a device.
      costs: of computing are added to it.
      console: shows progress.
      which: of several nets this is, for the console: "net 1 of 2, ".

    Raises:
      UserError: a picture that cannot be read, a full disk, ... What was computed is kept.
    """
    stores = {view: _store(net, view, source, console) for view in wanted}
    found = {view: kept for view, store in stores.items() if (kept := store.load()) is not None}
    if not all(_of_same_pictures(kept, other) for kept, other in itertools.pairwise(found.values())):
        console.print(
            f"{which}what is kept in {directory(net, source)} is not of the same pictures; it is computed anew"
        )
        found = {}
    if found:
        console.print(f"{which}kept from before: {', '.join(view_name(net, view) for view in found)}")
    missing = [view for view in wanted if view not in found]
    if not missing:
        return found
    computer = Computer(net, batch_size or _DEFAULT_BATCH * net.mesh.shape["data"], net.config.data.threads, costs)
    looked = source.survey(net.config.data.threads)
    looked = looked._replace(labels=_labels(looked.labels, source, net))
    if any(not _of_same_pictures(kept, looked) for kept in found.values()):
        console.print(f"{which}what is kept in {directory(net, source)} is of other pictures; it is computed anew")
        found, missing = {}, list(wanted)
    possible = {view: np.flatnonzero(~computer.refused(view, looked.sizes)) for view in missing}
    parts = {view: _among(possible[view], *stores[view].parts()) for view in missing}
    left = {view: np.setdiff1d(possible[view], parts[view][0]) for view in missing}
    pace = _Pace(console, costs, sum(computer.work(view, looked.sizes, left[view]) for view in missing))
    for number, view in enumerate(missing, start=1):
        pace.begin(f"{which}view {number} of {len(missing)}, {view_name(net, view)}", len(looked.keys), len(left[view]))
        found[view] = _compute(computer, view, source, looked, parts[view], left[view], stores[view], pace)
    return found


def _of_same_pictures(kept: Posteriors, other: Posteriors | Survey) -> bool:
    return np.array_equal(kept.keys, other.keys) and np.array_equal(kept.labels, other.labels)


def _among(possible: np.ndarray, indices: np.ndarray, posteriors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.isin(indices, possible)
    return indices[chosen], posteriors[chosen]


def _compute(
    computer: Computer,
    view: View,
    source: Source,
    looked: Survey,
    before: tuple[np.ndarray, np.ndarray],
    left: np.ndarray,
    store: Store,
    pace: _Pace,
) -> Posteriors:
    """One view. Parts are written every few seconds, and with whatever ends this early."""
    indices, posteriors = [before[0]], [before[1]]
    unwritten, written_at = 1, time.monotonic()

    def write() -> None:
        nonlocal unwritten, written_at
        if len(indices) > unwritten and jax.process_index() == 0:
            store.add_part(np.concatenate(indices[unwritten:]), np.concatenate(posteriors[unwritten:]))
        unwritten, written_at = len(indices), time.monotonic()

    try:
        for part in computer.posteriors(view, source.records, looked.sizes, left):
            indices.append(part.indices)
            posteriors.append(part.posteriors)
            if time.monotonic() - written_at > _PART_SECONDS:
                write()
            pace.add(len(part.indices), part.multiplications)
    finally:
        write()
        pace.end()
    refused = computer.refused(view, looked.sizes)
    found = assembled(looked, refused, np.concatenate(indices), np.concatenate(posteriors))
    if jax.process_index() == 0:
        store.finish(found)
    return found


def assembled(looked: Survey, refused: np.ndarray, indices: np.ndarray, posteriors: np.ndarray) -> Posteriors:
    """Posteriors in the order of the split.

    Raises:
      RuntimeError: a picture that is not there exactly once.
    """
    times = np.bincount(indices, minlength=len(looked.keys))
    if not np.array_equal(times, ~refused):
        raise RuntimeError(
            f"of {len(looked.keys)} pictures, {refused.sum()} refused, {(times == 0).sum()} were not computed and "
            f"{(times > 1).sum()} more than once"
        )
    whole = np.zeros((len(looked.keys), posteriors.shape[1]), np.float32)
    whole[indices] = posteriors
    return Posteriors(looked.keys, looked.labels.astype(np.int32), whole, refused)


def _store(net: Net, view: View, source: Source, console: Console) -> Store:
    config = net.config
    settings: dict[str, Any] = {
        "form": _FORM,
        "checkpoint": net.checkpoint.name,
        "params_sha256": net.digest,
        "configuration": config.model.configuration,
        "dtype": config.model.dtype,
        "mean_rgb": net.statistics.mean_rgb.tolist(),
        "class_names": net.class_names,
        **view._asdict(),
        "data": source.data,
        "split": source.split,
        "images": len(source.records),
    }
    return Store(directory(net, source), view_name(net, view), settings, len(net.class_names), console.print)


def _labels(labels: np.ndarray, source: Source, net: Net) -> np.ndarray:
    """As the net numbers classes; -1 for all where there are none."""
    if source.class_names == [UNLABELLED] or (labels < 0).all():
        return np.full_like(labels, -1)
    if (labels < 0).any():
        raise UserError(
            f"{(labels < 0).sum()} of {len(labels)} pictures of {source.data}, split {source.split}, have no label; "
            "evaluate a split in which all or none have one."
        )
    return np.array([net.class_names.index(name) for name in source.class_names])[labels]


class _Pace:
    """How far an evaluation is, and how long the rest will take at the pace so far (compiling not counted)."""

    def __init__(self, console: Console, costs: Costs, work: int):
        self._console, self._costs, self._left, self._work = console, costs, work, 0
        self._began = time.monotonic() + costs.compile_seconds

    def begin(self, what: str, total: int, left: int) -> None:
        self._what, self._total, self._done, self._said_at = what, total, total - left, time.monotonic()
        self._console.log(f"{what}: {left:,} pictures to compute" + (f", {self._done:,} kept" if self._done else ""))
        self._console.start(self._done, total)

    def add(self, pictures: int, work: int) -> None:
        self._done += pictures
        self._work, self._left = self._work + work, self._left - work
        spent = time.monotonic() - self._began - self._costs.compile_seconds
        seconds = spent / self._work * self._left
        line = f"{self._what} | about {duration(seconds)} left in all"
        if time.monotonic() - self._said_at > _LOG_SECONDS:
            self._console.log(f"{self._done:,}/{self._total:,} | {line}")
            self._said_at = time.monotonic()
        self._console.progress(self._done, line)

    def end(self) -> None:
        self._console.close()
