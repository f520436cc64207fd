"""Ordered, bounded thread-pool map."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def parallel_map(
    function: Callable[[A], B], items: Iterable[A], threads: int | None = None, ahead: int | None = None
) -> Generator[B, None, None]:
    """Maps in threads; results come in order, and a bounded number of items is in work or waiting at any time.

    Args:
      function: releases the interpreter's lock for most of its time, as decoding does.
      items: taken one by one, as they are needed.
      threads: at once; None: one for every core.
      ahead: items in work or waiting; None: four for every thread.
    """
    threads = threads or os.cpu_count() or 1
    waiting: deque[Future[B]] = deque()
    remaining, ahead = iter(items), ahead or 4 * threads
    with ThreadPoolExecutor(threads) as pool:
        try:
            waiting.extend(pool.submit(function, item) for item in itertools.islice(remaining, ahead))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
        finally:
            for future in waiting:
                future.cancel()
