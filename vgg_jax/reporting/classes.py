"""What a page shows of each class: the confusion matrix of few classes, the hardest of many."""

from __future__ import annotations

from typing import Any

import numpy as np

from vgg_jax.reporting.curves import percent
from vgg_jax.reporting.predictions import Predictions

_MOST_CLASSES = 20  # of a confusion matrix; of more, the hardest
_HARDEST = 15


def by_class(cached: Predictions) -> dict[str, Any]:
    """Returns the confusion matrix of few classes, or the hardest of many."""
    titles = cached.trained.class_titles
    matrix = cached.confusion(len(titles))
    counts = np.bincount(cached.labels, minlength=len(matrix))
    errors = 1 - np.diag(matrix) / np.maximum(counts, 1)
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
        return {"matrix": rows, "hardest": [], "count": len(matrix)}
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
    return {"matrix": [], "hardest": rows, "count": len(matrix)}
