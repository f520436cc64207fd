"""Memory of devices and host, and whether a run fits."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax
from jax.sharding import Mesh

from vgg_jax.recipe import Recipe
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.sharding import bytes_a_device, local_rows
from vgg_jax.training.state import TrainState, state_bytes_by_sharding

_INTERPRETER_BYTES = 200 * 2**20  # of a process that decodes


def memory_a_device() -> int:
    """Returns the bytes of memory that programs may use on each of this process's devices.

    CPU devices share the host's memory.
    """
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit") or host_memory() // jax.local_device_count()


def host_memory() -> int:
    """Returns the bytes of this machine's memory, or of its container's where that may use less."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        size = min(size, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return size


def check_memory(recipe: Recipe, shapes: TrainState, mesh: Mesh) -> None:
    """Raises UserError, before anything is compiled or decoded, where there is certainly too little memory."""
    image = 3 * recipe.image.crop**2  # bytes, as the host decodes it; the first step makes it float
    state, batch = bytes_a_device(shapes), recipe.batch_size // mesh.shape["data"] * image
    need_memory(state + batch + 4 * batch // recipe.accumulation_steps, "on each device for the state and a batch")
    threads = recipe.data.threads * max(1, recipe.data.processes)
    ahead = (threads + 2) * len(local_rows(mesh, recipe.batch_size)) * image
    needed = ahead + recipe.data.processes * _INTERPRETER_BYTES
    if needed > host_memory():
        raise UserError(
            f"config.data.threads={recipe.data.threads} and config.data.processes={recipe.data.processes} need "
            f"{needed / 2**30:,.1f} GiB to decode {threads} batches ahead, and this machine has "
            f"{host_memory() / 2**30:,.1f} GiB of memory; give fewer of them or a smaller config.batch_size."
        )


def need_memory(num_bytes: int, purpose: str) -> None:
    """Raises UserError where a device has less memory."""
    if num_bytes > memory_a_device():
        raise UserError(
            f"this run needs {num_bytes / 2**30:,.1f} GiB {purpose}, and there are "
            f"{memory_a_device() / 2**30:,.1f} GiB; take a smaller config.batch_size, config.image.crop or model "
            "(config.model.fc_width, config.model.width_multiplier), config.accumulation_steps, or more "
            "devices (config.sharding=fsdp splits the state)."
        )


def state_line(recipe: Recipe, shapes: TrainState) -> str:
    """Returns the memory of parameters and momentum on each device, exactly, and with the other shardings."""
    here = f"parameters and momentum a device: {bytes_a_device(shapes) / 2**20:,.1f} MiB ({recipe.sharding})"
    if jax.device_count() == 1:
        return here
    others = [
        f"{rules}{f' over {parallel}' if parallel > 1 else ''} {size / 2**20:,.1f}"
        for rules, parallel, size in state_bytes_by_sharding(recipe)
        if rules != recipe.sharding
    ]
    return f"{here}; with --config.sharding {', '.join(others)}"
