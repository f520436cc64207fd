"""The names of `import vgg_jax`: lazy, and with the numbers of the commands."""

import copy
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vgg_jax
from tests.command import run_command
from tests.random_weights import some_weights
from tests.refusals import refused
from tests.weights_files import write_pth
from vgg_jax.config import default_config, recipe_of
from vgg_jax.evaluation.prediction import PredictRequest, predict
from vgg_jax.evaluation.trained_model import load_trained
from vgg_jax.features import losses
from vgg_jax.runs import RunDir
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights import hub
from vgg_jax.weights.file import save_weights


@pytest.fixture
def weights_path(tmp_path):
    save_weights(tmp_path / "d.safetensors", some_weights())
    return tmp_path / "d.safetensors"


def images_of(photos):
    files = sorted(photos.glob("validation/*/*"))[:4]
    return files, [np.asarray(Image.open(file).convert("RGB")) for file in files]


@pytest.mark.every_python
def test_the_package_loads_nothing_before_a_name_is_used():
    code = "import sys, vgg_jax; print(*sys.modules)"
    began = time.perf_counter()
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    seconds = time.perf_counter() - began
    assert not {"jax", "numpy", "flax", "absl"} & set(loaded)
    assert {name for name in loaded if name.startswith("vgg_jax.")} == set()
    assert seconds < 3  # 0.03 s of the import itself, on an idle machine
    assert set(vgg_jax.__all__) <= set(dir(vgg_jax))
    assert len(vgg_jax.__all__) <= 8
    for name in vgg_jax.__all__:
        assert getattr(vgg_jax, name) is getattr(vgg_jax, name)
    assert vgg_jax.features is sys.modules["vgg_jax.features"]
    with pytest.raises(AttributeError, match="module 'vgg_jax' has no attribute 'lode'"):
        vgg_jax.lode  # noqa: B018


def test_type_checkers_see_every_public_name(tmp_path):
    mypy_api = pytest.importorskip("mypy.api")
    code = "import vgg_jax\nreveal_type(vgg_jax.load)\nreveal_type(vgg_jax.features.gram)\n" + "".join(
        f"vgg_jax.{name}\n" for name in vgg_jax.__all__
    )
    (tmp_path / "user.py").write_text(code)
    flags = ("--config-file=", "--follow-imports=silent", "--ignore-missing-imports")
    out, err, status = mypy_api.run([*flags, str(tmp_path / "user.py")])
    assert (status, err) == (0, ""), out
    assert "-> vgg_jax.evaluation.model.Model" in out
    assert "-> jax.Array" in out or "-> jax._src.basearray.Array" in out


@pytest.mark.parametrize("options", [{}, {"protocol": "multi_crop", "scales": "64,80"}, {"protocol": "center_crop"}])
def test_predictions_are_those_of_the_command_for_files_and_arrays(weights_path, photos, options):
    files, arrays = images_of(photos)
    model = vgg_jax.load(weights_path)
    predictions, failures = predict(load_trained(weights_path), files, PredictRequest(**options))
    assert not failures
    expected = np.zeros((len(files), 5))
    for row, prediction in zip(expected, predictions, strict=True):
        row[prediction.classes] = prediction.probabilities
    assert np.ptp(expected, axis=0).max() > 1e-3  # they differ by image
    for images in ([str(files[0]), *files[1:]], [arrays[0], *map(np.float32, arrays[1:])]):
        np.testing.assert_allclose(model.predict(images, **options), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.predict(str(files[1]), **options), expected[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.predict(arrays[2], **options), expected[2], rtol=1e-4, atol=1e-6)
    batch = jnp.stack([arrays[2], 255 - arrays[2]])
    np.testing.assert_allclose(model.predict(batch, **options)[0], expected[2], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_command_prints_the_same_numbers(run, photos):
    files, _ = images_of(photos)
    status, out, err = run_command("predict", f"--workdir={run}", files[0])
    assert status == 0, err
    printed = [float(line.split("%")[0]) for line in out.splitlines() if "%" in line]
    probs = vgg_jax.load(run).predict(files[0])
    np.testing.assert_allclose(printed, 100 * np.sort(probs)[::-1], atol=0.051)


def test_a_run_and_its_checkpoint_load_and_keep_what_the_run_says(run, net_config, photos, caplog):
    from_run, from_checkpoint = vgg_jax.load(run), vgg_jax.load(run / "checkpoints" / "7")
    assert not caplog.records
    trained = load_trained(run)
    assert from_run.class_names == tuple(trained.class_names)
    assert from_run.training_scales == (net_config.image.scale_min, net_config.image.scale_max)
    image = images_of(photos)[1][0]
    assert (from_run.predict(image) == from_checkpoint.predict(image)).all()
    assert vgg_jax.load(run, dtype="bfloat16").network.dtype == jnp.bfloat16
    maps = vgg_jax.features.activations(from_run, image, ("relu1_1",))
    assert maps["relu1_1"].shape[:2] == image.shape[:2]


def test_what_is_compiled_serves_the_next_call(weights_path, photos, monkeypatch):
    model, image = vgg_jax.load(weights_path), images_of(photos)[1][0]
    first, compiled = model.predict(image), []
    monkeypatch.setattr("vgg_jax.evaluation.run.compile_step", lambda *_, **__: compiled.append(1))
    assert (model.predict(image) == first).all()
    assert compiled == []
    for duplicate in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert repr(duplicate) == repr(model)
    zero = model.replace(params=jax.tree.map(jnp.zeros_like, model.params))
    monkeypatch.undo()
    np.testing.assert_allclose(zero.predict(image), 0.2, rtol=1e-5)  # not what the first had compiled or kept


def test_a_model_is_a_pytree_and_says_what_it_is_in_a_line(weights_path):
    model = vgg_jax.load(weights_path)
    assert repr(model) == "Model(VGG D, crop 64, 5 classes, drawn at random)"
    assert model.class_titles == tuple("abcde")
    assert (model == model.replace(), {model: 1}[model]) == (False, 1)
    assert (model.crop, model.num_classes, model.spec.name) == (64, 5, "D")
    doubled = jax.jit(lambda m: jax.tree.map(lambda x: 2 * x, m))(model)
    assert doubled.class_names == model.class_names
    np.testing.assert_array_equal(doubled.params["fc8"]["bias"], 2 * model.params["fc8"]["bias"])
    image = jnp.full((16, 16, 3), 90.0)
    gradient = jax.grad(lambda m: vgg_jax.features.activations(m, image, ("relu1_1",))["relu1_1"].sum())(model)
    assert float(jnp.abs(gradient.params["conv1_1"]["kernel"]).max()) > 0


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        ("missing.jpg", {}, "missing.jpg cannot be read: No such file or directory"),
        (np.zeros((70, 70)), {}, r"images of shape \[70, 70\]: give one image \[height, width, 3\]"),
        ([np.zeros((70, 70, 4))], {}, r"image 0 has the shape \[70, 70, 4\]"),
        ([], {}, "there are no images"),
        (np.full((70, 70, 3), 300.0), {}, "image 0 has values from 300 to 300; they must be RGB on 0 to 255"),
        (np.full((70, 70, 3), np.nan), {}, "image 0 has values from nan to nan"),
        (np.zeros((70, 70, 3)), {"protocol": "sparse"}, "the protocol is 'sparse'; it must be one of center_crop"),
        (np.zeros((70, 70, 3)), {"scales": "32"}, "the test scale Q=32"),
        (np.zeros((70, 70, 3)), {"scales": 64}, "the test scales are 64; they must be a text"),
        (None, {}, "images of type NoneType: give arrays or paths"),
        (Image.new("RGB", (70, 70)), {}, "images of type Image: give arrays or paths"),
    ],
)
def test_images_and_options_that_cannot_be_are_refused(weights_path, images, options, sentence):
    with pytest.raises(UserError, match=sentence):
        vgg_jax.load(weights_path).predict(images, **options)


def test_scores_that_are_not_finite_a_trunk_and_images_on_0_to_1_are_noticed(weights_path):
    model, image = vgg_jax.load(weights_path), np.full((70, 70, 3), 0.5)
    with pytest.warns(UserWarning, match="image 0 has values up to 0.5, and images are RGB on 0 to 255"):
        model.predict(image)
    broken = model.replace(params={**model.params, "fc8": jax.tree.map(lambda x: x * jnp.nan, model.params["fc8"])})
    with pytest.raises(UserError, match="the model's scores of image 0 are not finite"):
        broken.predict(np.zeros((70, 70, 3)))
    weights = some_weights()
    trunk = {name: leaves for name, leaves in weights.params.items() if name.startswith("conv")}
    save_weights(weights_path, weights._replace(params=trunk, network=weights.network.without_head(), class_names=None))
    with pytest.raises(UserError, match="no classifier, drawn at random.* take its activations"):
        vgg_jax.load(weights_path).predict(np.zeros((70, 70, 3)))


def test_an_orientation_is_applied_or_warned_of(weights_path, photos, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.open(images_of(photos)[0][1]).convert("RGB")
    upright.save(tmp_path / "turned.png", exif=exif)
    model = vgg_jax.load(weights_path)
    with pytest.warns(
        UserWarning, match=r"turned.png has an EXIF orientation, which is ignored; apply it with exif=True"
    ):
        plain = model.predict(tmp_path / "turned.png")
    np.testing.assert_allclose(plain, model.predict(np.asarray(upright)), rtol=1e-5)
    turned = model.predict(tmp_path / "turned.png", exif=True)
    np.testing.assert_allclose(turned, model.predict(np.rot90(np.asarray(upright), -1)), rtol=1e-4)


@pytest.mark.parametrize("name", ["vgg16_bn", "D-BN-GAP", "resnet18"])
def test_a_new_network_comes_with_its_variables(name):
    options = {"crop": 64, "width_multiplier": 1 / 16, "fc_width": 16}
    network, variables = vgg_jax.create_model(name, num_classes=10, **options)
    assert network.num_classes == 10
    assert set(variables) == {"params", "batch_stats"}
    logits, _ = jax.jit(network.apply)(variables, jnp.zeros((2, 64, 64, 3)))
    assert logits.shape == (2, 10)
    _, other = vgg_jax.create_model(name, num_classes=10, seed=1, **options)
    head = network.layers[-1].name
    assert (other["params"][head]["kernel"] != variables["params"][head]["kernel"]).any()


def test_an_existing_path_wins_over_a_name(weights_path, monkeypatch):
    monkeypatch.chdir(weights_path.parent)
    os.rename(weights_path, "torchvision:vgg16")
    assert vgg_jax.load("torchvision:vgg16").source == "drawn at random"


HEADS = {f"lin{i}.model.1.weight": (c, i) for i, c in enumerate((64, 128, 256, 512, 512))}


@pytest.fixture
def cached_heads(tmp_path, monkeypatch):
    """Heads in the cache, where the file of lpips:vgg would lie, and a trunk of full width for them."""
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    arrays = {name: np.full((1, c, 1, 1), (i + 1) / c, np.float32) for name, (c, i) in HEADS.items()}
    (tmp_path / "cache").mkdir()
    path = write_pth(tmp_path / "cache" / hub.HEADS["lpips:vgg"].file, arrays)
    digest = hub.containers.sha256_and_md5(path)[0]
    monkeypatch.setitem(
        hub.HEADS, "lpips:vgg", hub.HEADS["lpips:vgg"]._replace(url="http://localhost:1/vgg.pth", sha256=digest)
    )
    losses.calibrated_heads.cache_clear()
    losses.lpips_trunk.cache_clear()
    yield path
    losses.calibrated_heads.cache_clear()
    losses.lpips_trunk.cache_clear()


def test_lpips_takes_calibrated_heads_by_name_and_a_trunk_that_stays_loaded(cached_heads, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    _, variables = vgg_jax.create_model("D", num_classes=2, crop=64, fc_width=8)
    weights = some_weights(params=jax.device_get(variables["params"]))._replace(
        width_multiplier=1.0, fc_width=8, class_names=None
    )
    save_weights(tmp_path / "torchvision.safetensors", weights)
    monkeypatch.setattr(losses, "LPIPS_TRUNK", str(tmp_path / "torchvision.safetensors"))
    x, y = (rng.integers(0, 256, (2, 16, 24, 3)).astype(np.float32) for _ in range(2))
    # The first use is within a jitted function; what is kept must not belong to its trace.
    traced = jax.jit(vgg_jax.lpips)(x, y)
    distance = vgg_jax.lpips(x, y)
    np.testing.assert_allclose(traced, distance, rtol=1e-3)
    assert distance.shape == (2,)
    assert float(distance.min()) > 0
    os.remove(tmp_path / "torchvision.safetensors")
    model = losses.lpips_trunk()
    assert "fc6" not in model.params
    heads = tuple(np.full(c, (i + 1) / c, np.float32) for c, i in HEADS.values())
    for given in (heads, cached_heads, str(cached_heads), "lpips:vgg"):
        np.testing.assert_allclose(vgg_jax.lpips(x, y, model, given), distance, rtol=1e-5)
    assert vgg_jax.lpips(x, y, spatial=True).shape == (2, 16, 24)


def test_heads_with_another_checksum_are_fetched_again_and_never_used(cached_heads, capsys):
    cached_heads.write_bytes(cached_heads.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="lpips:vgg could not be fetched from http://localhost:1/vgg.pth"):
        vgg_jax.features.load_lpips_heads("lpips:vgg")
    assert "it is fetched again" in capsys.readouterr().err


def test_the_published_heads_are_those_of_the_package():
    """sha256sum lpips/weights/v0.1/vgg.pth of lpips-0.1.4-py3-none-any.whl."""
    assert hub.HEADS["lpips:vgg"].sha256 == "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"


@pytest.mark.slow
def test_a_network_is_trained_and_evaluated_in_three_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"num_epochs": 0.1, "model.width_multiplier": 0.0625, "data.dir": str(tmp_path / "data")}
    summary = vgg_jax.fit("quickstart", overrides=small, quiet=True)
    table = vgg_jax.evaluate_run("runs/quickstart", protocol="center_crop", quiet=True)
    model = vgg_jax.load("runs/quickstart")
    assert 0 <= summary["best_top1_error"] <= 1
    assert table["rows"][0]["top1_error"] == pytest.approx(summary["best_top1_error"], abs=0.02)
    assert model.num_classes == 10


@pytest.mark.slow
def test_fine_tuning_takes_network_and_classes_from_what_it_is_given(tmp_path, capsys):
    source, root = tmp_path / "a.safetensors", tmp_path / "photos"
    save_weights(source, some_weights())
    for kind in ("ant", "bee", "cat"):
        (root / kind).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (90, 80), (60 * number, 9, 9)).save(root / kind / f"{number}.png")
    given = {"init_from": str(source), "data.root": str(root), "data.dir": str(tmp_path / "data"), "batch_size": 8}
    given |= {"image.scale_max": 80, "num_epochs": 1}

    vgg_jax.fit("finetune", tmp_path / "run", given)
    assert "VGG D, the network of " in capsys.readouterr().out
    recipe = recipe_of(RunDir(tmp_path / "run").config())
    image, model = recipe.image, recipe.model
    assert (model.network.name, model.width_multiplier, model.fc_width, model.num_classes) == ("D", 1 / 16, 16, 3)
    assert (image.crop, image.scale_min, image.scale_max) == (64, 73, 80)
    assert vgg_jax.load(tmp_path / "run").class_names == ("ant", "bee", "cat")
    # The run has all it needs.
    source.unlink()
    assert vgg_jax.fit("finetune", tmp_path / "run", given | {"num_epochs": 2}, quiet=True)["epochs"] > 1

    second = given | {"init_from": str(tmp_path / "run"), "image.scale_max": 73}
    vgg_jax.fit("finetune", tmp_path / "second", second, quiet=True)
    assert recipe_of(RunDir(tmp_path / "second").config()).image.scale_max == 73


@pytest.mark.parametrize(
    ("config", "overrides", "sentence"),
    [
        ("quickstat", {}, "quickstat: there is no such file, and no configuration of that name. Did you mean"),
        ("quickstart:S=1", {}, "takes no argument; leave :S=1 out"),
        ("quickstart", {"num_epoch": 2}, "num_epoch"),
        ("quickstart", {"num_epochs": "two"}, "the overrides .*num_epochs.* cannot be"),
        ("quickstart", {"num_epochs.x": 2}, "the overrides .* cannot be"),
        ("quickstart", {3: 3}, "the overrides .* cannot be"),
        (Path("quickstat"), {}, "quickstat: there is no such file"),
        ({"seed": 1}, {}, "the configuration is of type dict"),
        (default_config(), {"schedule.drop_epochs": "0,60"}, "config.schedule.drop_epochs is '0,60'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(config, overrides, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        vgg_jax.fit(config, tmp_path / "run", overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("from vgg_jax.models import paper_crop\n", "cannot import name 'paper_crop' from 'vgg_jax.models'"),
        ("import vgg_jax.exceptions\n", "No module named 'vgg_jax.exceptions'. Mend it, or choose another."),
        ("def get_config(:\n", "invalid syntax"),
        ("seed = 1\n", "has no attribute 'get_config'"),
    ],
)
def test_a_configuration_file_that_fails_is_told_in_a_sentence(text, sentence, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=re.escape(sentence)):
        vgg_jax.fit(tmp_path / "mine.py")
    status, _, err = run_command("train", f"--config={tmp_path}/mine.py")
    assert (status, "Traceback" in err, sentence in err) == (2, False, True), err


def test_a_run_is_evaluated_by_a_known_protocol_and_loaded_for_a_known_dtype(run):
    with pytest.raises(UserError, match="the protocol is 'sparse'; it must be one of center_crop"):
        vgg_jax.evaluate_run(run, protocol="sparse")
    with pytest.raises(UserError, match="the dtype is 'float16'; it must be one of float32, bfloat16"):
        vgg_jax.load(run, dtype="float16")


@pytest.mark.parametrize(("options", "text"), [({"crop": 4}, "crop is 4"), ({"num_classes": 0}, "num_classes is 0")])
def test_a_network_that_cannot_be_made_is_refused(options, text):
    with refused(text):
        vgg_jax.create_model("A", **options)
