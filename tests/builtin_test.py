"""The built-in images: the same everywhere, balanced, of varied shape."""

import hashlib

import numpy as np

from vgg_jax.data.builtin import CLASS_NAMES, COUNTS, NAME, SHAPES, render

# If a change of the drawing is meant: put the new digest here and raise the version in NAME, so that nobody's prepared
# data passes for the new one.
DIGEST = "c7d11f3e1a59dbf6c92d834990f4d3d3385dc92f32eb76b421d235a468f5fb42"


def test_pixels_are_the_same_everywhere():
    digest = hashlib.sha256()
    for seed in (*range(10), 999_999, 1_000_000):
        image, _ = render(seed)
        digest.update(np.asarray(image).tobytes())
    assert digest.hexdigest() == DIGEST, f"the images have changed: {digest.hexdigest()}; see the comment above"
    assert NAME == "vgg_jax_shapes/1.0.0"


def test_labels_sizes_and_shapes_vary():
    assert list(CLASS_NAMES) == sorted(SHAPES)
    assert len(CLASS_NAMES) == 10
    images = [render(seed) for seed in range(60)]
    assert [label for _, label in images] == [seed % 10 for seed in range(60)]
    assert len({image.size for image, _ in images}) > 50
    ratios = [image.width / image.height for image, _ in images]
    assert min(ratios) < 0.75
    assert max(ratios) > 1.33
    assert COUNTS == {"train": 4000, "validation": 1000}
