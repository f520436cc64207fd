"""Report of `vgg-jax compile-check`: memory, FLOPs, bytes and collectives of a run's steps, and the largest batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vgg_jax import __version__
from vgg_jax.config import flatten
from vgg_jax.recipe import Recipe
from vgg_jax.runtime.console import duration, print_line
from vgg_jax.runtime.exceptions import UserError, did_you_mean
from vgg_jax.runtime.files import write_json
from vgg_jax.runtime.sharding import RULES
from vgg_jax.tpu import compiled
from vgg_jax.tpu.chips import Slice, parse_slice
from vgg_jax.tpu.collectives import Collective, parse_collectives
from vgg_jax.tpu.compiled import GIB, CompileResult
from vgg_jax.validation import validate

# Devices that share FC layers where the configuration does not say.
_MODEL_PARALLEL = 4


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
    recipes = list(_by_sharding(flatten(config), sharding, slice_))
    devices = compiled.topology_devices(slice_)
    print_line(_heading(recipes[0], slice_))
    rows = [_row(each, slice_, devices, largest) for each in recipes]
    content = {
        "topology": slice_.name,
        "chips": slice_.chips,
        "devices": slice_.devices,
        "chip": slice_.chip._asdict(),
        "configuration": dict(recipes[0].given),
        "shardings": rows,
        "dense": _dense(recipes[0], slice_, devices) if dense else None,
        "versions": {"vgg_jax": __version__, "jax": jax.__version__, "libtpu": version("libtpu")},
    }
    if destination:
        write_json(destination, content)
        print_line(f"written: {destination}")
    return content


def _by_sharding(given: dict[str, Any], sharding: str, slice_: Slice) -> Iterator[Recipe]:
    """Returns a recipe for each sharding, without data."""
    if sharding not in ("", "all", *RULES):
        raise UserError(
            f"--sharding={sharding}: it must be one of {', '.join(RULES)}, or all."
            f"{did_you_mean(sharding, (*RULES, 'all'))}"
        )
    for rules in RULES if sharding == "all" else [sharding or given["sharding"]]:
        values = given | {"sharding": rules, "data.name": "builtin", "data.root": "", "start_required": False}
        # ImageNet's number, where the configuration leaves it to data that are not there.
        values["model.num_classes"] = given["model.num_classes"] or 1000
        if rules == "fc_model_parallel" and given["model_parallel"] == 1:
            values["model_parallel"] = min(_MODEL_PARALLEL, slice_.devices)
        yield validate(values, slice_.devices)


def _row(recipe: Recipe, slice_: Slice, devices: list[jax.Device], largest: bool) -> dict[str, Any]:
    began = time.monotonic()
    results: dict[int, CompileResult] = {}

    def compile_at(batch: int) -> CompileResult:
        if batch not in results:
            at_batch = recipe.with_values({"batch_size": batch})
            results[batch] = compiled.compile_train(at_batch, slice_, devices)
            if len(results) > 1:
                verdict = "fits" if results[batch].fits else "does not fit"
                _say(f"  batch {batch:,}: {results[batch].memory / GIB:.2f} GiB a device, {verdict}")
        return results[batch]

    def figures(batch: int) -> dict[str, Any]:
        title = f"train step, {_sharding_title(recipe)}, batch {batch:,}"
        return _say_figures(title, compile_at(batch), batch, slice_)

    row: dict[str, Any] = {
        "sharding": recipe.sharding,
        "model_parallel": recipe.model_parallel,
        "train_step": figures(recipe.batch_size),
    }
    if largest:
        fits, fails, _ = compiled.largest(compile_at, recipe.batch_size, _unit(recipe, slice_))
        row["largest_batch"] = {"fits": fits, "does_not_fit": fails, "a_chip": fits / slice_.chips}
        a_chip = fits / slice_.chips, fails / slice_.chips
        _say(f"  largest batch that fits: {fits:,} ({a_chip[0]:g} images a chip); {fails:,} does not ({a_chip[1]:g})")
        if fits:
            row["largest_batch"]["train_step"] = figures(fits)
    row["compilations"], row["seconds"] = len(results), round(time.monotonic() - began, 1)
    _say(f"  {len(results)} compilation{'s' * (len(results) > 1)} in {duration(row['seconds'])}")
    return row


def _dense(recipe: Recipe, slice_: Slice, devices: list[jax.Device]) -> dict[str, Any]:
    """Compiles dense evaluation, which is the same for every sharding."""
    began = time.monotonic()
    images, rows, columns = compiled.dense_shape(recipe, slice_.devices)
    result = compiled.compile_dense(recipe, slice_, devices)
    seconds = round(time.monotonic() - began, 1)
    title = f"dense evaluation, {images:,} images of {rows} x {columns} and their mirror images"
    figures = _say_figures(title, result, images, slice_)
    _say(f"  1 compilation in {duration(seconds)}")
    return {"images": images, "frame": [rows, columns], **figures, "seconds_compiling": seconds}


def _unit(recipe: Recipe, slice_: Slice) -> int:
    """Returns the unit of batches to try: as finely as the given one divides over the devices, 8 at most."""
    parts = slice_.devices // recipe.model_parallel * recipe.accumulation_steps
    return parts * next(n for n in (8, 4, 2, 1) if recipe.batch_size // parts % n == 0)


def _say_figures(title: str, result: CompileResult, images: int, slice_: Slice) -> dict[str, Any]:
    """Prints a step's figures, and returns them for the JSON."""
    parts = slice_.chip.devices
    figures: dict[str, Any] = {"images": images, "images_a_chip": images / slice_.chips, "fits": result.fits}
    for key, value in (("memory", result.memory), ("limit", result.limit)):
        figures |= {f"{key}_a_device": value, f"{key}_a_chip": value * parts}
    collectives: list[Collective] = []
    if result.hlo:
        collectives = parse_collectives(result.hlo, slice_.devices)
        figures |= {
            "flops_a_device": result.flops,
            "flops_a_chip": result.flops * parts,
            "bytes_accessed_a_device": result.bytes_accessed,
            "collectives": [each._asdict() for each in collectives],
        }
    _say(*_lines(title, result, images, slice_, collectives))
    return figures


def _heading(recipe: Recipe, slice_: Slice) -> str:
    chip = slice_.chip
    two = f", {chip.devices} devices each" if chip.devices > 1 else ""
    return (
        f"{recipe.model.network.title} for {slice_.name}: {slice_.chips:,} chips{two}; a chip has "
        f"{chip.hbm_gib:g} GiB of HBM at {chip.hbm_bandwidth / 1e9:,.0f} GB/s, {chip.flops / 1e12:,.0f} TFLOP/s "
        f"bfloat16, {chip.links} links of {chip.link_bandwidth / 1e9:.0f} GB/s each way\n"
        f"crop {recipe.image.crop}, {recipe.model.dtype}, jax {jax.__version__}, libtpu {version('libtpu')}"
    )


def _lines(
    title: str, result: CompileResult, images: int, slice_: Slice, collectives: list[Collective]
) -> Iterator[str]:
    parts = slice_.chip.devices
    yield f"{title} ({images / slice_.chips:g} images a chip)"
    needed, limit = result.memory / GIB, result.limit / GIB
    both = f" ({needed * parts:.2f} of {limit * parts:.2f} a chip)" if parts > 1 else ""
    yield f"  {'fits' if result.fits else 'DOES NOT FIT'}: {needed:.2f} of {limit:.2f} GiB a device{both}"
    if not result.hlo:
        return
    flops, accessed = result.flops / 1e12, result.bytes_accessed / 1e9
    a_chip = f" ({flops * parts:,.3g} and {accessed * parts:,.3g} a chip)" if parts > 1 else ""
    yield f"  {flops:,.3g} TFLOP and {accessed:,.3g} GB accessed in HBM and vector memory a device{a_chip}"
    yield f"  {'collective':<20} {'type':<6} {'count':>5} {'MB':>10} {'devices':>8}"
    groups: dict[tuple, list[int]] = {}
    for each in sorted(collectives, key=lambda each: -each.bytes):
        groups.setdefault((each.kind, each.dtype, each.devices), []).append(each.bytes)
    for (kind, dtype, devices), sizes in groups.items():
        yield f"  {kind:<20} {dtype:<6} {len(sizes):>5} {sum(sizes) / 1e6:>10,.2f} {devices:>8,}"


def _sharding_title(recipe: Recipe) -> str:
    return recipe.sharding + (f" over {recipe.model_parallel}" if recipe.model_parallel > 1 else "")


def _say(*lines: str) -> None:
    print_line("\n".join(lines))
