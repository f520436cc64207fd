"""Assertions on refusals: a user's mistake ends in one sentence, and a command then exits with status 2."""

import contextlib

import pytest

from vgg_jax.runtime.exceptions import UserError


@contextlib.contextmanager
def refused(pattern, kind=UserError):
    """Asserts that the block raises `kind` with one sentence that matches the pattern; yields pytest's record."""
    with pytest.raises(kind, match=pattern) as record:
        yield record
    assert str(record.value).isprintable(), record.value


def assert_refused(result, *texts):
    """Asserts on `run_command`'s (status, out, err): status 2, and one printed sentence with all these texts."""
    status, out, err = result
    assert (status, out) == (2, ""), err
    assert "Traceback" not in err
    for text in texts:
        assert text in err
