"""Measures from labels and predictions: intervals of errors, the error of guessing, precision and recall by class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# Of the standard normal distribution: 95 % lie between -_Z and _Z.
_Z = 1.959964


def error_interval(error: float, images: int) -> tuple[float, float]:
    """Returns the 95 % interval of an error on independent images, fractions (Wilson 1927).

    Args:
      error: the measured share of wrong images, 0 to 1.
      images: their number, at least 1.
    """
    center, reach = error + _Z**2 / (2 * images), math.sqrt(error * (1 - error) / images + (_Z / (2 * images)) ** 2)
    shrink = 1 + _Z**2 / images
    # By rounding, the ends may miss an error of 0 or 1, where they are equal to it.
    return min(error, max(0.0, (center - _Z * reach) / shrink)), max(error, min(1.0, (center + _Z * reach) / shrink))


def guessing_error(labels_N: np.ndarray) -> float:
    """Returns the least top-1 error of one answer for all images: the share outside the largest class.

    With K classes of equal size it is 1 - 1/K; otherwise it is less.
    """
    return 1 - float(np.bincount(labels_N).max()) / len(labels_N)


class ClassMeasures(NamedTuple):
    """How well one class is recognised; fractions."""

    images: int
    predicted: int  # images that were predicted as the class
    precision: float | None  # share of the predictions that are right; None without any
    recall: float | None  # share of the images that are found; None without any
    f1: float | None  # harmonic mean of both; None without images and predictions


def confusion_matrix(labels_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns [K, K] int64, images by true class (row) and predicted class; images without either are not counted.

    Args:
      labels_N, predicted_N: class numbers; negative: none.
      num_classes: K.
    """
    matrix, counted_N = np.zeros((num_classes, num_classes), np.int64), (labels_N >= 0) & (predicted_N >= 0)
    np.add.at(matrix, (labels_N[counted_N], predicted_N[counted_N]), 1)
    return matrix


def class_measures(labels_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> list[ClassMeasures]:
    """Returns the measures of each class; an image without a prediction counts as not found.

    Arguments as of `confusion_matrix`.
    """
    matrix = confusion_matrix(labels_N, predicted_N, num_classes)
    images_K = np.bincount(labels_N[labels_N >= 0], minlength=num_classes)

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return [
        ClassMeasures(
            images,
            predicted,
            share(right, predicted),
            share(right, images),
            share(2 * right, images + predicted),
        )
        for images, predicted, right in zip(
            images_K.tolist(), matrix.sum(0).tolist(), np.diag(matrix).tolist(), strict=True
        )
    ]


def macro_means(classes: Sequence[ClassMeasures]) -> ClassMeasures:
    """Returns the sums of images and predictions, and the means of the measures over the classes that have images.

    The precision of a class that was never predicted counts as 0.
    """
    shown = [one for one in classes if one.images]

    def mean(values: Iterable[float | None]) -> float | None:
        return sum(value or 0.0 for value in values) / len(shown) if shown else None

    return ClassMeasures(
        sum(one.images for one in classes),
        sum(one.predicted for one in classes),
        mean(one.precision for one in shown),
        mean(one.recall for one in shown),
        mean(one.f1 for one in shown),
    )
