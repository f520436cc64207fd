"""Console output: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from tqdm import tqdm


class Console:
    """A progress bar on a terminal; elsewhere (a log file, a pipe) plain lines."""

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self._bar: tqdm | None = None

    def start(self, step: int, total_steps: int) -> None:
        """Shows a progress bar, on a terminal."""
        if sys.stderr and sys.stderr.isatty() and not self._quiet:
            form = "{n_fmt}/{total_fmt} {bar:12} {desc}"
            self._bar = tqdm(initial=step, total=total_steps, bar_format=form, dynamic_ncols=True, file=sys.stderr)

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
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Removes the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


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


def aligned(lines: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Returns a table as text, columns as wide as their widest cell; `right` holds the numbers of those aligned right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
