"""Agreement between the processes of a multi-host run: same facts, process 0 first, a common stop step.

Process 0 runs jax.distributed's coordinator, whose key-value store carries these short texts. Arrays never pass through
here. With one process all of this does nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

# The key-value store has no public name; Orbax takes it from here.
from jax._src import distributed as jax_distributed

from vgg_jax.runtime.exceptions import UserError, differences, writing_to

# Process 0 hosts the store, so it waits this long for peers to read the failure.
_LEAVE_SECONDS = 10.0

# A process that has been silent for so long is gone, and jax.distributed ends the others.
HEARTBEAT_SECONDS = 60
POLL_SECONDS = 0.5
# Time limit where another process may be preparing data; a process that dies ends the wait.
_A_DAY_MS = 24 * 3600 * 1000
_FAILURE, _SIGNAL, _LEFT = (f"vgg_jax/run/{name}" for name in ("failure", "signal", "left"))

T = TypeVar("T")


def is_primary() -> bool:
    """Returns whether this is process 0, which alone writes logs and summaries and prints."""
    return jax.process_index() == 0


def stop_signals() -> list[signal.Signals]:
    """Returns the signals that ask a run to save and end; SIGHUP is not among them under nohup."""
    heeded = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if heeded else [])]


@contextlib.contextmanager
def signals_received() -> Iterator[list[int]]:
    """Yields the list of signals received so far.

    The first Ctrl-C, SIGTERM or SIGHUP is noted in it; another one has its usual effect.
    """
    received: list[int] = []
    numbers = stop_signals()
    # Only the main thread may set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        for other in numbers:
            signal.signal(other, before[other])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def check_same(facts: dict[str, Any]) -> None:
    """Checks that every process has the same facts as process 0, and waits until all have.

    Args:
      facts: what JSON holds, by names that a person understands.

    Raises:
      UserError: on each process with other facts, naming them; `joined` ends the rest.
    """
    if jax.process_count() == 1:
        return
    run = current()
    # As JSON, so that tuples are lists on both sides.
    text = json.dumps(facts)
    theirs = json.loads(run.from_primary(text))
    mine = json.loads(text)
    different = differences(mine, theirs, f"{{key}} is {{first}} on process {run.index} and {{second}} on process 0")
    if different:
        raise UserError(
            f"the processes were not started alike: {'; '.join(different)}. Start all of them with the same code, "
            "command and data."
        )
    run.wait_for_all()


def check_shared(directory: Path, flag: str) -> None:
    """Checks that every process sees the same directory, by a file that process 0 puts there for a moment.

    Raises:
      UserError: a process sees another one, or process 0 cannot write.
    """
    if jax.process_count() == 1:
        return
    run = current()
    name = run.from_primary(f".seen-by-all-{uuid.uuid4().hex}")
    if is_primary():
        with writing_to(directory, f"choose another {flag}"):
            (directory / name).touch()
    run.wait_for_all()
    seen = (directory / name).exists()
    if not seen:
        raise UserError(
            f"{flag}={directory} is not the same directory on process {run.index} as on process 0; it must lie on a "
            "disk or in a bucket that all of them share."
        )
    run.wait_for_all()
    if is_primary():
        (directory / name).unlink(missing_ok=True)


def primary_first(function: Callable[[], T]) -> T:
    """Calls a function on process 0, then on all others, which find what the first call has prepared."""
    if jax.process_count() == 1:
        return function()
    run = current()
    if is_primary():
        result = function()
        run.wait_for_all()
        return result
    run.wait_for_all()
    return function()


def peer_is_lost(error: BaseException) -> bool:
    """Returns whether an error says that the connection to another process broke, as after its death.

    A compiled step raises ValueError for it, other calls JaxRuntimeError.
    """
    is_status = isinstance(error, ValueError) and re.match("[A-Z_]+: ", str(error))
    if installed() is None or not (is_status or isinstance(error, jax.errors.JaxRuntimeError)):
        return False
    return bool(re.search("gloo|connection|socket|peer|unavailable|aborted|heartbeat", str(error), re.IGNORECASE))


def all_agree(vote: bool) -> bool:
    """Returns whether every process gives True; each calls this in the same order, and waits for the others."""
    if jax.process_count() == 1:
        return vote
    return all(current().votes(vote))


def wait_for_all() -> None:
    """Returns once every process has called it."""
    if jax.process_count() > 1:
        current().wait_for_all()


class Stop:
    """Decides after which step to stop: all processes after the same one, once any of them has a signal.

    Args:
      received: signals that this process has received, as they come in.
    """

    def __init__(self, received: list[int]):
        self._received = received
        self._run = current() if jax.process_count() > 1 else None

    def after(self, step: int) -> bool:
        """Returns whether to stop after a step; every process calls this once after each, and waits for no other."""
        if self._run is None:
            return bool(self._received)
        if self._received and not self._run.signum:
            self._run.set(_SIGNAL, str(self._received[0]))
        return self._run.stops_after(step)

    @property
    def signum(self) -> int:
        """Returns the signal to stop for."""
        return self._received[0] if self._run is None else self._run.signum


class Coordinator:
    """The key-value store of a run, and a thread that listens to the other processes.

    Args:
      on_failure: is called in that thread with what `report_failure` was given on another process.
    """

    def __init__(self, on_failure: Callable[[dict[str, Any]], None]) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()
        self._on_failure = on_failure
        self.signum = 0
        self._client: Any = jax_distributed.global_state.client
        # The last step that was asked about.
        self._step = 0
        # The step to stop after.
        self._last: int | None = None
        self._lock = threading.Lock()
        self._calls = 0
        self._closed = threading.Event()
        threading.Thread(target=self._listen, name="processes", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def set(self, key: str, value: str) -> None:
        """Writes a key, unless another process has."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(key, value)

    def status(self) -> dict[str, str]:
        """Returns what processes have written of the run: failure, signal, who has left."""
        return dict(self._client.key_value_dir_get("vgg_jax/run/"))

    def failure(self) -> dict[str, Any] | None:
        """Returns what another process has given to `report_failure`; None where none has, or the store is gone."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            failure = json.loads(self.status().get(_FAILURE, "null"))
            return failure if failure and failure["process"] != self.index else None
        return None

    def report_failure(self, failure: dict[str, Any]) -> None:
        """Tells the other processes why this one fails."""
        self.set(_FAILURE, json.dumps({**failure, "process": self.index}))

    def leave(self) -> None:
        """Notes that this process leaves; process 0 hosts the store, so it waits for its peers to have left."""
        self.set(f"{_LEFT}/{self.index}", "")
        until = time.monotonic() + _LEAVE_SECONDS
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while self.index == 0 and time.monotonic() < until:
                if sum(key.startswith(_LEFT) for key in self.status()) == self.count:
                    return
                time.sleep(0.1)

    def from_primary(self, text: str) -> str:
        """Returns process 0's text, on all processes; each calls this in the same order."""
        self._calls += 1
        key = f"vgg_jax/texts/{self._calls}"
        if self.index == 0:
            self._client.key_value_set(key, text)
        return self._client.blocking_key_value_get(key, _A_DAY_MS)

    def wait_for_all(self) -> None:
        self._calls += 1
        self._client.wait_at_barrier(f"vgg_jax/barriers/{self._calls}", _A_DAY_MS)

    def votes(self, vote: bool) -> list[bool]:
        """Returns all processes' votes; each calls this in the same order."""
        self._calls += 1
        key = f"vgg_jax/votes/{self._calls}"
        self._client.key_value_set(f"{key}/{self.index}", "yes" if vote else "no")
        self.wait_for_all()
        return [text == "yes" for _, text in self._client.key_value_dir_get(f"{key}/")]

    def stops_after(self, step: int) -> bool:
        with self._lock:
            self._step = step
            return self._last is not None and step >= self._last

    def _listen(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            try:
                status = self.status()
                if _FAILURE in status and (failure := json.loads(status[_FAILURE]))["process"] != self.index:
                    self._on_failure(failure)
                if _SIGNAL in status and not self.signum:
                    self._agree_on_stop_step(int(status[_SIGNAL]))
            except jax.errors.JaxRuntimeError:
                # The coordinator is gone, and jax.distributed is about to end this process.
                return

    def _agree_on_stop_step(self, signum: int) -> None:
        """Agrees on the step to stop after: one beyond the farthest that any process has begun.

        No process begins a step meanwhile, and none has to finish one first: a device may be waiting for another
        process's part of a step.
        """
        with self._lock:
            self._client.key_value_set(f"vgg_jax/steps/{self.index}", str(self._step))
            self._client.wait_at_barrier("vgg_jax/steps", HEARTBEAT_SECONDS * 1000)
            self._last = 1 + max(int(step) for _, step in self._client.key_value_dir_get("vgg_jax/steps/"))
            self.signum = signum


# One for the process, as jax.distributed is.
_coordinator: Coordinator | None = None


def current() -> Coordinator:
    """Returns the coordinator of `install`."""
    if _coordinator is None:
        raise RuntimeError("several processes: enter vgg_jax.runtime.session.joined first")
    return _coordinator


def installed() -> Coordinator | None:
    """Returns the coordinator, None outside `session.joined`."""
    return _coordinator


def install(coordinator: Coordinator | None) -> None:
    """Makes a coordinator the one that the functions here use."""
    global _coordinator
    _coordinator = coordinator
