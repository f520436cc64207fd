"""What a page shows of each class: confusion matrix of few classes, the hardest of many; precision, recall, F1."""

from __future__ import annotations

from typing import Any

import numpy as np

from vgg_jax.evaluation import measures
from vgg_jax.reporting.curves import percent
from vgg_jax.reporting.predictions import Predictions

_MOST_CLASSES = 20  # of a confusion matrix; of more, the hardest
_HARDEST = 15


def by_class(cached: Predictions) -> dict[str, Any]:
    """Returns the confusion matrix of few classes, or the hardest of many; precision, recall and F1 of all."""
    titles, predicted = cached.trained.class_titles, cached.predicted()
    matrix = measures.confusion_matrix(cached.labels, predicted, len(titles))
    counts = np.bincount(cached.labels, minlength=len(matrix))
    errors = 1 - np.diag(matrix) / np.maximum(counts, 1)
    common = {"measures": _measure_rows(cached.labels, predicted, titles), "count": len(matrix)}
    if len(matrix) <= _MOST_CLASSES:
        shares = matrix / np.maximum(counts, 1)[:, None]
        rows = [
            {
                "name": titles[i],
                "cells": [(int(n), round(100 * float(shares[i, j])), i == j) for j, n in enumerate(row)],
                "images": int(counts[i]),
                "error": percent(float(errors[i]), 0).replace(" ", "\u00a0"),
            }
            for i, row in enumerate(matrix)
        ]
        return {"matrix": rows, "hardest": [], **common}
    wrong = matrix - np.diag(np.diag(matrix))
    hardest = [int(i) for i in np.argsort(-errors, kind="stable") if counts[i]][:_HARDEST]
    rows = []
    for i in hardest:
        others = [j for j in np.argsort(-wrong[i], kind="stable")[:3] if wrong[i, j]]
        rows.append(
            {
                "name": titles[i],
                "images": int(counts[i]),
                "error": percent(float(errors[i])),
                "share": round(100 * float(errors[i])),
                "taken_for": ", ".join(f"{titles[j].replace('_', ' ')} ({wrong[i, j]})" for j in others),
            }
        )
    return {"matrix": [], "hardest": rows, **common}


def _measure_rows(labels_N: np.ndarray, predicted_N: np.ndarray, titles: list[str]) -> list[tuple[str, ...]]:
    """Returns the rows of a table: class, images, predictions, precision, recall, F1; the last holds the means."""
    classes = measures.class_measures(labels_N, predicted_N, len(titles))
    return [
        (name, f"{one.images:,}", f"{one.predicted:,}", *(percent(share) for share in one[2:]))
        for name, one in zip([*titles, "total; mean"], [*classes, measures.macro_means(classes)], strict=True)
    ]
