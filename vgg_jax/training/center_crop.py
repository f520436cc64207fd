"""Validation on centre crops: cheap, and the input of the plateau schedule."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import jax

from vgg_jax.training.steps import Batch, EvalMetrics


def evaluate(
    eval_step: Callable[[dict, Batch], EvalMetrics], variables: dict, batches: Iterable[Batch], num_images: int
) -> dict[str, float]:
    """Means over a split, every image counted once.

    Args:
      eval_step: compiled, of `steps.make_eval_step`.
      variables: first argument of `model.apply`.
      batches: of `pipeline.eval_examples`: the last is padded, and masked.
      num_images: images in the split.

    Returns:
      loss (nats), top1_error, top5_error (fractions).

    Raises:
      RuntimeError: the batches did not hold each image once.
    """
    parts = (eval_step(variables, batch) for batch in batches)
    total: EvalMetrics = jax.device_get(functools.reduce(EvalMetrics.merge, parts))
    if int(total.count) != num_images:
        raise RuntimeError(f"evaluated {int(total.count)} images of {num_images}")
    return {name: float(value) for name, value in total.compute().items()}
