"""Networks by name: options, names of other libraries, and the forms in configurations and weights files."""

import dataclasses
import json

import pytest
from safetensors import safe_open

from configs import finetune
from tests.command import run_command
from tests.random_weights import some_weights
from vgg_jax.config import default_config, flatten, recipe_of
from vgg_jax.models import ALIASES, CONFIGURATIONS, NETWORK_KEYS, NetworkSpec
from vgg_jax.recipe import KEYS
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights.file import KEY, save_weights


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("D", NetworkSpec()),
        ("A-LRN", NetworkSpec("A-LRN")),
        ("D-BN-GAP", NetworkSpec("D", batch_norm=True, head="gap")),
        ("ResNet-50 (shortcut C)", NetworkSpec("ResNet-50", shortcut="C")),
        ("ResNet-50 (shortcut A, stride in the 1x1)", NetworkSpec("ResNet-50", shortcut="A", bottleneck_stride="1x1")),
    ],
)
def test_a_name_is_read_as_it_is_written(name, network):
    assert (NetworkSpec.parse(name), network.name) == (network, name)


@pytest.mark.parametrize(
    ("alias", "name", "title"),
    [
        ("vgg16", "D", "VGG D"),
        ("VGG16", "D", "VGG D"),
        ("vgg19_bn", "E-BN", "VGG E-BN"),
        ("resnet50", "ResNet-50", "ResNet-50"),
        ("resnet110", "ResNet-110", "ResNet-110"),
        ("alexnet", "AlexNet", "AlexNet"),
        ("VGG-16", "D", "VGG D"),
        ("d-bn_gap", "D-BN-GAP", "VGG D-BN-GAP"),
        ("resnet-50 (Shortcut c)", "ResNet-50 (shortcut C)", "ResNet-50 (shortcut C)"),
    ],
)
def test_names_of_other_libraries_are_known(alias, name, title):
    network = NetworkSpec.parse(alias)
    assert (network.name, network.title) == (name, title)


def test_every_alias_and_every_configuration_is_a_network():
    for name in (*ALIASES, *CONFIGURATIONS):
        assert NetworkSpec.parse(name).layers()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vgg_116", "vgg16"),
        ("ResNet-51", "ResNet-56"),
        ("D-BN-GAPS", "D-BN-GAP"),
        ("ResNet-18 (stride in the 1x1)", "ResNet-152 (stride in the 1x1)"),
        ("resnet50_bn", "resnet50"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, near):
    with pytest.raises(UserError, match="is no network.") as error:
        NetworkSpec.parse(name)
    assert f"{name!r} is no network. Did you mean {near!r}?" in str(error.value)


def test_the_fields_are_keys_of_the_configuration_with_the_same_defaults():
    assert {name: KEYS[f"model.{name}"].default for name in NETWORK_KEYS} == dataclasses.asdict(NetworkSpec())
    config = default_config()
    config.model.update(configuration="A", batch_norm=True)
    assert recipe_of(config).model.network == NetworkSpec.from_config(flatten(config)) == NetworkSpec.parse("A-BN")
    # Of a run of an earlier version, which lacks what came later.
    assert NetworkSpec.from_config({"model.configuration": "E"}) == NetworkSpec("E")


@pytest.mark.parametrize(
    ("configuration", "options"),
    [
        ("F", {}),
        ("D", {"head": "conv"}),
        ("D", {"head": []}),
        ("D", {"configuration": "E"}),
        ("D", {"crop": 64}),
        ("D", ["head"]),
    ],
)
def test_a_damaged_description_is_a_value_error(configuration, options):
    with pytest.raises(ValueError, match="."):
        NetworkSpec.from_json(configuration, options)


def test_a_weights_file_says_its_network_as_before(tmp_path):
    for network, form, written in (
        (NetworkSpec(), 1, None),
        (NetworkSpec(head="none"), 2, {"head": "none"}),
        (NetworkSpec("ResNet-50", shortcut="C"), 2, {"shortcut": "C"}),
        (NetworkSpec("AlexNet"), 2, {}),
    ):
        save_weights(tmp_path / "x.safetensors", weights_of(network))
        with safe_open(tmp_path / "x.safetensors", "np") as file:
            description = json.loads(file.metadata()[KEY])
        assert (description["configuration"], description["form"]) == (network.configuration, form)
        assert description.get("network") == written
        assert NetworkSpec.from_json(network.configuration, description.get("network", {})) == network


def weights_of(network):
    """Returns weights of a network whose parameters are those of another; only the description is read."""
    weights, head = some_weights(network=network, crop=227), network.layers()[-1].name
    return weights._replace(params={**weights.params, head: weights.params["fc8"]})


@pytest.mark.parametrize(
    ("argument", "network", "crop"),
    [
        (None, "D", 224),
        ("D-BN-GAP", "D-BN-GAP", 224),
        ("vgg16_bn", "D-BN", 224),
        ("resnet20", "ResNet-20", 32),
        ("AlexNet", "AlexNet", 227),
    ],
)
def test_fine_tuning_takes_any_name(argument, network, crop):
    config = finetune.get_config(argument)
    assert (recipe_of(config).model.network.name, config.image.crop) == (network, crop)


def test_describe_takes_names_of_other_libraries():
    status, out, _ = run_command("describe", "vgg16", "vgg16_bn", "ResNet-50 (shortcut C)", "--json")
    figures = json.loads(out)
    assert status == 0
    assert [figures[name]["parameters"] for name in ("vgg16", "vgg16_bn")] == [138_357_544, 138_365_992]
    assert set(figures) == {"vgg16", "vgg16_bn", "ResNet-50 (shortcut C)"}


def test_a_networks_layers_are_described_once():
    assert NetworkSpec("D").layers() is NetworkSpec.parse("vgg16").layers(224)
