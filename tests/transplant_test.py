"""The transplant (Paper §3.1): which layers, to the last bit, on any layout; refusals by layer and shape."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.refusals import refused
from tests.runs import make_run
from vgg_jax.config import recipe_of
from vgg_jax.evaluation.trained_model import weights_of_run
from vgg_jax.models import NetworkSpec
from vgg_jax.models.description import layer_names
from vgg_jax.models.vgg import TABLE_1
from vgg_jax.runtime.sharding import make_mesh
from vgg_jax.training.checkpoints import load_variables
from vgg_jax.training.state import init_state, make_model, model_shapes, state_shapes
from vgg_jax.training.transplant import chosen_layers, read_donor, start_from, transplant
from vgg_jax.weights.file import save_weights

PAPER = ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"]
DEEPER = ("B", "C", "D", "E")


def shapes_of(config, configuration, classes=3, crop=32):
    config = config.copy_and_resolve_references()
    config.model.configuration, config.model.num_classes = configuration, classes
    config.image.crop = crop
    return model_shapes(recipe_of(config))["params"]


def filled(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


@pytest.mark.parametrize("configuration", DEEPER)
def test_deeper_nets_take_the_papers_layers_from_a_and_no_others(tiny_config, configuration):
    a, deeper = (filled(shapes_of(tiny_config, name), seed) for seed, name in enumerate(("A", configuration)))
    chosen = chosen_layers(deeper, a, "")
    assert chosen == PAPER
    result = transplant({"params": deeper}, {"params": a}, chosen)["params"]
    assert sorted(result) == sorted(layer_names(NetworkSpec(configuration).layers()))
    for layer, name in itertools.product(result, ("kernel", "bias")):
        source = a if layer in PAPER else deeper
        np.testing.assert_array_equal(result[layer][name], source[layer][name])
        if layer in PAPER:
            assert (np.asarray(a[layer][name]) != np.asarray(deeper[layer][name])).any()


@pytest.mark.parametrize(("there", "here"), list(itertools.product(TABLE_1, repeat=2)))
def test_every_pair_of_configurations_has_its_default(tiny_config, there, here):
    donor, new = shapes_of(tiny_config, there), shapes_of(tiny_config, here)
    alike = there == here or {there, here} == {"A", "A-LRN"}
    assert chosen_layers(new, donor, "") == (layer_names(NetworkSpec(here).layers()) if alike else PAPER)
    # Another number of classes: the head is left alone.
    head = chosen_layers(shapes_of(tiny_config, here, classes=5), donor, "")
    assert head == [name for name in (layer_names(NetworkSpec(here).layers()) if alike else PAPER) if name != "fc8"]


def variables_of(config, configuration, seed, **description):
    config.model.configuration, config.model.batch_norm, config.model.head = configuration, False, "fc"
    for key, value in description.items():
        config.model[key] = value
    return {name: filled(tree, seed + i) for i, (name, tree) in enumerate(model_shapes(recipe_of(config)).items())}


@pytest.mark.parametrize(
    ("there", "here", "random"),
    [
        (("A", {"batch_norm": True}), ("A", {"batch_norm": True}), {}),
        (("A", {}), ("A", {"batch_norm": True}), {"bn"}),
        (("A", {"batch_norm": True}), ("A", {"batch_norm": True, "head": "gap"}), {"fc"}),
        (("A", {"head": "gap"}), ("B", {"head": "gap"}), {"conv1_2", "conv2_2", "conv4", "conv5", "fc"}),
        (("A", {}), ("D", {"head": "gap"}), {"conv1_2", "conv2_2", "conv3_3", "conv4", "conv5", "fc"}),
        (("A", {"head": "gap"}), ("D", {}), {"conv1_2", "conv2_2", "conv3_3", "conv4", "conv5", "fc"}),
        (("A", {"batch_norm": True}), ("D", {"batch_norm": True}), {"conv1_2", "conv2_2", "conv3_3", "conv4", "conv5"}),
        (("ResNet-18", {}), ("ResNet-18", {}), {}),
        (
            ("ResNet-18", {}),
            ("ResNet-34", {}),
            {"conv2_3", "conv3_3", "conv3_4", "conv4_3", "conv4_4", "conv4_5", "conv4_6", "conv5_3"},
        ),
    ],
)
def test_networks_that_share_layers_share_all_of_them_with_their_statistics(tiny_config, there, here, random):
    donor, new = (variables_of(tiny_config, name, seed, **more) for seed, (name, more) in ((0, there), (9, here)))
    chosen = chosen_layers(new["params"], donor["params"], "")
    result = transplant(new, donor, chosen)
    for collection, layers in result.items():
        for layer, leaves in layers.items():
            is_random = any(layer.startswith((word, word.replace("conv", "bn"))) for word in random)
            assert (layer not in chosen) == is_random, layer
            source = new if is_random else donor
            jax.tree.map(np.testing.assert_array_equal, leaves, source[collection][layer])


def test_convolutions_are_not_taken_without_their_normalisation(tiny_config):
    donor, new = variables_of(tiny_config, "A", 0, batch_norm=True), variables_of(tiny_config, "A", 1)
    with refused("has batch normalisation, without which .* say --config.model.batch_norm=True"):
        transplant(new, donor, chosen_layers(new["params"], donor["params"], ""))
    assert transplant(new, donor, ["fc7"])["params"]["fc7"] is not new["params"]["fc7"]


def test_an_average_that_starts_from_a_donor_has_its_own_memory(tiny_config):
    tiny_config.ema_decay = 0.9
    state = init_state(
        recipe_of(tiny_config), state_shapes(recipe_of(tiny_config), make_mesh(devices=jax.devices()[:1]))
    )
    structure = jax.tree.structure(state)
    state = state.with_variables(variables_of(tiny_config, "A", 0))
    assert jax.tree.structure(state) == structure  # to which a step is compiled
    after = jax.jit(lambda x: x, donate_argnums=0)(state)  # as a step takes it
    jax.tree.map(np.testing.assert_array_equal, after.averages, after.variables)


def test_layers_by_name_and_pattern(tiny_config):
    a, d = shapes_of(tiny_config, "A"), shapes_of(tiny_config, "D")
    for layers, expected in {
        "conv1_1, fc7": ["conv1_1", "fc7"],
        "conv*": ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2"],
        "conv*,-conv[45]_*": ["conv1_1", "conv2_1", "conv3_1", "conv3_2"],
        "-fc6,-fc7": ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc8"],
    }.items():
        assert chosen_layers(d, a, layers) == expected
    with refused(r"init_layers=conv1_1,conv9_1 names 'conv9_1', and there is no such layer: conv1_1"):
        chosen_layers(d, a, "conv1_1,conv9_1")
    with refused(r"init_layers=fc8,-fc\* leaves no layer to copy"):
        chosen_layers(d, a, "fc8,-fc*")


def test_mismatches_are_refused_by_layer_and_shape_unless_left_out(tiny_config):
    donor = filled(shapes_of(tiny_config, "A", crop=64), 0)
    new = filled(shapes_of(tiny_config, "A", crop=32), 1)
    with refused(
        r"does not fit: fc6/kernel is \[2, 2, 32, 16\] there and \[1, 1, 32, 16\] here. "
        r"Is config.image.crop as it is there\? .*init_layers=-fc6$",
    ):
        transplant({"params": new}, {"params": donor}, chosen_layers(new, donor, ""))
    result = transplant({"params": new}, {"params": donor}, chosen_layers(new, donor, "-fc6"))["params"]
    np.testing.assert_array_equal(result["fc7"]["kernel"], donor["fc7"]["kernel"])
    assert result["fc6"] is new["fc6"]
    # A layer asked for by name must be in both models, and a head asked for by name must fit.
    with refused(r"conv1_2/kernel is missing there and \[3, 3, 4, 4\] here; conv1_2/bias"):
        transplant({"params": filled(shapes_of(tiny_config, "B"), 1)}, {"params": donor}, ["conv1_2"])
    with refused(r"fc8/kernel is \[1, 1, 16, 3\] there and \[1, 1, 16, 5\] here"):
        transplant({"params": filled(shapes_of(tiny_config, "A", classes=5), 1)}, {"params": donor}, ["fc8"])


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicated", "fsdp", "fc_model_parallel"])
def test_it_works_on_sharded_parameters(tiny_config, tmp_path, sharding):
    tiny_config.model.width_multiplier = 1 / 8
    run = make_run(tmp_path / "a", tiny_config)
    tiny_config.model.configuration, tiny_config.sharding = "B", sharding
    tiny_config.model_parallel = 2 if sharding == "fc_model_parallel" else 1
    state = init_state(
        recipe_of(tiny_config), state_shapes(recipe_of(tiny_config), make_mesh(tiny_config.model_parallel))
    )
    variables, report = start_from(read_donor(str(run)), state.variables, np.float32([120, 110, 100]))
    result = state.with_variables(variables).params
    assert report.splitlines()[0].endswith(f"checkpoints/7: {', '.join(PAPER)}")
    assert report.splitlines()[1].startswith("random: conv1_2, conv2_2, conv4_1")
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail("moved"), result, state.params)
    assert sharding == "replicated" or not result["fc6"]["kernel"].sharding.is_fully_replicated
    _, there = load_variables(run)
    for layer in PAPER:
        np.testing.assert_array_equal(result[layer]["kernel"], there["params"][layer]["kernel"])


def test_another_mean_of_the_data_moves_into_the_first_bias(tiny_config, tmp_path):
    run = make_run(tmp_path / "a", tiny_config)
    mean = np.float32(json.loads((run / "dataset.json").read_text())["mean_rgb"])
    fresh = {"params": filled(shapes_of(tiny_config, "A"), 1)}
    same, _ = start_from(read_donor(str(run)), fresh, mean)
    other, _ = start_from(read_donor(str(run)), fresh, mean + np.float32([8, -4, 2]))
    model, images = (
        make_model(recipe_of(tiny_config)),
        np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32),
    )

    def first(params, x):
        return np.asarray(model.apply(params, x, endpoints=("conv1_1",))[1]["conv1_1"])[:, 1:-1, 1:-1]

    expected = first(same, images - mean)
    np.testing.assert_allclose(
        first(other, images - mean - np.float32([8, -4, 2])), expected, atol=1e-4 * np.abs(expected).max()
    )
    assert np.abs(first(same, images - mean - np.float32([8, -4, 2])) - expected).max() > 1e-2


@pytest.mark.slow
def test_another_mean_of_the_data_moves_into_the_first_normalisation_where_there_is_no_bias(tiny_config, tmp_path):
    tiny_config.model.configuration = "ResNet-20"
    mesh = make_mesh(1, jax.devices()[:1])
    state = init_state(recipe_of(tiny_config), state_shapes(recipe_of(tiny_config), mesh))
    donor = read_donor(str(make_run(tmp_path / "a", tiny_config, state=state)))
    moved = donor.mean_rgb + np.float32([40, -20, 10])
    same, other = (start_from(donor, state.variables, mean)[0] for mean in (donor.mean_rgb, moved))
    model, image = (
        make_model(recipe_of(tiny_config)),
        np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32),
    )

    def first(variables, mean):
        return np.asarray(model.apply(variables, image - mean, endpoints=("relu1",))[1]["relu1"])[:, 1:-1, 1:-1]

    expected = first(same, donor.mean_rgb)
    np.testing.assert_allclose(first(other, moved), expected, atol=1e-4 * expected.max())
    assert np.abs(first(same, moved) - expected).max() > 0.05 * expected.max()


NAMES = ["arrow", "crescent", "cross"]


def started(run, fresh, class_names, layers=""):
    donor = read_donor(str(run))
    variables, report = start_from(donor, {"params": fresh}, donor.mean_rgb, layers, class_names)
    return variables["params"], report, donor.variables["params"]


def test_a_head_is_moved_by_the_names_of_its_classes(tiny_config, tmp_path):
    run, fresh = make_run(tmp_path / "a", tiny_config), filled(shapes_of(tiny_config, "A"), 1)
    result, report, there = started(run, fresh, NAMES)
    assert report == f"all layers start from {run}/checkpoints/7"
    np.testing.assert_array_equal(result["fc8"]["kernel"], there["fc8"]["kernel"])
    result, report, _ = started(run, fresh, ["cross", "arrow", "crescent"])
    assert report.endswith("checkpoints/7 (fc8: its classes have another order there, and were moved by name)")
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(result["fc8"][name], there["fc8"][name][..., [2, 0, 1]])
    result, report, _ = started(run, fresh, ["cross", "disc", "heart"])
    assert report.endswith("random: fc8 (fc8: its classes have other names there)")
    assert result["fc8"] is fresh["fc8"]
    np.testing.assert_array_equal(result["fc7"]["kernel"], there["fc7"]["kernel"])
    result, report, _ = started(run, fresh, ["cross", "disc", "heart"], "fc8")  # asked for by name
    np.testing.assert_array_equal(result["fc8"]["kernel"], there["fc8"]["kernel"])
    result, _, _ = started(run, fresh, ["cross", "disc", "heart"], "fc*")
    assert result["fc8"] is fresh["fc8"]
    (run / "dataset.json").unlink()
    donor = read_donor(str(run))
    _, report = start_from(donor, {"params": fresh}, np.zeros(3), "", NAMES)
    assert report.endswith("checkpoints/7 (fc8: whether its classes are the same there is unknown)")


def test_classes_of_a_weights_file_are_known_by_either_name(tiny_config, tmp_path):
    run, fresh = make_run(tmp_path / "a", tiny_config), filled(shapes_of(tiny_config, "A"), 1)
    weights = weights_of_run(run)._replace(class_titles=["an arrow", "a crescent", "a cross"])
    save_weights(tmp_path / "a.safetensors", weights)
    for names, order in ((NAMES[::-1], [2, 1, 0]), (["a cross", "an arrow", "a crescent"], [2, 0, 1])):
        result, report, there = started(tmp_path / "a.safetensors", fresh, names)
        assert report.endswith("moved by name)")
        np.testing.assert_array_equal(result["fc8"]["bias"], there["fc8"]["bias"][order])
