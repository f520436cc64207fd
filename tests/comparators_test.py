"""The networks around VGG: published counts, and torch's own layers on the same numbers."""

import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.degradation_image import errors_by_epoch, page
from tests.first_steps import STATISTICS, one_batch, some_steps
from tests.networks import init, shapes_of, small
from vgg_jax.config import recipe_of
from vgg_jax.models import NetworkSpec, make_network
from vgg_jax.models.description import lengths, macs, total_stride
from vgg_jax.models.summary import layer_rows, summary
from vgg_jax.runtime.sharding import make_mesh
from vgg_jax.training.state import init_state, make_model, state_shapes
from vgg_jax.training.steps import make_train_step

REPOSITORY = Path(__file__).parents[1]
BN, GAP = {"batch_norm": True}, {"head": "gap"}


# Parameters: torchvision's documentation for batch normalisation and ResNets with 1000 classes; for CIFAR, to the unit,
# He et al. 2015 §4.2 (0.27 M, ..., 1.7 M).
@pytest.mark.parametrize(
    ("configuration", "description", "crop", "classes", "parameters"),
    [
        ("A", BN, 224, 1000, 132_868_840),
        ("B", BN, 224, 1000, 133_053_736),
        ("D", BN, 224, 1000, 138_365_992),
        ("E", BN, 224, 1000, 143_678_248),
        ("A", GAP, 224, 1000, 9_733_480),
        ("B", GAP, 224, 1000, 9_917_992),
        ("D", GAP, 224, 1000, 15_227_688),
        ("E", GAP, 224, 1000, 20_537_384),
        ("A", BN | GAP, 224, 1000, 9_738_984),
        ("B", BN | GAP, 224, 1000, 9_923_880),
        ("D", BN | GAP, 224, 1000, 15_236_136),
        ("E", BN | GAP, 224, 1000, 20_548_392),
        ("ResNet-18", {}, 224, 1000, 11_689_512),
        ("ResNet-34", {}, 224, 1000, 21_797_672),
        ("ResNet-50", {}, 224, 1000, 25_557_032),
        ("ResNet-50", {"bottleneck_stride": "1x1"}, 224, 1000, 25_557_032),
        ("ResNet-101", {}, 224, 1000, 44_549_160),
        ("ResNet-152", {}, 224, 1000, 60_192_808),
        ("Plain-18", {}, 224, 1000, 11_515_688),
        ("Plain-34", {}, 224, 1000, 21_623_848),
        ("ResNet-34", {"shortcut": "A"}, 224, 1000, 21_623_848),
        ("ResNet-20", {}, 32, 10, 269_722),
        ("ResNet-32", {}, 32, 10, 464_154),
        ("ResNet-44", {}, 32, 10, 658_586),
        ("ResNet-56", {}, 32, 10, 853_018),
        ("ResNet-110", {}, 32, 10, 1_727_962),
        ("Plain-20", {}, 32, 10, 269_722),
        ("Plain-56", {}, 32, 10, 853_018),
        ("AlexNet", {}, 227, 1000, 60_965_224),
        ("GoogLeNet", {}, 224, 1000, 6_998_552),
        ("GoogLeNet", {"auxiliary": True}, 224, 1000, 13_378_280),
    ],
)
def test_parameters_are_the_published_number(configuration, description, crop, classes, parameters):
    shapes = shapes_of(make_network(NetworkSpec(configuration, **description), crop, num_classes=classes))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == parameters


# He et al. 2015, Table 1: 10^9 multiply-adds at 224, stride in the first 1x1 of a bottleneck.
@pytest.mark.parametrize(("depth", "giga"), [(18, 1.8), (34, 3.6), (50, 3.8), (101, 7.6), (152, 11.3)])
def test_multiply_adds_are_the_papers(depth, giga):
    layers = NetworkSpec(f"ResNet-{depth}", bottleneck_stride="1x1").layers()
    params = shapes_of(make_network(NetworkSpec(f"ResNet-{depth}", bottleneck_stride="1x1")))
    kernels = {name: layer["kernel"].shape for name, layer in params.items() if "kernel" in layer}
    assert macs(layers, 224, 224, kernels) / 1e9 == pytest.approx(giga, abs=0.07)
    assert total_stride(layers) == 32


def test_googlenet_shrinks_as_its_table_says_and_has_22_layers():
    """Szegedy et al. 2014, Table 1: 112, 56, 28, 14, 7; the longest way has 22 layers with parameters."""
    model = make_network(NetworkSpec("GoogLeNet", auxiliary=True))
    sides = lengths(model.layers, 224)
    assert [sides[name] for name in ("conv1", "pool1", "pool2", "pool3", "pool4", "fc")] == [112, 56, 28, 14, 7, 7]
    assert (sides["aux1_pool"], sides["aux2_pool"]) == (4, 4)
    assert summary(layer_rows(model))["weight_layers"] == 22


def test_shortcut_c_projects_in_every_block():
    def projections(shortcut):
        return sum(
            layer.name.endswith("s") and layer.kind == "conv"
            for layer in NetworkSpec("ResNet-34", shortcut=shortcut).layers()
        )

    assert (projections("A"), projections("B"), projections("C")) == (0, 3, 16)


# --- against torch ---


def torch_forward(variables, images, train=False):
    """The same network out of torch's functions, written down from the papers and not from the description's walk."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    params, stats = variables["params"], variables.get("batch_stats", {})

    def tensor(array):
        return torch.tensor(np.asarray(array))

    def conv(x, name, stride=1, padding=None, groups=1):
        kernel = tensor(params[name]["kernel"]).permute(3, 2, 0, 1)
        bias = tensor(params[name]["bias"]) if "bias" in params[name] else None
        padding = kernel.shape[-1] // 2 if padding is None else padding
        return f.conv2d(x, kernel, bias, stride, padding=padding, groups=groups)

    def bn(x, name):
        mean, var = (tensor(stats[name][key]) for key in ("mean", "var"))
        scale, bias = (tensor(params[name][key]) for key in ("scale", "bias"))
        return f.batch_norm(x, mean, var, scale, bias, training=train, eps=1e-5)

    def unit(x, name, stride=1):
        return bn(conv(x, f"conv{name}", stride), f"bn{name}")

    def head(x, name="fc"):
        kernel = tensor(params[name]["kernel"])
        return x.mean((2, 3)) @ kernel.reshape(-1, kernel.shape[-1]) + tensor(params[name]["bias"])

    return torch, f, conv, bn, unit, head, tensor(images).permute(0, 3, 1, 2)


def images(count, side):
    return 60 * np.random.default_rng(0).normal(size=(count, side, side, 3)).astype(np.float32)


@pytest.mark.parametrize("train", [False, True])
def test_batch_normalisation_and_global_pooling_are_torchs(train):
    model, variables = small("A", 64, BN | GAP)
    x = images(3, 64)
    _, f, conv, bn, _, head, y = torch_forward(variables, x, train)
    for block, count in enumerate((1, 1, 2, 2, 2), 1):
        for position in range(1, count + 1):
            y = f.relu(bn(conv(y, f"conv{block}_{position}"), f"bn{block}_{position}"))
        y = f.max_pool2d(y, 2)
    output = model.apply(variables, x, train=train, mutable=["batch_stats"] if train else False)
    (logits, _), updated = output if train else (output, {})
    np.testing.assert_allclose(logits, head(y), rtol=2e-4, atol=2e-4)
    if train:  # the first running mean: 0.9 of the old and 0.1 of the batch's
        of_batch = np.asarray(conv_mean(variables, x))
        old = variables["batch_stats"]["bn1_1"]["mean"]
        np.testing.assert_allclose(
            updated["batch_stats"]["bn1_1"]["mean"], 0.9 * old + 0.1 * of_batch, rtol=1e-4, atol=1e-3
        )


def conv_mean(variables, x):
    first = variables["params"]["conv1_1"]
    y = jax.lax.conv_general_dilated(x, first["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return (y + first["bias"]).mean((0, 1, 2))


@pytest.mark.parametrize(
    ("configuration", "shortcut", "stride"),
    [
        ("ResNet-18", "B", "3x3"),
        ("ResNet-18", "A", "3x3"),
        pytest.param("ResNet-50", "B", "3x3", marks=pytest.mark.slow),
        pytest.param("ResNet-50", "C", "1x1", marks=pytest.mark.slow),
        ("Plain-18", "", "3x3"),
    ],
)
def test_residual_networks_are_torchs_layers(configuration, shortcut, stride):
    model, variables = small(configuration, 64, {"shortcut": shortcut, "bottleneck_stride": stride})
    x = images(2, 75)
    torch, f, _, _, unit, head, y = torch_forward(variables, x)
    y = f.max_pool2d(f.relu(unit(y, "1", 2)), 3, 2, padding=1)
    for stage, count in enumerate((2, 2, 2, 2) if configuration.endswith("18") else (3, 4, 6, 3), 2):
        for i in range(1, count + 1):
            down, name = 2 if stage > 2 and i == 1 else 1, f"{stage}_{i}"
            if configuration == "ResNet-50":
                first, second = (1, down) if stride == "3x3" else (down, 1)
                z = f.relu(unit(f.relu(unit(y, f"{name}a", first)), f"{name}b", second))
                z = unit(z, f"{name}c")
            else:
                z = unit(f.relu(unit(y, f"{name}a", down)), f"{name}b")
            if configuration.startswith("ResNet"):
                if f"conv{name}s" in variables["params"]:
                    y = unit(y, f"{name}s", down)
                elif y.shape != z.shape:
                    y = y[:, :, ::2, ::2]
                    y = torch.cat([y, torch.zeros(2, z.shape[1] - y.shape[1], *y.shape[2:])], 1)
                z = z + y
            y = f.relu(z)
    np.testing.assert_allclose(model.apply(variables, x)[0], head(y), rtol=1e-3, atol=1e-3)


def torch_lrn(f, y):
    """Krizhevsky et al. 2012, §3.3; torch divides alpha by the 5 channels."""
    return f.local_response_norm(y, 5, alpha=5e-4, beta=0.75, k=2.0)


@pytest.mark.slow
def test_alexnet_is_torchs_layers():
    """Of a crop and, fully convolutional, of a larger image."""
    model, variables = small("AlexNet", 99, width_multiplier=1 / 8)
    for side in (99, 163):
        x = images(2, side)
        _, f, conv, *_, y = torch_forward(variables, x)
        y = f.max_pool2d(torch_lrn(f, f.relu(conv(y, "conv1", 4, padding=0))), 3, 2)
        y = f.max_pool2d(torch_lrn(f, f.relu(conv(y, "conv2", groups=2))), 3, 2)
        y = f.relu(conv(f.relu(conv(f.relu(conv(y, "conv3")), "conv4", groups=2)), "conv5", groups=2))
        y = f.max_pool2d(y, 3, 2)
        for name in ("fc6", "fc7"):
            y = f.relu(conv(y, name, padding=0))
        y = conv(y, "fc8", padding=0)
        assert y.shape[-1] == {99: 1, 163: 3}[side]
        np.testing.assert_allclose(model.apply(variables, x)[0], y.mean((2, 3)), rtol=1e-3, atol=1e-3)


def test_alexnet_begins_as_krizhevsky_says():
    params = init(small("AlexNet", 99, width_multiplier=1 / 8)[0])["params"]
    ones = {name for name, layer in params.items() if np.all(np.asarray(layer["bias"]) == 1)}
    assert ones == {"conv2", "conv4", "conv5", "fc6", "fc7"}
    assert all(np.all(np.asarray(params[name]["bias"]) == 0) for name in set(params) - ones)


@pytest.mark.slow
@pytest.mark.parametrize("side", [96, 117])
def test_googlenet_is_torchs_layers(side):
    """Also where poolings end outside the map, and with the auxiliary classifiers, written as published."""
    model, variables = small("GoogLeNet", 96, {"auxiliary": True})
    x = images(2, side)
    torch, f, conv, _, _, head, y = torch_forward(variables, x)

    def pool(x):
        return f.max_pool2d(x, 3, 2, ceil_mode=True)

    y = torch_lrn(f, pool(f.relu(conv(y, "conv1", 2))))
    y = pool(torch_lrn(f, f.relu(conv(f.relu(conv(y, "conv2_reduce")), "conv2"))))
    auxiliary = {}
    for name in ["3a", "3b", "M", "4a", "4b", "4c", "4d", "4e", "M", "5a", "5b"]:
        if name == "M":
            y = pool(y)
            continue
        branches = [
            conv(y, f"conv{name}_1x1"),
            conv(f.relu(conv(y, f"conv{name}_3x3_reduce")), f"conv{name}_3x3"),
            conv(f.relu(conv(y, f"conv{name}_5x5_reduce")), f"conv{name}_5x5"),
            conv(f.max_pool2d(y, 3, 1, padding=1), f"conv{name}_pool"),
        ]
        y = f.relu(torch.cat(branches, 1))
        if name in ("4a", "4d"):
            prefix = {"4a": "aux1", "4d": "aux2"}[name]
            z = f.relu(conv(f.avg_pool2d(y, 5, 3), f"{prefix}_conv"))
            z = f.relu(conv(z, f"{prefix}_fc1", padding=0))
            auxiliary[f"{prefix}_fc2"] = conv(z, f"{prefix}_fc2", padding=0)
    logits, recorded = model.apply(variables, x, endpoints=("aux1_fc2", "aux2_fc2"))
    np.testing.assert_allclose(logits, head(y), rtol=2e-3, atol=2e-3)
    for name, scores in auxiliary.items():
        np.testing.assert_allclose(recorded[name], scores.permute(0, 2, 3, 1), rtol=2e-3, atol=2e-3)


# --- training ---


def googlenet(config):
    config.model.configuration, config.model.auxiliary, config.model.width_multiplier = "GoogLeNet", True, 1 / 16
    config.image.crop = config.image.scale_min = config.image.scale_max = 80
    return config


@pytest.mark.slow
def test_auxiliary_losses_count_three_tenths_and_the_loss_shown_is_the_networks(tiny_config, monkeypatch):
    """Szegedy et al. 2014, §5: one step with rate 1 moves by the gradient of the weighted sum."""
    config = googlenet(tiny_config)
    config.optimizer.l2, config.augment.color_std, config.augment.flip = 0.0, 0.0, False
    model = make_model(recipe_of(config))
    model = model.clone(layers=tuple(layer for layer in model.layers if layer.kind != "dropout"))
    monkeypatch.setattr("vgg_jax.training.steps.make_model", lambda _: model)
    mesh, batch = make_mesh(1, jax.devices()[:1]), one_batch(4, 80)
    state = init_state(recipe_of(config), state_shapes(recipe_of(config), mesh))
    names = ("aux1_fc2", "aux2_fc2")

    def losses(params):
        logits, recorded = model.apply({"params": params}, batch["image"] - STATISTICS.mean_rgb, endpoints=names)
        scores = [logits, *(recorded[name][:, 0, 0] for name in names)]
        main, first, second = (-jax.nn.log_softmax(x)[np.arange(4), batch["label"]].mean() for x in scores)
        return main + 0.3 * first + 0.3 * second, main

    (_, main), gradient = jax.jit(jax.value_and_grad(losses, has_aux=True))(state.params)
    new, metrics = jax.jit(make_train_step(recipe_of(config), STATISTICS, mesh))(state, batch, np.float32(1))
    assert float(metrics["loss"]) == pytest.approx(float(main), rel=1e-5)
    moved = jax.tree.map(lambda before, after: before - after, state.params, new.params)
    assert float(abs(gradient["aux2_fc2"]["kernel"]).max()) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-6), moved, gradient)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["A", "ResNet-20", "GoogLeNet"])
def test_eight_devices_are_one_device(tiny_config, configuration):
    """Statistics are those of the whole batch: a device alone has one image of it."""
    tiny_config.model.configuration = configuration
    if configuration == "A":
        tiny_config.model.batch_norm, tiny_config.model.head = True, "gap"
    tiny_config.model.width_multiplier = 1 / 4
    if configuration == "GoogLeNet":
        googlenet(tiny_config)
        tiny_config.model.dropout_rate = 0.1
    single = some_steps(tiny_config, 4, devices=1)
    np.testing.assert_allclose(some_steps(tiny_config, 4, devices=8), single, rtol=1e-3)
    assert single[-1] != single[0]


def test_the_curves_of_degradation_are_those_of_the_other_table():
    text = (REPOSITORY / "benchmarks" / "comparators.md").read_text()
    networks = errors_by_epoch(text)
    assert [len(points) for points in networks.values()] == [8] * 4
    least = {
        name: float(re.search(rf"^\| {name} \| ([\d.]+) \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$", text, re.MULTILINE)[1])
        for name in ("Plain-20", "ResNet-20", "Plain-56", "ResNet-56")
    }
    assert {name: 100 * min(error for _, error in points) for name, points in networks.items()} == pytest.approx(least)
    assert page(networks).count("<circle") == 32
