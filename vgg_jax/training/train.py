"""Training, from a configuration to a summary: read top to bottom, one phase after another."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vgg_jax.config import flatten
from vgg_jax.data.pipeline import batches, eval_examples, train_examples
from vgg_jax.data.sources import Dataset, open_dataset, values_of_data
from vgg_jax.data.statistics import class_weights
from vgg_jax.recipe import Recipe
from vgg_jax.runs import RunDir
from vgg_jax.runtime import compilation, distributed, lock
from vgg_jax.runtime.console import Console, duration
from vgg_jax.runtime.digests import params_sha256
from vgg_jax.runtime.exceptions import Interrupted
from vgg_jax.runtime.provenance import environment
from vgg_jax.runtime.sharding import make_mesh, replicated
from vgg_jax.training import diagnostics, schedules
from vgg_jax.training.center_crop import evaluate
from vgg_jax.training.checkpoints import Checkpoints, Progress
from vgg_jax.training.memory import check_memory, need_memory, state_line
from vgg_jax.training.metrics import MetricsLog, TrainMetrics, top5_text
from vgg_jax.training.profiling import tracing
from vgg_jax.training.run_texts import closing, heading, stopped
from vgg_jax.training.state import TrainState, init_state, state_shapes
from vgg_jax.training.steps import Batch, Steps, compile_steps
from vgg_jax.training.transplant import Donor, check_fit, read_donor, start_from
from vgg_jax.training.workdir import check_end, check_workdir, claim_workdir, continued_recipe, data_facts, facts
from vgg_jax.validation import validate


class _Run(NamedTuple):
    """A run that has been checked and can begin."""

    recipe: Recipe
    workdir: Path
    dataset: Dataset
    mesh: Mesh
    shapes: TrainState  # jax.ShapeDtypeStruct
    donor: Donor | None  # to start from, where there is no checkpoint
    steps_per_epoch: float
    total_steps: int
    console: Console
    began: float  # time.monotonic() at the start of this process's training


class _Resources(NamedTuple):
    """The compiled steps, files and batches that a run holds from its start to its end."""

    check_lock: Callable[[], None]  # raises UserError once another run has taken the workdir
    steps: Steps
    checkpoints: Checkpoints
    metrics_log: MetricsLog
    metrics: TrainMetrics
    train_batches: Iterator[Batch]
    trace: Callable[[int, TrainState], None]  # of `profiling.tracing`
    stop: distributed.Stop


def train(config: ConfigDict, workdir: Path, quiet: bool = False) -> dict[str, Any]:
    """Trains to the end of the schedule or of the epochs, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: see `vgg_jax.config`; its keys are the fields of `vgg_jax.recipe.Recipe`.
      workdir: made if need be; afterwards it holds config.json, dataset.json, metrics.jsonl, tensorboard/,
        checkpoints/<step>/ and summary.json.
      quiet: print nothing.

    Returns:
      The content of summary.json.

    Raises:
      UserError: anything that only the user can put right; nothing that was there is lost.
      Interrupted: by a signal, after saving.
    """
    run = _checked(config, workdir, quiet)
    recipe = run.recipe
    with contextlib.ExitStack() as stack:
        resources, step, state, progress = _open(run, stack)
        steps, checkpoints, metrics = resources.steps, resources.checkpoints, resources.metrics
        learning_rate = _learning_rates(run)
        evaluation_due = schedules.every(recipe.eval_every_epochs * run.steps_per_epoch)
        checkpoint_due = schedules.every(recipe.checkpoint_every_steps or math.inf)
        seconds_before, first = progress.seconds, step + 1
        run.console.start(step, run.total_steps)
        while step < run.total_steps and not schedules.is_finished(recipe, progress.plateau):
            with metrics.waiting_for_input():
                batch = next(resources.train_batches)
            lr = learning_rate(step, progress)
            step += 1
            resources.trace(step, state)
            train_step = steps.train_with_norms if metrics.is_logged(step) else steps.train
            with jax.transfer_guard("disallow"):
                state, step_metrics = train_step(state, batch, lr)
            if step == first:
                metrics.started(step_metrics, run.began, progress)
            metrics.add(step, step_metrics)
            if metrics.is_logged(step):
                checkpoints.check()
            stopping = resources.stop.after(step)
            at_end = step == run.total_steps
            if not (evaluation_due(step) or checkpoint_due(step) or stopping or at_end):
                continue

            # Nothing is saved before the last update and its validation are known to be finite.
            metrics.flush(state)
            resources.check_lock()
            if evaluation_due(step) or at_end:
                _evaluate(run, resources, step, state, progress, evaluation_due(step))
            progress.seconds, progress.sums = seconds_before + time.monotonic() - run.began, metrics.sums()
            checkpoints.save(step, state, progress)
            if stopping and not at_end and not schedules.is_finished(recipe, progress.plateau):
                checkpoints.wait()
                signum = resources.stop.signum
                raise Interrupted(stopped(step, run.total_steps, checkpoints.path(step), signum), signum)
            metrics.resume_clock()
        summary = _finish(run, resources, step, state, progress)
    run.console.print(closing(recipe, summary))
    return summary


def dry_run(config: ConfigDict, workdir: Path) -> None:
    """Prints what `train` would run, on what data and in how much memory; writes nothing into the workdir.

    Data that can be prepared is. Raises as `train`.
    """
    run = _checked(config, workdir, quiet=False)
    check_end(run.workdir, run.recipe, run.steps_per_epoch)
    run.console.print(heading(run.recipe, run.dataset, run.shapes.params, run.mesh, run.workdir))
    with compilation.keep_compiled(run.recipe.compilation_cache, None, run.console.print):
        _compile(run)
    run.console.print(f"dry run: nothing was written to {workdir}; without --dry_run it takes {run.total_steps} steps")


def _checked(config: ConfigDict, workdir: Path, quiet: bool) -> _Run:
    """Decides what will run, where and on what data; raises UserError where it cannot."""
    began = time.monotonic()
    compilation.check_devices()
    distributed.check_same(facts(flatten(config), workdir))
    console = Console(quiet or not distributed.is_primary())
    recipe = validate(config, jax.device_count())
    recipe = recipe.with_values(distributed.primary_first(lambda: values_of_data(recipe)))
    check_workdir(workdir, recipe)
    recipe, lines = continued_recipe(workdir, recipe)
    for line in lines:
        console.print(line)
    mesh = make_mesh(recipe.model_parallel)
    shapes = state_shapes(recipe, mesh)
    check_memory(recipe, shapes, mesh)
    donor = None
    if recipe.init_from and not RunDir(workdir).checkpoint_steps():
        donor = read_donor(recipe.init_from)
        check_fit(shapes.variables, donor, recipe.init_layers)
    dataset = distributed.primary_first(lambda: open_dataset(recipe))
    distributed.check_same(data_facts(dataset.description()))
    steps_per_epoch = schedules.epoch_steps(len(dataset.train), recipe.batch_size, recipe.min_epoch_steps)
    total_steps = schedules.total_steps(recipe, steps_per_epoch)
    return _Run(recipe, workdir, dataset, mesh, shapes, donor, steps_per_epoch, total_steps, console, began)


def _open(run: _Run, stack: contextlib.ExitStack) -> tuple[_Resources, int, TrainState, Progress]:
    """Locks the workdir, compiles, restores, and opens logs and batches, all until the stack ends.

    Returns:
      The resources, and the step, state and progress to begin with.
    """
    recipe, console = run.recipe, run.console
    check_lock = _own_workdir(run, stack)
    _keep_compiled(run, stack)
    steps = _compile(run)
    checkpoints = stack.enter_context(contextlib.closing(Checkpoints(run.workdir)))
    step, state, progress = _initial(run, checkpoints)
    metrics_log = MetricsLog(run.workdir, step, distributed.is_primary(), console.print)
    stack.enter_context(contextlib.closing(metrics_log))
    stack.callback(console.close)
    metrics = TrainMetrics(recipe, run.steps_per_epoch, run.total_steps, metrics_log, console, progress.sums)
    train_batches = batches(recipe, train_examples(recipe, run.dataset.train), run.mesh, start=step)
    stack.enter_context(contextlib.closing(train_batches))
    traced = recipe.profile_steps if distributed.is_primary() else None
    trace = stack.enter_context(tracing(traced, RunDir(run.workdir).tensorboard, console.print))
    stop = distributed.Stop(stack.enter_context(distributed.signals_received()))
    resources = _Resources(check_lock, steps, checkpoints, metrics_log, metrics, train_batches, trace, stop)
    return resources, step, state, progress


def _own_workdir(run: _Run, stack: contextlib.ExitStack) -> Callable[[], None]:
    """Locks the workdir until the stack ends; returns the check that raises UserError once another run has taken it."""
    primary, console, dataset = distributed.is_primary(), run.console, run.dataset
    check_lock = stack.enter_context(lock.locked(run.workdir, console.print)) if primary else lambda: None
    # What may run here is asked again: another run may have begun and ended before this one had the lock.
    distributed.primary_first(lambda: check_workdir(run.workdir, run.recipe))
    check_end(run.workdir, run.recipe, run.steps_per_epoch)
    distributed.primary_first(lambda: claim_workdir(run.workdir, run.recipe, dataset.description(), write=primary))
    distributed.check_shared(run.workdir, "--workdir")
    run.console.print(heading(run.recipe, run.dataset, run.shapes.params, run.mesh, run.workdir))
    return check_lock


def _initial(run: _Run, checkpoints: Checkpoints) -> tuple[int, TrainState, Progress]:
    """Returns the step, state and progress to begin with: resume > init_from > random."""
    distributed.check_same({"checkpoints": checkpoints.steps()})
    if not (restored := checkpoints.restore(run.shapes)):
        state = init_state(run.recipe, run.shapes)
        if run.donor:
            mean_rgb, names = run.dataset.statistics.mean_rgb, run.dataset.class_names
            variables, report = start_from(run.donor, state.variables, mean_rgb, run.recipe.init_layers, names)
            state = state.with_variables(variables)
            run.console.print(report)
        return 0, state, Progress()
    for warning in restored.warnings:
        run.console.print(f"WARNING: {warning}")
    step, state, progress = restored.step, restored.state, restored.progress
    run.console.print(f"continuing from {checkpoints.path(step)}")
    best = progress.best_step
    if best is not None and best not in checkpoints.steps() and progress.last is not None:
        run.console.print(
            f"WARNING: the best checkpoint, {checkpoints.path(best)}, is not there; {checkpoints.path(step)} takes its "
            "place, with the error of the last evaluation."
        )
        progress.best_top1_error, progress.best_loss = progress.last["top1_error"], progress.last["loss"]
        progress.best_step = step
    return step, state, progress


def _learning_rates(run: _Run) -> Callable[[int, Progress], jax.Array]:
    """Returns the function from step and progress to the learning rate on the devices; it is sent where it changes."""

    @functools.lru_cache(maxsize=1)
    def on_devices(rate: float) -> jax.Array:
        return jax.make_array_from_callback((), replicated(run.mesh), lambda _: np.asarray(rate, np.float32))

    rate = functools.partial(schedules.learning_rate, run.recipe, steps_per_epoch=run.steps_per_epoch)
    return lambda step, progress: on_devices(rate(step, plateau=progress.plateau, is_warm=progress.is_warm))


def _evaluate(
    run: _Run, resources: _Resources, step: int, state: TrainState, progress: Progress, is_regular: bool
) -> None:
    """Evaluates on the validation split, and adds that to the progress: the best and last error and the plateau.

    What is not regular does not enter the plateau, in which a longer run would not have it.

    Raises:
      UserError: the validation loss is not finite.
    """
    recipe, images, epoch = run.recipe, run.dataset.validation, step / run.steps_per_epoch
    means = resources.metrics.since_evaluation(step)
    progress.is_warm |= means.get("top1_error", 1.0) < recipe.schedule.warmup_error
    progress.train_loss = means.get("loss", progress.train_loss)
    val_batches = batches(recipe, eval_examples(recipe, images), run.mesh)
    val = evaluate(resources.steps.evaluate, state.averages or state.variables, val_batches, len(images))
    if not math.isfinite(val["loss"]):
        raise diagnostics.diverged(recipe, step, val["loss"], "validation loss")
    resources.metrics_log.write(step, {f"val/{name}": value for name, value in val.items()})
    drops_before = schedules.lr_drops(recipe, epoch, progress.plateau)
    if is_regular:
        steps = recipe.eval_every_epochs * run.steps_per_epoch
        progress.plateau = progress.plateau.observe(val["top1_error"], len(images), recipe, steps)
    progress.observe(step, val)
    run.console.print(
        f"validation at step {step} (epoch {epoch:.2f}): top-1 error {val['top1_error']:.2%}"
        f"{top5_text(recipe, val['top5_error'], 2)}, loss {val['loss']:.4f}; best top-1 {progress.best_top1_error:.2%}"
    )
    drops = schedules.lr_drops(recipe, epoch, progress.plateau)
    if drops > drops_before:
        rate = schedules.learning_rate(recipe, step, run.steps_per_epoch, progress.plateau, progress.is_warm)
        run.console.print(
            f"the error has stopped improving: learning rate now {rate:.0e} "
            f"(drop {drops} of {recipe.plateau.max_drops})"
        )


def _finish(run: _Run, resources: _Resources, step: int, state: TrainState, progress: Progress) -> dict[str, Any]:
    """Waits for the last checkpoint, evaluates where the last step has not been, and writes and returns the summary."""
    resources.checkpoints.wait()
    if progress.last is None or progress.last_step not in (None, step):  # stopped before at what is now the end
        _evaluate(run, resources, step, state, progress, False)
    summary = _summary(run, step, state, progress, resources.checkpoints)
    if distributed.is_primary():
        RunDir(run.workdir).write_summary(summary)
    return summary


def _summary(run: _Run, step: int, state: TrainState, progress: Progress, checkpoints: Checkpoints) -> dict[str, Any]:
    """Returns the content of summary.json."""
    assert progress.last is not None  # a run ends with an evaluation
    assert progress.best_step is not None
    epochs = step / run.steps_per_epoch
    return {
        "steps": step,
        "epochs": round(epochs, 4),
        "stopped_by": "plateau" if schedules.is_finished(run.recipe, progress.plateau) else "num_epochs",
        "seconds": round(progress.seconds, 1),
        "starts": progress.starts,
        "startup_seconds": round(progress.startup_seconds, 1),
        "lr_drops": schedules.lr_drops(run.recipe, epochs, progress.plateau),
        "best_top1_error": progress.best_top1_error,
        "best_step": progress.best_step,
        **{f"final_{name}": value for name, value in progress.last.items()},
        "final_train_loss": progress.train_loss,
        "params_sha256": params_sha256(state.params, state.model_state),
        "checkpoint": str(checkpoints.path(step)),
        "best_checkpoint": str(checkpoints.path(progress.best_step)),
        **environment(),
    }


def _keep_compiled(run: _Run, stack: contextlib.ExitStack) -> None:
    compilation.warn_of_unseen_gpu(run.console.print)
    shared = run.workdir if jax.process_count() > 1 else None
    kept = compilation.keep_compiled(run.recipe.compilation_cache, shared, run.console.print)
    if directory := stack.enter_context(kept):
        run.console.print(f"compiled programs are kept in {directory} for the next start")


def _compile(run: _Run) -> Steps:
    """Compiles the steps for exactly these shapes on this mesh."""
    began = time.monotonic()
    recipe, dataset = run.recipe, run.dataset
    is_balanced = recipe.class_weights == "balanced"
    weights = class_weights(dataset.train, recipe.model.num_classes) if is_balanced else None
    steps = compile_steps(recipe, dataset.statistics, run.mesh, run.shapes, weights)
    memory: Any = steps.train_with_norms.memory_analysis()
    # Arguments and results share memory (donation); on most backends that is what temp does not count.
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    need_memory(needed, "on each device for a compiled step")
    run.console.print(state_line(recipe, run.shapes))
    run.console.print(
        f"memory a device (estimate): {needed / 2**20:,.0f} MiB, of which state and batch "
        f"{memory.argument_size_in_bytes / 2**20:,.0f} MiB; compiled in {duration(time.monotonic() - began)}"
    )
    return steps
