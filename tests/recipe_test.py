"""Mixing, label smoothing, AdamW, clipping and averages of parameters, each against its closed form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image, ImageOps

from tests.first_steps import STATISTICS, one_batch, some_steps
from vgg_jax.config import default_config, recipe_of
from vgg_jax.data.statistics import class_weights
from vgg_jax.data.trivial_augment import OPERATIONS, trivial_augment
from vgg_jax.runtime.sharding import make_mesh
from vgg_jax.training.augment import mix
from vgg_jax.training.checkpoints import load_variables
from vgg_jax.training.optimizer import make_optimizer
from vgg_jax.training.state import init_state, state_shapes
from vgg_jax.training.steps import make_train_step
from vgg_jax.training.train import train

KEYS = [jax.random.key(i) for i in range(40)]


def marked(count=6, height=20, width=30):
    """Images of one value each, which tells whose a pixel is."""
    return jnp.broadcast_to(10.0 * jnp.arange(1, count + 1)[:, None, None, None], (count, height, width, 3))


def test_mixup_blends_pixels_and_targets_in_one_share():
    labels, shares = jnp.array([0, 1, 2, 3, 4, 4]), []
    for key in KEYS:
        images, targets = mix(key, marked(), labels, 5, mixup=0.4)
        share = float(targets[0, 0])
        shares.append(share)
        np.testing.assert_allclose(images[0], share * 10 + (1 - share) * 60, rtol=1e-5)
        np.testing.assert_allclose(
            targets[1], share * jax.nn.one_hot(1, 5) + (1 - share) * jax.nn.one_hot(4, 5), atol=1e-6
        )
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.2)
    assert min(shares) < 0.1  # Beta(0.4, 0.4) is mostly near its ends
    assert max(shares) > 0.9


def test_cutmix_pastes_a_rectangle_and_targets_have_its_share():
    labels, shares = jnp.arange(6), []
    for key in KEYS:
        images, targets = mix(key, marked(), labels, 6, cutmix=1.0)
        own = np.asarray(images[0, :, :, 0] == 10)
        assert set(np.unique(images[0])) <= {10.0, 60.0}
        rows, columns = np.flatnonzero(~own.all(1)), np.flatnonzero(~own.all(0))
        if len(rows):  # what is pasted is a whole rectangle
            assert not own[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].any()
        assert own.sum() == own.size - len(rows) * len(columns)
        np.testing.assert_allclose(targets[0], own.mean() * np.eye(6)[0] + (1 - own.mean()) * np.eye(6)[5], atol=1e-5)
        shares.append(own.mean())
    assert min(shares) < 0.45
    assert max(shares) > 0.8


def test_both_take_turns_and_none_changes_nothing():
    labels = jnp.arange(6)
    pasted = [
        set(np.unique(mix(key, marked(), labels, 6, mixup=1.0, cutmix=1.0)[0][0])) <= {10.0, 60.0} for key in KEYS
    ]
    assert 8 < sum(pasted) < 32
    images, targets = mix(KEYS[0], marked(), labels, 6)
    np.testing.assert_array_equal(images, marked())
    np.testing.assert_array_equal(targets, np.eye(6))


@pytest.mark.slow
def test_the_loss_is_the_cross_entropy_of_the_smoothed_target(tiny_config):
    """With a zero learning rate and no dropout: (1 - s) times the plain loss plus s times the mean over the classes."""
    tiny_config.model.dropout_rate, tiny_config.optimizer.learning_rate = 0.0, 1e-12
    plain = some_steps(tiny_config, 1)[0]
    tiny_config.label_smoothing = 0.3
    smoothed = some_steps(tiny_config, 1)[0]
    tiny_config.label_smoothing = 0.99
    uniform = (some_steps(tiny_config, 1)[0] - 0.01 * plain) / 0.99
    assert smoothed == pytest.approx(0.7 * plain + 0.3 * uniform, rel=1e-4)
    assert smoothed != pytest.approx(plain, rel=1e-4)


def test_class_weights_are_inverse_to_their_images():
    """scikit-learn's `balanced`: N / (K n_k), for the classes that have images."""
    records = [{"label": label} for label in [0] * 6 + [1] * 3 + [3]]
    weights = class_weights(records, 5)
    np.testing.assert_allclose(weights, [10 / 18, 10 / 9, 0, 10 / 3, 0], rtol=1e-6)
    assert np.mean([weights[record["label"]] for record in records]) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_losses_are_the_weighted_mean_over_images(tiny_config, smoothing):
    """Against the losses of the classes alone, each of which a weight of one class gives."""
    tiny_config.model.dropout_rate, tiny_config.label_smoothing = 0.0, smoothing
    mesh, batch = make_mesh(1, jax.devices()[:1]), one_batch(8, 32)
    labels = batch["label"]
    state = init_state(recipe_of(tiny_config), state_shapes(recipe_of(tiny_config), mesh))

    def loss(weights):
        step = make_train_step(recipe_of(tiny_config), STATISTICS, mesh, weights)
        return float(jax.jit(step)(state, batch, np.float32(1e-9))[1]["loss"])

    parts = [loss(np.eye(3, dtype=np.float32)[k]) for k in range(3)]
    assert loss(None) == pytest.approx(sum(parts), rel=1e-4)
    batch["label"] = jnp.ones_like(batch["label"])
    assert loss(np.array([9, 1, 9], np.float32)) == pytest.approx(loss(None), rel=1e-4)  # smoothed or not, of class 1
    batch["label"] = labels
    weights = np.array([0.5, 2, 3], np.float32)
    assert loss(weights) == pytest.approx(weights @ parts, rel=1e-4)


@pytest.mark.slow
def test_mixed_images_have_the_weights_of_both_classes(tiny_config, monkeypatch):
    tiny_config.model.dropout_rate, tiny_config.augment.mixup = 0.0, 1.0
    mesh, batch = make_mesh(1, jax.devices()[:1]), one_batch(8, 32)
    state = init_state(recipe_of(tiny_config), state_shapes(recipe_of(tiny_config), mesh))

    def loss(shares, weights):
        shares_BxK = jnp.tile(jnp.asarray(shares, jnp.float32), (8, 1))
        monkeypatch.setattr("vgg_jax.training.steps.mix", lambda key, images, *_: (images, shares_BxK))
        step = make_train_step(recipe_of(tiny_config), STATISTICS, mesh, weights)
        return float(jax.jit(step)(state, batch, np.float32(1e-9))[1]["loss"])

    of_classes = [loss(np.eye(3)[k], None) for k in range(3)]
    result = loss([0.1, 0.9, 0], np.array([10, 0.2, 7], np.float32))
    assert result == pytest.approx(0.1 * 10 * of_classes[0] + 0.9 * 0.2 * of_classes[1], rel=1e-4)


def ramp(side=31):
    """An image that tells where each pixel is: red its column, green its row."""
    rows, columns = np.mgrid[:side, :side]
    return np.stack([8 * columns, 8 * rows, np.full_like(rows, 90)], -1).astype(np.uint8)


def apply(name, strength, image=None):
    image = ramp() if image is None else image
    return np.asarray(OPERATIONS[name][0](Image.fromarray(image), strength)).astype(int)


def test_trivial_augments_operations_do_what_they_are_called():
    """Müller & Hutter 2021, Table 6: the wide space."""
    image = ramp().astype(int)
    for name in set(OPERATIONS) - {"autocontrast", "equalize"}:
        np.testing.assert_array_equal(apply(name, 0), image)
    white = np.full((8, 8, 3), 255, np.uint8)
    np.testing.assert_array_equal(apply("solarize", 0, white), white)
    moved = apply("translate_x", 0.25)  # 8 of 32 pixels
    np.testing.assert_array_equal(moved[:, :23], image[:, 8:])
    assert not moved[:, 23:].any()
    np.testing.assert_array_equal(apply("translate_y", -0.25)[8:], image[:23])
    rows, columns = np.indices((8, 8)) + 0.5  # centres of pixels; about the top left corner
    seen = columns + 0.99 * rows < 8
    np.testing.assert_array_equal(apply("shear_x", 1, white)[..., 0], np.where(seen, 255, 0))
    np.testing.assert_array_equal(apply("shear_y", 1, white)[..., 0], np.where(seen.T, 255, 0))
    np.testing.assert_array_equal(apply("rotate", 90 / 135), np.rot90(image))
    np.testing.assert_allclose(apply("brightness", -1), 0.01 * image, atol=1)
    np.testing.assert_array_equal(apply("solarize", 0.5), np.where(image < 128, image, 255 - image))
    np.testing.assert_array_equal(apply("posterize", 1), image & 0b11000000)
    assert apply("color", -1 / 0.99).std(-1).max() < 1
    assert apply("autocontrast", 0).max((0, 1)).tolist()[:2] == [255, 255]


@pytest.mark.parametrize("level", [*range(-30, 31)])
def test_trivial_augments_operations_are_its_authors(level):
    """By the formulas of github.com/automl/trivialaugment, aug_lib.py, with 31 strengths of the wide space."""
    image = Image.fromarray(ramp())
    size, affine, share = image.size, Image.Transform.AFFINE, abs(level) / 30
    shear, shift, degrees = 0.99 * level / 30, int(level * 32 / 30), int(level * 135 / 30)
    authors = {
        "shear_x": image.transform(size, affine, (1, shear, 0, 0, 1, 0)),
        "shear_y": image.transform(size, affine, (1, 0, 0, shear, 1, 0)),
        "translate_x": image.transform(size, affine, (1, 0, shift, 0, 1, 0)),
        "translate_y": image.transform(size, affine, (1, 0, 0, 0, 1, shift)),
        "rotate": image.rotate(degrees),
    }
    for name, expected in authors.items():
        np.testing.assert_array_equal(apply(name, level / 30), np.asarray(expected), err_msg=name)
    np.testing.assert_array_equal(
        apply("posterize", share), np.asarray(ImageOps.posterize(image, 8 - abs(level) * 6 // 30))
    )
    np.testing.assert_array_equal(
        apply("solarize", share), np.asarray(ImageOps.solarize(image, 256 - abs(level) * 256 // 30))
    )


def test_trivial_augment_draws_every_operation_alike():
    image, results = ramp(), []
    for i in range(600):
        result = trivial_augment(image, np.random.default_rng(i))
        assert (result.shape, result.dtype) == (image.shape, np.uint8)
        results.append(result.tobytes())
    unchanged = results.count(image.tobytes())  # the identity, and some at no strength: 1/14 and a little
    assert 0.05 < unchanged / 600 < 0.2
    assert len(set(results)) > 150
    assert results[7] == trivial_augment(image, np.random.default_rng(7)).tobytes()


def test_adamw_is_optaxs_and_clipping_bounds_the_gradient():
    config = default_config()
    config.optimizer.name, config.optimizer.l2 = "adamw", 0.05
    rng = np.random.RandomState(0)
    params = {"conv1_1": {"kernel": rng.normal(size=(3, 4)).astype(np.float32), "bias": np.ones(4, np.float32)}}
    ours, theirs = params, params
    mask = {"conv1_1": {"kernel": True, "bias": False}}
    reference = optax.adamw(1e-3, weight_decay=0.05, mask=mask)
    optimizer = make_optimizer(recipe_of(config))
    state, other = optimizer.init(params), reference.init(params)
    for _ in range(5):
        gradient = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
        updates, state = optimizer.update(gradient, state, ours, learning_rate=np.float32(1e-3))
        ours = optax.apply_updates(ours, updates)
        updates, other = reference.update(gradient, other, theirs)
        theirs = optax.apply_updates(theirs, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)

    config = default_config()
    config.optimizer.clip_norm, config.optimizer.l2, config.optimizer.momentum = 0.5, 0.0, 0.0
    optimizer = make_optimizer(recipe_of(config))
    for size in (100.0, 0.1):
        gradient = jax.tree.map(lambda x: np.full_like(x, size / 4), params)  # 16 numbers: of norm `size`  # noqa: B023
        updates, _ = optimizer.update(gradient, optimizer.init(params), params, learning_rate=np.float32(1.0))
        assert float(optax.tree.norm(updates)) == pytest.approx(min(size, 0.5), rel=1e-5)


def today(config):
    config.model.batch_norm, config.model.head = True, "gap"
    config.optimizer.name, config.optimizer.clip_norm = "adamw", 1.0
    config.augment.mixup, config.augment.cutmix, config.label_smoothing = 0.2, 1.0, 0.1
    config.ema_decay = 0.9
    config.class_weights, config.augment.trivial, config.schedule.warmup_error = "balanced", True, 0.9
    return config


@pytest.mark.slow
def test_the_average_is_that_of_all_states_and_1_device_is_8(tiny_config):
    config = today(tiny_config)
    expected = None
    for count in range(4):  # each run from the start, so that every state is seen
        losses, state = some_steps(config, count, devices=1, with_state=True)
        variables = jax.device_get(state.variables)
        if expected is None:
            expected = variables
        else:
            decay = min(0.9, count / (9 + count))  # of step `count`, counted from 1
            expected = jax.tree.map(lambda a, v: decay * a + (1 - decay) * v, expected, variables)  # noqa: B023
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), jax.device_get(state.averages), expected
    )
    config.sharding = "fsdp"
    np.testing.assert_allclose(some_steps(config, 3, devices=8), losses, rtol=1e-3)


@pytest.mark.slow
def test_a_run_with_all_of_it_resumes_bit_for_bit_and_its_average_is_evaluated(tiny_config, tmp_path):
    config = today(tiny_config)
    config.num_epochs = 2.0
    train(config, tmp_path / "whole")
    config.num_epochs = 1.0
    train(config, tmp_path / "parts")
    config.num_epochs = 2.0
    train(config, tmp_path / "parts")
    whole, parts = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "parts"))
    for name in ("params_sha256", "final_top1_error", "best_step"):
        assert parts[name] == whole[name], name
    (path, averages), (_, again) = load_variables(tmp_path / "whole"), load_variables(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, averages, again)
    from vgg_jax.evaluation.trained_model import load_trained

    trained = load_trained(path)
    np.testing.assert_array_equal(
        trained.variables["batch_stats"]["bn1_1"]["mean"], averages["batch_stats"]["bn1_1"]["mean"]
    )
    assert trained.digest != whole["params_sha256"]  # which is of the parameters themselves
    assert load_trained(whole["checkpoint"], averages=False).digest == whole["params_sha256"]
