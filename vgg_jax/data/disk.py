"""Disk space for prepared data, and the small files that are kept next to them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from vgg_jax.runtime.console import print_error
from vgg_jax.runtime.exceptions import UserError

SKIPPED = "skipped.json"  # next to prepared data: the images that were left out, and why


def need_space(directory: os.PathLike | str, num_bytes: float, flag: str) -> None:
    """Raises UserError, with the figures, where a directory's disk has not so many bytes free.

    Args:
      directory: exists, or will be made on the disk where its nearest parent lies. A bucket's room is not asked for.
      num_bytes: that will be written.
      flag: that names another place.
    """
    if "://" in os.fspath(directory):
        return
    existing = next(path for path in (Path(directory).absolute(), *Path(directory).absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise UserError(
            f"{directory} has {_size(free)} free, and {_size(num_bytes)} are needed; free some space or give "
            f"another place with {flag}. Nothing was written."
        )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


@contextlib.contextmanager
def writable(directory: os.PathLike | str) -> Iterator[None]:
    """Turns a failure to write within into a UserError that names the place of prepared data."""
    try:
        yield
    # Of what is printed.
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _cannot_write(directory, error.strerror or str(error)) from error
    # How ArrayRecord's writer says it: "write() failed: No space left on device; ...".
    except RuntimeError as error:
        if "() failed: " not in str(error):
            raise
        raise _cannot_write(directory, str(error).split("() failed: ")[1].split(";")[0]) from error


def _cannot_write(directory: os.PathLike | str, reason: str) -> UserError:
    return UserError(
        f"cannot write prepared data to {directory}: {reason}; free some space or give another place with "
        "--config.data.dir=DIR. Nothing half-written is used."
    )


def save_json(path: epath.Path, content: Any) -> None:
    """Writes JSON next to prepared data, on a disk or in a bucket, whole or not at all.

    Prepared data may lie where nothing can be written: that is a warning.
    """
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        unfinished.write_text(json.dumps(content, indent=1))
        unfinished.replace(path)
    except OSError as error:
        print_error(f"WARNING: {path} cannot be written ({error.strerror}); each start computes it.")
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
