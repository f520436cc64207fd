"""Alarms on what runs of the presets experiment logged (benchmarks/findings.md): those that learn are left in peace."""

import math

import pytest

from vgg_jax.config import default_config, recipe_of
from vgg_jax.training import diagnostics

BLOCKS = ("block1", "block3", "block5", "fc6", "fc8")
# preset, rate -> loss after three epochs, update ratios by block: net A, ten classes.
LEARNS = {
    ("glorot", 1e-2): (2.041, (1.0e-2, 3.8e-3, 2.3e-3, 1.0e-3, 3.3e-3)),
    ("glorot", 1e-3): (1.957, (7.6e-4, 8.3e-4, 8.1e-4, 2.9e-4, 6.5e-4)),
    ("torch", 1e-2): (1.991, (7.4e-3, 3.6e-3, 3.8e-3, 2.0e-3, 8.2e-3)),
}
UNREACHED = {
    ("std001", 1e-2): (2.304, (5.0e-5, 5.0e-5, 5.0e-5, 5.0e-5, 5.9e-5)),
    ("he", 1e-3): (2.303, (5.0e-6, 5.0e-6, 5.0e-6, 5.0e-6, 5.1e-6)),
}


def means(loss, ratios, rate):
    found = {"loss": loss, "lr": rate}
    for block, ratio in zip(BLOCKS, ratios, strict=True):
        found |= {f"update_ratio/{block}": ratio, f"gradient_norm/{block}": 1.0}
    return found


def config_of(preset, rate):
    config = default_config()
    config.model.num_classes, config.model.init, config.optimizer.learning_rate = 10, preset, rate
    return config


@pytest.mark.parametrize(("key", "logged"), LEARNS.items(), ids=str)
def test_a_run_that_learns_raises_none(key, logged):
    assert diagnostics.stuck(recipe_of(config_of(*key)), 375, means(*logged, key[1])) is None
    assert diagnostics.exploding(recipe_of(config_of(*key)), 375, means(*logged, key[1])) is None


@pytest.mark.parametrize(("key", "logged"), UNREACHED.items(), ids=str)
def test_a_gradient_that_vanishes_is_told_from_a_rate_that_does_not_suit(key, logged):
    text = diagnostics.stuck(recipe_of(config_of(*key)), 375, means(*logged, key[1]))
    assert "which is guessing (ln 10 = 2.3026). The gradient does not reach block1, block3, block5, fc6" in text
    assert "Try --config.model.init=glorot, a lower rate (--config.optimizer.learning_rate=" in text
    moving = means(logged[0], [100 * ratio for ratio in logged[1]], key[1])
    assert "at a rate that suits a shallow one" in diagnostics.stuck(recipe_of(config_of(*key)), 375, moving)


def test_a_slow_start_is_given_time():
    logged = means(math.log(10), (1e-3,) * 5, 1e-2)
    assert diagnostics.stuck(recipe_of(config_of("glorot", 1e-2)), 199, logged) is None
    assert diagnostics.stuck(recipe_of(config_of("glorot", 1e-2)), 200, logged)


def test_updates_that_leave_nothing_of_the_start_are_exploding_gradients():
    logged = means(88.4, (9.9e-2, 1.0e-1, 8.2e-2, 4.1e-2, 1.1e-1), 1e-3)  # He's start at 1e-3, steps 1 to 25
    text = diagnostics.exploding(recipe_of(config_of("he", 1e-3)), 25, logged)
    assert "an update changes the weights of fc8 by 11% (gradient norm 1)" in text
    assert str(diagnostics.diverged(recipe_of(config_of("he", 1e-2)), 3, math.nan)).startswith(
        "training has diverged: at step 3"
    )


def test_networks_with_batch_normalisation_stand_larger_updates_and_get_other_remedies():
    config = config_of("he", 0.1)
    config.model.configuration = "ResNet-20"
    config.image.crop = 32
    metrics = {"loss": 2.0, "lr": 0.1, "update_ratio/fc": 0.06, "gradient_norm/fc": 2.7}
    assert diagnostics.exploding(recipe_of(config), 10, metrics) is None  # of a run that went well
    text = diagnostics.exploding(recipe_of(config), 10, metrics | {"update_ratio/fc": 0.5})
    assert "changes the weights of fc by 50%" in text
    assert "learning_rate=0.01), or a warm-up (--config.schedule.warmup_epochs=1)" in text
    assert "net A" not in text
    config.model.configuration, config.image.crop = "AlexNet", 227  # which shares no layer with net A
    assert "init=glorot, a lower rate" in str(diagnostics.diverged(recipe_of(config_of("he", 0.1)), 3, math.nan))
    assert "net A" not in str(diagnostics.diverged(recipe_of(config), 3, math.nan))


@pytest.mark.parametrize(
    ("steps", "longer"), [(100, "It had 100 steps; train longer (--config.num_epochs=740)"), (5000, "")]
)
def test_a_run_of_any_length_that_ends_guessing_says_so(steps, longer):
    recipe = recipe_of(config_of("glorot", 1e-2))
    text = diagnostics.guessing(recipe, steps, math.log(10))
    assert "the run ends with a training loss of 2.3026, which is guessing (ln 10 = 2.3026)" in text
    assert longer in text
    assert ("train longer" in text) == bool(longer)
    assert "Try a lower rate" in text
    assert diagnostics.guessing(recipe, steps, 2.2) is None
    assert diagnostics.guessing(recipe, steps, None) is None, "a run of an earlier version"
