"""The whole protocol against a slow, obvious reference, and what does not go together refused in words."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.evaluations import close, kept, request
from tests.reference import Reference, softmax
from tests.runs import CLASS_NAMES, SIZES, make_run, random_params, records_of, varied_images
from vgg_jax.config import recipe_of
from vgg_jax.data.decode import decode
from vgg_jax.data.pipeline import batches, eval_examples
from vgg_jax.evaluation.protocol import evaluate, open_evaluated
from vgg_jax.evaluation.split import evaluation_dir
from vgg_jax.evaluation.trained_model import load_trained
from vgg_jax.runtime.console import Console
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.sharding import make_mesh
from vgg_jax.training.center_crop import evaluate as evaluate_center_crops
from vgg_jax.training.steps import make_eval_step


@pytest.mark.parametrize(("of_run", "flag", "is_applied"), [(0, None, 0), (1, None, 1), (1, False, 0), (0, True, 1)])
def test_evaluated_images_are_turned_as_the_run_or_the_flag_says(net_config, tmp_path, of_run, flag, is_applied):
    folder = varied_images(tmp_path / "photos", sizes=SIZES[:3])
    file = min(folder.glob("validation/*/*.png"))
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.open(file).save(file, exif=exif)
    net_config.data.root, net_config.data.exif = str(folder), bool(of_run)
    net_config.data.dir = str(tmp_path / "data")
    (folder / "validation" / "cross").rename(folder / "validation" / "caf\u00e9")
    names = [*CLASS_NAMES[:2], "cafe\u0301"]  # as version 0.4 wrote it
    trained = load_trained(make_run(tmp_path / "run", net_config, class_names=names))
    split = open_evaluated(request(tmp_path / "run", exif=flag), trained, Console(quiet=True))
    (encoded,) = [record["image"] for record in split.records if record["file_name"].decode().endswith(file.name)]
    image = Image.open(file)
    np.testing.assert_array_equal(decode(encoded), np.asarray(ImageOps.exif_transpose(image) if is_applied else image))


@pytest.mark.slow
def test_dense_and_crops_and_their_means_are_the_references(run, net_config, photos, tmp_path):
    net_config.image.scale_max = 91
    other = make_run(tmp_path / "other", net_config, seed=1)
    options = {"protocol": "dense+multi_crop", "scales": "single", "output": str(tmp_path / "r.json")}
    summary = evaluate(request(run, other, **options), quiet=True)
    assert json.loads((tmp_path / "r.json").read_text())["rows"] == summary["rows"]

    models = [Reference(random_params(net_config, seed), photos) for seed in (0, 1)]
    files = models[0].files
    labels = np.array([{"arrow": 0, "crescent": 1, "cross": 2}[file.parent.name] for file in files])
    assert (len(files), len(set(labels))) == (len(SIZES), 3)
    rows = iter(summary["rows"])

    def same_as_next_row(probs, protocol, scales):
        row = next(rows)
        assert (row["protocol"], row["scales"], row["images"]) == (protocol, scales, 10)
        assert row["top1_error"] == pytest.approx(float(np.mean(np.argmax(probs, 1) != labels)))
        assert row["top5_error"] is None  # of three classes

    means = []
    for workdir, trained, q in zip((run, other), models, (73, 82), strict=True):  # S, and the middle of 73 to 91
        wanted = [np.stack([getattr(trained, part)(file, q) for file in files]) for part in ("dense", "multi_crop")]
        for part, of_part in zip(("dense", "multi_crop"), wanted, strict=True):
            stored = kept(workdir, f"*/{part}-Q{q}")
            close(stored["probs"], of_part)
            assert stored["keys"].tolist() == [f"{file.parent.name}/{file.name}" for file in files]
            assert stored["labels"].tolist() == labels.tolist()
            same_as_next_row(of_part, part, str(q))
        means.append([*wanted, (wanted[0] + wanted[1]) / 2])
        same_as_next_row(means[-1][2], "dense+multi_crop", str(q))
    for i, protocol in enumerate(("dense", "multi_crop", "dense+multi_crop")):
        same_as_next_row((means[0][i] + means[1][i]) / 2, protocol, "73 | 82")
    assert not list(rows)
    # Precision and recall are of the last row.
    predicted = np.argmax((means[0][2] + means[1][2]) / 2, 1)
    for k, one in enumerate(json.loads((tmp_path / "r.json").read_text())["classes"]):
        right, images, mine = ((predicted == k) & (labels == k)).sum(), (labels == k).sum(), (predicted == k).sum()
        assert (one["name"], one["images"], one["predicted"]) == (CLASS_NAMES[k], images, mine)
        assert one["recall"] == pytest.approx(right / images)
        assert one["precision"] == (pytest.approx(right / mine) if mine else None)

    # Three scales, of which one is there already.
    (before,) = run.glob("evaluation/7/*/dense-Q73.npz")
    written = before.stat().st_mtime_ns
    summary = evaluate(request(run, scales="multi"), quiet=True)
    at = [np.stack([models[0].dense(file, q) for file in files]) for q in (64, 73, 82)]
    rows = iter(summary["rows"])
    for q, probs in zip((64, 73, 82), at, strict=True):
        same_as_next_row(probs, "dense", str(q))
    same_as_next_row(np.mean(at, 0), "dense", "64,73,82")
    assert before.stat().st_mtime_ns == written
    assert summary["computing"]["shapes"] > 0
    assert evaluate(request(run, scales="multi"), quiet=True)["computing"]["compilations"] == 0


def test_another_order_of_averaging_would_show(net_config, photos):
    # What the reference must not be mistaken for: probabilities over space, scores over mirror images, no mirror image.
    trained = Reference(random_params(net_config, 0), photos)
    file = next(file for file in trained.files if file.name == "001.png")
    image, right = trained.image(file, 73), trained.dense(file, 73)
    maps = [trained.map(v) for v in (image, image[:, ::-1])]
    assert maps[0].shape[1] * maps[0].shape[2] > 2
    over_space = np.mean([np.mean([softmax(v) for v in m.reshape(3, -1).T], 0) for m in maps], 0)
    scores_over_flips = softmax(np.mean([m.mean((1, 2)) for m in maps], 0))
    for wrong in (over_space, scores_over_flips, softmax(maps[0].mean((1, 2)))):
        assert np.abs(wrong - right).max() > 1e-3


def test_the_centre_crop_is_what_validation_in_training_sees(run, net_config):
    summary = evaluate(request(run, protocol="center_crop"), quiet=True)
    trained, records = load_trained(run), records_of(net_config)
    step = jax.jit(make_eval_step(trained.model, trained.statistics))
    wanted = evaluate_center_crops(
        step,
        trained.variables,
        batches(recipe_of(net_config), eval_examples(recipe_of(net_config), records), make_mesh()),
        len(records),
    )
    (row,) = summary["rows"]
    assert (row["protocol"], row["scales"], row["paper"]) == ("center_crop", "73", None)
    assert row["top1_error"] == pytest.approx(wanted["top1_error"])
    found = sum(one["images"] * one["recall"] for one in summary["classes"])
    assert found == pytest.approx(10 * (1 - wanted["top1_error"]))
    assert summary["macro"]["recall"] == pytest.approx(np.mean([one["recall"] for one in summary["classes"]]))


def test_a_net_whose_crop_is_as_large_as_s_is_evaluated(net_config, tmp_path):
    # S - 32 crop / 224 would be below the crop, which is a matter of another request.
    net_config.image.scale_min = net_config.image.scale_max = 64
    summary = evaluate(request(make_run(tmp_path / "run", net_config)), quiet=True)
    assert [(row["scales"], row["images"]) for row in summary["rows"]] == [("64", 10)]


@pytest.mark.slow
def test_views_that_are_not_of_the_same_pictures_are_computed_anew(run, capsys):
    wanted = evaluate(request(run, scales="64,73"), quiet=True)["rows"]
    (file,) = run.glob("evaluation/7/*/dense-Q64.npz")
    with np.load(file) as arrays:
        swapped = dict(arrays)
    del swapped["sha256"]  # as version 0.4 wrote it
    swapped["keys"] = swapped["keys"][::-1]
    np.savez(file, **swapped)
    assert evaluate(request(run, scales="64,73"))["rows"] == wanted
    assert "is of different images; it is computed again" in capsys.readouterr().out
    np.savez(file, **swapped)
    assert evaluate(request(run, scales="64,80"))["rows"][0] == wanted[0]
    assert "is of other images; it is computed again" in capsys.readouterr().out


def test_scores_that_are_not_finite_count_as_wrong_and_are_said(net_config, tmp_path, capsys, monkeypatch):
    def params_with_nan(*args):
        params = random_params(*args)
        params["fc8"]["bias"] = params["fc8"]["bias"].at[2].set(np.nan)
        return params

    monkeypatch.setattr("tests.runs.random_params", params_with_nan)
    summary = evaluate(request(make_run(tmp_path / "run", net_config)))
    assert summary["rows"][0]["top1_error"] == 1.0
    assert len(summary["not_finite"]) == 10
    assert "WARNING: 10 of 10 images have scores that are not finite and count as wrong" in capsys.readouterr().out


# What does not go together.


def refused(message, *runs, **options):
    with pytest.raises(UserError, match=message) as caught:
        evaluate(request(*runs, **options), quiet=True)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def test_a_directory_without_a_run_or_a_checkpoint_is_named(run, tmp_path):
    refused("no such directory", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    refused(r"empty/config.json cannot be read .*--workdir must name a training run's directory", tmp_path / "empty")
    refused(r"the checkpoint .*checkpoints/8 is not there; there are 7: name one of them", run / "checkpoints" / "8")
    shutil.rmtree(run / "checkpoints")
    refused("neither a run's workdir, with checkpoints/ in it, nor a checkpoints/<step>", run)
    (run / "checkpoints").mkdir()
    refused("there is no finished checkpoint", run)


def test_a_checkpoint_of_another_net_is_named_by_layer_and_shape(run):
    def changed(**model):
        config = json.loads((run / "config.json").read_text())
        config["model"].update(model)
        (run / "config.json").write_text(json.dumps(config))

    changed(configuration="B")
    refused(
        r"is not of VGG B with 3 classes.*conv1_2/bias is missing in the checkpoint and \[4\] by config.json",
        run,
    )
    changed(configuration="F")
    refused("model.configuration is 'F'; it must be one of A, A-LRN, B", run)
    changed(configuration="A", num_classes=4)
    refused("config.json has 4 classes and dataset.json 3; they are not of one run", run)
    (run / "dataset.json").write_text("{}")
    refused("dataset.json has 'class_names' as None, which is not of this program", run)


def test_nets_of_other_classes_are_not_fused(run, net_config, tmp_path):
    other = make_run(tmp_path / "other", net_config, class_names=("arrow", "crescent", "ring"))
    refused(
        "trained on different classes \\(3 and 3; 'cross' is in one of them only\\) and cannot be fused", run, other
    )
    other = make_run(tmp_path / "order", net_config, class_names=CLASS_NAMES[2::-1])
    refused("have their classes in different orders and cannot be fused", run, other)


def test_every_split_has_a_directory_of_its_own(run):
    trained, plain = load_trained(run), load_trained(run, averages=False)
    names = ("validation", "train[:90%]", "train[90%:]", "train[90:]")
    directories = [
        evaluation_dir(one, SimpleNamespace(data="a/1.0.0", name=name)) for one in (trained, plain) for name in names
    ]
    assert directories[0] == run / "evaluation" / "7" / "a_1.0.0-validation"
    assert directories[4] == run / "evaluation" / "7-noaverages" / "a_1.0.0-validation"
    assert len(set(directories)) == 8


def test_data_that_do_not_fit_are_named(run, tmp_path):
    refused(r"split is 'test'.*its splits are validation .*: --split=validation", run, split="test")
    refused(r"no folder of images '/nowhere'; give one.*--config.data.root=DIR", run, data_root="/nowhere")
    refused(r"split is 'validation\[:1%\]', which takes no image of", run, split="validation[:1%]")  # of ten
    refused(r"config.data.name is 'imagenet2021', which is neither", run, data_name="imagenet2021")
    root = varied_images(tmp_path / "others")
    (root / "validation" / "cross").rename(root / "validation" / "zebra")
    refused("has 1 classes that the model in .* does not know, among them 'zebra'", run, data_root=str(root))


def test_scales_that_cannot_be_are_named(run):
    refused(r"the test scale Q=40 .* is smaller than the model's crop, 64; .*--scales=73,82", run, scales="40,73")
    refused("--scales=big is neither `single` nor `multi` nor whole numbers", run, scales="big")
    refused("Q=99999999999 .* is larger than 4096 pixels; give smaller ones", run, scales="73,99999999999")
    for scales in ("0", "-1", "73,", "1e3", "nan", "inf", "7" * 5000, "73;82", "73 82", "\u0663", "73.0"):
        refused(r"--scales=.*(neither|smaller)", run, scales=scales)
    refused("--scales=73,73 names a scale twice", run, scales="73,73")


def test_a_batch_that_no_memory_holds_is_refused(run):
    refused(r"--batch_size=9999999999 takes .* GiB for images alone", run, batch_size=9_999_999_999)


def test_classes_are_matched_by_name(run, tmp_path):
    # Only crosses: class 0 of that folder, class 2 of the model.
    root = varied_images(tmp_path / "crosses")
    shutil.rmtree(root / "validation" / "arrow")
    shutil.rmtree(root / "validation" / "crescent")
    summary = evaluate(request(run, data_root=str(root)), quiet=True)
    assert summary["data"]["images"] == 3
    assert kept(run, "*crosses*/dense-Q73")["labels"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("beside_training", [False, True])
def test_a_split_without_labels_becomes_a_submission(run, tmp_path, beside_training):
    root = varied_images(tmp_path / "unknown")
    if beside_training:
        varied_images(root, "train")
    place = root / "test" / "unlabelled"
    place.mkdir(parents=True)
    for file in root.glob("validation/*/*"):
        file.rename(place / file.name)
    shutil.rmtree(root / "validation")
    order = tmp_path / "order.txt"
    order.write_text("\ufeffcross a cross\nring a ring\ncrescent\narrow\n", encoding="utf-8")
    options = {"data_root": str(root), "split": "test"}
    summary = evaluate(request(run, **options, class_numbers=str(order)), quiet=True)
    assert summary["rows"] == []
    assert "classes" not in summary
    lines = Path(summary["submission"]["file"]).read_text().splitlines()
    arrays = kept(run, "*unknown*/dense-Q73")
    assert (arrays["labels"] == -1).all()
    wanted = [[(4, 3, 1)[k] for k in np.argsort(-row)] for row in arrays["probs"]]
    assert lines == [" ".join(map(str, row)) for row in wanted]
    refused("--class_numbers=.* cannot be read", run, **options, class_numbers=str(tmp_path / "no"))
    order.write_text("cross\narrow\n")
    refused("lacks 1 of the model's 3 classes, among them 'crescent'", run, **options, class_numbers=str(order))


def test_maps_are_drawn(run, tmp_path):
    summary = evaluate(request(run, maps=str(tmp_path / "maps"), num_maps=3), quiet=True)
    files = sorted((tmp_path / "maps").iterdir())
    assert [str(file) for file in files] == summary["maps"]
    assert [file.name.split("-")[0] for file in files] == ["000000", "000004", "000009"]


def test_real_photographs(real_images, net_config, tmp_path):
    if not (real_images / "caltech101-30").is_dir():
        pytest.skip(f"no caltech101-30 in {real_images}")
    names = ("accordion", "anchor", "ant")
    for name in names:  # colour and one-channel JPEGs of many sizes
        (tmp_path / "photos" / "validation" / name).mkdir(parents=True)
        for file in sorted((real_images / "caltech101-30" / "val" / name).iterdir())[:4]:
            shutil.copy(file, tmp_path / "photos" / "validation" / name)
    run = make_run(tmp_path / "run", net_config, class_names=names)
    root = tmp_path / "photos"
    summary = evaluate(request(run, data_root=str(root), data_dir=str(tmp_path / "d")), quiet=True)
    assert summary["data"]["images"] == 12
    reference = Reference(random_params(net_config, 0), root)
    close(kept(run, "*/dense-Q73")["probs"], np.stack([reference.dense(file, 73) for file in reference.files]))


@pytest.mark.slow
def test_a_run_that_cannot_be_written_is_evaluated_elsewhere(run, tmp_path, monkeypatch, capsys):
    wanted = evaluate(request(run, protocol="center_crop", directory=str(tmp_path / "other")), quiet=True)["rows"]
    before = sorted(run.rglob("*"))
    assert not list(run.glob("evaluation/*/*/*center_crop*"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr("os.access", lambda path, mode: run not in (Path(path), *Path(path).parents))
    assert evaluate(request(run, protocol="center_crop"))["rows"] == wanted
    assert "cannot be written: probabilities and results go to " in capsys.readouterr().out
    for directory in (tmp_path / "other", tmp_path / "cwd"):
        (cached,) = directory.glob("*/evaluation/7/*/center_crop-*.npz")
        (results,) = cached.parent.glob("results-center_crop-*.json")
        assert json.loads(results.read_text())["rows"] == wanted
    assert sorted(run.rglob("*")) == before
