"""Ordered, bounded thread-pool map, with progress."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from vgg_jax.runtime.console import duration

A = TypeVar("A")
B = TypeVar("B")
_SECONDS_BETWEEN_LINES = 30.0


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


def progress(
    items: Iterable[A], total: int, label: str, done: int = 0, unit: str = "images"
) -> Generator[A, None, None]:
    """Passes items through and shows how many, and the time left: a bar on a terminal, elsewhere a line now and then.

    Args:
      items: passed through.
      total: how many there will be in all.
      what: is being done to them.
      done: how many of the total were done earlier.
      unit: what the items are.
    """
    if sys.stderr and sys.stderr.isatty():
        yield from tqdm(items, label, total, initial=done, unit=f" {unit}", dynamic_ncols=True)
        return
    print(f"{label}: {total:,} {unit}", flush=True)
    began = said = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= _SECONDS_BETWEEN_LINES:
            said = now
            left = (now - began) / count * (total - done - count)
            print(f"{label}: {done + count:,} of {total:,}, {duration(left)} left", flush=True)
