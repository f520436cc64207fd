"""Training, from a configuration to a summary: read top to bottom, one phase after another."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vgg_jax import config as config_lib
from vgg_jax import processes
from vgg_jax import workdir as workdir_lib
from vgg_jax.checkpoints import Checkpoints, Restored
from vgg_jax.data.pipeline import batches, eval_examples, train_examples
from vgg_jax.data.sources import Dataset, open_dataset
from vgg_jax.errors import Interrupted, UserError
from vgg_jax.evaluation.center_crop import evaluate
from vgg_jax.logbook import MetricsLog, Screen, duration, environment, write_json
from vgg_jax.models import VGG
from vgg_jax.optimizer import lr_drops, make_optimizer, observe_error, plateaued_for_good
from vgg_jax.sharding import (
    batch_sharding,
    bytes_a_device,
    for_computing,
    host_memory,
    local_rows,
    make_mesh,
    memory_a_device,
    over_all_devices,
    replicated,
)
from vgg_jax.state import TrainState, init_state, make_model, params_sha256, state_bytes_by_sharding, state_shapes
from vgg_jax.steps import Batch, EvalMetrics, batch_shapes, compile_step, compile_train_step, make_eval_step
from vgg_jax.transplant import check_fit, read_donor, start_from
from vgg_jax.window import Window, top5

_INTERPRETER_BYTES = 200 * 2**20  # of a process that decodes


def train(config: ConfigDict, workdir: Path, quiet: bool = False) -> dict[str, Any]:
    """Trains to the end of the plateau schedule or of the epochs, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: see `vgg_jax.config`.
      workdir: made if need be; afterwards it holds config.json, dataset.json, metrics.jsonl, tensorboard/,
        checkpoints/<step>/ and summary.json.
      quiet: print nothing.

    Returns:
      What summary.json says.

    Raises:
      UserError: anything that only the user can put right; nothing that was there is lost.
      Interrupted: by a signal, after saving.
    """
    began = time.monotonic()
    processes.check_same(_facts(config, workdir))
    leading = processes.leading()
    screen = Screen(quiet or not leading)

    # What will run, where, on what data; refused here if it cannot.
    config_lib.validate(config, jax.device_count())
    workdir_lib.check(workdir, config)
    mesh = make_mesh(config.model_parallel)
    model, optimizer = make_model(config), make_optimizer(config)
    shapes = state_shapes(config, model, optimizer, mesh)
    _check_memory(config, shapes, mesh)
    donor = None
    if config_lib.init_from(config) and not workdir_lib.checkpoint_steps(workdir):
        donor = read_donor(config_lib.init_from(config))
        check_fit(shapes.params, donor, config.init_layers)
    dataset = processes.leader_first(lambda: open_dataset(config))
    steps_per_epoch = len(dataset.train) / config.batch_size
    total_steps = _total_steps(config, steps_per_epoch)

    with contextlib.ExitStack() as stack:
        # The workdir becomes this run's, and no other run's until it ends.
        check_lock = stack.enter_context(workdir_lib.locked(workdir, screen.say)) if leading else lambda: None
        processes.leader_first(lambda: workdir_lib.claim(workdir, config, dataset.description(), write=leading))
        processes.check_shared(workdir, "--workdir")

        # The functions, compiled for exactly these shapes on this mesh.
        screen.say(_heading(config, workdir, dataset, mesh, shapes))
        for warning in dataset.warnings:
            screen.say(f"WARNING: {warning}")
        train_step, eval_step = _compiled(config, model, optimizer, dataset, mesh, shapes, screen)

        # Where to begin: resume > init_from > preset.
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir)))
        processes.check_same({"checkpoints": checkpoints.steps(), **dataset.description()})
        progress: dict[str, Any] = {"seconds": 0.0, "best_top1_error": None, "best_step": None, "last": None}
        if restored := checkpoints.restore(shapes):
            step, state, progress = restored.step, restored.state, _with_best(restored, checkpoints, screen)
            screen.say(f"going on from {checkpoints.path(step)}")
            if step > total_steps:
                raise UserError(
                    f"config.num_epochs={config.num_epochs:g} ends at step {total_steps}, but the run in {workdir} is already "
                    f"at step {step}; give at least {step / steps_per_epoch:.4g} epochs."
                )
        else:
            step, state = 0, init_state(config, model, optimizer, shapes)
            if donor:
                params, report = start_from(
                    donor, state.params, dataset.statistics.mean_rgb, config.init_layers, dataset.class_names
                )
                state = dataclasses.replace(state, params=params)
                screen.say(report)
        metrics_log = stack.enter_context(contextlib.closing(MetricsLog(workdir, step, write=leading, say=screen.say)))
        stack.callback(screen.close)

        # The loop.
        seconds_before = progress["seconds"]
        window = Window(config, steps_per_epoch, total_steps, metrics_log, screen, progress.get("window"))
        evaluation_due = _every(config.eval_every_epochs * steps_per_epoch, total_steps)
        checkpoint_due = _every(config.checkpoint_every_steps or math.inf, total_steps)
        train_batches = batches(config, train_examples(config, dataset.train), mesh, start=step)
        stack.enter_context(contextlib.closing(train_batches))
        finished = plateaued_for_good(state.opt_state, config)
        screen.start(step, total_steps)
        stop = processes.Stop(stack.enter_context(_signals()))
        while step < total_steps and not finished:
            with window.waiting_for_input():
                batch = next(train_batches)
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, batch)
            step += 1
            window.add(step, metrics)
            stopping = stop.after(step)
            if not (evaluation_due(step) or checkpoint_due(step) or stopping):
                continue

            # Nothing is saved before the last update is known to be finite.
            window.flush()
            check_lock()
            if evaluation_due(step):
                window.warn_if_stuck(step)
                val = evaluate(
                    eval_step,
                    state.params,
                    batches(config, eval_examples(config, dataset.validation), mesh),
                    len(dataset.validation),
                )
                metrics_log.write(step, {f"val/{name}": value for name, value in val.items()})
                drops = lr_drops(state.opt_state, config)
                opt_state = observe_error(state.opt_state, val["top1_error"], len(dataset.validation), config)
                state = dataclasses.replace(state, opt_state=opt_state)
                finished = plateaued_for_good(state.opt_state, config)
                if progress["best_top1_error"] is None or val["top1_error"] <= progress["best_top1_error"]:
                    progress |= {"best_top1_error": val["top1_error"], "best_step": step}
                progress["last"] = val
                screen.say(_evaluation_line(config, step / steps_per_epoch, step, val, progress))
                if lr_drops(state.opt_state, config) > drops:
                    screen.say(_drop_line(config, lr_drops(state.opt_state, config)))
            progress |= {"seconds": seconds_before + time.monotonic() - began, "window": window.sums()}
            checkpoints.save(step, state, progress)
            if stopping and step < total_steps and not finished:
                checkpoints.wait()
                raise Interrupted(
                    f"stopped by {signal.Signals(stop.signum).name} after step {step} of {total_steps}; everything is "
                    f"saved in {checkpoints.path(step)}. Give the same command again to go on.",
                    stop.signum,
                )
            window.resume()
        checkpoints.wait()

        summary = {
            "steps": step,
            "epochs": round(step / steps_per_epoch, 4),
            "stopped_by": "plateau" if finished else "num_epochs",
            "seconds": round(progress["seconds"], 1),
            "lr_drops": lr_drops(state.opt_state, config),
            "best_top1_error": progress["best_top1_error"],
            "best_step": progress["best_step"],
            **{f"final_{name}": value for name, value in progress["last"].items()},
            "params_sha256": params_sha256(state.params),
            "checkpoint": str(checkpoints.path(step)),
            "best_checkpoint": str(checkpoints.path(progress["best_step"])),
            **environment(),
        }
        if leading:
            write_json(workdir / "summary.json", summary)
    screen.say(_closing(config, summary))
    return summary


def _total_steps(config: ConfigDict, steps_per_epoch: float) -> int:
    steps = math.ceil(config.num_epochs * steps_per_epoch)
    if steps >= 2**31:  # the state counts them in an int32
        raise UserError(
            f"config.num_epochs={config.num_epochs:g} makes {steps:,} steps, more than can be counted; give less than "
            f"{2**31 / steps_per_epoch:.3g} epochs."
        )
    return steps


def _check_memory(config: ConfigDict, shapes: TrainState, mesh: Mesh) -> None:
    """Refuses, before anything is compiled or decoded, what certainly needs more memory than there is."""
    image = 3 * config.image.crop**2  # bytes, as the host decodes it; the first step makes it float
    state, batch = bytes_a_device(shapes), config.batch_size // mesh.shape["data"] * image
    _need_memory(state + batch + 4 * batch // config.accumulation_steps, "on each device for the state and a batch")
    threads = config.data.threads * max(1, config.data.processes)
    ahead = (threads + 2) * len(local_rows(mesh, config.batch_size)) * image
    needed = ahead + config.data.processes * _INTERPRETER_BYTES
    if needed > host_memory():
        raise UserError(
            f"config.data.threads={config.data.threads} and config.data.processes={config.data.processes} need "
            f"{needed / 2**30:,.1f} GiB to decode {threads} batches ahead, and this machine has "
            f"{host_memory() / 2**30:,.1f} GiB of memory; give fewer of them or a smaller config.batch_size."
        )


def _need_memory(num_bytes: int, purpose: str) -> None:
    if num_bytes > memory_a_device():
        raise UserError(
            f"this run needs {num_bytes / 2**30:,.1f} GiB {purpose}, and there are {memory_a_device() / 2**30:,.1f} GiB; take "
            "a smaller config.batch_size, config.image.crop or net (config.model.fc_width, config.model.width_multiplier), "
            "config.accumulation_steps, or more devices (config.sharding=fsdp splits the state)."
        )


def _with_best(restored: Restored, checkpoints: Checkpoints, screen: Screen) -> dict[str, Any]:
    """The progress of a restored run; says what is damaged or missing, and puts the restored checkpoint in its place."""
    progress, path = restored.progress, checkpoints.path
    for sentence in restored.warnings:
        screen.say(f"WARNING: {sentence}")
    best = progress["best_step"]
    if best is not None and best not in checkpoints.steps():
        screen.say(
            f"WARNING: the best checkpoint, {path(best)}, is not there; {path(restored.step)} takes its place, with the "
            "error of the last evaluation."
        )
        progress |= {"best_top1_error": progress["last"]["top1_error"], "best_step": restored.step}
    return progress


def _compiled(
    config: ConfigDict,
    model: VGG,
    optimizer: optax.GradientTransformation,
    dataset: Dataset,
    mesh: Mesh,
    shapes: TrainState,
    screen: Screen,
) -> tuple[jax.stages.Compiled, jax.stages.Compiled]:
    """train_step and eval_step, compiled."""
    began = time.monotonic()
    batch, whole = batch_shapes(config, mesh), replicated(mesh)
    mask = jax.ShapeDtypeStruct((config.batch_size,), jnp.bool_, sharding=batch_sharding(mesh))
    train_step = compile_train_step(config, model, optimizer, dataset.statistics, mesh, shapes)
    evaluate = make_eval_step(model, dataset.statistics)

    def spread_evaluate(params: dict, batch: Batch) -> EvalMetrics:
        batch = {**batch, "image": over_all_devices(batch["image"], mesh)}
        return evaluate(for_computing(params, config.sharding, mesh), batch)

    eval_step = compile_step(spread_evaluate, shapes.params, {**batch, "mask": mask}, out_shardings=whole)
    memory: Any = train_step.memory_analysis()
    # Arguments and results share memory (donation); on most backends that is what temp does not count.
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    _need_memory(needed, "on each device for a compiled step")
    screen.say(_state_line(config, model, optimizer, shapes))
    screen.say(
        f"memory a device (estimate): {needed / 2**20:,.0f} MiB, of which state and batch "
        f"{memory.argument_size_in_bytes / 2**20:,.0f} MiB; compiled in {duration(time.monotonic() - began)}"
    )
    return train_step, eval_step


def _every(steps: float, total_steps: int) -> Callable[[int], bool]:
    """step -> whether a multiple of `steps`, which need not be whole, is reached with it, or the end."""
    return lambda step: step == total_steps or math.floor(step / steps) > math.floor((step - 1) / steps)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals received so far. The first Ctrl-C, SIGTERM or SIGHUP is noted here; another one acts as it always does."""
    received: list[int] = []
    numbers = processes.stop_signals()
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield received
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        for other in numbers:
            signal.signal(other, before[other])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number in numbers:
            signal.signal(number, before[number])


# Keys in which the processes of a run may differ: machines of their own may keep the same data at other places.
_MAY_DIFFER = ("data.dir", "data.root", "data.threads", "data.processes")


def _facts(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What all processes of a run must have in common before they begin."""
    values = {f"config.{key}": value for key, value in config_lib.flatten(config).items() if key not in _MAY_DIFFER}
    return {"the code": processes.code_version(), "jax": jax.__version__, "--workdir": str(workdir), **values}


def _heading(config: ConfigDict, workdir: Path, dataset: Dataset, mesh: Mesh, shapes: TrainState) -> str:
    device = jax.devices()[0]
    low, high = config.image.scale_min, config.image.scale_max
    from clu import parameter_overview  # here, where it is used: it takes long to import

    # The overview wants dtype and shape only, so shapes serve as parameters.
    table = parameter_overview.get_parameter_overview(shapes.params, include_stats=False)
    return (
        f"VGG {config.model.configuration} on {dataset.name}: {len(dataset.train):,} training and "
        f"{len(dataset.validation):,} validation images, {len(dataset.class_names)} classes\n"
        f"{table}\n"
        f"S {low if low == high else f'{low} to {high}'}, crop {config.image.crop}, batch {config.batch_size}, at most "
        f"{config.num_epochs:g} epochs; {device.device_kind} x {mesh.size} ({config.sharding}), {config.model.dtype}, "
        f"jax {jax.__version__}, Python {platform.python_version()}\n"
        f"everything is written to {workdir}; watch it with: tensorboard --logdir {shlex.quote(str(workdir))}"
    )


def _state_line(config: ConfigDict, model: VGG, optimizer: optax.GradientTransformation, shapes: TrainState) -> str:
    """What parameters and momentum take on each device, exactly, and what they would with the other choices."""
    here = f"parameters and momentum a device: {bytes_a_device(shapes) / 2**20:,.1f} MiB ({config.sharding})"
    if jax.device_count() == 1:
        return here
    others = [
        f"{rules}{f' over {parallel}' if parallel > 1 else ''} {size / 2**20:,.1f}"
        for rules, parallel, size in state_bytes_by_sharding(config, model, optimizer)
        if rules != config.sharding
    ]
    return f"{here}; with --config.sharding {', '.join(others)}"


def _evaluation_line(
    config: ConfigDict, epoch: float, step: int, val: dict[str, float], progress: dict[str, Any]
) -> str:
    return (
        f"validation at step {step} (epoch {epoch:.2f}): top-1 error {val['top1_error']:.2%}"
        f"{top5(config, val['top5_error'], 2)}, loss {val['loss']:.4f}; best top-1 {progress['best_top1_error']:.2%}"
    )


def _drop_line(config: ConfigDict, drops: int) -> str:
    rate = config.optimizer.learning_rate * config.plateau.factor**drops
    return f"the error has stopped improving: learning rate now {rate:.0e} (drop {drops} of {config.plateau.max_drops})"


def _closing(config: ConfigDict, summary: dict[str, Any]) -> str:
    reason = "the last plateau" if summary["stopped_by"] == "plateau" else "the end of the epochs"
    return (
        f"finished at {reason}: {summary['steps']} steps, {summary['epochs']:.2f} epochs, "
        f"{duration(summary['seconds'])}, {summary['lr_drops']} drops of the learning rate\n"
        f"validation top-1 error {summary['final_top1_error']:.2%} (best {summary['best_top1_error']:.2%} at step "
        f"{summary['best_step']}){top5(config, summary['final_top5_error'], 2)}\n"
        f"checkpoint: {summary['checkpoint']}; best: {summary['best_checkpoint']}"
    )
