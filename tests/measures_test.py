"""Measures from labels and errors, against published figures."""

import numpy as np
import pytest

from vgg_jax.evaluation import measures


@pytest.mark.parametrize(
    ("wrong", "images", "low", "high"),
    # Newcombe 1998, Table I, method 3 (the score method of Wilson, without correction for continuity).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_the_published_ones(wrong, images, low, high):
    assert measures.error_interval(wrong / images, images) == pytest.approx((low, high), abs=5e-5)
    mirrored = measures.error_interval(1 - wrong / images, images)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("images", [1, 10, 50_000])
def test_an_interval_contains_the_error(images):
    for error in (0.0, 0.5, 1.0):
        low, high = measures.error_interval(error, images)
        assert 0 <= low <= error <= high <= 1


def test_the_best_guess_is_the_largest_class():
    assert measures.guessing_error(np.array([0, 0, 1])) == pytest.approx(1 / 3)
    assert measures.guessing_error(np.repeat(np.arange(10), 7)) == pytest.approx(0.9)


def test_precision_recall_and_f1_by_hand():
    # Class 3 has neither images nor predictions, class 2 no prediction; the last image has none.
    labels, predicted = np.array([0, 0, 0, 1, 2, 1]), np.array([0, 0, 1, 1, 0, -1])
    classes = measures.class_measures(labels, predicted, 4)
    assert classes == [
        (3, 3, pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3)),
        (2, 2, 0.5, 0.5, 0.5),
        (1, 0, None, 0.0, 0.0),
        (0, 0, None, None, None),
    ]
    mean = measures.macro_means(classes)
    assert mean == (6, 5, *3 * [pytest.approx((2 / 3 + 0.5 + 0) / 3)])
    assert measures.macro_means([]) == (0, 0, None, None, None)


def test_precision_recall_and_f1_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 9, 300), rng.integers(0, 9, 300)
    predicted[:120] = labels[:120]
    classes = measures.class_measures(labels, predicted, 9)
    expected = metrics.precision_recall_fscore_support(labels, predicted)
    for one, (precision, recall, f1, support) in zip(classes, zip(*expected, strict=True), strict=True):
        assert (one.precision, one.recall, one.f1, one.images) == pytest.approx((precision, recall, f1, support))
    macro = metrics.precision_recall_fscore_support(labels, predicted, average="macro")[:3]
    assert measures.macro_means(classes)[2:] == pytest.approx(macro)
