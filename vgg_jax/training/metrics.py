"""Training metrics: metrics.jsonl and TensorBoard files, and the means between log lines."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from vgg_jax.recipe import Recipe
from vgg_jax.runs import RunDir
from vgg_jax.runtime.console import Console, duration
from vgg_jax.runtime.exceptions import writing_to
from vgg_jax.runtime.files import FREE_SPACE, json_text, write_text
from vgg_jax.training import diagnostics
from vgg_jax.training.checkpoints import Progress

if TYPE_CHECKING:
    from tensorboardX.record_writer import RecordWriter

_FLUSH_SECONDS = 120.0  # between two writes of TensorBoard events to the disk


class MetricsLog:
    """`metrics.jsonl`, one object a line with "step" and scalars by name, and the same as TensorBoard events.

    Opening it cuts back what a run wrote beyond the step it resumes from, so a step never appears twice. Damaged lines,
    as a power cut leaves them, are dropped with one warning. Once an event cannot be written, there are no more of them
    until the next start; one warning says so. With `write` False it does nothing: another process writes.

    Raises:
      UserError: metrics.jsonl cannot be written.
    """

    def __init__(self, workdir: Path, resume_step: int, write: bool = True, warn: Callable[[str], None] = print):
        self._write = write
        if not write:
            return
        run = RunDir(workdir, FREE_SPACE)
        self._warn, self._directory, path = warn, run.tensorboard, run.metrics_file
        rows, damaged = run.metrics()
        with writing_to(workdir, FREE_SPACE):
            if damaged:
                warn(f"WARNING: {damaged} lines of {path} are damaged and left out.")
            write_text(path, "".join(json_text(row) + "\n" for row in rows if row["step"] <= resume_step))
            self._file = open(path, "a", buffering=1)  # flushed at every line
        self._events: RecordWriter | None = None
        with self._writing_events():
            # tensorboardX's SummaryWriter writes in a thread behind a queue: where the disk is full, the thread dies,
            # and the full queue blocks whoever adds to it. The import takes torch along where that is installed.
            from tensorboardX import record_writer

            self._directory.mkdir(exist_ok=True)
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
            self._events = record_writer.RecordWriter(str(self._directory / name))
            for content in ({"file_version": "brain.Event:2"}, {"session_log": {"status": "START"}}):
                self._add_event(resume_step + 1, content)  # TensorBoard drops what an earlier start wrote from there on
            self._events.flush()
        self._flushed = time.monotonic()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Adds one line: scalars by name, at a step; in JSON what is not finite is null."""
        if not self._write:
            return
        with writing_to(self._file.name, FREE_SPACE):
            self._file.write(json_text({"step": step, **scalars}) + "\n")
        if self._events is None:
            return
        with self._writing_events():
            values = [{"tag": name, "simple_value": value} for name, value in scalars.items()]
            self._add_event(step, {"summary": {"value": values}})
            if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
                self._events.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        if not self._write:
            return
        if self._events is not None:
            with self._writing_events():
                self._events.close()
        with writing_to(self._file.name, FREE_SPACE):
            self._file.close()

    def _add_event(self, step: int, content: dict[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        assert self._events is not None
        self._events.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())

    @contextlib.contextmanager
    def _writing_events(self) -> Iterator[None]:
        """Drops the event file where writing to it fails, so that training continues."""
        try:
            yield
        except OSError as error:
            events, self._events = self._events, None
            with contextlib.suppress(OSError):
                if events is not None:
                    events.close()
            self._warn(
                f"WARNING: cannot write to {self._directory}: {error.strerror or error}; training continues, with "
                f"metrics in {self._file.name} alone until the next start."
            )


class TrainMetrics:
    """Averages the metrics of steps, measures their speed and checks that the loss is finite.

    A step's metrics are fetched while the next one runs, so the device's queue never drains.
    """

    def __init__(
        self,
        recipe: Recipe,
        steps_per_epoch: float,
        total_steps: int,
        metrics_log: MetricsLog,
        console: Console,
        sums: dict[str, dict[str, float]] | None,
    ):
        self._recipe, self._steps_per_epoch, self._total_steps = recipe, steps_per_epoch, total_steps
        self._metrics_log, self._console = metrics_log, console
        # A line at least once an epoch, so that a short run has some.
        self._log_every = max(1, min(recipe.log_every_steps, math.floor(steps_per_epoch), total_steps))
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._sums: dict[str, dict[str, float]] = {"log": {}, "evaluation": {}, "norms": {}} | (sums or {})
        self._warned: set[Callable] = set()
        self._line = ""
        self.resume_clock()

    def sums(self) -> dict[str, dict[str, float]]:
        """Returns the sums since the last log line and since the last evaluation, and the finite norms of kernels."""
        norms = {name: value for name, value in self._sums["norms"].items() if math.isfinite(value)}
        return self._sums | {"norms": norms}

    def is_logged(self, step: int) -> bool:
        """Returns whether there is a log line after this step, for which its metrics must have norms."""
        return step % self._log_every == 0

    def resume_clock(self) -> None:
        """Starts the clock, at the beginning and after anything that is not training."""
        self._started, self._waited, self._timed_steps = time.monotonic(), 0.0, 0

    def started(self, metrics: dict[str, jax.Array], began: float, progress: Progress) -> None:
        """Waits for the first step since a start, prints how long that took, and adds it to the run's progress."""
        jax.block_until_ready(metrics)
        took = time.monotonic() - began
        progress.starts, progress.startup_seconds = progress.starts + 1, progress.startup_seconds + took
        again = f"; {progress.starts} starts took {duration(progress.startup_seconds)}" if progress.starts > 1 else ""
        self._console.print(f"first step after {took:.1f} s{again}")

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Counts the time within as waiting for input."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics and processes those of the step before."""
        if not self.is_logged(step):  # each scalar fetched costs a tenth of a millisecond
            metrics = {name: value for name, value in metrics.items() if not _is_norm(name)}
        previous, self._pending = self._pending, (step, metrics)
        if previous is not None:
            self._process(*previous)

    def flush(self, state: Any) -> None:
        """Processes what is pending; raises UserError where its loss or this state, which it led to, is not finite."""
        if self._pending is not None:
            step, metrics = self._pending
            self._process(step, metrics)
            if not _is_finite(state):
                raise diagnostics.diverged(self._recipe, step, float(metrics["loss"]))
            self._pending = None

    def _process(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise diagnostics.diverged(self._recipe, step, values["loss"])
        norms = {name: values.pop(name) for name in list(values) if _is_norm(name)}
        summed = {name: _plus(self._sums[name], values) for name in ("log", "evaluation")}
        self._sums = {**summed, "norms": norms or self._sums["norms"]}
        elapsed = max(time.monotonic() - self._started, 1e-9)
        self._timed_steps += 1  # finished since the clock was started
        speed = self._timed_steps * self._recipe.batch_size / elapsed
        waited = self._waited / elapsed
        pace = f"{speed:.0f} images/s | input wait {waited:.0%}"
        left = f"at most {duration((self._total_steps - step) * self._recipe.batch_size / max(speed, 1e-9))} left"
        if self.is_logged(step):
            mean = _mean_of_sums(self._sums["log"]) | self._sums["norms"]
            mean["lr"] = values["lr"]
            self._line = (
                f"epoch {step / self._steps_per_epoch:.2f} | loss {mean['loss']:.4f} | top-1 error "
                f"{mean['top1_error']:.1%}{top5_text(self._recipe, mean['top5_error'], 1)} | lr {mean['lr']:.0e}"
            )
            self._console.log(f"step {step}/{self._total_steps} | {self._line} | {pace} | {left}")
            scalars = {**mean, "images_per_second": speed, "input_wait": waited}
            self._metrics_log.write(step, {f"train/{name}": value for name, value in scalars.items()})
            self._sums["log"] = {}
            self._warn(diagnostics.exploding, step, mean)
            self.resume_clock()
        elif not self._line:
            self._line = f"epoch {step / self._steps_per_epoch:.2f} | loss {values['loss']:.4f} | lr {values['lr']:.0e}"
        self._console.progress(step, f"{left} | {self._line} | {pace}")  # a narrow terminal cuts off the end

    def since_evaluation(self, step: int) -> dict[str, float]:
        """Returns the means of the metrics since the last evaluation, {} where no step was taken, and begins again.

        Warns where the loss is still that of guessing.
        """
        mean, self._sums["evaluation"] = _mean_of_sums(self._sums["evaluation"]), {}
        if mean:
            self._warn(diagnostics.stuck, step, mean | self._sums["norms"])
        return mean

    def _warn(self, check: Callable[..., str | None], *arguments: Any) -> None:
        """Prints the warning of a check, once in a run."""
        if check not in self._warned and (text := check(self._recipe, *arguments)):
            self._warned.add(check)
            self._console.print(text)


def _is_norm(name: str) -> bool:
    return "/" in name


@jax.jit
def _is_finite(state: Any) -> jax.Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))


def _plus(sums: dict[str, float], values: dict[str, float]) -> dict[str, float]:
    return {name: sums.get(name, 0.0) + value for name, value in {**values, "steps": 1}.items()}


def _mean_of_sums(sums: dict[str, float]) -> dict[str, float]:
    return {name: value / sums["steps"] for name, value in sums.items() if name != "steps"}


def top5_text(recipe: Recipe, error: float, digits: int) -> str:
    """Returns ", top-5 5.1%", or "" with five classes or fewer, where it is always 0."""
    return f", top-5 {error:.{digits}%}" if recipe.model.num_classes > 5 else ""
