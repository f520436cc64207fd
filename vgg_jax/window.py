"""Between evaluations of a run: the steps' mean metrics, their speed, and whether they are sound."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from vgg_jax import alarms
from vgg_jax.logbook import MetricsLog, Screen, duration


class Window:
    """The steps since the last log line: their mean metrics, their speed, and whether they are sound.

    A step's metrics are fetched while the next one runs, so the device's queue never drains.
    """

    def __init__(
        self,
        config: ConfigDict,
        steps_per_epoch: float,
        total_steps: int,
        metrics_log: MetricsLog,
        screen: Screen,
        sums: dict[str, dict[str, float]] | None,
    ):
        self._config, self._steps_per_epoch, self._total_steps = config, steps_per_epoch, total_steps
        self._metrics_log, self._screen = metrics_log, screen
        # A line at least once an epoch, so that a short run has some.
        self._log_every = max(1, min(config.log_every_steps, math.floor(steps_per_epoch), total_steps))
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._sums = sums or {"log": {}, "evaluation": {}}
        self._warned: set[Callable] = set()
        self._line = ""
        self.resume()

    def sums(self) -> dict[str, dict[str, float]]:
        """The metrics' sums since the last log line and the last evaluation, for a run that resumes here."""
        return self._sums

    def resume(self) -> None:
        """Starts the clock, at the beginning and after anything that is not training."""
        self._started, self._waited, self._timed_steps = time.monotonic(), 0.0, 0

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics and digests those of the step before."""
        self._timed_steps += 1
        previous, self._pending = self._pending, (step, metrics)
        if previous is not None:
            self._digest(*previous)

    def flush(self) -> None:
        """Digests what is pending; raises UserError where it is not finite."""
        if self._pending is not None:
            self._digest(*self._pending)
            self._pending = None

    def _digest(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not values.pop("finite"):
            raise alarms.diverged(self._config, step, values["loss"])
        self._sums = {name: _plus(sums, values) for name, sums in self._sums.items()}
        elapsed = max(time.monotonic() - self._started, 1e-9)
        # This step and, while one is pending, the next have been asked for since the clock was started.
        speed = max(self._timed_steps, 1) * self._config.batch_size / elapsed
        waited = self._waited / elapsed
        pace = f"{speed:.0f} images/s | input wait {waited:.0%}"
        left = f"at most {duration((self._total_steps - step) * self._config.batch_size / max(speed, 1e-9))} left"
        if step % self._log_every == 0:
            mean = _mean(self._sums["log"])
            mean["lr"] = values["lr"]
            self._line = (
                f"epoch {step / self._steps_per_epoch:.2f} | loss {mean['loss']:.4f} | top-1 error "
                f"{mean['top1_error']:.1%}{top5(self._config, mean['top5_error'], 1)} | lr {mean['lr']:.0e}"
            )
            self._screen.log(f"step {step}/{self._total_steps} | {self._line} | {pace} | {left}")
            scalars = {**mean, "images_per_second": speed, "input_wait": waited}
            self._metrics_log.write(step, {f"train/{name}": value for name, value in scalars.items()})
            self._sums["log"] = {}
            self._warn(alarms.exploding, step, mean)
            self.resume()
        elif not self._line:
            self._line = f"epoch {step / self._steps_per_epoch:.2f} | loss {values['loss']:.4f} | lr {values['lr']:.0e}"
        self._screen.progress(step, f"{left} | {self._line} | {pace}")  # a narrow terminal cuts off the end

    def warn_if_stuck(self, step: int) -> None:
        """At an evaluation: says so where the loss since the last one is still that of guessing."""
        if self._sums["evaluation"]:
            self._warn(alarms.stuck, step, _mean(self._sums["evaluation"]))
        self._sums["evaluation"] = {}

    def _warn(self, alarm: Callable[..., str | None], *arguments: Any) -> None:
        """Once in a run."""
        if alarm not in self._warned and (text := alarm(self._config, *arguments)):
            self._warned.add(alarm)
            self._screen.say(text)


def _plus(sums: dict[str, float], values: dict[str, float]) -> dict[str, float]:
    return {name: sums.get(name, 0.0) + value for name, value in {**values, "steps": 1}.items()}


def _mean(sums: dict[str, float]) -> dict[str, float]:
    return {name: value / sums["steps"] for name, value in sums.items() if name != "steps"}


def top5(config: ConfigDict, error: float, digits: int) -> str:
    """The top-5 error, where there are more classes than five: with fewer it is always 0."""
    return f", top-5 {error:.{digits}%}" if config.model.num_classes > 5 else ""
