"""Computes errors from probabilities: averages over scales, methods and models, the table, the challenge's format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vgg_jax.evaluation import paper
from vgg_jax.evaluation.cache import Probs
from vgg_jax.evaluation.paper import TopKError
from vgg_jax.evaluation.passes import PROTOCOLS, EvalPass, paper_scales
from vgg_jax.evaluation.split import Split
from vgg_jax.evaluation.trained_model import TrainedModel
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.text_tables import table_text


class Row(NamedTuple):
    """One line of the table."""

    models: str
    protocol: str
    scales: str
    images: int
    top1_error: float  # fractions
    top5_error: float | None  # None with five classes or fewer, where it is always 0
    paper: TopKError | None


def average(probs: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the mean of several probabilities [N, K], in float64 so that the order does not matter: [N, K]."""
    return np.mean([np.asarray(one, np.float64) for one in probs], 0)


# In the paper's order: over scales, then over dense and crops, then over models (Paper §4.2 to §4.4).


def over_scales(probs: dict[EvalPass, Probs], method: str) -> np.ndarray:
    """Returns the mean over the scales of one method, [N, K]."""
    return average(cached.probs for eval_pass, cached in probs.items() if eval_pass.method == method)


def over_methods(probs: dict[EvalPass, Probs], methods: Sequence[str]) -> np.ndarray:
    """Returns the mean over methods of the means over scales, [N, K]."""
    return average(over_scales(probs, method) for method in methods)


def topk_errors(probs_NxK: np.ndarray, labels_N: np.ndarray, skipped_N: np.ndarray) -> tuple[float, float]:
    """Returns top-1 and top-5 error, fractions; a skipped image is wrong in both.

    Ties are broken as in `steps.topk_errors`.
    """
    counted_N = np.isfinite(probs_NxK).all(-1) & ~skipped_N
    hit_Nx5 = (top5_classes(probs_NxK) == labels_N[:, None]) & counted_N[:, None]
    return 1 - float(hit_Nx5[:, 0].mean()), 1 - float(hit_Nx5.any(-1).mean())


def top5_classes(probs_NxK: np.ndarray) -> np.ndarray:
    """Returns the top-5 classes (all, where there are fewer), [N, 5] int64; of equals the lower number first."""
    return np.argsort(-probs_NxK, axis=-1, kind="stable")[:, :5]


def rows(
    models: list[TrainedModel],
    passes: list[list[EvalPass]],
    probs: list[dict[EvalPass, Probs]],
    skipped_N: np.ndarray,
    protocol: str,
    split: Split,
) -> list[Row]:
    """Returns every mean of the probabilities: each scale, each method, both methods; each model, all models."""
    methods = PROTOCOLS[protocol]
    labels = next(iter(probs[0].values())).labels
    keys = [(trained.recipe.model.network.name, paper.training_scales(trained.recipe)) for trained in models]

    def row(numbers: list[int], protocol: str, scales: list[list[int]], probs_NxK: np.ndarray) -> Row:
        top1_error, top5_error = topk_errors(probs_NxK, labels, skipped_N)
        kinds = {_kind_of_scales(models[i], protocol, its) for i, its in zip(numbers, scales, strict=True)}
        kind = kinds.pop() if len(kinds) == 1 else ""
        name = " + ".join(f"{models[i].recipe.model.network.name} {models[i].workdir.name}" for i in numbers)
        return Row(
            name if len(numbers) == 1 else f"fusion of {len(numbers)}",
            protocol,
            " | ".join(dict.fromkeys(",".join(map(str, its)) for its in scales)),
            len(labels),
            top1_error,
            top5_error if probs_NxK.shape[1] > 5 else None,
            paper.published([keys[i] for i in numbers], protocol, kind, split.data, split.name),
        )

    def scales_of(i: int, method: str) -> list[int]:
        return [eval_pass.scale for eval_pass in passes[i] if eval_pass.method == method]

    table_rows, everyone = [], list(range(len(models)))
    for i in everyone:
        for method in methods:
            of_method = [eval_pass for eval_pass in passes[i] if eval_pass.method == method]
            if len(of_method) > 1:
                table_rows += [row([i], method, [[one.scale]], probs[i][one].probs) for one in of_method]
            table_rows.append(row([i], method, [scales_of(i, method)], over_scales(probs[i], method)))
        if len(methods) > 1:
            table_rows.append(row([i], protocol, [scales_of(i, methods[0])], over_methods(probs[i], methods)))
    if len(models) > 1:
        combinations = [(method, (method,)) for method in methods]
        for name, averaged in (*combinations, *([(protocol, methods)] if len(methods) > 1 else [])):
            fused = average(over_methods(of_model, averaged) for of_model in probs)
            table_rows.append(row(everyone, name, [scales_of(i, averaged[0]) for i in everyone], fused))
    return table_rows


def _kind_of_scales(trained: TrainedModel, protocol: str, scales: list[int]) -> str:
    """Returns "single" or "multi" where the scales are the paper's for this model, else ""."""
    kinds = (kind for kind in ("single", "multi") if paper_scales(trained.recipe, protocol, kind) == scales)
    return next(kinds, "")


def table(rows: Sequence[Row], table_format: str = "plain") -> str:
    """Returns the rows as text, errors in per cent, in a form of `text_tables`."""
    lines: list[tuple[str, ...]] = [
        ("models", "protocol", "Q", "images", "top-1 error", "top-5 error", "paper (ImageNet)")
    ]
    for row in rows:
        paper = f"{row.paper.text('/')} %" if row.paper else ""
        lines.append(
            (
                *(row.models, row.protocol, row.scales, f"{row.images:,}"),
                *(f"{row.top1_error:.2%}", "" if row.top5_error is None else f"{row.top5_error:.2%}", paper),
            )
        )
    empty = {i for i, column in enumerate(zip(*lines[1:], strict=True)) if not any(column)}
    lines = [tuple("" if i in empty else text for i, text in enumerate(line)) for line in lines]
    return table_text(lines, {3, 4, 5}, table_format)


def submission(probs_NxK: np.ndarray, keys_N: np.ndarray, numbers_K: np.ndarray) -> str:
    """Returns the classification challenge's format: a line an image by file name, five class numbers, best first.

    Args:
      probs_NxK: of images in any order.
      keys_N: their file names.
      numbers_K: the number that stands for each class, see `class_numbers`.
    """
    order = np.argsort(keys_N, kind="stable")
    return "".join(" ".join(map(str, line)) + "\n" for line in numbers_K[top5_classes(probs_NxK[order])])


def class_numbers(class_names: Sequence[str], listing: str, source: str) -> np.ndarray:
    """Returns the challenge's own numbers of classes, [K] int64.

    Args:
      class_names: of the model, sorted.
      listing: the challenge's classes in the order of its numbers, one a line: the name, or as `n01440764 tench`, where
        either part may be the name. "": none; the numbers are then 1 to K by sorted name, which differ from the numbers
        of ILSVRC's development kit.
      source: file of the listing, for the message.

    Raises:
      UserError: a listing of other classes.
    """
    if not listing:
        return np.arange(1, len(class_names) + 1)
    lines = [line.strip() for line in listing.splitlines() if line.strip()]
    parts = [line.partition(" ") for line in lines]
    forms = ([first for first, _, _ in parts], lines, [rest.strip() for _, _, rest in parts])
    for names in forms:
        numbers = {name: i for i, name in enumerate(names, start=1)}
        if len(numbers) == len(names) and not set(class_names) - set(names):
            return np.array([numbers[name] for name in class_names])
    missing = [name for name in class_names if not any(name in names for names in forms)]
    fault = (
        f"lacks {len(missing)} of the model's {len(class_names)} classes, among them {missing[0]!r}"
        if missing
        else "names a class twice, or one class by its name and another by its title"
    )
    raise UserError(
        f"--class_numbers={source} {fault}; it must name each class once, one a line, in the order of the challenge's "
        "numbers."
    )
