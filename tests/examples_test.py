"""The examples in their small form: tiny random networks, drawn images."""

import io
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vgg_jax
from tests.command import run_module
from tests.conftest import REPOSITORY
from tests.random_weights import some_weights
from tests.refusals import assert_refused
from vgg_jax.data.builtin import render
from vgg_jax.weights.file import save_weights

SHORT = ("extract_features", "finetune", "grad_cam", "onnx_server", "perceptual_loss")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(path, some_weights("D"))
    return path


@pytest.fixture
def folder(tmp_path):
    """Fifteen drawn images of each of three classes, 73 x 73 pixels, the test scale of the weights."""
    for i in range(150):
        if i % 10 < 3:
            image, label = render(i)
            (tmp_path / "images" / f"class{label}").mkdir(parents=True, exist_ok=True)
            image.resize((73, 73)).save(tmp_path / "images" / f"class{label}" / f"{i:03}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("name", SHORT)
def test_an_example_is_short(name):
    assert len((REPOSITORY / "examples" / f"{name}.py").read_text().splitlines()) <= 60


def test_features_are_means_of_the_layer_over_the_centre_crop(weights, folder, tmp_path):
    status, out, err = run_module(
        "examples.extract_features", f"--weights={weights}", f"--folder={folder}", f"--output={tmp_path / 'f.npz'}"
    )
    assert (status, err) == (0, "")
    assert "relu5_3 of 45 images, 32 numbers each" in out
    result, model = np.load(tmp_path / "f.npz"), vgg_jax.load(weights)
    for i in (0, 44):
        pixels = np.asarray(Image.open(result["paths"][i]), np.float32)[None, 4:68, 4:68]
        _, maps = model.network.apply(model.variables, pixels - model.mean_rgb, endpoints=("relu5_3",))
        expected = maps["relu5_3"][0].mean((0, 1))
        np.testing.assert_allclose(result["features"][i], expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def test_grad_cam_draws_every_image_with_its_likeliest_class(weights, folder, tmp_path):
    status, out, err = run_module(
        "examples.grad_cam", f"--weights={weights}", f"--folder={folder / 'class1'}", f"--output={tmp_path / 'cams'}"
    )
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 15
    model = vgg_jax.load(weights)
    for line in out.splitlines()[:3]:
        name, title = line.split(": ")
        pixels = np.asarray(Image.open(folder / "class1" / name), np.float32)
        logits, _ = model.network.apply(model.variables, pixels[None] - model.mean_rgb)
        assert title == model.class_names[int(logits[0].argmax())]
        with Image.open(tmp_path / "cams" / name) as drawn:
            # Red is laid over the image, so green and blue only fall.
            assert (np.asarray(drawn, int)[..., 1:] <= pixels[..., 1:] + 1).all()


@pytest.mark.slow
def test_fine_tuning_beats_guessing(weights, folder):
    status, out, err = run_module(
        "examples.finetune", f"--weights={weights}", f"--folder={folder}", "--steps=60", "--body_rate=1e-4"
    )
    assert (status, err) == (0, "")
    error, images, chance = re.fullmatch(
        r"validation error ([\d.]+)% of (\d+) images, guessing ([\d.]+)%\n", out
    ).groups()
    assert (images, chance) == ("9", "66.7")
    assert float(error) < 60


@pytest.mark.slow
def test_the_upscaler_is_nearer_than_linear_interpolation(weights, tmp_path):
    picture = tmp_path / "upscaled.png"
    status, out, err = run_module(
        "examples.perceptual_loss", f"--weights={weights}", "--steps=30", f"--output={picture}"
    )
    assert (status, err) == (0, "")
    linear, upscaled = map(float, re.findall(r"([\d.e-]+) of", out))
    assert upscaled < 0.9 * linear
    columns = np.asarray(Image.open(picture), np.float32)
    assert columns.shape == (512, 192, 3)
    small = np.stack([np.asarray(render(2**31 + i)[0].resize((32, 32)), np.float32) for i in range(8)])
    expected = jax.image.resize(jnp.asarray(small), (8, 64, 64, 3), "linear").reshape(512, 64, 3)
    np.testing.assert_allclose(columns[:, :64], expected, atol=1)


def test_the_server_answers_with_the_models_probabilities(weights, folder):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    image = folder / "class0" / "000.png"
    server = subprocess.Popen(
        [sys.executable, "-m", "examples.onnx_server", f"--weights={weights}", "--port=0"],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        address = next(line.split()[-1] for line in server.stdout if line.startswith("serving on "))
        with urllib.request.urlopen(address, data=image.read_bytes(), timeout=60) as answer:
            top = json.load(answer)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(address, data=b"not an image", timeout=60)
    finally:
        server.kill()
        server.communicate()
    model = vgg_jax.load(weights)
    pixels = np.asarray(Image.open(io.BytesIO(image.read_bytes())), np.float32)
    logits, _ = model.network.apply(model.variables, pixels[None] - model.mean_rgb)
    expected = dict(zip(model.class_names, map(float, jax.nn.softmax(logits)[0]), strict=True))
    assert top == pytest.approx(expected, abs=1e-5)
    assert list(top.values()) == sorted(top.values(), reverse=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("extract_features", "has no images; give a folder of images."),
        ("grad_cam", "has no images; give a folder of images."),
        ("finetune", "needs two classes, one with five images; add images."),
    ],
)
def test_a_folder_without_images_is_refused(weights, tmp_path, name, said):
    assert_refused(run_module(f"examples.{name}", f"--weights={weights}", f"--folder={tmp_path}"), said)
