"""Predictions on your own images: those of the test protocol, and one bad image does not spoil the others."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.command import help_of, run_command, start_command
from tests.reference import Reference
from tests.refusals import assert_refused, refused
from vgg_jax.data.image_files import list_images
from vgg_jax.evaluation.prediction import PredictRequest, predict
from vgg_jax.evaluation.trained_model import load_trained, weights_of_run
from vgg_jax.runtime.console import Console
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights.file import save_weights

WNIDS = ["n01440764", "n01443537", "n01484850"]
TITLES = ["tench, Tinca tinca", "goldfish", "great white shark"]


@pytest.fixture
def weights(run, tmp_path):
    """Those of `run`, with names."""
    weights_of_model = weights_of_run(run)._replace(class_names=WNIDS, class_titles=TITLES)
    save_weights(tmp_path / "model.safetensors", weights_of_model)
    return tmp_path / "model.safetensors"


def test_help_answers_without_loading_jax():
    shown = help_of("predict")
    for flag in ("--weights", "--workdir", "--protocol", "--scales", "--maps", "grad_cam", "--json"):
        assert flag in shown


def test_a_file_without_a_suffix_has_its_evaluations_elsewhere(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    shutil.copy(weights, tmp_path / "bare")
    assert load_trained(tmp_path / "bare").workdir.is_relative_to(tmp_path / "cache")
    assert load_trained(weights).workdir == tmp_path / "model"


@pytest.mark.slow
def test_probabilities_are_those_of_a_slow_reference(run, photos):
    trained = load_trained(run)
    reference = Reference(trained.variables["params"], photos)
    predictions, failures = predict(
        trained, reference.files[:3], PredictRequest(protocol="dense+multi_crop", scales="64,82")
    )
    assert failures == []
    for prediction in predictions:
        each = [[reference.dense(prediction.path, q), reference.multi_crop(prediction.path, q)] for q in (64, 82)]
        expected = np.mean(each, (0, 1))
        assert list(prediction.classes) == list(np.argsort(-expected))
        np.testing.assert_allclose(prediction.probabilities, np.sort(expected)[::-1], atol=2e-3)
    assert np.ptp([p.probabilities[0] for p in predictions]) > 0.005  # they differ by image


def test_wnids_without_titles_are_shown_by_the_names_of_imagenet(run, tmp_path):
    weights = weights_of_run(run)._replace(class_names=["n01440764", "n02099712", "mine"], class_titles=None)
    save_weights(tmp_path / "model.safetensors", weights)
    trained = load_trained(tmp_path / "model.safetensors")
    assert trained.class_names == ["n01440764", "n02099712", "mine"]
    assert trained.class_titles == ["tench", "Labrador retriever", "mine"]


def turned(photo, directory):
    """A JPEG that says that it was taken with the camera on its side, and the same image upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo).convert("RGB").save(directory / "turned.jpg", exif=exif)
    ImageOps.exif_transpose(Image.open(directory / "turned.jpg")).save(directory / "upright.png")
    return [directory / "turned.jpg", directory / "upright.png"]


def test_exif_orientations_are_said_once_or_applied(run, photos, tmp_path, capsys):
    trained, paths = load_trained(run), turned(sorted(photos.glob("validation/*/*"))[1], tmp_path)
    for exif in (False, True):
        predictions, failures = predict(trained, paths, PredictRequest(protocol="center_crop", exif=exif), Console())
        assert failures == []
        same = np.array_equal(predictions[0].probabilities, predictions[1].probabilities)
        assert same == exif
        line = "WARNING: 1 of 2 images have an EXIF orientation, as "
        assert capsys.readouterr().out.count(line) == (not exif)


@pytest.mark.slow
def test_predictions_turn_images_as_the_run_does_and_print_names_as_text(run, photos, tmp_path):
    config = json.loads((run / "config.json").read_text())
    config["data"]["exif"] = True
    (run / "config.json").write_text(json.dumps(config))
    turned(sorted(photos.glob("validation/*/*"))[1], tmp_path)[1].rename(tmp_path / "a\x1b[31mb.png")
    output = tmp_path / "found.json"
    for flag, exif in ((), True), (("--noexif",), False):
        status, out, err = run_command(
            "predict", f"--workdir={run}", "--protocol=center_crop", f"--json={output}", *flag, str(tmp_path)
        )
        assert (status, json.loads(output.read_text())["exif"]) == (0, exif), err
        assert ("EXIF orientation" in out) != exif
        assert "a\\x1b[31mb.png" in out
        assert "\x1b" not in out


def test_a_bad_image_among_many_is_reported_and_the_others_are_done(weights, photos, tmp_path):
    folder = tmp_path / "mine"
    (folder / "deeper").mkdir(parents=True)
    good = sorted(photos.glob("validation/*/*"))[:3]
    for i, file in enumerate(good):
        Image.open(file).convert("RGB").save(folder / ("deeper" if i else ".") / f"{i}.jpg")
    whole = (folder / "0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.PNG").write_text("no image")
    (folder / "notes.txt").write_text("not looked at")
    output = tmp_path / "deep" / "found.json"
    status, out, err = run_command(
        "predict",
        *(
            f"--weights={weights}",
            f"--json={output}",
            f"--maps={tmp_path / 'maps'}",
            "--grad_cam",
            folder,
            tmp_path / "missing.jpg",
        ),
    )
    assert status == 1
    left_out, *lines = err.splitlines()
    assert left_out == f"1 file or directory in {folder} left out: notes.txt"
    assert lines[0] == "error: 3 of 6 images could not be read:"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [
        str(folder / "cut.jpg"),
        str(folder / "text.PNG"),
        str(tmp_path / "missing.jpg"),
    ]
    assert "Traceback" not in err
    shown = out.splitlines()
    assert len(shown) == 3 * (1 + 3)
    assert {line.split("%  ")[1] for line in shown[1:4]} == set(TITLES)
    summary = json.loads(output.read_text())
    assert [row["image"] for row in summary["predictions"]] == sorted(s for s in shown if s.startswith("/"))
    first = summary["predictions"][0]["classes"]
    assert [row["class"] for row in first] == [WNIDS[TITLES.index(row["title"])] for row in first]
    assert sum(row["probability"] for row in first) == pytest.approx(1, abs=1e-5)
    assert [f["reason"] for f in summary["failures"]][1:] == ["not an image", "No such file or directory"]
    for row in summary["predictions"]:
        assert Image.open(row["map"]).size[0] > 1200  # the image and two maps of two kinds next to one another
        with np.load(row["map"].replace(".png", ".npz")) as arrays:
            assert [WNIDS[k] for k in arrays["classes"]] == [c["class"] for c in row["classes"][:2]]
            assert arrays["score_map"].shape[-1] == arrays["grad_cam"].shape[-1] == 2
            assert arrays["grad_cam"].shape[0] == 2 * (arrays["score_map"].shape[0] + 1)  # before the last pooling


@pytest.mark.slow
def test_predictions_come_one_by_one_and_outlive_a_kill(weights, photos, tmp_path):
    output, images = tmp_path / "found.json", sorted(photos.glob("validation/*/*"))
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")  # no UTF-8
    shutil.copy(images[0], odd)
    options = (f"--weights={weights}", f"--json={output}", "--protocol=dense+multi_crop", "--batch_size=1")
    process = start_command("predict", *options, odd, *images)
    first = process.stdout.readline().strip()
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    saved = json.loads(output.read_text())
    assert saved["predictions"][0]["image"] == first
    assert len(saved["predictions"]) < 11
    predictions = []
    done, failures = predict(
        load_trained(weights),
        [odd, *images],
        PredictRequest(protocol="dense+multi_crop", scales="64,82"),
        done=predictions.append,
    )
    assert failures == []
    assert (
        sorted(prediction.path for prediction in predictions)
        == sorted(prediction.path for prediction in done)
        == sorted([odd, *images])
    )
    assert [prediction.path for prediction in done] == [odd, *images]


def test_scores_that_are_not_finite_are_a_failure(run, photos):
    trained = load_trained(run)
    fc8 = trained.variables["params"]["fc8"]
    fc8["bias"] = fc8["bias"].at[1].set(np.nan)
    done, failures = predict(trained, sorted(photos.glob("validation/*/*"))[:2], PredictRequest(protocol="center_crop"))
    assert (done, [failure.reason for failure in failures]) == ([], ["the model's scores of it are not finite"] * 2)


@pytest.mark.parametrize("maps", [True, False])
def test_results_before_a_failure_are_shown_and_the_rest_is_closed(run, photos, tmp_path, monkeypatch, maps):
    happened = []

    def probs(*_):
        try:
            yield 0, np.array([0.5, 0.3, 0.2], np.float32)
            raise UserError("the second image is gone.")
        finally:
            happened.append("closed")

    monkeypatch.setattr("vgg_jax.evaluation.prediction._probs", probs)
    paths = sorted(photos.glob("validation/*/*"))[:2]
    with refused("gone"):
        request = PredictRequest(maps=str(tmp_path / "maps") if maps else "")
        predict(load_trained(run), paths, request, done=lambda prediction: happened.append(prediction.path))
    assert sorted(map(str, happened)) == sorted(["closed", str(paths[0])])
    assert len(list(tmp_path.glob("maps/*.png"))) == maps


def test_a_device_a_pipe_and_a_sparse_file_are_failures(run, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "sparse.jpg").touch()
    os.truncate(tmp_path / "sparse.jpg", 8 * 10**9)
    images = [tmp_path / "pipe.jpg", tmp_path / "sparse.jpg", Path("/dev/zero")]
    _, failures = predict(load_trained(run), images, PredictRequest(protocol="center_crop"))
    assert [failure.reason for failure in failures] == [
        "not a regular file",
        "8,000,000,000 bytes, more than 536,870,912",
        "not a regular file",
    ]


def test_a_run_serves_as_well_as_a_file(weights, run, photos):
    images = sorted(photos.glob("validation/*/*"))[:1]
    (of_run,), (of_file,) = (
        predict(trained, images, PredictRequest(protocol="center_crop"))[0]
        for trained in (load_trained(run), load_trained(weights))
    )
    assert (of_run.probabilities == of_file.probabilities).all()
    status, out, err = run_command("predict", f"--workdir={run}", "--protocol=center_crop", *images)
    assert (status, err) == (0, "")
    assert [line.split("%")[0].strip() for line in out.splitlines()[1:]] == [
        f"{100 * p:.1f}" for p in of_run.probabilities
    ]


def test_files_folders_and_patterns(photos, tmp_path):
    all_of = sorted(photos.rglob("*.png"))
    assert list_images([str(photos)]) == all_of
    assert list_images(["~backup.jpg"]) == [Path("~backup.jpg")]  # as an editor names it, not somebody's home
    assert list_images([str(photos / "**" / "00[12].png")]) == [p for p in all_of if p.stem in ("001", "002")]
    assert list_images([str(all_of[3]), str(photos)]) == [all_of[3], *(p for p in all_of if p != all_of[3])]
    (tmp_path / "odd[1].png").write_bytes(b"")
    assert list_images([str(tmp_path / "odd[1].png")]) == [tmp_path / "odd[1].png"]  # a name, not a pattern
    with refused("no file matches this pattern"):
        list_images([str(tmp_path / "*.jpg")])
    (tmp_path / "empty").mkdir()
    with refused("there is no image in this folder"):
        list_images([str(tmp_path / "empty")])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a.jpg",), "say which model, one of: --weights=FILE, --workdir=RUN"),
        (("--weights=x", "--workdir=y", "a.jpg"), "say which model, one of"),
        (("--weights=x",), "say which images: files, folders or patterns"),
        (("--weights=README.md", "README.md"), "README.md: it is of an unknown kind"),
        (("--weight=x", "a.jpg"), "Unknown command line flag 'weight'"),
    ],
)
def test_a_mistake_gets_a_sentence_and_a_status(arguments, sentence):
    assert_refused(run_command("predict", *arguments), sentence)


def test_a_scale_below_the_crop_is_refused(run, photos):
    with refused("the test scale Q=32"):
        predict(load_trained(run), sorted(photos.rglob("*.png")), PredictRequest(scales="32"))
