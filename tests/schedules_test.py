"""Schedules against written traces and closed forms."""

import math
from fractions import Fraction

import pytest

from tests.refusals import refused
from vgg_jax.config import default_config, recipe_of
from vgg_jax.training.schedules import (
    Plateau,
    epoch_steps,
    epochs_text,
    is_finished,
    learning_rate,
    lr_drops,
    total_steps,
)
from vgg_jax.validation import validate


def config_with(**schedule):
    config = default_config()
    config.schedule.update(schedule)
    return config


def plateau_config(patience, min_improvement):
    config = default_config()
    config.plateau.patience, config.plateau.min_improvement = patience, min_improvement
    return config


def test_plateau_follows_a_written_trace():
    config = plateau_config(patience=2, min_improvement=0.01)
    plateau = Plateau()
    # (error, drops afterwards): improvement means at least 0.01 under the best so far; two evaluations without make a
    # plateau, and the count starts again after a drop.
    trace = [
        (0.90, 0),
        (0.80, 0),
        (0.795, 0),  # too little: one
        (0.70, 0),  # improved: the count starts again
        (0.75, 0),  # one
        (0.695, 1),  # two: the first drop
        (0.60, 1),
        (0.60, 1),  # one
        (0.61, 2),  # two: the second
        (0.62, 2),  # one
        (0.63, 3),  # two: the third and last
        (0.50, 3),
        (0.50, 3),  # one
    ]
    for error, drops in trace:
        plateau = plateau.observe(error, 1000, recipe_of(config))
        assert lr_drops(recipe_of(config), 1.0, plateau) == drops, error
        assert learning_rate(recipe_of(config), 7, 10.0, plateau) == pytest.approx(1e-2 * 0.1**drops)
        assert not is_finished(recipe_of(config), plateau)
    plateau = plateau.observe(0.495, 1000, recipe_of(config))  # two: the plateau after the last drop
    assert is_finished(recipe_of(config), plateau)
    assert lr_drops(recipe_of(config), 1.0, plateau) == 3


@pytest.mark.parametrize("images", [1000, 50_000, 31])
def test_the_least_improvement_itself_counts_and_one_image_less_does_not(images):
    for least in (0.001, 0.01, 0.1):
        config = plateau_config(patience=1, min_improvement=least)
        needed = math.ceil(Fraction(str(least)) * images)
        for wrong in range(needed, images, max(1, images // 300)):
            before = Plateau().observe(wrong / images, images, recipe_of(config))
            for fewer, plateaus in ((needed, 0), (needed - 1, 1)):
                after = before.observe((wrong - fewer) / images, images, recipe_of(config))
                assert after.plateaus == plateaus, (wrong, fewer)


def test_steps_drop_at_their_epochs():
    config = config_with(name="steps", drop_epochs="60, 30,90", drop_factor=0.2)
    for epoch, drops in ((0, 0), (29.9, 0), (30, 1), (59, 1), (60, 2), (1000, 3)):
        assert lr_drops(recipe_of(config), epoch, Plateau()) == drops
        assert learning_rate(recipe_of(config), int(epoch * 10), 10.0, Plateau()) == pytest.approx(1e-2 * 0.2**drops)
    assert not is_finished(recipe_of(config), Plateau(plateaus=9))


def test_epochs_that_are_said_to_be_enough_are():
    for steps_per_epoch in (1_281_167 / 256, 4_000 / 32, 90 / 8, 50_000 / 128):
        for step in (*range(1, 3000), *range(100_000, 100_500)):
            text = epochs_text(step, steps_per_epoch)
            assert step <= math.ceil(float(text) * steps_per_epoch)
            assert float(text) == pytest.approx(step / steps_per_epoch, rel=1e-3)
    assert epochs_text(5006, 1_281_167 / 256) == "1.0003"


def test_cosine_goes_from_the_rate_to_zero_after_the_warm_up():
    config = config_with(name="cosine", warmup_epochs=5.0)
    config.num_epochs = 25.0
    rates = [learning_rate(recipe_of(config), step, 10.0, Plateau()) for step in range(250)]
    assert rates[:50] == pytest.approx([1e-2 * (step + 1) / 50 for step in range(50)])
    for step in (50, 100, 150, 249):
        assert rates[step] == pytest.approx(1e-2 * (1 + math.cos(math.pi * (step - 50) / 200)) / 2)
    assert rates[150] == pytest.approx(5e-3)
    assert learning_rate(recipe_of(config), 250, 10.0, Plateau()) == pytest.approx(0)


def test_the_rate_is_a_tenth_until_the_training_error_is_low():
    """He et al. 2015, §4.2, for 110 layers: 0.01 "until the training error is below 80 %", then 0.1."""
    config = config_with(name="steps", drop_epochs="10", warmup_error=0.8)
    rates = [
        learning_rate(recipe_of(config), step, 10.0, Plateau(), is_warm)
        for step in (5, 150)
        for is_warm in (False, True)
    ]
    assert rates == pytest.approx([1e-3, 1e-2, 1e-4, 1e-3])
    config.schedule.warmup_error = 1.0  # the default: no such warm-up
    assert learning_rate(recipe_of(config), 5, 10.0, Plateau(), is_warm=False) == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        (
            {"name": "step"},
            "config.schedule.name is 'step'; it must be one of plateau, steps, cosine. Did you mean 'steps'",
        ),
        ({"drop_epochs": "30;60"}, r"config.schedule.drop_epochs is '30;60'; it must be epochs with commas between"),
        ({"drop_epochs": "30,-60"}, r"config.schedule.drop_epochs is '30,-60'"),
        ({"warmup_epochs": -1.0}, r"config.schedule.warmup_epochs is -1.0; it must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(schedule, sentence):
    with refused(sentence):
        validate(config_with(**schedule), 1)


def test_an_epoch_of_few_images_has_the_least_number_of_steps():
    config = default_config()
    config.schedule.name, config.schedule.warmup_epochs = "cosine", 2.0
    config.num_epochs, config.batch_size, config.min_epoch_steps = 30.0, 32, 20
    recipe = recipe_of(config)

    def of(images):
        return epoch_steps(images, recipe.batch_size, recipe.min_epoch_steps)

    assert (of(50), of(640), of(656)) == (20, 20, 20.5)
    assert total_steps(recipe, of(50)) == 600
    rates = [learning_rate(recipe, step, of(50), Plateau()) for step in range(601)]
    assert max(rates) == rates[39] == pytest.approx(1e-2), "warm-up takes 40 steps"
    assert rates[320] == pytest.approx(5e-3)
    assert rates[600] == pytest.approx(0)
    assert epoch_steps(50, 32, 0) == 50 / 32


def test_no_drop_comes_before_the_least_number_of_steps():
    config = plateau_config(patience=2, min_improvement=0.01)
    config.plateau.min_steps = 200
    recipe, plateau, drops = recipe_of(config), Plateau(), []
    for evaluation in range(1, 62):
        plateau = plateau.observe(0.5, 100, recipe, 10.0)
        if plateau.plateaus > len(drops):
            drops.append(10 * evaluation)
    # The first evaluation is the best; from there, and from each drop, 200 steps.
    assert drops == [210, 410, 610]
