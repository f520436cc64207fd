"""Lines that a run prints about itself before it compiles and at its end."""

from __future__ import annotations

import platform
import shlex
import signal
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from vgg_jax.data.sources import Dataset
from vgg_jax.recipe import Recipe, scale_text
from vgg_jax.runtime.console import duration
from vgg_jax.training.diagnostics import guessing
from vgg_jax.training.metrics import top5_text
from vgg_jax.value_parsers import lr_factors_text


def heading(recipe: Recipe, dataset: Dataset, params: Any, mesh: Mesh, workdir: Path) -> str:
    """Returns what a run prints before it compiles: network, data, parameters, hyper-parameters, devices, warnings.

    Args:
      recipe: of the run.
      dataset: that it trains on.
      params: of the network, arrays or jax.ShapeDtypeStruct.
      mesh: of its devices.
      workdir: that it writes to.
    """
    device = jax.devices()[0]
    from clu import parameter_overview  # slow to import

    # The overview needs dtype and shape only, so shapes serve as parameters.
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    has_rates = recipe.given["optimizer.lr_factors"]
    rates = f"learning rates by layer: {lr_factors_text(recipe.optimizer.lr_factors)}\n" if has_rates else ""
    network = recipe.model.network.title
    if recipe.init_network and recipe.init_from:
        network += f", the network of {recipe.init_from},"
    is_short = len(dataset.train) < recipe.batch_size * recipe.min_epoch_steps
    epochs = f"epochs of {recipe.min_epoch_steps} steps" if is_short else "epochs"
    return (
        f"{network} on {dataset.name}: {len(dataset.train):,} training and "
        f"{len(dataset.validation):,} validation images, {len(dataset.class_names)} classes\n"
        f"{table}\n{rates}"
        f"S {scale_text(recipe.image.scale_min, recipe.image.scale_max)}, crop {recipe.image.crop}, batch "
        f"{recipe.batch_size}, at most {recipe.num_epochs:g} {epochs}; {device.device_kind} x {mesh.size} "
        f"({recipe.sharding}), {recipe.model.dtype}, jax {jax.__version__}, Python {platform.python_version()}\n"
        f"everything is written to {workdir}; watch it with: tensorboard --logdir {shlex.quote(str(workdir))}"
        + "".join(f"\nWARNING: {warning}" for warning in dataset.warnings)
    )


def stopped(step: int, total_steps: int, checkpoint: Path, signum: int) -> str:
    """Returns what a run prints where a signal stops it after `step`, once `checkpoint` is saved."""
    return (
        f"stopped by {signal.Signals(signum).name} after step {step} of {total_steps}; everything is saved in "
        f"{checkpoint}. Give the same command again to continue."
    )


def closing(recipe: Recipe, summary: dict[str, Any]) -> str:
    """Returns what a run prints at its end, of the content of its summary.json."""
    plateau, reason = recipe.plateau, "the end of the epochs"
    if summary["stopped_by"] == "plateau":
        reason = f"the last plateau (plateau.patience={plateau.patience}, plateau.max_drops={plateau.max_drops})"
    workdir = shlex.quote(str(Path(summary["checkpoint"]).parents[1]))
    following = f"next: vgg-jax report {workdir}; vgg-jax predict --workdir={workdir} IMAGE"
    return (
        f"finished at {reason}: {summary['steps']} steps, {summary['epochs']:.2f} epochs, "
        f"{duration(summary['seconds'])}, {summary['lr_drops']} drops of the learning rate\n"
        f"validation top-1 error {summary['final_top1_error']:.2%} (best {summary['best_top1_error']:.2%} at step "
        f"{summary['best_step']}){top5_text(recipe, summary['final_top5_error'], 2)}\n"
        f"checkpoint: {summary['checkpoint']}; best: {summary['best_checkpoint']}\n"
        f"{guessing(recipe, summary['steps'], summary['final_train_loss']) or following}"
    )
