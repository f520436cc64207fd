"""Compilation of steps for the devices there are, and the directory that keeps programs for the next start."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from vgg_jax.runtime.console import print_error
from vgg_jax.runtime.exceptions import UserError, first_line

AUTO = "auto"
COMPILED = "compiled"  # directory of kept programs
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_MAX_BYTES = 4 * 2**30  # of kept programs; the quickstart's have 0.5 MiB
_LEAST_FREE = 2**28  # bytes on the disk
_LEAST_SECONDS = 0.2  # what compiles faster is not worth a file

# Per-compilation XLA options, by device kind or platform.
COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    # The CPU backend has faster convolution gradients than those it takes by default, by a quarter to a half on two
    # cores (`python -m benchmarks.cpu_options`). oneDNN's custom call adds nothing, and jaxlib 0.12 cannot keep what
    # uses it.
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"},
    # By itself the TPU compiler reduces all gradients in one piece at the end of the step, where nothing hides it. With
    # these, gradients of 4 MiB and more are reduced layer by layer, carried by the convolutions that follow
    # (benchmarks/compile_check.md).
    "tpu": {
        "xla_jf_crs_combiner_threshold_in_bytes": str(4 * 2**20),
        "xla_enable_async_all_reduce": "true",
        "xla_tpu_enable_async_collective_fusion": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
        "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
        "xla_tpu_overlap_compute_collective_tc": "true",
    },
    # These options exceed v4's VMEM, and the compiler only fails after minutes.
    "TPU v4": {},
}


def compile_step(step: Callable, *shapes: Any, donate: bool = False, out_shardings: Any = None) -> jax.stages.Compiled:
    """Compiles a step for arguments of these shapes, dtypes and shardings (jax.ShapeDtypeStruct).

    With `donate` the first argument's memory is reused for the result.
    """
    options = {} if out_shardings is None else {"out_shardings": out_shardings}
    lowered = jax.jit(step, donate_argnums=(0,) if donate else (), **options).lower(*shapes)
    device = _device(shapes)
    if compiler_options := COMPILER_OPTIONS.get(device.device_kind, COMPILER_OPTIONS.get(device.platform)):
        try:
            return lowered.compile(compiler_options=compiler_options)
        except jax.errors.JaxRuntimeError as error:
            # Another version may not know an option, and for another step vector memory may be too small.
            if not any(reason in str(error) for reason in ("No such compile option", "memory space vmem")):
                raise
    return lowered.compile()


def _device(shapes: Any) -> jax.Device:
    """Returns one of the devices of the arguments, not always of this process (`vgg-jax compile-check`)."""
    shardings = (leaf.sharding for leaf in jax.tree.leaves(shapes))
    devices = next((sharding.device_set for sharding in shardings if sharding is not None), None)
    return next(iter(devices)) if devices else jax.devices()[0]


def check_devices() -> None:
    """Finds the devices; to be called before anything is computed, and of several processes after they have joined.

    Raises:
      UserError: the environment asks JAX for devices that it cannot have, or to compile nothing.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        variable = os.environ.get("JAX_DISABLE_JIT", "")
        raise UserError(
            f"JAX_DISABLE_JIT={variable} lets JAX compile nothing, and every step here is compiled; unset it."
        )
    try:
        jax.devices()
    # An assertion where there is no plugin for CUDA.
    except (RuntimeError, AssertionError) as error:
        if jax.distributed.is_initialized() and isinstance(error, jax.errors.JaxRuntimeError):
            raise  # of another process
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = f" ({first_line(error).rstrip('.')})" if str(error) else ""
        raise UserError(
            f"JAX_PLATFORMS={asked}: JAX cannot have {'these devices' if asked else 'the devices here'}{reason}; "
            "install its support for them (pip install 'vgg-jax[gpu]' or 'vgg-jax[tpu]'), end what else uses them, or "
            "compute on the CPU with JAX_PLATFORMS=cpu."
        ) from error


def warn_of_unseen_gpu(warn: Callable[[str], None] = print_error) -> None:
    """Warns if the CPU computes unasked next to an NVIDIA driver; call it after `check_devices`."""
    if _NVIDIA_DRIVER.exists() and jax.default_backend() == "cpu" and not os.environ.get("JAX_PLATFORMS"):
        warn(
            "WARNING: this machine has an NVIDIA driver, but JAX does not see a GPU, and the CPU computes; pip install "
            "'vgg-jax[gpu]' installs support (JAX_PLATFORMS=cpu: the CPU is meant)."
        )


@contextlib.contextmanager
def keep_compiled(
    directory: str = AUTO,
    workdir: Path | None = None,
    warn: Callable[[str], None] = print_error,
) -> Iterator[str]:
    """Enables JAX's persistent compilation cache within; enter it before the first compilation.

    An unusable directory gives one warning, and so do unusable entries, which are compiled again.

    Args:
      directory: "" for none; AUTO: the one that JAX has already (JAX_COMPILATION_CACHE_DIR), or `workdir`, or the
        user's.
      workdir: where AUTO shall keep programs that several machines need.
      warn: prints a line.

    Yields:
      The directory; "" for none.
    """
    settings: Any = jax.config
    used, seconds = settings.jax_compilation_cache_dir or "", settings.jax_persistent_cache_min_compile_time_secs
    if directory == AUTO and used:
        yield used
        return
    path = _usable(directory, workdir, warn) if directory else None
    if (directory := str(path or "")) == used:
        yield directory
        return
    _set_cache(directory, _LEAST_SECONDS)
    try:
        with _warning_once(path, warn) if path else contextlib.nullcontext():
            yield directory
    finally:
        _set_cache(used, seconds)


def _set_cache(directory: str, least_seconds: float) -> None:
    jax.config.update("jax_compilation_cache_dir", directory or None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    compilation_cache.reset_cache()


def _usable(directory: str, workdir: Path | None, warn: Callable[[str], None]) -> Path | None:
    """Makes the directory that `keep_compiled` is asked for; returns None, after a warning, if it cannot be used."""
    path = Path("~/.cache" if directory == AUTO else directory)
    try:
        if directory == AUTO:
            path = workdir / COMPILED if workdir else _cache_home() / "vgg_jax" / COMPILED
        path = path.expanduser()
        _claim(path, is_ours=directory == AUTO and not workdir)
    # RuntimeError: nobody knows what ~ is.
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the home directory is unknown"
        warn(
            f"WARNING: compiled programs cannot be kept in {path} ({reason}), so that this start and the next compile "
            "anew; JAX_COMPILATION_CACHE_DIR=DIR chooses another directory."
        )
        return None
    return path.absolute()


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _claim(path: Path, is_ours: bool) -> None:
    """Makes the directory, finds out whether files can be written there, and removes those used longest ago beyond
    _MAX_BYTES.

    JAX has a bound too, which breaks where a process is killed between two of its writes.

    Raises:
      OSError: it cannot be used, or `is_ours` and yet another user's, who could have this process run anything.
    """
    path.mkdir(0o700, parents=True, exist_ok=True)
    if is_ours and path.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it is another user's")
    with tempfile.TemporaryFile(dir=path):
        pass
    sizes = {file: file.stat() for file in path.glob("*-cache")}
    total = 0
    for file, status in sorted(sizes.items(), key=lambda item: -max(item[1].st_atime, item[1].st_mtime)):
        total += status.st_size
        if total > _MAX_BYTES:
            file.unlink(missing_ok=True)
    if shutil.disk_usage(path).free < _LEAST_FREE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _warning_once(path: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Turns JAX's warnings of damaged entries into one line, and removes the entries, to be made again."""
    show, warned = warnings.showwarning, False

    def showwarning(message: Any, *arguments: Any, **keywords: Any) -> None:
        nonlocal warned
        entry = re.match(r"Error (?:read|writ)ing persistent compilation cache entry for '([^']*)': (.*)", str(message))
        if not entry:
            show(message, *arguments, **keywords)
            return
        with contextlib.suppress(OSError):
            for file in path.glob(f"{glob.escape(entry[1])}-*-cache"):
                file.unlink(missing_ok=True)
        if not warned:
            warn(
                f"WARNING: what is kept of compiled programs in {path} is damaged or cannot be written ({entry[2]}); "
                "they are compiled anew."
            )
        warned = True

    warnings.showwarning = showwarning
    try:
        yield
    finally:
        warnings.showwarning = show
