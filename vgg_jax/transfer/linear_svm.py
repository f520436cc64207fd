"""Linear classifiers on descriptors, by the protocols of Caltech and of VOC (Paper, Appendix B)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vgg_jax.runtime.exceptions import UserError

C_VALUES = (0.1, 1.0, 10.0, 100.0)  # of which the best on a fifth of the training images is taken
HELD_OUT = 0.2  # share of the training images by which hyper-parameters are chosen (Paper, Appendix B)
_MAX_ITERATIONS = 10_000
Candidates = dict[str, np.ndarray]  # name of a descriptor -> [N, D]
Fit = Callable[
    [np.ndarray, np.ndarray, float], Any
]  # features [N, D], labels [N] and C -> what has scikit-learn's methods


class Outcome(NamedTuple):
    """The result on one split."""

    score: float  # mean class recall, or mean average precision
    by_class: np.ndarray  # [K]; NaN where no image of a class is there to train on, or none to test
    descriptor: str  # that was chosen
    c: float


def caltech_splits(
    labels_N: np.ndarray, class_names: Sequence[str], train: int, test: int, splits: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draws splits: `train` images of every class, and up to `test` of the others.

    Returns:
      [(indices to train on, indices to test on), ...].

    Raises:
      UserError: a class with too few images.
    """
    counts = np.bincount(labels_N, minlength=len(class_names))
    few = [name for name, count in zip(class_names, counts, strict=True) if count <= train]
    if few and (most := counts.min() - 1) >= 2:
        raise UserError(
            f"{len(few)} classes have no more than {train} images, so that none is left to test ({', '.join(few[:3])}); "
            f"train on fewer of each class: at most --train_images={most}."
        )
    if few:
        fewest = [name for name, count in zip(class_names, counts, strict=True) if count < 3]
        raise UserError(
            f"{len(fewest)} classes have fewer than 3 images, two to train on and one to test ({', '.join(fewest[:3])}); add "
            "images, or take these classes out of the data."
        )
    drawn = []
    for split in range(splits):
        rng = np.random.default_rng((seed, split))
        parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for k in range(len(class_names)):
            order = rng.permutation(np.flatnonzero(labels_N == k))
            parts[0].append(order[:train])
            parts[1].append(order[train : train + test])
        drawn.append((np.concatenate(parts[0]), np.concatenate(parts[1])))
    return drawn


def single_label(
    candidates: Candidates, labels_N: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int, fit: Fit
) -> Outcome:
    """Trains a classifier that tells all classes apart, and returns the mean class recall on the test images.

    Args:
      candidates: descriptors, of which one is chosen together with C.
      labels_N: int.
      train, test: indices.
      seed: of the fifth of `train` that hyper-parameters are chosen by, so many of each class.
      fit: `fitted_svm`, or `linear_probe.fit`.
    """
    rng = np.random.default_rng(seed)
    groups = [rng.permutation(train[labels_N[train] == k]) for k in np.unique(labels_N[train])]
    held = np.concatenate([group[: max(1, round(HELD_OUT * len(group)))] for group in groups])
    rest = np.setdiff1d(train, held)

    def recalls(features: np.ndarray, c: float, fit_on: np.ndarray, on: np.ndarray) -> np.ndarray:
        predicted = fit(features[fit_on], labels_N[fit_on], c).predict(features[on])
        return np.array([(predicted[labels_N[on] == k] == k).mean() for k in np.unique(labels_N[on])])

    name, c = _chosen(candidates, lambda features, c: recalls(features, c, rest, held).mean())
    by_class = recalls(candidates[name], c, train, test)
    return Outcome(float(by_class.mean()), by_class, name, c)


def multi_label(
    candidates: Candidates,
    labels_NxK: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
    fit: Fit,
    points: int = 0,
) -> Outcome:
    """Trains a classifier for each class, and returns the mean average precision on the test images.

    Args:
      candidates: as for `single_label`.
      labels_NxK: 1 where a class is there, -1 where not, 0 where that is hard to say: such images do not count.
      train, test: indices.
      seed: of the fifth of `train` that hyper-parameters are chosen by.
      fit: as for `single_label`.
      points: see `average_precision`.
    """
    held = np.random.default_rng(seed).permutation(train)[: max(1, round(HELD_OUT * len(train)))]
    rest = np.setdiff1d(train, held)

    def precisions(features: np.ndarray, c: float, fit_on: np.ndarray, on: np.ndarray) -> np.ndarray:
        by_class = np.full(labels_NxK.shape[1], np.nan)
        for k in range(labels_NxK.shape[1]):
            known, counted = (part[labels_NxK[part, k] != 0] for part in (fit_on, on))
            if len(np.unique(labels_NxK[known, k])) == 2 and (labels_NxK[counted, k] == 1).any():
                scores = fit(features[known], labels_NxK[known, k], c).decision_function(features[counted])
                by_class[k] = average_precision(scores, labels_NxK[counted, k] == 1, points)
        return by_class

    name, c = _chosen(candidates, lambda features, c: _mean(precisions(features, c, rest, held)))
    by_class = precisions(candidates[name], c, train, test)
    return Outcome(_mean(by_class), by_class, name, c)


def _mean(by_class_K: np.ndarray) -> float:
    """Returns the mean over the classes that have a number; 0 where none has."""
    numbers = by_class_K[~np.isnan(by_class_K)]
    return float(numbers.mean()) if len(numbers) else 0.0


def average_precision(scores_N: np.ndarray, is_true_N: np.ndarray, points: int = 0) -> float:
    """Returns the mean of the largest precisions at a recall or any higher.

    Args:
      scores_N, is_true_N: of the images; of equal scores the first ranks higher.
      points: equally spaced recalls from 0 to 1 that the mean is over, 11 in VOC 2007; 0: the recalls of all true images, as
        VOC has it since 2010.
    """
    true = is_true_N[np.argsort(-scores_N, kind="stable")]
    precisions = np.cumsum(true) / np.arange(1, len(true) + 1)
    best = np.maximum.accumulate(precisions[::-1])[::-1][true]  # at the recall of each true image
    if not points:
        return float(best.mean())
    ranks = np.ceil(np.linspace(0, 1, points) * len(best) - 1e-9).astype(int)  # the true images that a recall needs
    return float(best[np.maximum(ranks, 1) - 1].mean())


def _chosen(candidates: Candidates, score: Callable[[np.ndarray, float], Any]) -> tuple[str, float]:
    """Returns the descriptor and the C of the highest score; of equals the first."""
    tried = [(name, c) for name in candidates for c in C_VALUES]
    # One at a time: liblinear's threads share one random generator, so that two at once give another result each time.
    return tried[int(np.argmax([score(candidates[name], c) for name, c in tried]))]


def fitted_svm(features_NxD: np.ndarray, labels_N: np.ndarray, c: float) -> Any:
    """Fits linear support vector machines, one class against the rest, to within 0.2 % of the least objective.

    Prints a line where that takes more than 10,000 iterations. Not to be called by several threads at once.

    Raises:
      UserError: scikit-learn is not installed.
    """
    svm = need_scikit_learn()
    # "auto": the primal problem where there are more images than features, by much the faster one with a large C.
    machines = svm.LinearSVC(C=c, dual="auto", tol=1e-4, max_iter=_MAX_ITERATIONS, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence: said below
        machines.fit(features_NxD, labels_N)
    if machines.n_iter_ >= _MAX_ITERATIONS:
        print(
            f"WARNING: C = {c:g}: stopped after {_MAX_ITERATIONS:,} iterations, before the least objective", flush=True
        )
    return machines


def need_scikit_learn() -> Any:
    """Returns its module of support vector machines; raises UserError where it is not installed."""
    try:
        from sklearn import svm
    except ImportError as error:
        raise UserError(
            "linear classifiers are scikit-learn's, which is not installed: pip install 'vgg-jax[transfer]', or pip install "
            "scikit-learn."
        ) from error
    return svm
