"""Probabilities of a split: read from the cache, else computed and cached as they come."""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from vgg_jax.data.decode import size_of
from vgg_jax.data.parallel import parallel_map
from vgg_jax.data.records import Records
from vgg_jax.evaluation.cache import Cache, Probs
from vgg_jax.evaluation.passes import EvalPass
from vgg_jax.evaluation.plan import Job, devices_of, plan_pass, skipped_images
from vgg_jax.evaluation.run import Chunk, CompiledSteps, EvalStats, batch_size_for, decoded, key_of, run_jobs
from vgg_jax.evaluation.trained_model import TrainedModel
from vgg_jax.runs import RunDir
from vgg_jax.runtime.console import Console, duration
from vgg_jax.runtime.exceptions import UserError

UNLABELLED = "unlabelled"  # a folder whose only class has this name has no labels
_FORMAT = 2  # of what is cached; another format is computed again
_SHARD_SECONDS = 15  # of work that being killed may cost
_LOG_SECONDS = 10  # between lines where there is no terminal


class ImageIndex(NamedTuple):
    """The images of a split as their headers describe them."""

    keys: np.ndarray  # [N] str
    labels: np.ndarray  # [N] int64, as the data set numbers classes; negative: none
    sizes: np.ndarray  # [N, 2] int64, (width, height)


class Split:
    """A split that is evaluated; its headers are read once, and only if something must be computed.

    Args:
      data: full name of the data set, with its version.
      name: of the split, or a TFDS expression.
      records: of the split.
      class_names: of the data set, in the order of its labels.
      console: shows progress.
    """

    def __init__(self, data: str, name: str, records: Records, class_names: list[str], console: Console):
        self.data, self.name, self.records, self.class_names = data, name, records, class_names
        self.console = console
        self._index: ImageIndex | None = None

    def index(self, threads: int) -> ImageIndex:
        """Returns keys, labels and sizes of all images.

        Raises:
          UserError: a record or a header that cannot be read, by name.
        """
        if self._index is None:
            count = len(self.records)
            self.console.log(f"scanning {count:,} images")
            self.console.start(0, count)
            try:
                entries = []
                for entry in parallel_map(self._entry, range(count), threads, 8 * threads):
                    entries.append(entry)
                    self.console.progress(len(entries), "scanning images")
            finally:
                self.console.close()
            keys, labels, sizes = zip(*entries, strict=True)
            self._index = ImageIndex(np.array(keys), np.array(labels, np.int64), np.array(sizes, np.int64))
        return self._index

    def _entry(self, index: int) -> tuple[str, int, tuple[int, int]]:
        record = self.records[index]
        return key_of(record, index), int(record["label"]), decoded(self.records, index, size_of, record)


def evaluation_dir(trained: TrainedModel, split: Split) -> Path:
    """Returns <workdir>/evaluation/<checkpoint>/<data>-<split>, the directory of a model's evaluations on a split."""
    name = f"{split.data}-{split.name}".replace("/", "_")
    readable = re.sub(r"[^\w.=-]+", "_", name)
    if readable != name:  # others may read the same: train[:90%] and train[90%:]
        readable += f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    checkpoint = trained.checkpoint.name + "-noaverages" * (not trained.averages)
    return RunDir(trained.workdir).evaluation(checkpoint, readable)


def pass_name(trained: TrainedModel, eval_pass: EvalPass) -> str:
    """Returns dense-Q256; dense-bfloat16-Q256 where the computation was not in float32."""
    dtype = "" if trained.recipe.model.dtype == "float32" else f"-{trained.recipe.model.dtype.name}"
    return f"{eval_pass.method}{dtype}-Q{eval_pass.scale}"


def split_probs(
    trained: TrainedModel,
    eval_passes: Sequence[EvalPass],
    split: Split,
    batch_size: int,
    stats: EvalStats,
    prefix: str = "",
) -> dict[EvalPass, Probs]:
    """Returns the probabilities of all passes of one model.

    Args:
      trained: of `load_trained`.
      eval_passes: of `passes.eval_passes`.
      split: that is evaluated; its console shows progress.
      batch_size: see `run.batch_size_for`.
      stats: is added to.
      prefix: of lines, where there are several models: "model 1 of 2, ".

    Raises:
      UserError: an image that cannot be read, a full disk, ... What was computed is cached.
    """
    say, directory = split.console.print, evaluation_dir(trained, split)
    caches = {eval_pass: _pass_cache(trained, eval_pass, split) for eval_pass in eval_passes}
    probs = {eval_pass: loaded for eval_pass, cache in caches.items() if (loaded := cache.load()) is not None}
    if not all(_same_images(first, second) for first, second in itertools.pairwise(probs.values())):
        say(f"{prefix}the cache in {directory} is of different images; it is computed again")
        probs = {}
    if probs:
        say(f"{prefix}from the cache: {', '.join(pass_name(trained, eval_pass) for eval_pass in probs)}")
    if len(probs) == len(eval_passes):
        return probs
    compiled, threads = CompiledSteps(trained, stats), trained.recipe.data.threads
    batch_size = batch_size_for(trained, batch_size)
    index = split.index(threads)
    index = index._replace(labels=_labels_of_model(index.labels, split, trained))
    if any(not _same_images(cached, index) for cached in probs.values()):
        say(f"{prefix}the cache in {directory} is of other images; it is computed again")
        probs = {}
    work = {
        eval_pass: _pending_work(compiled, eval_pass, index, cache, batch_size)
        for eval_pass, cache in caches.items()
        if eval_pass not in probs
    }
    progress = EvalProgress(split.console, stats, sum(job.macs for one in work.values() for job in one.jobs))
    for number, (eval_pass, (skipped, cached, jobs)) in enumerate(work.items(), start=1):
        label = f"{prefix}pass {number} of {len(work)}, {pass_name(trained, eval_pass)}"
        progress.start(label, len(index.keys), sum(len(job.bucket.indices) for job in jobs))
        chunks = run_jobs(compiled, eval_pass, jobs, split.records, threads, stats)
        computed = list(cached_as_they_come(chunks, caches[eval_pass], progress))
        probs[eval_pass] = assemble(index, skipped, [cached, *computed])
        if jax.process_index() == 0:
            caches[eval_pass].finish(probs[eval_pass])
    return probs


class PendingWork(NamedTuple):
    """The work that one pass still needs."""

    skipped: np.ndarray  # [N] bool: images too large to be computed
    cached: Chunk  # computed before an interruption
    jobs: list[Job]  # of the other images


def _pending_work(
    compiled: CompiledSteps, eval_pass: EvalPass, index: ImageIndex, cache: Cache, batch_size: int
) -> PendingWork:
    """Plans a pass without the images that are cached of an interrupted evaluation."""
    skipped = skipped_images(eval_pass, index.sizes)
    cached = _chunk_of(*cache.shards(), skipped)
    remaining = np.setdiff1d(np.flatnonzero(~skipped), cached.indices)
    devices = devices_of(compiled.trained.mesh)
    jobs = plan_pass(eval_pass, compiled.network, index.sizes, remaining, batch_size, devices)
    return PendingWork(skipped, cached, jobs)


def _same_images(cached: Probs, other: Probs | ImageIndex) -> bool:
    return np.array_equal(cached.keys, other.keys) and np.array_equal(cached.labels, other.labels)


def _chunk_of(indices: np.ndarray, probs_nxK: np.ndarray, skipped_N: np.ndarray) -> Chunk:
    keep = ~skipped_N[indices]
    return Chunk(indices[keep], probs_nxK[keep], 0)


class ShardWriter(Protocol):
    """A cache, or several."""

    def add_shard(self, indices: np.ndarray, rows: np.ndarray, /) -> None: ...


def cached_as_they_come(chunks: Iterator[Chunk], cache: ShardWriter, progress: EvalProgress) -> Iterator[Chunk]:
    """Passes chunks through; they are cached every few seconds, and when anything ends this early."""
    unwritten: list[Chunk] = []
    written_at = time.monotonic()

    def write() -> None:
        if unwritten and jax.process_index() == 0:
            cache.add_shard(
                *(np.concatenate(arrays) for arrays in zip(*(chunk[:2] for chunk in unwritten), strict=True))
            )
        unwritten.clear()

    try:
        for chunk in chunks:
            unwritten.append(chunk)
            if time.monotonic() - written_at > _SHARD_SECONDS:
                write()
                written_at = time.monotonic()
            progress.add(len(chunk.indices), chunk.macs)
            yield chunk
    finally:
        write()
        progress.close()


def assemble(index: ImageIndex, skipped: np.ndarray, chunks: Sequence[Chunk]) -> Probs:
    """Returns probabilities in the order of the split.

    Raises:
      RuntimeError: an image that is not there exactly once.
    """
    indices, probs_nxK = (np.concatenate(arrays) for arrays in zip(*(chunk[:2] for chunk in chunks), strict=True))
    times = np.bincount(indices, minlength=len(index.keys))
    if not np.array_equal(times, ~skipped):
        raise RuntimeError(
            f"of {len(index.keys)} images, {skipped.sum()} skipped, {(times == 0).sum()} were not computed and "
            f"{(times > 1).sum()} more than once"
        )
    probs_NxK = np.zeros((len(index.keys), probs_nxK.shape[1]), np.float32)
    probs_NxK[indices] = probs_nxK
    return Probs(index.keys, index.labels.astype(np.int32), probs_NxK, skipped)


def _pass_cache(trained: TrainedModel, eval_pass: EvalPass, split: Split) -> Cache:
    settings: dict[str, Any] = {
        "format": _FORMAT,
        "checkpoint": trained.checkpoint.name,
        "params_sha256": trained.digest,
        "configuration": trained.recipe.model.network.name,
        "dtype": trained.recipe.model.dtype.name,
        "mean_rgb": trained.statistics.mean_rgb.tolist(),
        "class_names": trained.class_names,
        **eval_pass._asdict(),
        "data": split.data,
        "split": split.name,
        "images": len(split.records),
    }
    name = pass_name(trained, eval_pass)
    return Cache(evaluation_dir(trained, split), name, settings, len(trained.class_names), split.console.print)


def _labels_of_model(labels: np.ndarray, split: Split, trained: TrainedModel) -> np.ndarray:
    """Returns the labels as the model numbers classes; -1 for all where there are none."""
    if split.class_names == [UNLABELLED] or (labels < 0).all():
        return np.full_like(labels, -1)
    if (labels < 0).any():
        raise UserError(
            f"{(labels < 0).sum()} of {len(labels)} images of {split.data}, split {split.name}, have no label; "
            "evaluate a split in which all or none have one."
        )
    return np.array([trained.class_names.index(name) for name in split.class_names])[labels]


class EvalProgress:
    """EvalProgress of an evaluation, and the time left at the pace so far, compiling not counted.

    Args:
      console: shows it.
      stats: of the evaluation.
      macs: multiply-adds, in any unit, of all jobs.
    """

    def __init__(self, console: Console, stats: EvalStats, macs: int):
        self._console, self._stats, self._macs_left, self._macs_done = console, stats, macs, 0
        self._began = time.monotonic() + stats.compile_seconds

    def start(self, label: str, total: int, remaining: int) -> None:
        self._label, self._total, self._done, self._logged_at = label, total, total - remaining, time.monotonic()
        cached = f", {self._done:,} from the cache" if self._done else ""
        self._console.log(f"{label}: {remaining:,} images to compute{cached}")
        self._console.start(self._done, total)

    def add(self, images: int, macs: int) -> None:
        self._done += images
        self._macs_done, self._macs_left = self._macs_done + macs, self._macs_left - macs
        spent = time.monotonic() - self._began - self._stats.compile_seconds
        line = f"{self._label} | about {duration(spent / self._macs_done * self._macs_left)} left in all"
        if time.monotonic() - self._logged_at > _LOG_SECONDS:
            self._console.log(f"{self._done:,}/{self._total:,} | {line}")
            self._logged_at = time.monotonic()
        self._console.progress(self._done, line)

    def close(self) -> None:
        self._console.close()
