"""Weights drawn at random, with an odd preprocessing."""

from tests.weights_files import random_params
from vgg_jax.models import NetworkSpec
from vgg_jax.weights.file import Weights
from vgg_jax.weights.preprocessing import Preprocessing

ODD = Preprocessing("BGR", 2.0, (0.9, 1.1, 0.8), (0.5, 0.25, 2.0))


def some_weights(configuration="D", expected=ODD, seed=0, **changes):
    return Weights(
        params=random_params(configuration, seed=seed),
        network=NetworkSpec(configuration),
        width_multiplier=1 / 16,
        fc_width=16,
        crop=64,
        training_scales=(73, 146),
        preprocessing=expected,
        class_names=list("abcde"),
        class_titles=None,
        source="drawn at random",
    )._replace(**changes)
