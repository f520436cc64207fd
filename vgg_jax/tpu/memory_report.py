"""What `vgg-jax compile-check` does and prints, read top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vgg_jax import __version__
from vgg_jax import config as config_lib
from vgg_jax.models import NetworkSpec
from vgg_jax.runtime.console import duration
from vgg_jax.runtime.exceptions import UserError, did_you_mean
from vgg_jax.runtime.files import write_json
from vgg_jax.runtime.sharding import RULES
from vgg_jax.tpu import compiled
from vgg_jax.tpu.chips import Slice, parse_slice
from vgg_jax.tpu.compiled import GIB, CompileResult
from vgg_jax.validation import validate

_MODEL_PARALLEL = 4  # devices that share FC layers where the configuration does not say


def check(
    config: ConfigDict, topology: str, sharding: str, dense: bool, largest: bool, destination: Path | None
) -> dict:
    """Compiles, prints a table meanwhile, and writes the same as JSON.

    Args:
      config: of the run.
      topology: see `chips.parse_slice`.
      sharding: a key of `sharding.RULES`, "all", or "" for the configuration's.
      dense: whether dense evaluation is compiled too.
      largest: whether the largest batch that fits is searched.
      destination: of the JSON; None: none.

    Returns:
      What the JSON says: sizes in bytes, times in seconds.

    Raises:
      UserError: a slice, a sharding or a batch that cannot be, or no compiler.
    """
    slice_ = parse_slice(topology)
    if destination and not destination.absolute().parent.is_dir():
        raise UserError(f"--json={destination}: there is no directory {destination.absolute().parent}; make it first.")
    if destination and destination.is_dir():
        raise UserError(f"--json={destination} is a directory; name a file in it.")
    configs = list(_by_sharding(config, sharding, slice_))
    devices = compiled.topology_devices(slice_)
    print(_heading(configs[0], slice_), flush=True)
    rows = [_row(each, slice_, devices, largest) for each in configs]
    content = {
        "topology": slice_.name,
        "chips": slice_.chips,
        "devices": slice_.devices,
        "chip": slice_.chip._asdict(),
        "configuration": config_lib.flatten(configs[0]),
        "shardings": rows,
        "dense": _dense(configs[0], slice_, devices) if dense else None,
        "versions": {"vgg_jax": __version__, "jax": jax.__version__, "libtpu": _libtpu_version()},
    }
    if destination:
        write_json(destination, content)
        print(f"written: {destination}")
    return content


def _by_sharding(config: ConfigDict, sharding: str, slice_: Slice) -> Iterator[ConfigDict]:
    """Returns a configuration for each sharding, without data."""
    if sharding not in ("", "all", *RULES):
        raise UserError(
            f"--sharding={sharding}: it must be one of {', '.join(RULES)}, or all."
            f"{did_you_mean(sharding, (*RULES, 'all'))}"
        )
    for rules in RULES if sharding == "all" else [sharding or config.sharding]:
        each = config.copy_and_resolve_references()
        each.unlock()
        each.sharding = rules
        if rules == "fc_model_parallel" and each.model_parallel == 1:
            each.model_parallel = min(_MODEL_PARALLEL, slice_.devices)
        each.data.name, each.data.root, each.start_required = "builtin", "", False
        validate(each, slice_.devices)
        yield each


def _row(config: ConfigDict, slice_: Slice, devices: list[jax.Device], largest: bool) -> dict[str, Any]:
    began = time.monotonic()
    answer = compiled.compile_train(config, slice_, devices)
    compilations = 1
    row: dict[str, Any] = {
        "sharding": config.sharding,
        "model_parallel": config.model_parallel,
        "train_step": _figures(answer, config.batch_size, slice_),
    }
    _say(_lines(f"train step, {_named(config)}, batch {config.batch_size:,}", answer, config.batch_size, slice_))
    if largest:
        unit, tried = _unit(config, slice_), {config.batch_size: row["train_step"]["answer"]}

        def answer_at(batch: int) -> CompileResult:
            if batch not in tried:
                at = config.copy_and_resolve_references()
                at.batch_size = batch
                tried[batch] = compiled.compile_train(at, slice_, devices)
                verdict = "fits" if tried[batch].fits else "does not fit"
                _say([f"  batch {batch:,}: {tried[batch].memory / GIB:.2f} GiB a device, {verdict}"])
            return tried[batch]

        fits, fails, _ = compiled.largest(answer_at, config.batch_size, unit)
        compilations += len(tried) - 1
        row["largest_batch"] = {"fits": fits, "does_not_fit": fails, "a_chip": fits / slice_.chips}
        _say(
            [
                f"  largest batch that fits: {fits:,} ({fits / slice_.chips:g} images a chip); {fails:,} does not "
                f"({fails / slice_.chips:g})"
            ]
        )
        if fits:
            row["largest_batch"]["train_step"] = _figures(tried[fits], fits, slice_)
            _say(_lines(f"train step, {_named(config)}, batch {fits:,}", tried[fits], fits, slice_))
    row["compilations"], row["seconds"] = compilations, round(time.monotonic() - began, 1)
    _say([f"  {compilations} compilation{'s' * (compilations > 1)} in {duration(row['seconds'])}"])
    return _without_answers(row)


def _dense(config: ConfigDict, slice_: Slice, devices: list[jax.Device]) -> dict[str, Any]:
    """Compiles dense evaluation, which is the same for every sharding."""
    began = time.monotonic()
    images, rows, columns = compiled.dense_shape(config, slice_.devices)
    answer = compiled.compile_dense(config, slice_, devices)
    seconds = round(time.monotonic() - began, 1)
    title = f"dense evaluation, {images:,} images of {rows} x {columns} and their mirror images"
    _say(_lines(title, answer, images, slice_))
    _say([f"  1 compilation in {duration(seconds)}"])
    figures = _without_answers(_figures(answer, images, slice_))
    return {"images": images, "frame": [rows, columns], **figures, "seconds_compiling": seconds}


def _unit(config: ConfigDict, slice_: Slice) -> int:
    """Returns the unit of batches to try: as finely as the given one divides over the devices, 8 at most."""
    parts = slice_.devices // config.model_parallel * config.accumulation_steps
    return parts * next(n for n in (8, 4, 2, 1) if config.batch_size // parts % n == 0)


def _figures(answer: CompileResult, images: int, slice_: Slice) -> dict[str, Any]:
    """Returns a step's figures for the JSON."""
    found: dict[str, Any] = {
        "answer": answer,
        "images": images,
        "images_a_chip": images / slice_.chips,
        "fits": answer.fits,
        "memory_a_device": answer.memory,
        "memory_a_chip": answer.memory * slice_.chip.devices,
        "limit_a_device": answer.limit,
        "limit_a_chip": answer.limit * slice_.chip.devices,
    }
    line = answer.roofline
    if line:
        found |= {
            "flops_a_device": answer.flops,
            "flops_a_chip": answer.flops * slice_.chip.devices,
            "bytes_accessed_a_device": answer.bytes_accessed,
            "hbm_bytes_a_device": line.hbm_bytes,
            "hbm_bytes_a_chip": line.hbm_bytes * slice_.chip.devices,
            "seconds": line.seconds,
            "compute_seconds": line.compute_seconds,
            "collective_seconds": line.collective_seconds,
            "exposed_seconds": line.exposed_seconds,
            "images_per_second": images / line.seconds,
            "images_per_second_a_chip": images / line.seconds / slice_.chips,
            "scaling_efficiency": line.efficiency,
            "collectives": [each._asdict() for each in line.collectives],
        }
    return found


def _without_answers(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_answers(value) for key, value in tree.items() if key != "answer"}
    return tree


def _heading(config: ConfigDict, slice_: Slice) -> str:
    chip = slice_.chip
    two = f", {chip.devices} devices each" if chip.devices > 1 else ""
    return (
        f"{NetworkSpec.from_config(config).title} for {slice_.name}: {slice_.chips:,} chips{two}; a chip has {chip.hbm_gib:g} GiB of "
        f"HBM at {chip.hbm_bandwidth / 1e9:,.0f} GB/s, {chip.flops / 1e12:,.0f} TFLOP/s bfloat16, {chip.links} links of "
        f"{chip.link_bandwidth / 1e9:.0f} GB/s each way\n"
        f"crop {config.image.crop}, {config.model.dtype}, jax {jax.__version__}, libtpu {_libtpu_version()}; times are at "
        "the published figures, which no real step reaches"
    )


def _lines(title: str, answer: CompileResult, images: int, slice_: Slice) -> Iterator[str]:
    chip = slice_.chip
    yield f"{title} ({images / slice_.chips:g} images a chip)"
    needed, limit = answer.memory / GIB, answer.limit / GIB
    both = f" ({needed * chip.devices:.2f} of {limit * chip.devices:.2f} a chip)" if chip.devices > 1 else ""
    yield f"  {'fits' if answer.fits else 'DOES NOT FIT'}: {needed:.2f} of {limit:.2f} GiB a device{both}"
    line = answer.roofline
    if line is None:
        return
    a_chip = f" ({answer.flops * chip.devices / 1e12:,.3g} and {line.hbm_bytes * chip.devices / 1e9:,.3g} a chip)"
    yield (
        f"  {answer.flops / 1e12:,.3g} TFLOP and {line.hbm_bytes / 1e9:,.3g} GB of HBM traffic a device"
        f"{a_chip * (chip.devices > 1)}"
    )
    yield (
        f"  {line.seconds * 1e3:,.2f} ms: {line.compute_seconds * 1e3:,.2f} computing, {line.exposed_seconds * 1e3:,.2f} "
        f"waiting for {line.collective_seconds * 1e3:,.2f} of collectives; {images / line.seconds:,.0f} images/s, "
        f"{images / line.seconds / slice_.chips:,.0f} a chip; scaling efficiency {line.efficiency:.1%}"
    )
    yield f"  {'collective':<20} {'type':<6} {'count':>5} {'MB':>10} {'devices':>8} {'ms':>8} {'exposed':>8}"
    for (kind, dtype, group, overlapped), group_of in _grouped(line.collectives).items():
        yield (
            f"  {kind:<20} {dtype:<6} {len(group_of):>5} {sum(each.bytes for each in group_of) / 1e6:>10,.2f} {group:>8,} "
            f"{sum(each.seconds for each in group_of) * 1e3:>8,.3f} {sum(each.exposed for each in group_of) * 1e3:>8,.3f}"
            f"{'  overlapped' if overlapped else ''}"
        )


def _grouped(collectives: Iterable) -> dict[tuple, list]:
    groups: dict[tuple, list] = {}
    for each in sorted(collectives, key=lambda one: -one.bytes):
        groups.setdefault((each.kind, each.dtype, each.devices, each.overlapped), []).append(each)
    return groups


def _named(config: ConfigDict) -> str:
    return config.sharding + (f" over {config.model_parallel}" if config.model_parallel > 1 else "")


def _say(lines: Iterable[str]) -> None:
    print("\n".join(lines), flush=True)


def _libtpu_version() -> str:
    from importlib.metadata import version

    return version("libtpu")
