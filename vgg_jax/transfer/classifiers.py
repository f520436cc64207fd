"""Linear classifiers on descriptors, by the protocols of Caltech and of VOC (Paper, Appendix B)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vgg_jax.runtime.console import print_line
from vgg_jax.runtime.exceptions import UserError

C_VALUES = (0.1, 1.0, 10.0, 100.0)  # the best on a fifth of the training images is taken
HELD_OUT = 0.2  # share of the training images by which hyper-parameters are chosen (Paper, Appendix B)
_MAX_ITERATIONS = 10_000  # of a support vector machine
_MAX_UPDATES = 500  # of a logistic regression
_TOLERANCE = 1e-5  # of the gradient's norm, where the loss is a mean over images
Candidates = dict[str, np.ndarray]  # name of a descriptor -> [N, D]
Split = tuple[np.ndarray, np.ndarray]  # indices of the images to train on, and to test
# Features [N, D], labels [N] and C -> a model with scikit-learn's methods.
Fit = Callable[[np.ndarray, np.ndarray, float], Any]
# Features [N, D], C, indices to train on, indices to test -> scores [K] by class.
_Score = Callable[[np.ndarray, float, np.ndarray, np.ndarray], np.ndarray]


class Outcome(NamedTuple):
    """The result on one split."""

    score: float  # mean class recall, or mean average precision
    by_class: np.ndarray  # [K]; NaN for a class without images to train on or to test
    descriptor: str  # the chosen candidate
    c: float


def caltech_splits(
    labels_N: np.ndarray, class_names: Sequence[str], train: int, test: int, splits: int, seed: int
) -> list[Split]:
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
            f"{len(few)} classes have no more than {train} images, so that none is left to test "
            f"({', '.join(few[:3])}); train on fewer of each class: at most --train_images={most}."
        )
    if few:
        fewest = [name for name, count in zip(class_names, counts, strict=True) if count < 3]
        raise UserError(
            f"{len(fewest)} classes have fewer than 3 images, two to train on and one to test "
            f"({', '.join(fewest[:3])}); add images, or take these classes out of the data."
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


def single_label(candidates: Candidates, labels_N: np.ndarray, split: Split, seed: int, fit: Fit) -> Outcome:
    """Trains a classifier that tells all classes apart, and returns the mean class recall on the test images.

    Args:
      candidates: descriptors; one is chosen together with C.
      labels_N: int.
      split: indices.
      seed: of the fifth of the training images by which hyper-parameters are chosen, as many of each class.
      fit: `fitted_svm` or `fitted_logistic`.
    """
    rng, (train, _) = np.random.default_rng(seed), split
    groups = [rng.permutation(train[labels_N[train] == k]) for k in np.unique(labels_N[train])]
    held = np.concatenate([group[: max(1, round(HELD_OUT * len(group)))] for group in groups])

    def recalls(features: np.ndarray, c: float, fit_on: np.ndarray, on: np.ndarray) -> np.ndarray:
        predicted = fit(features[fit_on], labels_N[fit_on], c).predict(features[on])
        return np.array([(predicted[labels_N[on] == k] == k).mean() for k in np.unique(labels_N[on])])

    return _outcome(candidates, split, held, recalls)


def multi_label(
    candidates: Candidates, labels_NxK: np.ndarray, split: Split, seed: int, fit: Fit, points: int = 0
) -> Outcome:
    """Trains a classifier for each class, and returns the mean average precision on the test images.

    Args:
      candidates: as for `single_label`.
      labels_NxK: 1 where a class is there, -1 where not, 0 where that is hard to say: such images do not count.
      split: indices.
      seed: of the fifth of the training images by which hyper-parameters are chosen.
      fit: as for `single_label`.
      points: see `average_precision`.
    """
    train, _ = split
    held = np.random.default_rng(seed).permutation(train)[: max(1, round(HELD_OUT * len(train)))]

    def precisions(features: np.ndarray, c: float, fit_on: np.ndarray, on: np.ndarray) -> np.ndarray:
        by_class = np.full(labels_NxK.shape[1], np.nan)
        for k in range(labels_NxK.shape[1]):
            known, counted = (part[labels_NxK[part, k] != 0] for part in (fit_on, on))
            if len(np.unique(labels_NxK[known, k])) == 2 and (labels_NxK[counted, k] == 1).any():
                scores = fit(features[known], labels_NxK[known, k], c).decision_function(features[counted])
                by_class[k] = average_precision(scores, labels_NxK[counted, k] == 1, points)
        return by_class

    return _outcome(candidates, split, held, precisions)


def _outcome(candidates: Candidates, split: Split, held: np.ndarray, score: _Score) -> Outcome:
    """Chooses the descriptor and the C of the highest mean score on `held`, of equals the first, and tests that."""
    rest, tried = np.setdiff1d(split[0], held), [(name, c) for name in candidates for c in C_VALUES]
    # One at a time: liblinear's threads share one random generator, so that two at once give another result each time.
    name, c = tried[int(np.argmax([_mean(score(candidates[name], c, rest, held)) for name, c in tried]))]
    by_class = score(candidates[name], c, *split)
    return Outcome(_mean(by_class), by_class, name, c)


def _mean(by_class_K: np.ndarray) -> float:
    """Returns the mean over the classes that have a number; 0 where none has."""
    numbers = by_class_K[~np.isnan(by_class_K)]
    return float(numbers.mean()) if len(numbers) else 0.0


def average_precision(scores_N: np.ndarray, is_true_N: np.ndarray, points: int = 0) -> float:
    """Returns the mean of the largest precisions at a recall or any higher.

    Args:
      scores_N, is_true_N: of the images; of equal scores the first ranks higher.
      points: equally spaced recalls from 0 to 1 that the mean is over, 11 in VOC 2007; 0: the recalls of all true
        images, as VOC has it since 2010.
    """
    true = is_true_N[np.argsort(-scores_N, kind="stable")]
    precisions = np.cumsum(true) / np.arange(1, len(true) + 1)
    # At the recall of each true image.
    best = np.maximum.accumulate(precisions[::-1])[::-1][true]
    if not points:
        return float(best.mean())
    # The number of true images that each recall needs.
    ranks = np.ceil(np.linspace(0, 1, points) * len(best) - 1e-9).astype(int)
    return float(best[np.maximum(ranks, 1) - 1].mean())


def fitted_svm(features_NxD: np.ndarray, labels_N: np.ndarray, c: float) -> Any:
    """Fits linear support vector machines, one class against the rest, to within 0.2 % of the least objective.

    Prints a line where that takes more than 10,000 iterations. Not to be called by several threads at once.

    Raises:
      UserError: scikit-learn is not installed.
    """
    svm = need_scikit_learn()
    from sklearn.exceptions import ConvergenceWarning

    # "auto": the primal problem where there are more images than features, by much the faster one with a large C.
    machines = svm.LinearSVC(C=c, dual="auto", tol=1e-4, max_iter=_MAX_ITERATIONS, random_state=0)
    # The line below says it.
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        machines.fit(features_NxD, labels_N)
    if machines.n_iter_ >= _MAX_ITERATIONS:
        print_line(f"WARNING: C = {c:g}: stopped after {_MAX_ITERATIONS:,} iterations, before the least objective")
    return machines


def need_scikit_learn() -> Any:
    """Returns its module of support vector machines; raises UserError where it is not installed."""
    try:
        from sklearn import svm
    except ImportError as error:
        raise UserError(
            "linear classifiers are scikit-learn's, which is not installed: pip install 'vgg-jax[transfer]', or pip "
            "install scikit-learn."
        ) from error
    return svm


class LogisticRegression(NamedTuple):
    """A fitted model, used as scikit-learn's is."""

    kernel_DxK: np.ndarray
    bias_K: np.ndarray
    classes: np.ndarray  # labels in the order of K; of two classes the second one alone has a column

    def decision_function(self, features_NxD: np.ndarray) -> np.ndarray:
        """Returns logits [N, K]; of two classes [N], positive for the second."""
        logits_NxK = features_NxD @ self.kernel_DxK + self.bias_K
        return logits_NxK[:, 0] if len(self.classes) == 2 else logits_NxK

    def predict(self, features_NxD: np.ndarray) -> np.ndarray:
        """Returns the likeliest labels [N]."""
        logits = self.decision_function(features_NxD)
        return self.classes[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(1)]


def fitted_logistic(features_NxD: np.ndarray, labels_N: np.ndarray, c: float) -> LogisticRegression:
    """Minimises |kernel|^2 / 2 + c * (sum of the images' cross-entropies) by L-BFGS, as scikit-learn's
    LogisticRegression.

    All features are on one device at once: 4 N D bytes.
    """
    classes, targets = np.unique(labels_N, return_inverse=True)
    columns = 1 if len(classes) == 2 else len(classes)
    kernel, bias = jax.device_get(
        _minimum(jnp.asarray(features_NxD, jnp.float32), jnp.asarray(targets), 1 / (c * len(targets)), columns)
    )
    return LogisticRegression(kernel, bias, classes)


@functools.partial(jax.jit, static_argnums=3)
def _minimum(features_NxD: jax.Array, targets_N: jax.Array, penalty: float, columns: int) -> Any:
    """Returns kernel [D, columns] and bias [columns]."""

    def loss(params: Any) -> jax.Array:
        kernel, bias = params
        logits = jnp.matmul(features_NxD, kernel, precision=jax.lax.Precision.HIGHEST) + bias
        # Of two classes the first one's logits are 0.
        if columns == 1:
            logits = jnp.pad(logits, ((0, 0), (1, 0)))
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, targets_N)
        return errors.mean() + penalty / 2 * jnp.square(kernel).sum()

    optimizer = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def update(carry: Any) -> Any:
        params, state, number, _ = carry
        value, gradient = value_and_gradient(params, state=state)
        updates, state = optimizer.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(params, updates), state, number + 1, optax.tree.norm(gradient)

    def continues(carry: Any) -> Any:
        return (carry[2] < _MAX_UPDATES) & (carry[3] > _TOLERANCE)

    start = (jnp.zeros((features_NxD.shape[1], columns)), jnp.zeros(columns))
    return jax.lax.while_loop(continues, update, (start, optimizer.init(start), 0, jnp.float32(jnp.inf)))[0]
