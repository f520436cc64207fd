"""The steps: golden first losses, accumulation, exact evaluation, the whole of net E once, and clean imports."""

import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.first_steps import STATISTICS, one_batch, some_steps
from tests.networks import init
from vgg_jax import recipe as recipe_module
from vgg_jax.config import default_config, recipe_of
from vgg_jax.models import make_network, spec
from vgg_jax.runtime.compilation import compile_step
from vgg_jax.runtime.sharding import make_mesh
from vgg_jax.training.state import init_state, make_model, state_shapes
from vgg_jax.training.steps import batch_shapes, make_eval_step, make_train_step, topk_errors
from vgg_jax.validation import validate


@pytest.mark.every_python
def test_golden_first_steps(tiny_config):
    golden = [6.083754062652588, 0.7997414469718933, 2.2366416454315186, 1.919886589050293]
    losses = some_steps(tiny_config, 4)
    np.testing.assert_allclose(
        losses,
        golden,
        rtol=2e-4,
        err_msg="the first losses have changed. If you meant to change initialisation, augmentation, dropout's keys, "
        "the optimizer or the model: put the new values here and say so in CHANGELOG.md, as runs are no longer "
        f"reproducible across it. New: {losses}",
    )


@pytest.mark.slow
def test_norms_by_block_are_those_of_the_gradient_and_the_update(tiny_config):
    tiny_config.model.dropout_rate, tiny_config.augment.flip, tiny_config.augment.color_std = 0.0, False, 0.0
    config, batch = tiny_config, one_batch(tiny_config.batch_size, tiny_config.image.crop)
    state = init_state(recipe_of(config), state_shapes(recipe_of(config), make_mesh(1, jax.devices()[:1])))

    def loss(params):
        logits, _ = make_model(recipe_of(config)).apply({"params": params}, batch["image"] - STATISTICS.mean_rgb)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(logits)), batch["label"]].mean()

    gradient = jax.grad(loss)(state.params)
    new, metrics = jax.jit(make_train_step(recipe_of(config), STATISTICS, make_mesh()))(state, batch, jnp.float32(1e-2))
    for block, layers in {"block1": ["conv1_1"], "block3": ["conv3_1", "conv3_2"], "fc7": ["fc7"]}.items():
        expected = np.sqrt(sum((np.asarray(gradient[layer]["kernel"], np.float64) ** 2).sum() for layer in layers))
        assert float(metrics[f"gradient_norm/{block}"]) == pytest.approx(expected, rel=1e-3)
        before, after = ([np.asarray(s.params[layer]["kernel"]) for layer in layers] for s in (state, new))
        moved = np.sqrt(sum(((b - a) ** 2).sum() for a, b in zip(before, after, strict=True)))
        expected = moved / np.sqrt(sum((a**2).sum() for a in before))
        assert float(metrics[f"update_ratio/{block}"]) == pytest.approx(expected, rel=2e-3)
    assert sum(name.startswith("gradient_norm/") for name in metrics) == 8


@pytest.mark.slow
def test_accumulation_is_the_whole_batch_at_once(tiny_config):
    tiny_config.model.dropout_rate = 0.0
    whole_losses, whole = some_steps(tiny_config, 3, with_state=True)
    tiny_config.accumulation_steps = 4
    parts_losses, parts = some_steps(tiny_config, 3, with_state=True)
    np.testing.assert_allclose(parts_losses, whole_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), parts.params, whole.params)
    tiny_config.accumulation_steps = 2
    np.testing.assert_allclose(some_steps(tiny_config, 3, devices=4), whole_losses, rtol=1e-5)


@pytest.mark.slow
def test_accumulation_in_bfloat16_loses_no_microbatch(tiny_config):
    tiny_config.model.dropout_rate, tiny_config.model.param_dtype = 0.0, "bfloat16"
    tiny_config.batch_size, norms = 512, []
    for tiny_config.accumulation_steps in (1, 512):
        shapes = state_shapes(recipe_of(tiny_config), make_mesh(devices=jax.devices()[:1]))
        step = jax.jit(make_train_step(recipe_of(tiny_config), STATISTICS, make_mesh()))
        batch = jax.tree.map(lambda x: jnp.repeat(x[:1], 512, 0), one_batch(8, 32))  # one gradient, 512 times
        _, metrics = step(init_state(recipe_of(tiny_config), shapes), batch, jnp.float32(1e-3))
        norms.append([float(value) for name, value in metrics.items() if name.startswith("gradient_norm")])
    np.testing.assert_allclose(norms[1], norms[0], rtol=0.05)


@pytest.mark.slow
def test_accumulation_draws_dropout_separately_for_each_part(tiny_config):
    tiny_config.accumulation_steps = 2
    first = some_steps(tiny_config, 3)
    tiny_config.accumulation_steps = 1
    assert np.abs(np.subtract(first, some_steps(tiny_config, 3))).max() > 1e-4


@pytest.mark.slow
def test_frozen_normalisation_keeps_its_statistics(tiny_config):
    tiny_config.model.batch_norm, tiny_config.optimizer.lr_factors = True, "conv1_1=0,conv*=0.5"
    before = init_state(
        recipe_of(tiny_config), state_shapes(recipe_of(tiny_config), make_mesh(devices=jax.devices()[:1]))
    )
    _, after = some_steps(tiny_config, 2, with_state=True)
    for layer in ("bn1_1", "bn2_1"):
        for of_layer in (lambda s: s.params, lambda s: s.model_state["batch_stats"]):
            same = [
                np.array_equal(*pair)
                for pair in zip(*(jax.tree.leaves(of_layer(s)[layer]) for s in (before, after)), strict=True)
            ]
            assert same == [layer == "bn1_1"] * 2, layer


def test_norms_are_left_out_where_nobody_asks_for_them(tiny_config):
    shapes = state_shapes(recipe_of(tiny_config), make_mesh(devices=jax.devices()[:1]))
    state, batch = init_state(recipe_of(tiny_config), shapes), one_batch(8, 32)
    (plain, few), (normed, many) = (
        jax.jit(make_train_step(recipe_of(tiny_config), STATISTICS, make_mesh(), None, with_norms))(
            state, batch, jnp.float32(1e-3)
        )
        for with_norms in (False, True)
    )
    assert set(few) == {"loss", "top1_error", "top5_error", "lr"} == {name for name in many if "/" not in name}
    assert float(few["loss"]) == pytest.approx(float(many["loss"]), rel=1e-6)
    assert float(few["lr"]) == pytest.approx(1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), plain.params, normed.params)


def test_evaluation_leaves_padding_out():
    model = make_network("A", num_classes=5, width_multiplier=1 / 16, fc_width=16, crop=32)
    variables = init(model)
    batch = one_batch(8, 32, 5)
    step = jax.jit(make_eval_step(model, STATISTICS))
    mask = np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)
    metrics = step(variables, {**batch, "mask": mask})
    five = step(variables, {"image": batch["image"][:5], "label": batch["label"][:5], "mask": np.ones(5, bool)})
    assert int(metrics.count) == 5
    for name, value in metrics.compute().items():
        assert float(value) == pytest.approx(float(five.compute()[name]), rel=1e-6)
    logits = np.asarray(model.apply(variables, batch["image"][:5].astype(np.float32) - 127)[0])
    expected = np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(5), batch["label"][:5]])
    assert float(metrics.compute()["loss"]) == pytest.approx(expected, rel=1e-4)


def test_errors_count_ranks_and_ties_are_mistakes():
    logits = jnp.array([[5.0, 4, 3, 2, 1, 0, -1], [0.0] * 7])
    for label, top1, top5 in ((0, 0, 0), (1, 1, 0), (4, 1, 0), (5, 1, 1)):
        errors = topk_errors(logits, jnp.array([label, label]))
        assert [list(map(float, errors[name])) for name in ("top1_error", "top5_error")] == [[top1] * 2, [top5] * 2]
    few = topk_errors(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([0]))
    assert float(few["top5_error"][0]) == 0.0  # three classes: all are among the first five


@pytest.mark.slow
def test_net_e_at_full_size_takes_a_step():
    config = default_config()
    config.model.configuration, config.batch_size = "E", 2
    losses, state = some_steps(config, 1, with_state=True)
    assert np.isfinite(losses[0])
    assert int(state.step) == 1
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 143_667_240


def test_models_and_steps_import_no_grain_and_nothing_imports_tfds():
    code = """
import sys
import vgg_jax.models, vgg_jax.training.steps
assert not {"tensorflow_datasets", "grain", "tensorflow"} & set(sys.modules), "models and steps"
import vgg_jax.training.train
assert not {"tensorflow_datasets", "pyarrow", "tensorflow"} & set(sys.modules), "train"
assert "grain" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("refusal", "falls_back"),
    [
        ("INVALID_ARGUMENT: No such compile option: 'xla_new'", True),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 16.39M of 16.00M vmem.", True),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm.", False),
    ],
)
def test_options_that_a_compiler_refuses_are_left_out(monkeypatch, refusal, falls_back):
    compile_plainly = jax.stages.Lowered.compile

    def compile_it(self, compiler_options=None):
        if compiler_options:
            raise jax.errors.JaxRuntimeError(refusal)
        return compile_plainly(self)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_it)
    if falls_back:
        assert compile_step(lambda x: x + 1, jax.ShapeDtypeStruct((), jnp.float32))(jnp.float32(1)) == 2
    else:
        with pytest.raises(jax.errors.JaxRuntimeError, match="hbm"):
            compile_step(lambda x: x + 1, jax.ShapeDtypeStruct((), jnp.float32))


def test_a_train_step_is_traced_from_one_description_and_one_table_of_factors(monkeypatch):
    """A network of 161 layers with parameters; before version 0.6 tracing described it 322 times."""
    config = default_config()
    config.model.configuration, config.model.num_classes, config.image.crop = "ResNet-50", 5, 64
    config.image.scale_min = config.image.scale_max = 73
    config.optimizer.lr_factors = "classifier=10,conv1=0"
    counts = Counter()

    def counted(module, name):
        function = getattr(module, name)

        def call(*args):
            counts[name] += 1
            return function(*args)

        monkeypatch.setattr(module, name, call)

    counted(recipe_module, "parse_lr_factors")
    counted(spec, "resnet")
    recipe, mesh = validate(config, 1), make_mesh(devices=jax.devices()[:1])
    shapes = state_shapes(recipe, mesh)
    rate = jax.ShapeDtypeStruct((), np.float32)
    jax.eval_shape(make_train_step(recipe, STATISTICS, mesh), shapes, batch_shapes(recipe, mesh), rate)
    assert counts["parse_lr_factors"] == 1
    assert counts["resnet"] <= 1  # 0 where an earlier test has described it
