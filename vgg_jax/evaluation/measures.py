"""Measures from labels and errors: the interval of an error, the error of guessing."""

from __future__ import annotations

import math

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
