"""Learning-rate schedules, computed on the host: an update takes its rate as an argument.

The paper's schedule drops the rate where the validation error stops improving (Paper §3.1). The others are the
schedules of the networks that VGG is compared with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from vgg_jax.recipe import Recipe
from vgg_jax.runtime.exceptions import UserError

# Factor on the rate until the training error is below `schedule.warmup_error` (He et al. 2015, §4.2).
WARMUP_FACTOR = 0.1


@dataclasses.dataclass(frozen=True)
class Plateau:
    """The state of the plateau schedule; a checkpoint holds it."""

    best_error: float | None = None
    evaluations: int = 0  # since the best one or the last plateau
    plateaus: int = 0

    def observe(self, error: float, num_images: int, recipe: Recipe, steps: float = math.inf) -> Plateau:
        """Returns the state after an evaluation.

        `plateau.patience` evaluations in a row that do not lower the least error by at least `plateau.min_improvement`
        make a plateau, if `plateau.min_steps` steps lie in them.

        Args:
          error: validation top-1 error, a fraction.
          num_images: validation images that the error is a fraction of.
          recipe: the run's.
          steps: between two evaluations.
        """
        # Counted in images: floats do not hold the errors exactly, and an improvement may be exactly the least one.
        fewer = math.inf if self.best_error is None else round(self.best_error * num_images) - round(error * num_images)
        if fewer >= recipe.plateau.min_improvement * num_images - 1e-6:
            return dataclasses.replace(self, best_error=error, evaluations=0)
        evaluations = self.evaluations + 1
        if evaluations < recipe.plateau.patience or evaluations * steps < recipe.plateau.min_steps:
            return dataclasses.replace(self, evaluations=evaluations)
        return dataclasses.replace(self, evaluations=0, plateaus=self.plateaus + 1)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: float, plateau: Plateau, is_warm: bool = True) -> float:
    """Returns the rate of the update that follows `step` updates.

    Args:
      recipe, step, steps_per_epoch: of the run.
      plateau: after its last evaluation.
      is_warm: whether the training error has been below `schedule.warmup_error`.
    """
    if recipe.schedule.warmup_error < 1 and not is_warm:
        return WARMUP_FACTOR * learning_rate(recipe, step, steps_per_epoch, plateau)
    epoch, warmup = step / steps_per_epoch, recipe.schedule.warmup_epochs
    rate = recipe.optimizer.learning_rate * min(1.0, (step + 1) / max(1.0, warmup * steps_per_epoch))
    if recipe.schedule.name == "cosine":
        progress = max(0.0, epoch - warmup) / max(recipe.num_epochs - warmup, 1e-9)
        return rate * (1 + math.cos(math.pi * min(1.0, progress))) / 2
    factor = recipe.plateau.factor if recipe.schedule.name == "plateau" else recipe.schedule.drop_factor
    return rate * factor ** lr_drops(recipe, epoch, plateau)


def lr_drops(recipe: Recipe, epoch: float, plateau: Plateau) -> int:
    """Returns how often the rate has dropped so far; 0 for the cosine."""
    if recipe.schedule.name == "plateau":
        return min(plateau.plateaus, recipe.plateau.max_drops)
    return sum(at <= epoch for at in recipe.schedule.drop_epochs) if recipe.schedule.name == "steps" else 0


def is_finished(recipe: Recipe, plateau: Plateau) -> bool:
    """Returns whether the error has stopped improving at the last learning rate too, which ends training."""
    return recipe.schedule.name == "plateau" and plateau.plateaus > recipe.plateau.max_drops


def epoch_steps(num_images: int, batch_size: int, min_epoch_steps: int) -> float:
    """Returns the steps of an epoch, not always whole: `num_images` in batches, or the least."""
    return max(num_images / batch_size, float(min_epoch_steps))


def total_steps(recipe: Recipe, steps_per_epoch: float) -> int:
    """Returns the steps of `num_epochs`; raises UserError where they are too many to count."""
    steps = math.ceil(recipe.num_epochs * steps_per_epoch)
    # The state counts them in an int32.
    if steps >= 2**31:
        raise UserError(
            f"config.num_epochs={recipe.num_epochs:g} makes {steps:,} steps, more than can be counted; give less than "
            f"{2**31 / steps_per_epoch:.3g} epochs."
        )
    return steps


def epochs_text(step: int, steps_per_epoch: float) -> str:
    """Returns a number of epochs that is not over before `step`, in as few digits as that takes, at least four."""
    texts = (f"{step / steps_per_epoch:.{digits}g}" for digits in range(4, 18))
    return next(text for text in texts if math.ceil(float(text) * steps_per_epoch) >= step)


def every(steps: float) -> Callable[[int], bool]:
    """Returns the function that says whether a step reaches a multiple of `steps`, not always whole."""
    return lambda step: math.floor(step / steps) > math.floor((step - 1) / steps)
