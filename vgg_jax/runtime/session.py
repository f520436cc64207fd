"""One process of a multi-host run: gathers with the others, and ends with them.

A failure is broadcast through the store; each process prints it and exits, so none outlives another.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from vgg_jax.runtime import compilation, distributed, lock
from vgg_jax.runtime.distributed import HEARTBEAT_SECONDS, Coordinator, stop_signals
from vgg_jax.runtime.exceptions import STOPPED, Interrupted, UserError, as_user_error, first_line, sentence

# Time limit for the processes to meet at the start, where an address was given.
GATHER_SECONDS = 60
# The same where JAX finds the processes: machines of a cluster come up minutes apart.
CLUSTER_GATHER_SECONDS = 300

_aborting = threading.Lock()


@contextlib.contextmanager
def joined(address: str = "", count: int | None = None, index: int | None = None, seconds: int = 0) -> Iterator[None]:
    """Joins this process to the others of a run, for as long as the context lasts; before anything touches a device.

    What fails here ends every process within seconds: this one prints the reason, the others print it too with this
    one's number. The exit status is 2 for a UserError, 128 + n for a signal, as of every command. A process that cannot
    report it is missed after HEARTBEAT_SECONDS.

    Args:
      address: HOST:PORT where process 0 shall listen; "" where JAX finds all of this by itself (Cloud TPU, GKE, SLURM).
      count: how many processes there are.
      index: which one this is, from 0.
      seconds: to wait for the others; 0: GATHER_SECONDS, or CLUSTER_GATHER_SECONDS without an address.
    """
    before = {number: signal.signal(number, _exit_on_signal) for number in stop_signals() if number != signal.SIGINT}
    together: Interrupted | None = None
    try:
        _gather(address, count, index, seconds or (GATHER_SECONDS if address else CLUSTER_GATHER_SECONDS))
        compilation.check_devices()
        coordinator = Coordinator(_abort_on_peer_failure)
        distributed.install(coordinator)
        try:
            yield
        except Interrupted as interruption:
            # All processes raise it after the same step.
            together = interruption
    except BaseException as error:
        _fail(error)
    coordinator.close()
    distributed.install(None)
    jax.distributed.shutdown()
    for number, handler in before.items():
        signal.signal(number, handler)
    if together is not None:
        # Process 0 prints the message for all.
        if coordinator.index:
            sys.exit(128 + together.signum)
        raise together


def _gather(address: str, count: int | None, index: int | None, seconds: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # A CPU's few threads must not all wait in one program for a process whose threads all wait in another.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # The service would handle SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    errors: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                address or None,
                count,
                index,
                # Longer than this function waits: at its own time-out JAX aborts.
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
            raise _PeersMissing(
                f"waited {seconds} s for the processes that JAX finds here by itself, and not all came: one "
                "may have died, and what it printed says why. The same command begins again; --join_timeout=SECONDS "
                "waits longer."
            )
        coordinator_address, missing = address, "the other processes" if index == 0 else "process 0"
        raise UserError(
            f"waited {seconds} s at {coordinator_address}, and {missing} did not come. Is every process running, with "
            "the same --num_processes, the same --coordinator_address (that of process 0's machine) and another "
            "--process_id, and does a firewall let the port through? --join_timeout=SECONDS waits longer."
        )
    if errors and not address and isinstance(errors[0], ValueError):
        raise UserError(
            "--distributed alone works where JAX finds the processes by itself (Cloud TPU, GKE, SLURM, Open MPI), and "
            "here it finds none; give --coordinator_address=HOST:PORT --num_processes=N --process_id=I."
        ) from errors[0]
    if errors:
        kind = UserError if address else _PeersMissing
        raise kind(
            f"jax.distributed could not be started at {address or 'the coordinator'}: {first_line(errors[0])}"
        ) from errors[0]


class _PeersMissing(UserError):
    """Processes that were started together did not all come: not a mistake of the user's, so launchers try again."""


def _exit_on_signal(number: int, _frame: Any) -> NoReturn:
    """Exits at SIGTERM or SIGHUP where nothing can be saved yet, or for the second time."""
    raise SystemExit(128 + number)


def _fail(error: BaseException) -> NoReturn:
    """Reports to all processes why this one ends, and ends it without a shutdown, because others may be gone."""
    # The launcher may now kill the others; exit with this error's status.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    name = type(error).__name__
    if known := as_user_error(error):
        status, message = 1 if isinstance(error, _PeersMissing) else 2, str(known)
    elif isinstance(error, KeyboardInterrupt | SystemExit):
        status = 130 if isinstance(error, KeyboardInterrupt) else error.code if isinstance(error.code, int) else 1
        message = STOPPED
    elif distributed.peer_is_lost(error):
        # A process reported the failure before the connection broke.
        if failure := distributed.current().failure():
            _abort_on_peer_failure(failure)
        status = 1
        message = (
            f"the connection to another process broke, so that one has died; what it printed may say why ({name}: "
            f"{first_line(error)}) What was saved is kept: start all processes again to continue."
        )
    else:
        status, message = 1, f"{name}: {first_line(error)}"
        _print_at_end(traceback.format_exc())
    coordinator = distributed.installed()
    if coordinator is not None:
        coordinator.close()
    _print_at_end(sentence(message, status))
    if coordinator is not None:
        coordinator.report_failure({"status": status, "message": message})
        coordinator.leave()
    _exit(status)


def _abort_on_peer_failure(failure: dict[str, Any]) -> None:
    """Ends this process for the failure of another one; only the first of two threads, the other waits for the end."""
    _aborting.acquire()
    _print_at_end(sentence(f"process {failure['process']}: {failure['message']}", failure["status"]))
    distributed.current().leave()
    _exit(failure["status"])


def _print_at_end(text: str) -> None:
    # A closed stream must not keep the process alive.
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _exit(status: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    lock.release()
    # Without cleaning up more: threads wait for processes that are gone, and would wait for ever.
    os._exit(status)
