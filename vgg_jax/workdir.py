"""Ensures that a workdir belongs to one run: one configuration, one data set, one process at a time."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
import re
import shlex
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vgg_jax.compilation import COMPILED
from vgg_jax.config import default_config, flatten, has_batch_norm, may_change
from vgg_jax.exceptions import UserError, differences, plain_name, writing_to
from vgg_jax.files import is_unfinished, read_json, write_json

CHECKPOINTS = "checkpoints"
LOCK = "lock.json"
RENEW_SECONDS = 20.0
# Without a sign of life for so long, a run on another machine has ended. NFS and mounted buckets may show the past for a
# minute.
STALE_SECONDS = 100.0
_LOCK_BYTES = 512  # of a fixed length, so that a reader never sees a part of it
_held: set[Path] = set()  # lock files of this process
# Files that a run makes. A run that was killed before its config.json was there leaves no other ones.
_OWN = ("config.json", "dataset.json", "metrics.jsonl", "summary.json", "tensorboard", CHECKPOINTS, LOCK, COMPILED)
_COLORS = ("mean_rgb", "color_vectors")
_NOT_SHOWN = ("name", "image_digests", *_COLORS)  # in a sentence


def check(workdir: Path, config: ConfigDict) -> None:
    """Finds out whether this configuration may run in a workdir, and changes nothing.

    Raises:
      UserError: it holds a checkpoint of another configuration, holds something else than a run, or cannot be written.
    """
    if re.match(r"\w{2,}:/", str(workdir)):
        raise UserError(
            f"--workdir={str(workdir).replace(':/', '://', 1)}: a workdir is a directory; mount the bucket, as `launch/` does "
            "(docs/launch.md), and name the directory."
        )
    existing = next(path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--workdir={workdir} cannot be made: {existing} is a file; choose another --workdir.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"--workdir={workdir} cannot be written: no permission for {existing}; choose another --workdir."
        )
    config_file = workdir / "config.json"
    if checkpoint_steps(workdir):
        # A key that an earlier version did not have counts as its default.
        old, new = flatten(default_config()) | flatten(ConfigDict(_read(config_file))), flatten(config)
        _same_run(
            config_file,
            *({key: value for key, value in flat.items() if not may_change(key, config)} for flat in (old, new)),
        )
    elif workdir.is_dir() and not config_file.exists():
        foreign = sorted({path.name for path in workdir.iterdir() if not is_unfinished(path)}.difference(_OWN))
        if foreign:
            raise UserError(
                f"--workdir={workdir} holds files, but no config.json, so it is no run's directory ({foreign[0]!r} is none "
                "of a run's files); choose an empty one."
            )


def continued(workdir: Path, config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """Returns the configuration with what a run in `workdir` keeps from its beginning, and a line for each difference."""
    if not checkpoint_steps(workdir):
        return config, []
    config, stored = copy.deepcopy(config), _read(workdir / "config.json")
    follow = stored.get("optimizer", {}).get("norms_follow", False)
    differs = config.optimizer.norms_follow != follow
    config.optimizer.norms_follow = follow
    if not (differs and config.optimizer.lr_factors and has_batch_norm(config)):
        return config, []
    return config, [
        "normalisation layers that config.optimizer.lr_factors does not name keep factor 1, as this run was begun "
        "by an earlier version; new runs give them their convolution's factor."
    ]


def claim(workdir: Path, config: ConfigDict, dataset: dict[str, Any], write: bool = True) -> None:
    """Makes the workdir a run's: `config.json` and `dataset.json`.

    Args:
      workdir: that `check` has let pass.
      config: the run's.
      dataset: what `dataset.json` shall say.
      write: False in a process that leaves writing to another one, and only finds out whether it is the same run.

    Raises:
      UserError: the run in it was begun on other data, or nothing can be written there.
    """
    dataset_file = workdir / "dataset.json"
    if checkpoint_steps(workdir):
        _same_data(dataset_file, _read(dataset_file), dataset)
    if not write:
        return
    with writing_to(workdir, "choose another --workdir"):
        workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", config.to_dict())
    write_json(dataset_file, dataset)


def checkpoint_steps(workdir: Path) -> list[int]:
    """Returns the steps of all finished checkpoints, ascending."""
    directory = workdir / CHECKPOINTS
    return (
        sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit()) if directory.is_dir() else []
    )


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
    content: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "machine": _machine(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    ended = threading.Event()
    usurper: list[str] = []

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            with contextlib.suppress(OSError):  # a full disk is for the run itself to report
                other = _lock_content(descriptor)
                if other and other["id"] != content["id"]:
                    usurper.append(_holder(other))
                    _held.discard(held)
                    return
                _write_lock(descriptor, content)

    def check() -> None:
        if usurper:
            raise UserError(
                f"--workdir={workdir} was taken over by {usurper[0]}; this run ends, and nothing that was saved is lost."
            )

    try:
        before = _lock_content(descriptor)
        if before:
            if not kernel_locks or before["machine"] != content["machine"]:
                _wait_until_stale(workdir, descriptor, before, say)
            say(f"WARNING: {_holder(before)} has ended without releasing {workdir}; this run takes it over.")
        with writing_to(workdir, "choose another --workdir"):
            _write_lock(descriptor, content)
        held = workdir / LOCK
        _held.add(held)
        thread = threading.Thread(target=renew, name="workdir lock", daemon=True)
        thread.start()
        try:
            yield check
        finally:
            ended.set()
            thread.join()
            _held.discard(held)
            if not usurper:
                held.unlink(missing_ok=True)
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
        os.close(descriptor)  # its last holder has removed it in between


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


def _holder(content: dict[str, Any]) -> str:
    return f"process {content['process']} on {content['host']}, started {content['started']}" if content else "a run"


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
    """Returns what tells one running kernel from another: containers of one kernel share file locks, machines do not."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {uuid.getnode():x}"


def _same_run(file: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    different = differences(new, old, "{key} is {first}, there it is {second}")
    if different:
        raise UserError(
            f"--workdir={file.parent} holds another run ({file.name}): {'; '.join(different)}. Choose another --workdir, "
            "or give that run's values to continue with it. Nothing there was changed."
        )


def _same_data(file: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises UserError where a run was begun on other data.

    Compares the digests of all images by split, classes, numbers of images and colours (to rounding), and not the name:
    data may have been prepared again. A run of version 0.4 has no digests; the rest is compared.
    """
    old = old | {"class_names": [plain_name(str(name)) for name in old.get("class_names", ())]}  # as they are read
    before, now = old.get("image_digests", {}), new.get("image_digests", {})
    changed = [split for split in now if split in before and before[split] != now[split]]
    different = [f"the images of {' and '.join(changed)} have changed"] if changed else []
    first, second = ({key: value for key, value in data.items() if key not in _NOT_SHOWN} for data in (new, old))
    different += differences(first, second, "{key} is {first}, there it is {second}")
    if not different:
        different = [f"another {key}" for key in _COLORS if not _is_close(new.get(key), old.get(key))]
    if different:
        workdir = file.parent
        raise UserError(
            f"--workdir={workdir} holds a run on other images ({file.name}): {'; '.join(different)}. To continue it, bring "
            "the earlier images back; or train on these in another --workdir, from that run's parameters with "
            f"--config.init_from={shlex.quote(str(workdir))}. Nothing there was changed."
        )


def _is_close(first: Any, second: Any) -> bool:
    """Returns whether two lists of numbers are the same but for rounding, in which libraries of linear algebra differ."""
    try:
        return first == second or bool(np.allclose(first, second, rtol=1e-4, atol=1e-3))
    except (TypeError, ValueError):
        return False


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "choose another --workdir")
