"""Exceptions that report user mistakes in one sentence."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator

# Of a path that somebody gave. Others, such as EIO on a mounted bucket, may pass by themselves.
_PATH_ERRORS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
STOPPED = "stopped; nothing that was saved is lost, the same command continues."


class UserError(Exception):
    """Something only the user can put right, said in one sentence: the value, the place and the remedy.

    `vgg_jax.main` prints the sentence without a traceback and exits with status 2.
    """


class Interrupted(Exception):
    """Raised after Ctrl-C or SIGTERM, once the state is saved; the message says how to continue."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def writing_to(path: os.PathLike | str, remedy: str) -> Iterator[None]:
    """Turns an OSError within (full disk, no permission, ...) into a UserError that names the place and the remedy."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}; {remedy}.") from error


def first_line(error: BaseException) -> str:
    """Returns what an exception says first, as a sentence of at most 300 characters."""
    if "No space left on device" in str(error):  # the end of a very long line
        return "No space left on device."
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = re.sub(r"<bound method \S*?(\w+) of .*?>", r"(\1)", text)  # Orbax forgets to call some
    return (text[:300] + "...") if len(text) > 300 else text.rstrip(".") + "."


# Control characters, ends of lines, marks that turn the direction of text, and bytes that are no UTF-8.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Returns a text from outside as one line that a terminal may show; what is UNPRINTABLE as \\x1b, \\udcff, ..."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape", "backslashreplace").decode(), text)


def plain_name(name: str) -> str:
    """Returns the name of a class or a file on one line and in Unicode's form C: file systems differ in the form."""
    return unicodedata.normalize("NFC", printable(name))


def quoted(value: object, limit: int = 60) -> str:
    """Returns the repr of a value, shortened; Python itself refuses to print integers of many digits."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def differences(first: dict, second: dict, template: str) -> list[str]:
    """Returns a text for each key whose values differ; the template has {key}, {first} and {second}."""
    return [
        template.format(key=key, first=quoted(first.get(key)), second=quoted(second.get(key)))
        for key in {**first, **second}
        if first.get(key) != second.get(key)
    ]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns " Did you mean X?", or "" where nothing known is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def sentence(message: str, status: int) -> str:
    """Returns what is printed before a process exits, printable; a signal's statuses, from 128, are no errors."""
    text = "\n".join(map(printable, message.split("\n")))  # of a value that somebody gave
    return text if status >= 128 else f"error: {text}"


def as_user_error(error: BaseException) -> UserError | None:
    """Returns a UserError for what only the user can put right (no memory, an unusable path), for all else None."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in _PATH_ERRORS and error.filename is not None:
        return UserError(f"{os.fsdecode(error.filename)}: {error.strerror}; mend that, or name another path.")
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # of Path.expanduser
        return UserError("the home directory is unknown; set HOME, or write paths without ~.")
    # By its text, as JAX takes seconds to import.
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return UserError(
            f"memory is exhausted: {first_line(error)} Take a smaller batch (batch_size, or accumulation_steps in "
            "training), a smaller model or smaller images, or more devices."
        )
    return None
