"""Warnings for stuck or diverging training, with suggested fixes: loss at ln K, vanishing or exploding gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vgg_jax.recipe import Recipe
from vgg_jax.runtime.exceptions import UserError

# Steps after which a loss that is still ln K is no longer a slow start.
STEPS_TO_LEAVE_CHANCE = 200
# A training loss above this part of guessing's loss is guessing.
_CHANCE = 0.99
# Steps after which most runs have left it, to suggest.
_ENOUGH_STEPS = 1000
# Updates that change kernels by more than this part of themselves destroy the initialisation. Healthy
# runs stay below 0.015; the He runs that diverge at 1e-3 start at 0.1 (benchmarks/findings.md, the presets).
_LARGEST_UPDATE_RATIO = 0.05
# With batch normalisation the scale of a kernel does not matter; a ResNet-20 that trains well begins at 0.06.
_LARGEST_NORMALIZED_RATIO = 0.25


def stuck(recipe: Recipe, step: int, means: Mapping[str, float]) -> str | None:
    """Returns a warning for a run whose loss is still that of guessing; None if it is not.

    Args:
      recipe: the run's.
      step: updates made.
      means: a step's metrics, averaged since the evaluation before; norms are those of the last log line.
    """
    chance = math.log(recipe.model.num_classes)
    if step < STEPS_TO_LEAVE_CHANCE or means["loss"] < _CHANCE * chance:
        return None
    # A layer that no gradient reaches changes by its weight decay alone, which is known: rate x l2 / (1 - momentum).
    decay = means["lr"] * recipe.optimizer.l2 / (1 - recipe.optimizer.momentum)
    unreached = [
        name.partition("/")[2]
        for name, ratio in means.items()
        if name.startswith("update_ratio/") and ratio <= max(1.5 * decay, 1e-8)
    ]
    cause = "A deep network often does not leave it at a rate that suits a shallow one. "
    if unreached and not recipe.given["optimizer.lr_factors"]:
        cause = (
            f"The gradient does not reach {', '.join(unreached)}: their weights only decay "
            "(update_ratio/* in metrics.jsonl). "
        )
    return (
        f"WARNING: at step {step} the loss is still {means['loss']:.4f}, which is guessing "
        f"(ln {recipe.model.num_classes} = {chance:.4f}). {cause}{_remedies(recipe)}"
    )


def guessing(recipe: Recipe, steps: int, loss: float | None) -> str | None:
    """Returns a sentence about a run that ends with the loss of guessing, whatever its length; None if it does not.

    Args:
      recipe: the run's.
      steps: updates made.
      loss: of training, the mean before the last evaluation; None where it is not known.
    """
    chance = math.log(recipe.model.num_classes)
    if loss is None or loss < _CHANCE * chance:
        return None
    longer = ""
    if steps < _ENOUGH_STEPS:
        epochs = math.ceil(recipe.num_epochs * _ENOUGH_STEPS / steps)
        longer = f"It had {steps} steps; train longer (--config.num_epochs={epochs}). "
    return (
        f"WARNING: the run ends with a training loss of {loss:.4f}, which is guessing (ln {recipe.model.num_classes} = "
        f"{chance:.4f}): it has learnt nothing. {longer}{_remedies(recipe)}"
    )


def exploding(recipe: Recipe, step: int, means: Mapping[str, float]) -> str | None:
    """Returns a warning where updates are so large that they destroy the initialisation; None where they are not.

    Args:
      recipe: the run's.
      step: updates made.
      means: a step's metrics, averaged over the steps since the last log line; norms are those of this step.
    """
    ratios = {name: value for name, value in means.items() if name.startswith("update_ratio/")}
    worst = max(ratios, key=lambda name: ratios[name])
    network = recipe.model.network
    if ratios[worst] <= (_LARGEST_NORMALIZED_RATIO if network.has_norms else _LARGEST_UPDATE_RATIO):
        return None
    block = worst.partition("/")[2]
    return (
        f"WARNING: at step {step} the gradients explode: an update changes the weights of {block} by "
        f"{ratios[worst]:.0%} (gradient norm {means[f'gradient_norm/{block}']:.3g}). {_remedies(recipe)}"
    )


def diverged(recipe: Recipe, step: int, loss: float, measured: str = "loss") -> UserError:
    """Returns the error for a run whose loss or state is not finite.

    Args:
      recipe: the run's.
      step: updates made.
      loss: in nats.
      measured: what `loss` is: "loss" of this step, or "validation loss".
    """
    cause = ", and a parameter or a statistic is not finite" if math.isfinite(loss) else ""
    return UserError(
        f"training has diverged: at step {step} the {measured} is {loss:.4g}{cause}. Nothing was saved after that; the "
        f"last checkpoint is as it was. {_remedies(recipe)}"
    )


def _remedies(recipe: Recipe) -> str:
    lower = f"a lower rate (--config.optimizer.learning_rate={recipe.optimizer.learning_rate / 10:g})"
    network = recipe.model.network
    if network.has_norms:
        return f"Try {lower}, or a warm-up (--config.schedule.warmup_epochs=1); in a new --workdir."
    preset = "" if recipe.model.init == "glorot" else "--config.model.init=glorot, "
    net_a = ", or start from a trained net A (--config.init_from=DIR)" if network.is_vgg else ""
    return f"Try {preset}{lower}{net_a}; in a new --workdir."
