"""Colour statistics of a training split, and ImageNet's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ColorStatistics(NamedTuple):
    """Colour statistics of a training split's pixels, on the scale 0 to 255."""

    mean_rgb: np.ndarray  # [3] float32
    # [3, 3] float32: column i is the i-th principal axis of the RGB covariance times the standard deviation along it.
    color_vectors: np.ndarray


# The customary constants of ImageNet's training set. The published l are square roots of eigenvalues
# of pixels in [0, 1], so they are multiplied by 255, not 255^2.
IMAGENET_STATISTICS = ColorStatistics(
    mean_rgb=np.array([123.68, 116.779, 103.939], np.float32),
    color_vectors=(
        np.array(
            # Rows R, G, B.
            [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
        )
        * (255 * np.array([0.2175, 0.0188, 0.0045]))
    ).astype(np.float32),
)
