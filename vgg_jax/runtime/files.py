"""Files that are written whole or not at all, and JSON."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vgg_jax.runtime.exceptions import UserError, writing_to

_UNFINISHED = ".unfinished"  # suffix of what is being written
_OLD_SECONDS = 24 * 3600.0  # without a change for so long, nobody writes it any more
ANOTHER_PLACE = "free some space or choose another place"
FREE_SPACE = "free some space or mend the permissions and give the same command again"


def unfinished_path(path: Path) -> Path:
    """Returns a new name next to `path`, under which a file or directory is written before it gets that name.

    Two processes never write under one name. What earlier ones left in this directory under such names is removed once
    it is a day old.
    """
    _sweep(path.parent)
    return path.with_name(f"{path.name[:50]}.{secrets.token_hex(4)}{_UNFINISHED}")  # a name has at most 255 bytes


def is_unfinished(path: Path) -> bool:
    """Returns whether a process was writing, or still writes, this file or directory: readers leave it out."""
    return path.name.endswith(_UNFINISHED)


def is_empty(directory: Path) -> bool:
    """Returns whether a directory is missing, or holds nothing but what is being written."""
    return not directory.is_dir() or all(map(is_unfinished, directory.iterdir()))


@functools.cache  # once a process
def _sweep(directory: Path) -> None:
    with contextlib.suppress(OSError):  # there is no such directory, or it is another user's
        for path in directory.iterdir():
            if not re.fullmatch(rf"(?s).+\.[0-9a-f]{{8}}{re.escape(_UNFINISHED)}", path.name):
                continue
            if time.time() - path.lstat().st_mtime < _OLD_SECONDS:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


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
def write_atomically(path: Path, remedy: str = FREE_SPACE) -> Iterator[Path]:
    """Yields the path of a file to write, and renames that file to `path` once the context has ended without an error.

    A file that is not regular, as /dev/null, is written directly, and a link's target in its place. Several processes
    may write the same file at once; the last one stays.

    Args:
      path: its directory is made if need be.
      remedy: the end of the sentence where nothing can be written.

    Raises:
      UserError: the disk is full, permission is missing, ... The file that was there stays.
    """
    path = Path(os.path.realpath(path))
    with writing_to(path, remedy), cleaned_up_when_killed():
        if path.exists() and not path.is_file():
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = unfinished_path(path)
        try:
            yield unfinished
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def output_file(name: str, flag: str) -> Path:
    """Returns the path of a file that a flag names, with ~ replaced; makes its directory.

    Raises:
      UserError: it is a directory, or its directory cannot be made.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(f"{flag}={path} is a directory; name a file in it.")
    with writing_to(path.parent, f"choose another {flag}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def write_directory(path: Path, is_whole: Callable[[Path], bool] = lambda path: False) -> Iterator[Path]:
    """Yields a new directory to fill, and renames it to `path` once the context has ended without an error.

    Args:
      path: its parent is made if need be; missing or empty.
      is_whole: returns whether another process has written it in the meantime; that one then stays.

    Raises:
      OSError: the disk is full, permission is missing, or the directory that was there is not empty. It stays.
    """
    with cleaned_up_when_killed():
        unfinished = unfinished_path(path)
        try:
            unfinished.mkdir(parents=True)
            yield unfinished
            if not is_whole(path):
                unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


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
