"""What a run tells: metrics.jsonl and TensorBoard files for programs, a progress bar or plain lines for a person."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from vgg_jax import __version__
from vgg_jax.errors import writing_to

_REMEDY = "free some space or mend the permissions and give the same command again"


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all: what was there before stays until the new file is complete."""
    unfinished = path.with_name(path.name + ".unfinished")
    with writing_to(path.parent, _REMEDY):
        with open(unfinished, "w") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


def environment() -> dict[str, Any]:
    """What a result was computed with: versions, devices ("cpu x 1"), host ("Linux x86_64, 2 processors")."""
    return {
        "versions": {"vgg_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
        "devices": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
    }


class MetricsLog:
    """`metrics.jsonl`, one object a line with "step" and scalars by name, and the same as TensorBoard events.

    Opening it cuts back what a run wrote beyond the step it resumes from, so a step never stands there twice. Lines that
    it did not write (a power cut leaves such) are dropped, and `say` is given one warning. With `write` False it does
    nothing: another process writes.
    """

    def __init__(self, workdir: Path, resume_step: int, write: bool = True, say: Callable[[str], None] = print):
        self._write = write
        if not write:
            return
        path = workdir / "metrics.jsonl"
        with writing_to(workdir, _REMEDY):
            rows, damaged = read_metrics(path)
            if damaged:
                say(f"WARNING: {damaged} lines of {path} are damaged and left out.")
            unfinished = path.with_name(path.name + ".unfinished")
            unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= resume_step))
            unfinished.replace(path)
            self._file = open(path, "a", buffering=1)  # a line reaches the system as soon as it is whole
            import tensorboardX  # here: it imports torch where that is installed

            self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Adds one line: scalars by name, at a step."""
        if not self._write:
            return
        with writing_to(self._file.name, _REMEDY):
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        if not self._write:
            return
        with writing_to(self._file.name, _REMEDY):
            self._file.close()
            self._events.close()


def read_metrics(path: Path) -> tuple[list[dict[str, float]], int]:
    """Reads a `metrics.jsonl`.

    Returns:
      Its lines, each {"step": int, name: float, ...}, and how many others there were that are none. A last line without
      its end was being written and is not counted; neither is a file that is not there.
    """
    rows, damaged = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            row = json.loads(line)
            sound = type(row["step"]) is int and all(type(value) in (int, float) for value in row.values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if sound and line.endswith(b"\n"):
            rows.append(row)
        else:
            damaged += line.endswith(b"\n")
    return rows, damaged


class Screen:
    """A progress bar on a terminal; elsewhere (a log file, a pipe) plain lines."""

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self._bar: tqdm | None = None

    def start(self, step: int, total_steps: int) -> None:
        if sys.stderr.isatty() and not self._quiet:
            form = "{n_fmt}/{total_fmt} {bar:12} {desc}"
            self._bar = tqdm(initial=step, total=total_steps, bar_format=form, dynamic_ncols=True, file=sys.stderr)

    def progress(self, step: int, line: str) -> None:
        """Shows where the run is; only on a terminal, where the line replaces the one before."""
        if self._bar is not None:
            self._bar.set_description_str(line, refresh=False)
            self._bar.update(step - self._bar.n)

    def log(self, line: str) -> None:
        """As `say`, but for lines that a progress bar makes needless."""
        if self._bar is None:
            self.say(line)

    def say(self, line: str) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def duration(seconds: float) -> str:
    """A length of time in words: "42 s", "3 min 05 s", "2 h 07 min", "3 d 04 h"."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600:02d} h"
