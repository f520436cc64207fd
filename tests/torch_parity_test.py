"""The same weights give the same logits in torch and here, in both directions, on pixels and densely."""

# ruff: noqa: E402  (where torch is missing, this file ends early)

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

NEEDS_TORCH = "compares with torch, which is not installed (pip install 'vgg-jax[torch]')"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason=NEEDS_TORCH)

from safetensors.torch import load_file, save_file

from tests.refusals import refused
from tests.runs import make_run, varied_images
from tests.torch_nets import TimmVGG, TorchvisionResNet, TorchvisionVGG, normalised, randomised
from tests.weights_files import random_params, write_h5
from vgg_jax.data.crops import rescaled
from vgg_jax.evaluation.protocol import Request, evaluate
from vgg_jax.evaluation.trained_model import load_trained, weights_of_run
from vgg_jax.models import NetworkSpec
from vgg_jax.weights.exports import to_torchvision
from vgg_jax.weights.file import (
    Weights,
    folded_variables,
    load_weights,
    make_model,
    save_weights,
    write_safetensors,
)
from vgg_jax.weights.imports import Digests, FileHints, import_weights
from vgg_jax.weights.preprocessing import KNOWN, Preprocessing

NARROW = {"width": 1 / 16, "fc_width": 32, "num_classes": 10, "side": 2}
CLOSE = 1e-4  # of the largest logit, in float32


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def read(path, preprocessing=""):
    return import_weights(path, Digests("0" * 64, ""), FileHints(preprocessing=preprocessing))[0]


def logits(weights, images):
    """As this project computes: RGB minus the mean, conv1_1 with the preprocessing in it."""
    x = images.astype(np.float32) - weights.preprocessing.mean_rgb()
    return np.asarray(jax.jit(make_model(weights).apply)(folded_variables(weights), x)[0])


def assert_close(found, wanted):
    assert np.abs(wanted).max() > 0.1  # there is something to compare
    assert np.ptp(wanted, axis=0).max() > 0.01  # and it depends on the image
    np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())


@pytest.mark.parametrize("configuration", ["A", "B", "D", "E"])
@pytest.mark.parametrize("old", [False, True])
def test_a_pth_of_torchvisions_gives_torchs_logits(configuration, old, tmp_path):
    torch_net = randomised(TorchvisionVGG(configuration, **NARROW))
    path = tmp_path / "model.pth"
    torch.save(torch_net.state_dict(), path, _use_new_zipfile_serialization=not old)
    weights = read(path, "torchvision")
    assert weights.configuration == configuration
    images = pixels(3, 64, 64)
    with torch.no_grad():
        wanted = torch_net(normalised(images)).numpy()
    assert_close(logits(weights, images), wanted)
    # The two sides differ by what they should: with channels taken the other way round they are not close.
    wrong = logits(weights._replace(preprocessing=weights.preprocessing._replace(order="BGR")), images)
    assert np.abs(wrong - wanted).max() > 100 * CLOSE * np.abs(wanted).max()


@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint_of_training_is_read(old, tmp_path):
    """What torch's ImageNet example saves: other tensors lie next to the state dictionary."""
    torch_net = randomised(TorchvisionVGG("A", **NARROW))
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    saved = {"epoch": 3, "state_dict": torch_net.state_dict(), "best_acc1": torch.tensor(0.5), "optimizer": optimizer}
    torch.save(saved, tmp_path / "model.pth", _use_new_zipfile_serialization=not old)
    bias = read(tmp_path / "model.pth", "torchvision").params["conv2_1"]["bias"]
    np.testing.assert_array_equal(bias, torch_net.state_dict()["features.3.bias"].numpy())


@pytest.mark.parametrize("configuration", ["A", "E"])
def test_a_safetensors_of_timms_gives_torchs_logits(configuration, tmp_path):
    torch_net = randomised(TimmVGG(configuration, **NARROW))
    save_file(torch_net.state_dict(), tmp_path / "model.safetensors")
    weights = read(tmp_path / "model.safetensors")
    assert weights.preprocessing == KNOWN["torchvision"]
    images = pixels(3, 64, 64)
    with torch.no_grad():
        assert_close(logits(weights, images), torch_net(normalised(images)).numpy())


def test_parameters_views_and_halves_are_read_as_torch_reads_them(tmp_path):
    torch_net = randomised(TorchvisionVGG("A", **NARROW))
    state = {name: value.half().contiguous() for name, value in torch_net.state_dict().items()}
    state["features.0.weight"] = torch.nn.Parameter(state["features.0.weight"])
    state["features.3.weight"] = state["features.3.weight"].to(memory_format=torch.channels_last)  # strides
    both = torch.cat([state["features.0.bias"], state["features.0.bias"] + 1])
    state["features.0.bias"] = both[4:]  # in the middle of a storage
    torch.save(state, tmp_path / "model.pth")
    params = read(tmp_path / "model.pth", "torchvision").params
    np.testing.assert_array_equal(params["conv1_1"]["bias"], both[4:].float().numpy())
    kernel = state["features.3.weight"].float().permute(2, 3, 1, 0).numpy()
    np.testing.assert_array_equal(params["conv2_1"]["kernel"], kernel)
    save_file({k: v.data.contiguous().clone().bfloat16() for k, v in state.items()}, tmp_path / "model.safetensors")
    found = read(tmp_path / "model.safetensors", "torchvision").params["fc8"]["kernel"][0, 0]
    np.testing.assert_array_equal(found, state["classifier.6.weight"].bfloat16().float().numpy().T)


@pytest.mark.parametrize("configuration", ["A", "B", "D", "E"])
def test_weights_of_here_give_the_same_logits_in_torch(configuration, tmp_path):
    size = {"width_multiplier": 1 / 16, "fc_width": 16, "crop": 64, "training_scales": (73, 73)}
    ours = Preprocessing("RGB", 255.0, (121.0, 112.0, 99.0), (1.0, 1.0, 1.0))
    params = random_params(configuration)
    params["conv1_1"]["kernel"] /= 60  # for pixels from -128 to 128
    weights = Weights(
        params, NetworkSpec(configuration), **size, preprocessing=ours, class_names=None, class_titles=None, source=""
    )
    tensors, expected = to_torchvision(weights)
    write_safetensors(tmp_path / "out.safetensors", tensors, {"format": "pt"})
    torch_net = TorchvisionVGG(configuration, 1 / 16, 16, 5, 2).eval()
    torch_net.load_state_dict(load_file(tmp_path / "out.safetensors"))  # strict: exactly these names and shapes
    images = pixels(3, 64, 64)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (expected.mean, expected.std))
    with torch.no_grad():
        assert_close(torch_net((x - mean) / std).numpy(), logits(weights, images))


def test_what_comes_from_torchvision_goes_back_bit_for_bit(tmp_path):
    state = randomised(TorchvisionVGG("D", **NARROW)).state_dict()
    torch.save(state, tmp_path / "model.pth")
    save_weights(tmp_path / "ours.safetensors", read(tmp_path / "model.pth", "torchvision"))
    tensors, expected = to_torchvision(load_weights(tmp_path / "ours.safetensors"))
    assert expected == KNOWN["torchvision"]
    assert set(tensors) == set(state)
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, state[name].numpy())


def test_a_keras_h5_gives_the_logits_that_kerass_order_and_pixels_give(tmp_path):
    rng, kernels = np.random.default_rng(0), {}
    channels = 3
    for block, (features, depth) in enumerate([(4, 2), (8, 2), (16, 3), (32, 3), (32, 3)], start=1):
        for place in range(1, depth + 1):
            kernels[f"block{block}_conv{place}"] = (3, 3, channels, features)
            channels = features
    kernels |= {"fc1": (2 * 2 * 32, 24), "fc2": (24, 24), "predictions": (24, 7)}
    tensors = {}
    for name, shape in kernels.items():
        scale = (2 / np.prod(shape[:-1])) ** 0.5 / (60 if name == "block1_conv1" else 1)
        tensors[f"{name}/kernel"] = (scale * rng.standard_normal(shape)).astype(np.float32)
        tensors[f"{name}/bias"] = (0.1 * rng.standard_normal(shape[-1])).astype(np.float32)
    write_h5(tmp_path / "vgg16.h5", tensors)

    def keras(images):  # preprocess_input in its mode "caffe", Conv2D, MaxPooling2D, Flatten of rows, columns, channels
        x = torch.from_numpy(images[..., ::-1].astype(np.float32) - np.float32([103.939, 116.779, 123.68]))
        x = x.permute(0, 3, 1, 2)
        for name in kernels:
            kernel, bias = (torch.from_numpy(tensors[f"{name}/{kind}"]) for kind in ("kernel", "bias"))
            if name.endswith("_conv1") and name != "block1_conv1":
                x = torch.nn.functional.max_pool2d(x, 2)
            if name.startswith("block"):
                x = torch.relu(torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1))
                continue
            if name == "fc1":
                x = torch.nn.functional.max_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1)
            x = x @ kernel + bias
            x = x if name == "predictions" else torch.relu(x)
        return x.numpy()

    weights = read(tmp_path / "vgg16.h5", "caffe")
    images = pixels(3, 64, 64)
    assert_close(logits(weights, images), keras(images))


def test_dense_posteriors_are_those_of_torchs_own_convolutional_net(tmp_path, prepared):
    """The test protocol on imported weights: images of any shape, whole and mirrored (Paper §3.2)."""
    torch_net = randomised(TorchvisionVGG("D", 1 / 16, 32, 3, 2))
    torch.save(torch_net.state_dict(), tmp_path / "model.pth")
    weights = read(tmp_path / "model.pth", "torchvision")
    photos = varied_images(tmp_path / "photos", sizes=[(75, 101), (190, 80), (80, 150), (131, 77)])
    classes = sorted(path.name for path in (photos / "validation").iterdir())
    save_weights(tmp_path / "model.safetensors", weights._replace(class_names=classes))
    summary = evaluate(
        Request(
            workdirs=(),
            weights=(str(tmp_path / "model.safetensors"),),
            scales="73",
            data_root=str(photos),
            data_dir=str(prepared),
        ),
        quiet=True,
    )
    assert summary["data"]["images"] == 4
    (kept,) = (tmp_path / "model").glob("evaluation/model.safetensors/*/dense-Q73.npz")
    with np.load(kept) as arrays:
        keys, probs = arrays["keys"], arrays["probs"]

    first, second, third = (torch_net.classifier[i] for i in (0, 3, 6))

    def dense(x):
        x = torch_net.features(x)
        x = torch.relu(torch.nn.functional.conv2d(x, first.weight.view(32, 32, 2, 2), first.bias))
        x = torch.relu(torch.nn.functional.conv2d(x, second.weight[:, :, None, None], second.bias))
        return torch.nn.functional.conv2d(x, third.weight[:, :, None, None], third.bias).mean((2, 3))

    files = {path.relative_to(photos / "validation").as_posix(): path for path in photos.glob("validation/*/*")}
    for key, probs_K in zip(keys, probs, strict=True):
        file = next(path for name, path in files.items() if name.endswith(key.rsplit("/", 1)[-1]))
        image = rescaled(file.read_bytes(), 73)
        assert image.shape[0] != image.shape[1]
        with torch.no_grad():
            both = [dense(normalised(view[None].copy())).softmax(-1) for view in (image, image[:, ::-1])]
        np.testing.assert_allclose(probs_K, (sum(both) / 2)[0].numpy(), atol=1e-5)
    assert np.ptp(probs, axis=0).max() > 1e-3


def test_a_run_goes_to_torch_too(net_config, tmp_path):
    run = make_run(tmp_path / "run", net_config)
    weights = weights_of_run(run)
    tensors, expected = to_torchvision(weights)
    torch_net = TorchvisionVGG("A", 1 / 16, 16, 3, 2).eval()
    torch_net.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in tensors.items()})
    np.testing.assert_allclose(np.array(expected.mean) * 255, [120, 110, 100], rtol=1e-6)
    images = pixels(2, 64, 64)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (expected.mean, expected.std))
    with torch.no_grad():
        assert_close(torch_net((x - mean) / std).numpy(), logits(weights, images))


@pytest.mark.slow
def test_vgg16_at_full_size(tmp_path):
    torch_net = randomised(TorchvisionVGG("D"))
    torch.save(torch_net.state_dict(), tmp_path / "vgg16.pth")
    weights = read(tmp_path / "vgg16.pth", "torchvision")
    save_weights(tmp_path / "vgg16.safetensors", weights)
    loaded = load_trained(tmp_path / "vgg16.safetensors")
    assert sum(x.size for x in jax.tree.leaves(loaded.variables)) == 138_357_544
    images = pixels(2, 224, 224)
    with torch.no_grad():
        wanted = torch_net(normalised(images)).numpy()
    x = jnp.asarray(images, jnp.float32) - loaded.statistics.mean_rgb
    assert_close(np.asarray(jax.jit(loaded.model.apply)(loaded.variables, x)[0]), wanted)


# --- networks with batch normalisation ---


def with_batch_norm(name):
    if name.startswith("ResNet"):
        return randomised(TorchvisionResNet(int(name.partition("-")[2]), width=1 / 8, num_classes=10))
    return randomised(TorchvisionVGG(name, **NARROW, batch_norm=True))


@pytest.mark.parametrize(
    "name",
    [
        "A",
        "E",
        "ResNet-18",
        "ResNet-34",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("ResNet-50", "ResNet-152")),
    ],
)
def test_batch_normalised_networks_come_from_torchvision_and_go_back(name, tmp_path):
    torch_net = with_batch_norm(name)
    torch.save(torch_net.state_dict(), tmp_path / "model.pth")
    weights = read(tmp_path / "model.pth", "torchvision")
    assert (weights.configuration, weights.network.to_json()) == (
        name,
        {} if name.startswith("ResNet") else {"batch_norm": True},
    )
    images = pixels(3, weights.crop, weights.crop)
    with torch.no_grad():
        wanted = torch_net(normalised(images)).numpy()
    assert_close(logits(weights, images), wanted)
    save_weights(tmp_path / "model.safetensors", weights)
    again = load_weights(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(logits(again, images), logits(weights, images))
    exported, _ = to_torchvision(again)
    state = torch_net.state_dict()
    assert set(exported) == {key for key in state if not key.endswith("num_batches_tracked")}
    for key, array in exported.items():
        np.testing.assert_array_equal(array, state[key].numpy())


def test_another_network_with_a_resnets_names_is_named_by_shape(tmp_path):
    """As ResNeXt-50, whose 3x3 convolutions are in groups."""
    state = with_batch_norm("ResNet-50").state_dict()
    state["layer1.0.conv2.weight"] = state["layer1.0.conv2.weight"][:, :2]
    torch.save(state, tmp_path / "model.pth")
    with refused(r"the names of torchvision's ResNet-50, but layer1.0.conv2.weight is \[8, 2, 3, 3\]"):
        read(tmp_path / "model.pth", "torchvision")


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"features.0.weight": (64, 3, 11, 11), "features.0.bias": (64,)}, "torchvision's alexnet, the network of"),
        (
            {"inception3a.branch1.conv.weight": (64, 192, 1, 1)},
            "torchvision's googlenet, which has batch normalisation",
        ),
    ],
)
def test_a_namesake_of_another_network_is_told_so(tensors, sentence, tmp_path):
    torch.save({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "model.pth")
    with refused(sentence):
        read(tmp_path / "model.pth", "torchvision")


@pytest.mark.parametrize("name", ["A", "ResNet-18"])
def test_a_file_without_running_averages_is_told_so(name, tmp_path):
    state = {key: value for key, value in with_batch_norm(name).state_dict().items() if "running" not in key}
    torch.save(state, tmp_path / "model.pth")
    with refused(f"torchvision's {name} with batch normalisation, but no running averages.*GroupNorm"):
        read(tmp_path / "model.pth", "torchvision")


def test_a_residual_file_is_evaluated_trained_on_and_damage_is_noticed(tmp_path):
    torch.save(with_batch_norm("ResNet-18").state_dict(), tmp_path / "model.pth")
    weights = read(tmp_path / "model.pth", "torchvision")
    path = tmp_path / "model.safetensors"
    save_weights(path, weights)
    trained = load_trained(str(path))
    assert trained.recipe.model.network.configuration == "ResNet-18"
    np.testing.assert_array_equal(
        trained.variables["batch_stats"]["bn1"]["var"], weights.model_state["batch_stats"]["bn1"]["var"]
    )
    content = path.read_bytes()
    var = np.ascontiguousarray(weights.model_state["batch_stats"]["bn4_1a"]["var"]).tobytes()
    assert content.count(var) == 1
    path.write_bytes(content.replace(var, var[:-4] + b"\0\0\0\0"))
    with refused("digest differs"):
        load_weights(path)
