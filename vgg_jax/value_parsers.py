"""Parsers of configuration values that hold more than one value: factors by layer, and epochs."""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Iterable
from typing import Any

from vgg_jax.models import Layers
from vgg_jax.models.description import layer_names, with_inputs
from vgg_jax.runtime.exceptions import UserError, quoted

LrFactors = tuple[
    tuple[str, float], ...
]  # (layer with parameters, factor on its learning rate), in the order of computation

_LARGEST_LR_FACTOR = 1e6


def parse_lr_factors(text: str, layers: Layers, norms_follow: bool, configuration: str) -> LrFactors:
    """Returns the factor on the learning rate of each layer with parameters; 0 freezes it.

    The first pattern that matches a layer's name decides, and "classifier" stands for the last layer.

    Args:
      text: value of `optimizer.lr_factors`.
      layers: of the network.
      norms_follow: whether a normalisation that no pattern matches takes the factor of its convolution.
      configuration: of the network, for messages.

    Raises:
      UserError: anything but `pattern=factor` with commas between, a pattern that decides no layer, or no layer
        that trains.
    """
    names = layer_names(layers)
    patterns = [_lr_factor(part, text, names) for part in text.split(",") if part]
    deciding = {
        name: next((pattern for pattern, _ in patterns if fnmatch.fnmatchcase(name, pattern)), None) for name in names
    }
    if norms_follow:
        for layer, (source, *_) in with_inputs(layers):
            if layer.is_norm:
                deciding[layer.name] = deciding[layer.name] or deciding.get(source)
    factors: dict[str | None, float] = {None: 1.0}
    for pattern, factor in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                f"config.optimizer.lr_factors is {text!r}, and no layer of configuration {configuration} is "
                f"called {pattern!r}; there are {', '.join(names)}."
            )
        if pattern in factors or pattern not in deciding.values():
            raise UserError(
                f"config.optimizer.lr_factors is {text!r}, in which earlier patterns decide every layer of "
                f"{pattern!r}; leave it out, or write it before them."
            )
        factors[pattern] = factor
    if not any(factors[pattern] for pattern in deciding.values()):
        raise UserError(f"config.optimizer.lr_factors is {text!r}, which freezes every layer; leave one that trains.")
    return tuple((name, factors[pattern]) for name, pattern in deciding.items())


def _lr_factor(part: str, text: str, names: list[str]) -> tuple[str, float]:
    """Returns the pattern and the factor of one part of `optimizer.lr_factors`, which is `text`."""
    pattern, _, number = (word.strip() for word in part.partition("="))
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not 0 <= factor <= _LARGEST_LR_FACTOR:
        raise UserError(
            f"config.optimizer.lr_factors is {text!r}, in which {part!r} is not layer=factor with a factor from 0 to "
            f'{_LARGEST_LR_FACTOR:g}; write for example "classifier=10,conv*=0.1".'
        )
    return names[-1] if pattern == "classifier" else pattern, factor


def lr_factors_text(factors: LrFactors) -> str:
    """Returns the layers of each factor in words: "frozen: conv1_1 to bn2_2; x 0.1: conv3_1 to bn5_3"."""
    spans: dict[float, list[str]] = {}
    for factor, group in itertools.groupby(factors, lambda pair: pair[1]):
        first, *others = (name for name, _ in group)
        last = "" if not others else f", {others[0]}" if len(others) == 1 else f" to {others[-1]}"
        spans.setdefault(factor, []).append(first + last)
    labels = {factor: f"x {factor:g}" if factor else "frozen" for factor in sorted(spans)}
    return "; ".join(f"{label}: {', '.join(spans[factor])}" for factor, label in labels.items())


def parse_epochs(value: Any) -> tuple[float, ...]:
    """Returns `schedule.drop_epochs`, ascending.

    Args:
      value: epochs, one epoch, or a text with commas between them, as configurations before version 0.6 have it.

    Raises:
      UserError: another value, or an epoch that is not above 0.
    """
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, Iterable) else (value,)
    try:
        epochs = sorted(float(word) for word in words if not isinstance(word, str) or word.strip())
    except (TypeError, ValueError):
        epochs = [math.nan]
    if not all(0 < epoch < math.inf for epoch in epochs):
        raise UserError(
            f'config.schedule.drop_epochs is {quoted(value, 100)}; it must be epochs with commas between, as "30,60".'
        )
    return tuple(epochs)


def parse_steps(text: str) -> tuple[int, int] | None:
    """Returns `profile_steps`, the first and the last of some steps; None for "".

    Raises:
      UserError: a text that is not "(100, 105)" or "100,105".
    """
    words = text.strip().removeprefix("(").removesuffix(")").split(",") if text else ["0", "0"]
    steps = [int(word) if word.strip().isdecimal() else -1 for word in words]
    if len(steps) != 2 or steps[0] < bool(text) or steps[1] < steps[0]:
        raise UserError(
            f"config.profile_steps is {quoted(text, 100)}; it must be the first and the last step, as '(100, 105)'."
        )
    return (steps[0], steps[1]) if text else None


def epochs_text(epochs: Iterable[float]) -> str:
    """Returns epochs as `parse_epochs` reads them: "30,60"."""
    return ",".join(f"{epoch!r}".removesuffix(".0") for epoch in epochs)
