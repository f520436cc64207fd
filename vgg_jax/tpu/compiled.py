"""Compiles the steps of training and evaluation ahead of time for a TPU slice; finds the largest batch that fits."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from vgg_jax.data.colors import IMAGENET_STATISTICS
from vgg_jax.evaluation.dense_steps import make_dense
from vgg_jax.recipe import Recipe
from vgg_jax.runtime.compilation import compile_step
from vgg_jax.runtime.exceptions import UserError, first_line
from vgg_jax.runtime.sharding import batch_sharding, make_mesh, replicated
from vgg_jax.tpu.chips import Slice
from vgg_jax.training.state import make_model, state_shapes
from vgg_jax.training.steps import compile_train_step
from vgg_jax.validation import check_rules

GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class CompileResult(NamedTuple):
    """Result of compiling one step; memory, FLOPs and bytes are a device's."""

    fits: bool
    memory: float  # bytes of HBM: arguments, results and temporaries
    limit: float  # bytes of HBM that a program may have
    flops: float = 0.0  # as XLA counts them, without padded borders; 0 where it did not fit
    bytes_accessed: float = 0.0  # as XLA counts them, in HBM and vector memory; 0 where it did not fit
    hlo: str = ""  # the compiled program's text; "" where it did not fit


def topology_devices(topology: Slice) -> list[jax.Device]:
    """Returns the slice's devices as the TPU compiler describes them.

    Raises:
      UserError: the compiler is not installed, or does not take the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler, the package libtpu, is not installed; no TPU is needed for it: "
            "pip install -c constraints.txt -e '.[tpu]' in the repository."
        )
    # Without it libtpu asks for a cloud machine's metadata.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # No TPU is used, so two compilers may run at once.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    form = {"chip_config_name": topology.chip.config} if topology.chip.config else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, chips_per_host_bounds=topology.host, **form
        )
    except Exception as error:
        # The plugin's exceptions are of several kinds.
        raise UserError(
            f"--topology={topology.name}: the TPU compiler does not take it: {first_line(error).rstrip('.')}; is "
            "libtpu the version that belongs to this JAX? pip install -c constraints.txt -e '.[tpu]'"
        ) from error
    return list(description.devices)


def compile_train(recipe: Recipe, topology: Slice, devices: list[jax.Device]) -> CompileResult:
    """Compiles one update as `vgg_jax.training.train` does.

    Raises:
      UserError: a configuration that these devices cannot run.
    """
    check_rules(recipe, len(devices))
    mesh = make_mesh(recipe.model_parallel, devices)
    shapes = state_shapes(recipe, mesh)
    return _answer(topology, lambda: compile_train_step(recipe, IMAGENET_STATISTICS, mesh, shapes))


def compile_dense(recipe: Recipe, topology: Slice, devices: list[jax.Device]) -> CompileResult:
    """Compiles dense evaluation as `vgg-jax evaluate` does, for the shape of `dense_shape`."""
    mesh = make_mesh(devices=devices)
    model, whole, split = make_model(recipe), replicated(mesh), batch_sharding(mesh)
    variables = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state_shapes(recipe, mesh).variables
    )
    images, rows, columns = dense_shape(recipe, topology.devices)
    arguments = (
        jax.ShapeDtypeStruct((images, rows, columns, 3), jnp.uint8, sharding=split),
        jax.ShapeDtypeStruct((images, 2), jnp.int32, sharding=split),
        jax.ShapeDtypeStruct((), jnp.bool_, sharding=whole),
    )
    dense = make_dense(model, IMAGENET_STATISTICS)
    return _answer(topology, lambda: compile_step(dense, variables, *arguments, out_shardings=whole))


def dense_shape(recipe: Recipe, devices: int) -> tuple[int, int, int]:
    """Returns (images, rows, columns) that `compile_dense` compiles: Q = S, and photographs of 3 : 2.

    As many images as `vgg-jax evaluate` takes by default, pixels of 64 crops a device, mirror images among them.
    """
    q = recipe.image.eval_scale
    columns = q * 3 // 2
    return devices * max(1, 64 * recipe.image.crop**2 // (2 * q * columns)), q, columns


def _answer(topology: Slice, compile_it: Callable[[], jax.stages.Compiled]) -> CompileResult:
    limit = topology.chip.hbm_gib * GIB / topology.chip.devices
    try:
        compiled = compile_it()
    except jax.errors.JaxRuntimeError as error:
        if (used_and_limit := over(str(error))) is None:
            raise
        return CompileResult(False, *used_and_limit)
    memory: Any = compiled.memory_analysis()
    needed = float(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    costs: Any = compiled.cost_analysis()
    return CompileResult(
        needed <= limit, needed, limit, costs["flops"], costs["bytes accessed"], str(compiled.as_text())
    )


def over(message: str) -> tuple[float, float] | None:
    """Returns (bytes needed, bytes available) of the compiler's refusal for lack of HBM; None for any other error.

    One of its two sentences counts what is wanted for a while alone, without parameters.
    """
    match = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message) or re.search(
        r"temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", message
    )
    if match is None:
        return None
    return float(match[1]) * _UNITS[match[2]], float(match[3]) * _UNITS[match[4]]


def largest(answer_at: Callable[[int], CompileResult], first: int, unit: int) -> tuple[int, int, int]:
    """Returns the largest batch that fits, to within an eighth of itself or one unit, the larger of both.

    Memory is nearly linear in the batch, so the next one tried is where the line through what was seen meets the limit;
    where that says nothing new, the middle.

    Args:
      answer_at: batch -> what the compiler says of it.
      first: the batch to begin with, a multiple of `unit`.
      unit: what batches are multiples of.

    Returns:
      (the largest batch found to fit, or 0; the smallest found not to; how many batches were tried).
    """
    seen: dict[int, CompileResult] = {}
    fits, fails, batch = 0, 0, first
    while True:
        seen[batch] = answer = answer_at(batch)
        if answer.fits:
            fits = max(fits, batch)
        else:
            fails = min(fails or batch, batch)
        if fails and fails - fits <= max(unit, fits // 8 // unit * unit):
            return fits, fails, len(seen)
        batch = _next(seen, fits, fails, unit)


def _next(seen: dict[int, CompileResult], fits: int, fails: int, unit: int) -> int:
    batch, answer = max(seen.items())
    smaller = [size for size in seen if size < batch]
    if smaller:
        near = max(smaller)
        slope = (answer.memory - seen[near].memory) / (batch - near)
    else:
        # As if all of it grew with the batch, which tries too little rather than too much.
        slope = answer.memory / batch
    guess = int((batch + (answer.limit - answer.memory) / slope) / unit) * unit if slope > 0 else 0
    if not fails:
        return max(guess, fits + unit) if guess else 2 * fits
    near_enough = max(unit, fits // 8 // unit * unit)
    if fits < guess < fails:
        return guess
    if guess <= fits and fits + near_enough < fails:
        return fits + near_enough
    if guess >= fails and fails - near_enough > fits:
        return fails - near_enough
    return max(unit, (fits + fails) // 2 // unit * unit)
