"""Traces of some of a run's steps, which TensorBoard's profile page and Perfetto show."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax


@contextlib.contextmanager
def tracing(steps: tuple[int, int] | None, directory: Path, say: Callable[[str], None]) -> Iterator[Callable]:
    """Yields a function that is called before each step with its number and the state, and traces some steps.

    Args:
      steps: the first and the last one to trace; None for none.
      directory: of TensorBoard's files.
      say: is called with a line once the trace is written.
    """
    first, last = steps or (0, 0)
    is_tracing = False

    def end() -> None:
        nonlocal is_tracing
        if is_tracing:
            jax.profiler.stop_trace()
            is_tracing = False
            say(f"traced steps {first} to {last}: tensorboard --logdir {directory}, or perfetto_trace.json.gz there")

    def before(step: int, state: Any) -> None:
        nonlocal is_tracing
        if first <= step <= last and not is_tracing:
            jax.block_until_ready(state)
            jax.profiler.start_trace(directory, create_perfetto_trace=True)
            is_tracing = True
        elif step > last and is_tracing:
            jax.block_until_ready(state)
            end()

    try:
        yield before
    finally:
        end()
