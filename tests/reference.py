"""The paper's test protocol for net A, slow and obvious: one image, one layer, one crop at a time.

Nothing is shared with the package but the parameters.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from PIL import Image


@jax.jit
def map_by_hand(params, image_HxWx3):
    x = image_HxWx3.transpose(2, 0, 1)[None]

    def layer(name, x, padding):
        kernel, bias = params[name]["kernel"].transpose(3, 2, 0, 1), params[name]["bias"]
        return lax.conv(x, kernel, (1, 1), padding) + bias[:, None, None]

    for block, count in enumerate((1, 1, 2, 2, 2), 1):
        for number in range(1, count + 1):
            x = jnp.maximum(layer(f"conv{block}_{number}", x, "SAME"), 0)
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    for name in ("fc6", "fc7"):
        x = jnp.maximum(layer(name, x, "VALID"), 0)
    return layer("fc8", x, "VALID")[0]  # [K, h, w]


def softmax(scores):
    e = np.exp(np.asarray(scores, np.float64) - np.max(scores))
    return e / e.sum()


class Reference:
    """Net A on the folder that `runs.varied_images` makes; the mean RGB is that of `runs.make_run`."""

    def __init__(self, params: dict, photos: Path):
        self.params = params
        self.files = sorted(photos.glob("validation/*/*"))

    def image(self, file, q):
        image = Image.open(file).convert("RGB")
        w, h = image.size
        size = (q, int(h / w * q + 0.5)) if w <= h else (int(w / h * q + 0.5), q)
        return np.asarray(image.resize(size, Image.BILINEAR), np.float32) - np.array([120, 110, 100], np.float32)

    def map(self, image):
        return np.asarray(map_by_hand(self.params, image), np.float64)

    def dense(self, file, q):
        image = self.image(file, q)
        both = [softmax(self.map(v).mean((1, 2))) for v in (image, image[:, ::-1])]
        return (both[0] + both[1]) / 2

    def multi_crop(self, file, q, cells=tuple((i, j) for i in range(5) for j in range(5))):
        image, probs = self.image(file, q), []
        for i, j in cells:
            top, left = (int(n * (side - 64) / 4 + 0.5) for n, side in ((i, image.shape[0]), (j, image.shape[1])))
            crop = image[top : top + 64, left : left + 64]
            probs += [softmax(self.map(v)[:, 0, 0]) for v in (crop, crop[:, ::-1])]
        assert len(probs) == 2 * len(cells)
        return np.mean(probs, 0)

    def ten_crop(self, file, q):
        """Corners and centre (Krizhevsky et al. 2012, §4.1)."""
        return self.multi_crop(file, q, ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)))

    def square_crop(self, file, q):
        """Crops left, central and right square: corners, centre and whole, each mirrored (Szegedy et al. 2014, §7)."""
        image, probs = self.image(file, q), []
        mean = np.array([120, 110, 100], np.float32)
        is_upright = image.shape[0] > image.shape[1]
        if is_upright:
            image = image.swapaxes(0, 1)
        for left in (0, (image.shape[1] - q) // 2, image.shape[1] - q):
            square = image[:, left : left + q]
            far, middle = q - 64, (q - 64) // 2
            places = ((0, 0), (0, far), (far, 0), (far, far), (middle, middle))
            views = [square[y : y + 64, x : x + 64] for y, x in places]
            whole = Image.fromarray((square + mean).round().astype(np.uint8)).resize((64, 64), Image.BILINEAR)
            views.append(np.asarray(whole, np.float32) - mean)
            if is_upright:
                views = [view.swapaxes(0, 1) for view in views]
            probs += [softmax(self.map(v)[:, 0, 0]) for view in views for v in (view, view[:, ::-1])]
        assert len(probs) == 36
        return np.mean(probs, 0)
