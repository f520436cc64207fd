"""Logistic regression by optax, on whatever device JAX has: a linear probe for many images."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

_MAX_UPDATES = 500
_TOLERANCE = 1e-5  # of the gradient's norm, where the loss is a mean over images


class LogisticRegression(NamedTuple):
    """A fitted model, used as scikit-learn's is."""

    kernel_DxK: np.ndarray
    bias_K: np.ndarray
    classes: np.ndarray  # labels in the order of K, of two classes the second one alone has a column

    def decision_function(self, features_NxD: np.ndarray) -> np.ndarray:
        """Returns logits [N, K]; of two classes [N], positive for the second."""
        logits_NxK = features_NxD @ self.kernel_DxK + self.bias_K
        return logits_NxK[:, 0] if len(self.classes) == 2 else logits_NxK

    def predict(self, features_NxD: np.ndarray) -> np.ndarray:
        """Returns the likeliest labels [N]."""
        logits = self.decision_function(features_NxD)
        return self.classes[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(1)]


def fit(features_NxD: np.ndarray, labels_N: np.ndarray, c: float) -> LogisticRegression:
    """Minimises |kernel|^2 / 2 + c * (sum of the images' cross-entropies) by L-BFGS, as scikit-learn's LogisticRegression.

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
        if columns == 1:
            logits = jnp.pad(logits, ((0, 0), (1, 0)))  # the first class's are 0
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, targets_N)
        return errors.mean() + penalty / 2 * jnp.square(kernel).sum()

    optimizer = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def update(carry: Any) -> Any:
        params, state, number, _ = carry
        value, gradient = value_and_gradient(params, state=state)
        updates, state = optimizer.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(params, updates), state, number + 1, optax.tree.norm(gradient)

    def goes_on(carry: Any) -> Any:
        return (carry[2] < _MAX_UPDATES) & (carry[3] > _TOLERANCE)

    start = (jnp.zeros((features_NxD.shape[1], columns)), jnp.zeros(columns))
    return jax.lax.while_loop(goes_on, update, (start, optimizer.init(start), 0, jnp.float32(jnp.inf)))[0]
