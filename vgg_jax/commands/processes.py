"""Flags of the commands that several processes run together."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from vgg_jax.commands.cli import Flags
from vgg_jax.runtime.exceptions import UserError


def define(flags: Flags) -> Callable[[], AbstractContextManager[None]]:
    """Defines the flags; returns a function that joins this process to the others they name, and imports JAX."""
    several = flags.DEFINE_bool(
        "distributed",
        False,
        "Run as one of several processes that train or evaluate together. It suffices where JAX finds the others by "
        "itself (Cloud TPU, GKE, SLURM). Elsewhere give each process --coordinator_address, --num_processes and "
        "--process_id, which imply it; launch/local.sh starts several on this machine.",
    )
    address = flags.DEFINE_string(
        "coordinator_address", "", "HOST:PORT at which process 0 listens for the other processes."
    )
    count = flags.DEFINE_integer("num_processes", None, "Number of processes that run together.", lower_bound=1)
    index = flags.DEFINE_integer(
        "process_id", None, "Number of this process, from 0 to --num_processes - 1.", lower_bound=0
    )
    seconds = flags.DEFINE_integer(
        "join_timeout",
        0,
        "Seconds to wait for the other processes at the start. Default: 60 with --coordinator_address, else 300.",
        lower_bound=0,
        upper_bound=7 * 24 * 3600,
    )

    def joined() -> AbstractContextManager[None]:
        given = {
            "--coordinator_address": address.value or None,
            "--num_processes": count.value,
            "--process_id": index.value,
        }
        missing = [name for name, value in given.items() if value is None]
        if not missing:
            _check_processes(address.value, count.value or 0, index.value or 0)
        elif len(missing) < len(given):
            raise UserError(
                "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I go together; missing: "
                f"{', '.join(missing)}."
            )
        elif not several.value:
            return nullcontext()
        from vgg_jax.runtime import session

        return session.joined(address.value, count.value, index.value, seconds.value)

    return joined


def _check_processes(address: str, count: int, index: int) -> None:
    if not re.fullmatch(r".+:\d{1,5}", address) or int(address.rpartition(":")[2]) > 65535:
        raise UserError(f"--coordinator_address={address} has no port; write HOST:PORT, as localhost:1234.")
    if index >= count:
        raise UserError(f"--process_id={index} is not below --num_processes={count}; processes are numbered from 0.")
