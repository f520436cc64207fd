"""The lock of a workdir: one process at a time, on one machine or on several that share a disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vgg_jax.runtime.exceptions import UserError, writing_to

LOCK = "lock.json"
RENEW_SECONDS = 20.0
# Without a sign of life for so long, a run on another machine has ended. NFS and mounted buckets may show the past for
# a minute.
STALE_SECONDS = 100.0
# The file has a fixed length, so that a reader never sees a part of it.
_LOCK_BYTES = 512
# Lock files of this process.
_held: set[Path] = set()


@contextlib.contextmanager
def locked(workdir: Path, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Keeps other runs out of a workdir while the context lasts, by `lock.json` in it.

    The file names machine, process and time, and is renewed every RENEW_SECONDS. On one machine the kernel says whether
    its process lives. A lock of another machine is watched for STALE_SECONDS first. A lock whose process has ended is
    taken over, and that is said.

    Args:
      workdir: made if need be.
      say: prints a line.

    Yields:
      A function that raises UserError once another run has taken the workdir over; to be called before writing there.

    Raises:
      UserError: another run is at work there, or nothing can be written.
    """
    with writing_to(workdir, "choose another --workdir"):
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor, kernel_locks = _open_lock(workdir)
    content = _own_content()
    ended = threading.Event()
    usurper: list[str] = []
    lock = workdir / LOCK

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            # A full disk is for the run itself to report.
            with contextlib.suppress(OSError):
                other = _lock_content(descriptor)
                if other and other["id"] != content["id"]:
                    usurper.append(_holder(other))
                    _held.discard(lock)
                    return
                _write_lock(descriptor, content)

    def check() -> None:
        if usurper:
            raise _taken_over(workdir, usurper[0])

    try:
        if before := _lock_content(descriptor):
            if not kernel_locks or before["machine"] != content["machine"]:
                _wait_until_stale(workdir, descriptor, before, say)
            say(f"WARNING: {_holder(before)} has ended without releasing {workdir}; this run takes it over.")
        with writing_to(workdir, "choose another --workdir"):
            _write_lock(descriptor, content)
        _held.add(lock)
        thread = threading.Thread(target=renew, name="workdir lock", daemon=True)
        thread.start()
        try:
            yield check
        finally:
            ended.set()
            thread.join()
            _held.discard(lock)
            if not usurper:
                lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def release() -> None:
    """Removes the lock files of this process, which ends at once, without leaving `locked`."""
    for lock in _held:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)


def _open_lock(workdir: Path) -> tuple[int, bool]:
    """Opens the lock file and has the kernel lock it; UserError where another process on this machine has.

    Returns:
      Its descriptor, and whether the kernel could: some mounted buckets and network disks have no locks.
    """
    while True:
        descriptor = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(_lock_content(descriptor))
            os.close(descriptor)
            raise _in_use(workdir, holder) from None
        except OSError:
            return descriptor, False
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(workdir / LOCK)):
                return descriptor, True
        # Its last holder has removed the file meanwhile.
        os.close(descriptor)


def _wait_until_stale(workdir: Path, descriptor: int, before: dict[str, Any], say: Callable[[str], None]) -> None:
    """Returns once a lock has shown no sign of life for STALE_SECONDS; UserError where it does."""
    say(f"{workdir / LOCK} is of {_holder(before)}; waiting {STALE_SECONDS:.0f} s to see whether that run is alive")
    until = time.monotonic() + STALE_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, STALE_SECONDS / 10))
        if _lock_content(descriptor).get("renewed", before["renewed"]) != before["renewed"]:
            raise _in_use(workdir, _holder(before))


def _in_use(workdir: Path, holder: str) -> UserError:
    return UserError(f"--workdir={workdir} is in use by {holder}; stop that run first, or choose another --workdir.")


def _taken_over(workdir: Path, holder: str) -> UserError:
    return UserError(
        f"--workdir={workdir} was taken over by {holder}; this run ends, and nothing that was saved is lost."
    )


def _holder(content: dict[str, Any]) -> str:
    return f"process {content['process']} on {content['host']}, started {content['started']}" if content else "a run"


def _own_content() -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "machine": _machine(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _lock_content(descriptor: int) -> dict[str, Any]:
    """Returns the lock file's content; {} where it is empty or damaged."""
    try:
        content = json.loads(os.pread(descriptor, _LOCK_BYTES, 0))
        return content if {"id", "machine", "host", "process", "started", "renewed"} <= set(content) else {}
    except (ValueError, TypeError):
        return {}


def _write_lock(descriptor: int, content: dict[str, Any]) -> None:
    text = json.dumps({**content, "renewed": time.time()})
    os.pwrite(descriptor, text.ljust(_LOCK_BYTES - 1).encode() + b"\n", 0)
    os.fsync(descriptor)


def _machine() -> str:
    """Returns the running kernel's id: containers of one kernel share file locks, machines do not."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {uuid.getnode():x}"
