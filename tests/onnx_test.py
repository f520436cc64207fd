"""ONNX files compute what the models compute, by onnxruntime, on crops and on whole images of any size."""

import sys

import jax
import numpy as np
import pytest

from tests.command import run_command
from tests.networks import small
from tests.random_weights import ODD, some_weights
from tests.refusals import refused
from vgg_jax.models import NetworkSpec
from vgg_jax.weights import onnx_file
from vgg_jax.weights.file import Weights, folded_variables, make_model, save_weights
from vgg_jax.weights.onnx_file import write_onnx

onnxruntime = pytest.importorskip("onnxruntime", reason="runs ONNX files (pip install 'vgg-jax[test]')")


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def described(configuration, description):
    crop = 96 if configuration in ("AlexNet", "GoogLeNet") else 64
    _, variables = small(configuration, crop, description)
    variables = jax.tree.map(np.asarray, dict(variables))
    params = variables.pop("params")
    return Weights(
        params,
        NetworkSpec(configuration, **description),
        1 / 16,
        24,
        crop,
        (73, 73),
        ODD,
        None,
        None,
        "random",
        variables,
    )


@pytest.mark.parametrize(
    ("configuration", "description"),
    [
        pytest.param("A-LRN", {}, marks=pytest.mark.slow),
        ("D", {"batch_norm": True, "head": "gap"}),
        pytest.param("E", {}, marks=pytest.mark.slow),
        pytest.param("ResNet-50", {}, marks=pytest.mark.slow),
        pytest.param("ResNet-18", {"shortcut": "A"}, marks=pytest.mark.slow),
        pytest.param("AlexNet", {}, marks=pytest.mark.slow),
        pytest.param("GoogLeNet", {"auxiliary": True}, marks=pytest.mark.slow),
    ],
)
def test_probabilities_are_the_models(configuration, description, tmp_path):
    weights = described(configuration, description)
    write_onnx(tmp_path / "x.onnx", weights)
    program = session(tmp_path / "x.onnx")
    crop = weights.crop
    for shape in ((3, crop, crop, 3), (1, crop + 11, 2 * crop + 2, 3)):
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        logits, _ = make_model(weights).apply(folded_variables(weights), images.astype(np.float32) - ODD.mean_rgb())
        (found,) = program.run(None, {"images": images})
        np.testing.assert_allclose(found, jax.nn.softmax(logits), atol=1e-5)
        assert found.max() - found.min() > 0.01


@pytest.mark.slow
def test_a_trunk_gives_its_last_map(tmp_path):
    weights = some_weights("D")
    trunk = {name: leaves for name, leaves in weights.params.items() if name.startswith("conv")}
    weights = weights._replace(params=trunk, network=weights.network.without_head(), class_names=None)
    save_weights(tmp_path / "trunk.safetensors", weights)
    status, out, err = run_command("convert", tmp_path / "trunk.safetensors", tmp_path / "trunk.onnx", "--to=onnx")
    assert (status, err) == (0, "")
    assert "uint8 RGB [b, height, width, 3], from 64 x 64 up -> features [b, C, h, w]" in out
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    (found,) = session(tmp_path / "trunk.onnx").run(None, {"images": images})
    layer = weights.layers[-1].name
    x = images.astype(np.float32) - ODD.mean_rgb()
    maps = make_model(weights).apply(folded_variables(weights), x, (layer,), method="activations")
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), maps[layer], rtol=1e-4, atol=1e-4 * maps[layer].max())


def test_without_onnx_one_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with refused(r"pip install 'vgg-jax\[onnx\]'"):
        write_onnx(tmp_path / "x.onnx", some_weights("A"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_beyond_an_onnx_files_size_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "folded_params", lambda _: pytest.fail("computed"))
    weights = some_weights("A")
    fc6 = {
        "kernel": np.broadcast_to(np.float32(0), (7, 7, 512, 2**15)),
        "bias": np.zeros(2**15, np.float32),
    }  # takes no memory
    with refused("take 3,28.,...,... bytes, and an ONNX file holds 2 GiB; write it with --to=stablehlo"):
        write_onnx(tmp_path / "x.onnx", weights._replace(params=weights.params | {"fc6": fc6}))
    assert list(tmp_path.iterdir()) == []
