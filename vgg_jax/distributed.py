"""Several processes, one run: they meet, agree on what they do, stop after one step, and none outlives another.

Process 0 runs jax.distributed's coordinator, whose key-value store carries the short texts that processes tell each
other here. Arrays go from device to device and are no business of this module. In a run of one process all of this does
nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
from jax._src import distributed  # the key-value store has no public name; Orbax and jax.experimental take it from here

from vgg_jax.exceptions import STOPPED, Interrupted, UserError, as_user_error, first_line, quoted, sentence, writing_to

HEARTBEAT_SECONDS = 60  # a process that has been silent for so long is gone, and jax.distributed ends the others
GATHER_SECONDS = 60  # to wait for each other at the start, where an address was given
CLUSTER_GATHER_SECONDS = 300  # and where JAX finds the processes: machines of a cluster come up minutes apart

_POLL_SECONDS = 0.5
_FAREWELL_SECONDS = 10.0  # that process 0, which runs the store, stays for others to read why the run has failed
_A_DAY_MS = 24 * 3600 * 1000  # to wait where another process may be preparing data; one that dies ends the wait
_FAILURE, _SIGNAL, _LEFT = (f"vgg_jax/run/{name}" for name in ("failure", "signal", "left"))

T = TypeVar("T")


def is_primary() -> bool:
    """Returns whether this is process 0, which alone writes logs and summaries and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def joined(address: str = "", count: int | None = None, index: int | None = None, seconds: int = 0) -> Iterator[None]:
    """Joins this process to the others of a run, for as long as the context lasts; before anything touches a device.

    What fails here ends every process within seconds: this one prints the reason, the others print it too with this
    one's number. The exit status is that of `vgg_jax.cli`: 2 for a UserError, 128 + n for a signal. A process that
    cannot even say so is missed after HEARTBEAT_SECONDS.

    Args:
      address: HOST:PORT where process 0 shall listen; "" where JAX finds all of this by itself (Cloud TPU, GKE, SLURM).
      count: how many processes there are.
      index: which one this is, from 0.
      seconds: to wait for the others; 0: GATHER_SECONDS, or CLUSTER_GATHER_SECONDS without an address.
    """
    global _run
    before = {number: signal.signal(number, _leave) for number in stop_signals() if number != signal.SIGINT}
    together: Interrupted | None = None
    try:
        _gather(address, count, index, seconds or (GATHER_SECONDS if address else CLUSTER_GATHER_SECONDS))
        _run = run = _Run()
        try:
            yield
        except Interrupted as interruption:  # of all processes, after the same step
            together = interruption
    except BaseException as error:
        _fail(error)
    run.close()
    _run = None
    jax.distributed.shutdown()
    for number, handler in before.items():
        signal.signal(number, handler)
    if together is not None:
        if run.index:  # process 0 says it for all
            sys.exit(128 + together.signum)
        raise together


def stop_signals() -> list[signal.Signals]:
    """Returns the signals that ask a run to save and end; SIGHUP is none of them under nohup."""
    heeded = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if heeded else [])]


@contextlib.contextmanager
def signals_received() -> Iterator[list[int]]:
    """Yields the list of signals received so far.

    The first Ctrl-C, SIGTERM or SIGHUP is noted in it; another one has its usual effect.
    """
    received: list[int] = []
    numbers = stop_signals()
    if threading.current_thread() is not threading.main_thread():  # the only one that may set handlers
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
    """Makes sure that every process has the same facts as process 0, and waits until all have said so.

    Args:
      facts: what JSON holds, by names that a person understands.

    Raises:
      UserError: on each process that has others, naming them; `joined` ends the rest.
    """
    if jax.process_count() == 1:
        return
    run = _joined_run()
    text = json.dumps(facts)  # as JSON, so that tuples are lists on both sides
    theirs = json.loads(run.from_primary(text))
    mine = json.loads(text)
    different = [
        f"{name} is {quoted(mine.get(name))} on process {run.index} and {quoted(theirs.get(name))} on process 0"
        for name in {**theirs, **mine}
        if mine.get(name) != theirs.get(name)
    ]
    if different:
        raise UserError(
            f"the processes were not started alike: {'; '.join(different)}. Start all of them with the same code, "
            "command and data."
        )
    run.wait_for_all()


def check_shared(directory: Path, flag: str) -> None:
    """Makes sure that every process sees the same directory, by a file that process 0 puts there for a moment.

    Raises:
      UserError: a process sees another one, or process 0 cannot write.
    """
    if jax.process_count() == 1:
        return
    run = _joined_run()
    name = run.from_primary(f".seen-by-all-{uuid.uuid4().hex}")
    if is_primary():
        with writing_to(directory, f"choose another {flag}"):
            (directory / name).touch()
    run.wait_for_all()
    seen = (directory / name).exists()
    if not seen:
        raise UserError(
            f"{flag}={directory} is not the same directory on process {run.index} as on process 0; it must lie on a disk "
            "or in a bucket that all of them share."
        )
    run.wait_for_all()
    if is_primary():
        (directory / name).unlink(missing_ok=True)


def primary_first(function: Callable[[], T]) -> T:
    """Calls it on process 0, and once that has returned on all others: what the first call prepares the others find."""
    if jax.process_count() == 1:
        return function()
    run = _joined_run()
    if is_primary():
        result = function()
        run.wait_for_all()
        return result
    run.wait_for_all()
    return function()


def all_agree(vote: bool) -> bool:
    """Returns whether every process gives True; each calls this in the same order, and waits for the others."""
    if jax.process_count() == 1:
        return vote
    return all(_joined_run().votes(vote))


def wait_for_all() -> None:
    """Returns once every process has called it."""
    if jax.process_count() > 1:
        _joined_run().wait_for_all()


class Stop:
    """Whether to stop after a step: yes for all processes after the same one, once any of them has a signal.

    Args:
      received: signals that this process has received, as they come in.
    """

    def __init__(self, received: list[int]):
        self._received = received
        self._run = _joined_run() if jax.process_count() > 1 else None

    def after(self, step: int) -> bool:
        """To be asked once after each step, by every process; never makes one wait for another's step."""
        if self._run is None:
            return bool(self._received)
        if self._received and not self._run.signum:
            self._run.set(_SIGNAL, str(self._received[0]))
        return self._run.stops_after(step)

    @property
    def signum(self) -> int:
        """The signal that it is for."""
        return self._received[0] if self._run is None else self._run.signum


class _Run:
    """What this process knows of the others, and a thread that listens to them."""

    def __init__(self) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()
        self.signum = 0
        self._client: Any = distributed.global_state.client
        self._step = 0  # the last that was asked about
        self._last: int | None = None  # the one to stop after
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

    def said(self) -> dict[str, str]:
        """What processes have said of the run: failure, signal, who has left."""
        return dict(self._client.key_value_dir_get("vgg_jax/run/"))

    def from_primary(self, text: str) -> str:
        """Process 0's text, on all processes; each calls this in the same order."""
        self._calls += 1
        key = f"vgg_jax/texts/{self._calls}"
        if self.index == 0:
            self._client.key_value_set(key, text)
        return self._client.blocking_key_value_get(key, _A_DAY_MS)

    def wait_for_all(self) -> None:
        self._calls += 1
        self._client.wait_at_barrier(f"vgg_jax/barriers/{self._calls}", _A_DAY_MS)

    def votes(self, vote: bool) -> list[bool]:
        """All processes' votes; each calls this in the same order."""
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
        while not self._closed.wait(_POLL_SECONDS):
            try:
                said = self.said()
                if _FAILURE in said:
                    _heed(self, json.loads(said[_FAILURE]))
                if _SIGNAL in said and not self.signum:
                    self._settle(int(said[_SIGNAL]))
            except jax.errors.JaxRuntimeError:
                return  # the coordinator is gone, and jax.distributed is about to end this process

    def _settle(self, signum: int) -> None:
        """Finds the step to stop after: one beyond the farthest that any process has been told to go on from.

        No process goes on while this is being settled, and none has to finish a step for it: a device may be waiting for
        another process's part of it.
        """
        with self._lock:
            self._client.key_value_set(f"vgg_jax/steps/{self.index}", str(self._step))
            self._client.wait_at_barrier("vgg_jax/steps", HEARTBEAT_SECONDS * 1000)
            self._last = 1 + max(int(step) for _, step in self._client.key_value_dir_get("vgg_jax/steps/"))
            self.signum = signum


_run: _Run | None = None  # of `joined`; jax.distributed, too, is one for the process


def _joined_run() -> _Run:
    if _run is None:
        raise RuntimeError("several processes: enter vgg_jax.distributed.joined first")
    return _run


def _gather(address: str, count: int | None, index: int | None, seconds: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # A CPU's few threads must not all wait in one program for a process whose threads all wait in another.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    errors: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                address or None,
                count,
                index,
                # Longer than is waited here: at its own time-out JAX aborts.
                initialization_timeout=seconds + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        if not address:
            raise _NobodyCame(
                f"waited {seconds} s for the processes that JAX finds here by itself, and not all came: one may have died, and "
                "what it printed says why. The same command begins again; --join_timeout=SECONDS waits longer."
            )
        place, missing = address, "the other processes" if index == 0 else "process 0"
        raise UserError(
            f"waited {seconds} s at {place}, and {missing} did not come. Is every process running, with the same "
            f"--num_processes, the same --coordinator_address (that of process 0's machine) and a --process_id of its own, "
            "and does a firewall let the port through? --join_timeout=SECONDS waits longer."
        )
    if errors and not address and isinstance(errors[0], ValueError):
        raise UserError(
            "--distributed alone works where JAX finds the processes by itself (Cloud TPU, GKE, SLURM, Open MPI), and here "
            "it finds none; give --coordinator_address=HOST:PORT --num_processes=N --process_id=I."
        ) from errors[0]
    if errors:
        kind = UserError if address else _NobodyCame
        raise kind(
            f"jax.distributed could not be started at {address or 'the coordinator'}: {first_line(errors[0])}"
        ) from errors[0]


class _NobodyCame(UserError):
    """Of processes that were started together: no mistake of the user's, so that launchers try again."""


def _leave(number: int, _frame: Any) -> NoReturn:
    """SIGTERM or SIGHUP where nothing can be saved yet, or for the second time."""
    raise SystemExit(128 + number)


def _fail(error: BaseException) -> NoReturn:
    """Says on all processes why this one ends, and ends it; nothing is shut down in order, as others may be gone."""
    # Whoever started all may end the rest now; the status is this error's.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    name = type(error).__name__
    if known := as_user_error(error):
        status, message = 1 if isinstance(error, _NobodyCame) else 2, str(known)
    elif isinstance(error, KeyboardInterrupt | SystemExit):
        status = 130 if isinstance(error, KeyboardInterrupt) else error.code if isinstance(error.code, int) else 1
        message = STOPPED
    elif isinstance(error, jax.errors.JaxRuntimeError) and _connection_broke(str(error)):
        time.sleep(4 * _POLL_SECONDS)  # whoever failed may have said why, and the thread that listens ends this process
        status = 1
        message = (
            f"the connection to another process broke, so that one has died; what it printed may say why ({name}: "
            f"{first_line(error)}) What was saved is kept: start all processes again to go on."
        )
    else:
        status, message = 1, f"{name}: {first_line(error)}"
        _say(traceback.format_exc())
    if _run is not None:
        _run.close()
    _say(sentence(message, status))
    if _run is not None:
        _run.set(_FAILURE, json.dumps({"process": _run.index, "status": status, "message": message}))
        _depart(_run)
    _exit(status)


def _heed(run: _Run, failure: dict[str, Any]) -> None:
    """Ends this process for a failure of another one."""
    if failure["process"] == run.index:
        return
    _say(sentence(f"process {failure['process']}: {failure['message']}", failure["status"]))
    _depart(run)
    _exit(failure["status"])


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads any more, which must not keep the process alive
        print(text, file=sys.stderr, flush=True)


def _depart(run: _Run) -> None:
    """Notes that this process leaves; process 0, which runs the store, waits for the others to have done so."""
    run.set(f"{_LEFT}/{run.index}", "")
    until = time.monotonic() + _FAREWELL_SECONDS
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        while run.index == 0 and time.monotonic() < until:
            if sum(key.startswith(_LEFT) for key in run.said()) == run.count:
                return
            time.sleep(0.1)


def _exit(status: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    # At once: threads wait for processes that are gone, and would wait for ever.
    os._exit(status)


def _connection_broke(text: str) -> bool:
    return any(word in text.lower() for word in ("gloo", "connection", "socket", "peer", "unavailable", "aborted"))
