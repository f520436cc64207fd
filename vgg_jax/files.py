"""Files that are written whole or not at all, and JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vgg_jax.exceptions import UserError, writing_to

UNFINISHED = ".unfinished"  # suffix of a file that is being written
ANOTHER_PLACE = "free some space or choose another place"
FREE_SPACE = "free some space or mend the permissions and give the same command again"


@contextlib.contextmanager
def cleaned_up_when_killed() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end this process as an exception does, so that what is unfinished is removed."""
    if threading.current_thread() is not threading.main_thread():  # the only one that may set handlers
        yield
        return

    def leave(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def write_atomically(path: Path, remedy: str = FREE_SPACE, *, shared: bool = False) -> Iterator[Path]:
    """Yields the path of a file to write, and renames that file to `path` once the context has ended without an error.

    What is no regular file, as /dev/null, is written itself, and a link's target in its place.

    Args:
      path: its directory is made if need be.
      remedy: the end of the sentence where nothing can be written.
      shared: several processes may write the same file at once.

    Raises:
      UserError: the disk is full, permission is missing, ... The file that was there stays.
    """
    path = Path(os.path.realpath(path))
    unfinished = path.with_name(path.name + (f".{secrets.token_hex(4)}" if shared else "") + UNFINISHED)
    # A name that the next start would not take again is not left behind.
    with writing_to(path, remedy), cleaned_up_when_killed() if shared else contextlib.nullcontext():
        if path.exists() and not path.is_file():
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str, remedy: str = FREE_SPACE) -> None:
    """Writes UTF-8 text as `write_atomically` does."""
    with write_atomically(path, remedy) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as `write_atomically` does."""
    write_text(path, json_text(content, indent=2) + "\n")


def json_text(content: Any, indent: int | None = None) -> str:
    """Returns JSON with null for numbers that are not finite, which JSON does not have."""
    return json.dumps(_without_nan(content), indent=indent, allow_nan=False)


def _without_nan(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    return [_without_nan(value) for value in content] if isinstance(content, list | tuple) else content


def read_json(path: Path, remedy: str) -> Any:
    """Reads JSON.

    Args:
      path: of the file.
      remedy: the end of the sentence where it cannot be read.

    Raises:
      UserError: it is missing, unreadable or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}.") from error
