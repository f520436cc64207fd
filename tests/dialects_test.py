"""ResNets in torch's files, with other heads and names than torchvision's, compute what torch computes."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with torch (pip install 'vgg-jax[test]')")

from tests.refusals import refused  # noqa: E402
from tests.torch_nets import CifarResNet, TorchvisionResNet, normalised, randomised  # noqa: E402
from vgg_jax.runtime.exceptions import UserError  # noqa: E402
from vgg_jax.weights.file import folded_variables, make_model  # noqa: E402
from vgg_jax.weights.imports import Digests, FileHints, import_weights  # noqa: E402


@pytest.fixture(scope="module")
def net():
    return randomised(TorchvisionResNet(18, width=1 / 16, num_classes=5))


@pytest.fixture(scope="module")
def plain(net, tmp_path_factory):
    """The network by torchvision's own names; `torch_parity_test` compares such files with torch."""
    return read(tmp_path_factory.mktemp("plain") / "a.pth", net.state_dict())[0]


def read(path, content, layers=""):
    torch.save(content, path)
    return import_weights(path, Digests("0" * 64, ""), FileHints(preprocessing="torchvision", layers=layers))


def outputs(weights, images):
    pixels = images.astype(np.float32) - weights.preprocessing.mean_rgb()
    return np.asarray(make_model(weights).apply(folded_variables(weights), pixels)[0])


def images(side):
    return np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)


def close(result, expected):
    np.testing.assert_allclose(result, expected, atol=1e-4 * np.abs(expected).max())
    assert np.ptp(expected) > 0


def same(weights, plain, layers=None):
    """All numbers are those of the plain file; of `layers`, if given."""
    params = {name: leaves for name, leaves in plain.params.items() if layers is None or name in layers}
    for tree, expected in ((weights.params, params), (weights.model_state, plain.model_state)):
        assert jax.tree.structure(tree) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, tree, expected)


def of_transformers(state):
    """The names of transformers' ResNetForImageClassification, from its source."""
    renamed = {}
    for name, tensor in state.items():
        head, _, leaf = name.rpartition(".")
        parts = head.split(".")
        if name.startswith("fc."):
            renamed[f"classifier.1.{leaf}"] = tensor
        elif len(parts) == 1:
            kind = "convolution" if head == "conv1" else "normalization"
            renamed[f"resnet.embedder.embedder.{kind}.{leaf}"] = tensor
        else:
            stage, block, layer, *of_shortcut = parts
            kind = ("convolution", "normalization")[int(of_shortcut[0]) if of_shortcut else layer.startswith("bn")]
            inner = "shortcut" if of_shortcut else f"layer.{int(layer[-1]) - 1}"
            renamed[f"resnet.encoder.stages.{int(stage[-1]) - 1}.layers.{block}.{inner}.{kind}.{leaf}"] = tensor
    return renamed


WHOLE = {
    "a Sequential": (lambda s: {k.replace("fc.", "fc.1."): t for k, t in s.items()}, "its head 'fc.1'"),
    "transformers": (of_transformers, "names of transformers, its head 'classifier.1'"),
    "an average": (
        lambda s: {"n_averaged": torch.tensor(3), **{f"module.{k}": t for k, t in s.items()}},
        "AveragedModel",
    ),
    "timm's average": (
        lambda s: {"state_dict": {k: 0 * t for k, t in s.items()}, "state_dict_ema": s, "epoch": 3},
        "the running average under 'state_dict_ema'",
    ),
    "torchvision's average": (
        lambda s: {"model": {k: 0 * t for k, t in s.items()}, "model_ema": {f"module.{k}": t for k, t in s.items()}},
        "the running average under 'model_ema', names without 'module.'",
    ),
    "an average of the parameters alone": (
        lambda s: {"model": s, "model_ema": {k: 0 * t for k, t in s.items() if "running" not in k}},
        "under 'model'",
    ),
}
TRUNKS = {
    "no head": (lambda s: {k: t for k, t in s.items() if not k.startswith("fc.")}, "a trunk without classifier"),
    "several layers": (
        lambda s: s | {"fc.weight": s["fc.weight"], "fc2.weight": s["fc.weight"], "fc2.bias": s["fc.bias"]},
        "without its head (fc.weight, fc.bias, fc2.weight, ...), which is not one FC layer",
    ),
    "children": (lambda s: s, "children of a ResNet"),
    "children within a module": (lambda s: {f"features.{k}": t for k, t in s.items()}, "children of a ResNet"),
}


@pytest.mark.parametrize("form", WHOLE)
def test_other_names_of_a_whole_resnet_are_read_and_said(form, net, plain, tmp_path):
    change, said = WHOLE[form]
    weights, description = read(tmp_path / "a.pth", change(net.state_dict()))
    assert said in description
    same(weights, plain)


def test_torchs_own_averaged_model_is_read(net, plain, tmp_path):
    same(read(tmp_path / "a.pth", torch.optim.swa_utils.AveragedModel(net).state_dict())[0], plain)


def test_a_head_without_bias_has_a_bias_of_zeros(net, plain, tmp_path):
    weights, description = read(tmp_path / "a.pth", {k: t for k, t in net.state_dict().items() if k != "fc.bias"})
    assert "zeros for its head's missing bias" in description
    np.testing.assert_array_equal(weights.params["fc"]["kernel"], plain.params["fc"]["kernel"])
    assert not weights.params["fc"]["bias"].any()


@pytest.mark.parametrize("form", TRUNKS)
def test_a_resnet_without_a_head_of_one_layer_is_a_trunk(form, net, plain, tmp_path):
    change, said = TRUNKS[form]
    state = net.state_dict()
    if "children" in form:
        state = torch.nn.Sequential(
            net.conv1,
            net.bn1,
            torch.nn.ReLU(),
            net.maxpool,
            net.layer1,
            net.layer2,
            net.layer3,
            net.layer4,
            torch.nn.AdaptiveAvgPool2d(1),
        ).state_dict()
    weights, description = read(tmp_path / "a.pth", change(state))
    assert said in description
    assert (weights.configuration, weights.num_classes, weights.network.to_json()) == ("ResNet-18", 0, {"head": "none"})
    same(weights, plain, plain.params.keys() - {"fc"})
    if form == "no head":  # it gives the means of its last map
        head, net.fc = net.fc, torch.nn.Identity()
        with torch.no_grad():
            expected, net.fc = net(normalised(images(64))).numpy(), head
        close(outputs(weights, images(64)), expected)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_cifars_resnet_20_is_read(shortcut, tmp_path):
    net = randomised(CifarResNet(shortcut))
    weights, _ = read(tmp_path / "a.pth", net.state_dict())
    assert (weights.configuration, weights.crop, weights.training_scales) == ("ResNet-20", 32, (32, 32))
    with torch.no_grad():
        expected = net(normalised(images(32))).numpy()
    close(outputs(weights, images(32)), expected)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda s: s | {"layer1.0.se.weight": s["fc.weight"]},
            "configuration ResNet-18, with layer1.0.se.weight too many",
        ),
        (lambda s: {k: t for k, t in s.items() if k != "fc.weight"}, "configuration ResNet-18, with fc.weight missing"),
        (lambda s: {k: t for k, t in s.items() if k != "bn1.bias"}, "configuration ResNet-18, with bn1.bias missing"),
        (
            lambda s: s | {"conv1.weight": s["conv1.weight"][:, :, :3, :3]},
            "ResNet-18, but conv1.weight is [4, 3, 3, 3]",
        ),
    ],
)
def test_a_resnet_that_differs_is_told_where(change, sentence, net, tmp_path):
    with pytest.raises(UserError) as raised:
        read(tmp_path / "a.pth", change(net.state_dict()))
    assert sentence in str(raised.value)


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"model": net, "epoch": 3}])
def test_a_pickled_module_is_told_to_save_its_state(wrap, net, tmp_path):
    with refused(r"save the state dictionary: torch.save\(module.state_dict\(\), FILE\)"):
        read(tmp_path / "a.pth", wrap(net))
