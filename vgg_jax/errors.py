"""What is said to a person when something goes wrong that only they can put right."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


class UserError(Exception):
    """Something only the user can put right, said in one sentence: the value, the place and the remedy.

    `vgg_jax.main` prints the sentence without a traceback and exits with status 2.
    """


class Interrupted(Exception):
    """Ctrl-C or SIGTERM was heeded: the state is saved and the message says how to go on."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def writing_to(place: os.PathLike | str, remedy: str) -> Iterator[None]:
    """Turns an OSError within (full disk, no permission, ...) into a UserError that names the place and the remedy."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {place}: {error.strerror or error}; {remedy}.") from error


def first_line(error: BaseException) -> str:
    """Returns what an exception says first, as a sentence of at most 300 characters."""
    if "No space left on device" in str(error):  # the end of a very long line
        return "No space left on device."
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (text[:300] + "...") if len(text) > 300 else text.rstrip(".") + "."
