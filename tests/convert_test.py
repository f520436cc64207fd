"""The command line of converting: help, what it prints, mistakes, and files that work wherever a run does."""

import hashlib
import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.command import as_flags, help_of, run_command, run_main
from tests.random_weights import ODD, some_weights
from tests.refusals import refused
from tests.weights_files import NARROW, as_laid_out, random_params, write_pth
from vgg_jax import features
from vgg_jax.data.crops import center_crop
from vgg_jax.evaluation.conversion import ConvertRequest, convert
from vgg_jax.evaluation.protocol import Request, evaluate
from vgg_jax.evaluation.trained_model import load_trained
from vgg_jax.features.backbone import from_weights
from vgg_jax.models import NetworkSpec
from vgg_jax.training.checkpoints import load_variables
from vgg_jax.training.transplant import read_donor, start_from
from vgg_jax.weights.exports import has_published_shape, to_stablehlo
from vgg_jax.weights.file import folded_params, load_weights, make_model, save_weights


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pth(tmp_path):
    return write_pth(tmp_path / "model.pth", as_laid_out(random_params(), "torchvision"))


def test_help_answers_without_loading_jax():
    shown = help_of("convert")
    for flag in ("--to", "--sha256", "--preprocessing", "--class_names", "--num_classes", "--[no]overwrite"):
        assert flag in shown


def test_it_says_what_it_read_and_wrote(pth, tmp_path):
    dest = tmp_path / "new" / "model.safetensors"
    digest = sha256(pth)
    status, out, err = run_command(
        "convert",
        pth,
        dest,
        "--preprocessing=torchvision",
        f"--sha256={digest[:12]}",
        "--training_scales=80,90",
    )
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"read: {pth}, {pth.stat().st_size:,} bytes, sha256 {digest}"
    assert lines[1] == "a .pth of torch: torchvision's layout, configuration D, preprocessing torchvision"
    assert re.fullmatch(r"[\d,]+ parameters, crop 64, S 80 to 90, 5 classes, without names .*", lines[2])
    assert lines[3] == f"written: {dest}, {dest.stat().st_size:,} bytes, sha256 {sha256(dest)}"
    weights = load_weights(dest)
    assert digest in weights.source
    np.testing.assert_array_equal(weights.params["fc6"]["kernel"], random_params()["fc6"]["kernel"])


def test_a_file_is_converted_from_python(pth, tmp_path):
    lines = []
    request = ConvertRequest(str(pth), str(tmp_path / "a.safetensors"), preprocessing="caffe", training_scales="70")
    assert convert(request, lines.append) == tmp_path / "a.safetensors"
    assert [line.split(":")[0].split(",")[0] for line in lines][:2] == ["read", "a .pth of torch"]
    assert lines[-1].startswith(f"written: {tmp_path / 'a.safetensors'}, ")
    assert load_weights(tmp_path / "a.safetensors").training_scales == (70, 70)
    with refused("exists; choose another name"):
        convert(request)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give two names, from what and to what"),
        (("PTH",), "give two names"),
        (("/nowhere.pth", "DEST"), "/nowhere.pth: there is no such file or run."),
        (("PTH", "x.npz"), "x.npz: what is written is a safetensors file"),
        (("PTH", "PTH"), "give it a name that ends in .safetensors"),
        (("PTH", "DEST", "--too=x"), "Unknown command line flag 'too'"),
        (("PTH", "DEST", "--to=tflite"), "value should be one of <vgg_jax|torchvision|keras|onnx|stablehlo|hf>"),
        (("PTH", "DEST"), "does not say how its pixels are prepared; say it with --preprocessing=torchvision"),
        (("PTH", "DEST", "--sha256=00000000"), "is not the file that was meant: its SHA-256 is "),
        (("PTH", "DEST", "--sha256=12"), "is not at least eight hexadecimal digits"),
        (("PTH", "DEST", "--preprocessing=caffe", "--class_names=/nowhere"), "--class_names=/nowhere cannot be read"),
        (("PTH", "DEST", "--num_classes=1"), "a model tells at least two classes apart"),
        (("PTH", "DEST", "--dtype=float16", "--to=torchvision"), "leave out --to=torchvision"),
        (("PTH", "/proc/x/y.safetensors", "--preprocessing=caffe"), "cannot write to /proc/x/y.safetensors"),
    ],
)
def test_a_mistake_gets_a_sentence_and_a_status_and_leaves_nothing(arguments, sentence, pth, tmp_path):
    names = {"PTH": str(pth), "DEST": str(tmp_path / "dest.safetensors")}
    status, out, err = run_command("convert", *(names.get(a, a) for a in arguments))
    assert status == 2
    assert sentence in out + err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_file_of_half_the_size_has_every_number_rounded_to_float16(pth, tmp_path):
    files = [tmp_path / f"{dtype}.safetensors" for dtype in ("float32", "float16")]
    for file in files:
        arguments = ("convert", pth, file, "--preprocessing=torchvision", f"--dtype={file.stem}")
        assert run_command(*arguments)[0] == 0
    whole, half = (load_weights(file) for file in files)
    assert files[1].stat().st_size < 0.55 * files[0].stat().st_size
    assert {array.dtype for array in load_file(files[1]).values()} == {np.dtype("float16")}
    rounded = jax.tree.map(lambda array: array.astype(np.float16).astype(np.float32), whole.params)
    jax.tree.map(np.testing.assert_array_equal, half.params, rounded)
    too_large = jax.tree.map(lambda array: array * np.float32(1e6), whole.params)
    with refused("too large"):
        save_weights(tmp_path / "b.safetensors", whole._replace(params=too_large), "float16")
    assert not (tmp_path / "b.safetensors").exists()


def test_what_exists_is_left_unless_one_says_otherwise(pth, tmp_path):
    dest = tmp_path / "dest.safetensors"
    dest.write_text("precious")
    status, _, err = run_command("convert", pth, dest, "--preprocessing=caffe")
    assert (status, err) == (2, f"error: {dest} exists; choose another name, or say --overwrite.\n")
    assert dest.read_text() == "precious"
    assert run_command("convert", pth, dest, "--preprocessing=caffe", "--overwrite")[0] == 0
    assert load_weights(dest).configuration == "D"


@pytest.mark.slow
def test_a_run_becomes_a_file_and_the_file_does_what_the_run_does(run, net_config, tmp_path):
    dest = tmp_path / "run.safetensors"
    status, out, err = run_command("convert", run, dest)
    assert (status, err) == (0, "")
    assert "3 classes, their names are known" in out
    of_run, of_file = load_trained(run), load_trained(dest)
    assert of_file.digest == of_run.digest
    assert of_file.class_names == of_run.class_names
    assert (of_file.statistics.mean_rgb == of_run.statistics.mean_rgb).all()
    assert of_file.recipe.image == of_run.recipe.image

    data = {"data_root": net_config.data.root, "data_dir": net_config.data.dir}
    both = [
        evaluate(Request(workdirs=(str(run),), **data), quiet=True),
        evaluate(Request(workdirs=(), weights=(str(dest),), **data), quiet=True),
    ]
    rows = [{k: v for k, v in summary["rows"][0].items() if k != "models"} for summary in both]
    assert rows[0] == rows[1]
    fused = evaluate(Request(workdirs=(str(run),), weights=(str(dest),), **data), quiet=True)
    assert fused["rows"][-1]["models"] == "fusion of 2"

    assert run_command("convert", run, tmp_path / "out.safetensors", "--to=torchvision")[0] == 0
    assert load_file(tmp_path / "out.safetensors")["classifier.6.weight"].shape == (3, 16)
    # It says itself what it expects of pixels, and comes back as the same model.
    status, out, err = run_command("convert", tmp_path / "out.safetensors", tmp_path / "back.safetensors")
    assert (status, err) == (0, "")
    assert "preprocessing as the file says" in out
    back = load_trained(tmp_path / "back.safetensors")
    np.testing.assert_allclose(back.statistics.mean_rgb, of_run.statistics.mean_rgb, rtol=1e-6)
    for name in ("conv1_1", "fc6"):
        np.testing.assert_allclose(
            back.variables["params"][name]["kernel"], of_run.variables["params"][name]["kernel"], rtol=1e-6
        )
    first = sha256(tmp_path / "out.safetensors")
    assert run_command("convert", run, tmp_path / "out.safetensors", "--to=torchvision", "--overwrite")[0] == 0
    assert sha256(tmp_path / "out.safetensors") == first
    status, _, err = run_command("convert", run, tmp_path / "x.safetensors", "--preprocessing=caffe")
    assert (status, err.startswith("error: --preprocessing is for files")) == (2, True)


@pytest.mark.parametrize(
    ("description", "changes", "is_said"),
    [
        ({}, {"width_multiplier": 1.0, "crop": 224, "fc_width": 4096}, False),
        ({}, {"width_multiplier": 1.0, "crop": 64, "fc_width": 4096}, True),
        ({"batch_norm": True}, {"width_multiplier": 1.0, "crop": 224, "fc_width": 16}, True),
        ({"head": "none"}, {"width_multiplier": 1.0, "crop": 64}, False),
        ({"head": "none"}, {}, True),
    ],
)
def test_networks_that_published_classes_do_not_take_are_known(description, changes, is_said):
    params = {"conv1_1": {}} | ({} if description.get("head") else {"fc6": {}})
    assert (
        has_published_shape(some_weights(network=NetworkSpec("D", **description), **changes)._replace(params=params))
        != is_said
    )


def test_a_program_and_a_new_head_from_the_command_line(tmp_path):
    pytest.importorskip("flatbuffers", reason="exports, which needs flatbuffers (pip install 'vgg-jax[export]')")
    save_weights(tmp_path / "a.safetensors", some_weights("A"))
    status, out, err = run_command(
        "convert", tmp_path / "a.safetensors", tmp_path / "a.stablehlo", "--to=stablehlo", "--num_classes=7"
    )
    assert (status, err) == (0, "")
    assert "new head: 7 classes in place of 5, random" in out
    program = jax.export.deserialize(bytearray((tmp_path / "a.stablehlo").read_bytes()))
    assert program.call(np.zeros((2, 64, 64, 3), np.uint8)).shape == (2, 7)
    weights = some_weights("A")
    trunk = {name: leaves for name, leaves in weights.params.items() if name.startswith("conv")}
    weights = weights._replace(params=trunk, network=weights.network.without_head(), class_names=None)
    features = jax.export.deserialize(bytearray(to_stablehlo(weights))).call(np.full((2, 64, 64, 3), 9, np.uint8))
    assert features.shape == (2, 32)
    assert np.abs(features.sum(1) - 1).min() > 0.01  # they are no probabilities


# Starting from a file.


def test_training_starts_from_a_file_with_its_preprocessing(tmp_path):
    weights = some_weights("A")
    save_weights(tmp_path / "a.safetensors", weights)
    fresh = {layer: dict(leaves) for layer, leaves in random_params("A", seed=9).items()}
    fresh = {
        layer: {k: __import__("jax").numpy.asarray(v) for k, v in leaves.items()} for layer, leaves in fresh.items()
    }
    mean = ODD.mean_rgb()
    variables, report = start_from(read_donor(str(tmp_path / "a.safetensors")), {"params": fresh}, mean)
    params = variables["params"]
    assert report == f"all layers start from {tmp_path / 'a.safetensors'}"
    for layer, leaves in folded_params(weights).items():
        for name, array in leaves.items():
            np.testing.assert_array_equal(params[layer][name], array)

    # Another mean: the same inside an image, and not at its border, where zero padding stands for the new mean.
    moved = mean + np.float32([10, -5, 3])
    other = start_from(read_donor(str(tmp_path / "a.safetensors")), {"params": fresh}, moved)[0]["params"]
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.float32)

    def first(p, x):
        return np.asarray(make_model(weights).apply({"params": p}, x, endpoints=("conv1_1",))[1]["conv1_1"])

    expected, result = first(params, images - mean), first(other, images - mean - np.float32([10, -5, 3]))
    np.testing.assert_allclose(result[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-4 * np.abs(expected).max())
    assert np.abs(result - expected)[:, 0].max() > 1e-3 * np.abs(expected).max()
    assert (other["conv1_1"]["bias"] != params["conv1_1"]["bias"]).any()


def test_a_new_head_with_names_can_be_made_beforehand(tmp_path):
    save_weights(tmp_path / "a.safetensors", some_weights("A"))
    ten = jax.tree.map(jax.numpy.asarray, random_params("A", NARROW._replace(num_classes=10)))
    variables, report = start_from(read_donor(str(tmp_path / "a.safetensors")), {"params": ten}, ODD.mean_rgb())
    assert variables["params"]["fc8"]["kernel"] is ten["fc8"]["kernel"]
    assert report.endswith("random: fc8 (fc8: 5 classes there, 10 here)")
    (tmp_path / "ten").write_text("".join(f"class number {i}\n" for i in range(10)))
    status, _, _ = run_command(
        "convert",
        *(
            tmp_path / "a.safetensors",
            tmp_path / "b.safetensors",
            "--num_classes=10",
            f"--class_names={tmp_path / 'ten'}",
        ),
    )
    assert status == 0
    assert load_weights(tmp_path / "b.safetensors").class_names[9] == "class number 9"
    variables, _ = start_from(read_donor(str(tmp_path / "b.safetensors")), {"params": ten}, ODD.mean_rgb())
    assert variables["params"]["fc8"]["bias"].shape == (10,)


@pytest.mark.slow
def test_a_run_starts_from_a_file(net_config, tmp_path):
    save_weights(tmp_path / "a.safetensors", some_weights("A", class_names=None, params=random_params("A")))
    assert run_command("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--num_classes=3")[0] == 0
    net_config.init_from = str(tmp_path / "b.safetensors")
    net_config.num_epochs = 0.01
    net_config.optimizer.learning_rate = 1e-12
    net_config.data.train_split = "validation"
    flags = as_flags(net_config)
    status, out, err = run_main("--config=configs/quickstart.py", f"--workdir={tmp_path / 'w'}", *flags)
    assert (status, err) == (0, "")
    assert f"all layers start from {tmp_path / 'b.safetensors'}" in out
    _, variables = load_variables(tmp_path / "w")
    np.testing.assert_allclose(
        variables["params"]["fc6"]["kernel"], random_params("A")["fc6"]["kernel"], rtol=1e-5, atol=1e-8
    )
    description = json.loads((tmp_path / "w" / "dataset.json").read_text())
    assert description["mean_rgb"] != ODD.mean_rgb().tolist()


@pytest.mark.slow
def test_activations_are_normalised_over_a_directory(images, tmp_path):
    source, dest = tmp_path / "d.safetensors", tmp_path / "normalized.safetensors"
    save_weights(source, some_weights())
    directory = images / "validation"
    status, _, err = run_command("convert", source, dest, f"--normalize_activations={directory}")
    assert status == 0, err
    before, after = load_weights(source), load_weights(dest)
    files = list(directory.rglob("*.jpg"))
    crops = np.stack([center_crop(file.read_bytes(), before.training_scales[0], before.crop) for file in files])
    maps = features.activations(from_weights(after), crops, ("relu2_1", "score_map"))
    means = np.asarray(maps["relu2_1"].mean((0, 1, 2)))
    np.testing.assert_allclose(means[means > 0], 1, rtol=1e-3)
    scores = features.activations(from_weights(before), crops, ("score_map",))["score_map"]
    np.testing.assert_allclose(maps["score_map"], scores, rtol=1e-3, atol=1e-3 * np.abs(scores).max())
    status, _, err = run_command(
        "convert", source, tmp_path / "x.safetensors", f"--normalize_activations={tmp_path / 'none'}"
    )
    assert (status, "there are no images; name a directory of some" in err) == (2, True)


def test_the_classes_of_imagenet_have_a_name(tmp_path):
    source, dest = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_weights(source, some_weights(class_names=None))
    request = ConvertRequest(source=str(source), dest=str(dest), num_classes=1000, class_names="imagenet")
    convert(request, say=lambda _: None)
    weights = load_weights(dest)
    assert weights.class_names is not None
    assert weights.class_titles is not None
    assert (weights.class_names[208], weights.class_titles[208]) == ("n02099712", "Labrador retriever")
