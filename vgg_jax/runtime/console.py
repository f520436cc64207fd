"""Lines and progress of every command: a progress bar on a terminal, plain lines in a log file or a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

A = TypeVar("A")
_SECONDS_BETWEEN_LINES = 30.0
_bars: list[tqdm] = []  # on the terminal


def print_line(line: str) -> None:
    """Prints a line to standard output, above the progress bar where there is one."""
    _write(line, sys.stdout)


def print_error(line: str) -> None:
    """Prints a line to standard error, above the progress bar where there is one."""
    _write(line, sys.stderr)


def _write(line: str, stream: Any) -> None:
    if stream is None:
        return
    above = _bars[-1].external_write_mode(stream) if _bars else contextlib.nullcontext()
    with above:
        print(line, file=stream, flush=True)


@contextlib.contextmanager
def _progress_bar(total: int | None, **options: Any) -> Iterator[tqdm | None]:
    """Yields a progress bar that is removed at the end, or None without a terminal; options as of tqdm."""
    if not (sys.stderr and sys.stderr.isatty()):
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, file=sys.stderr, dynamic_ncols=True, **options) as bar:
        _bars.append(bar)
        try:
            yield bar
        finally:
            _bars.remove(bar)


class Console:
    """Lines of one command, and at most one progress bar, which its owner moves; quiet, it shows neither."""

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self._bar: tqdm | None = None
        self._closing = contextlib.ExitStack()

    def start(self, step: int, total_steps: int) -> None:
        """Shows a progress bar, on a terminal."""
        if not self._quiet:
            form = "{n_fmt}/{total_fmt} {bar:12} {desc}"
            self._bar = self._closing.enter_context(_progress_bar(total_steps, initial=step, bar_format=form))

    def progress(self, step: int, line: str) -> None:
        """Moves the bar; the line replaces the one before."""
        if self._bar is not None:
            self._bar.set_description_str(line, refresh=False)
            self._bar.update(step - self._bar.n)

    def log(self, line: str) -> None:
        """Prints a line that a progress bar makes needless."""
        if self._bar is None:
            self.print(line)

    def print(self, line: str) -> None:
        """Prints a line, above the progress bar where there is one."""
        if not self._quiet:
            print_line(line)

    def close(self) -> None:
        """Removes the progress bar."""
        self._closing.close()
        self._bar = None


def with_progress(
    items: Iterable[A], total: int, label: str, done: int = 0, unit: str = "images"
) -> Generator[A, None, None]:
    """Passes items through and shows their number and the time left: as a bar, or as a line every 30 s.

    Args:
      items: passed through.
      total: how many there will be in all.
      label: of the work.
      done: how many of the total were done earlier.
      unit: of the items, in the plural.
    """
    with _progress_bar(total, desc=label, initial=done, unit=f" {unit}") as bar:
        if bar is None:
            print_line(f"{label}: {total:,} {unit}")
        began = said = time.monotonic()
        for count, item in enumerate(items, 1):
            yield item
            if bar is not None:
                bar.update()
            elif (now := time.monotonic()) - said >= _SECONDS_BETWEEN_LINES:
                said = now
                left = (now - began) / count * (total - done - count)
                print_line(f"{label}: {done + count:,} of {total:,}, {duration(left)} left")


@contextlib.contextmanager
def bytes_progress(total: int | None) -> Iterator[Callable[[int], Any]]:
    """Yields the function that adds a number of bytes to a bar, on a terminal."""
    with _progress_bar(total, unit="B", unit_scale=True, leave=False) as bar:
        yield bar.update if bar is not None else lambda count: None


def duration(seconds: float) -> str:
    """Returns a length of time in words: "42 s", "3 min 05 s", "2 h 07 min", "3 d 04 h"."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600:02d} h"
