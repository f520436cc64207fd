"""Descriptors against the network on each image alone, splits and scores against their definitions, and the command."""

import dataclasses
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image, ImageOps

import vgg_jax
from tests.command import run_command
from tests.random_weights import some_weights
from vgg_jax import features
from vgg_jax.data import sources
from vgg_jax.data.crops import rescaled
from vgg_jax.data.decode import decode
from vgg_jax.data.orientation import read_image
from vgg_jax.models import NetworkSpec, make_network
from vgg_jax.models.description import last_features
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.transfer import datasets
from vgg_jax.transfer.classifiers import (
    average_precision,
    caltech_splits,
    fitted_logistic,
    fitted_svm,
    multi_label,
    need_scikit_learn,
    single_label,
)
from vgg_jax.transfer.descriptors import descriptors, normalized
from vgg_jax.transfer.study import paper_name
from vgg_jax.weights.file import save_weights

SIZES = ((90, 70), (70, 90), (64, 64), (150, 70), (70, 230), (75, 75), (120, 80))
LAYERS = ("relu4_3", "relu7")
LAYERS_OF_SHARDS = ("relu1_1", "relu1_2")


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "d.safetensors"
    save_weights(path, some_weights())
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i, (width, height) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(root / f"{i}.png")
    return sorted(root.iterdir())


def alone(backbone, path, layer, scale):
    """The mean over the map of an image alone, unpadded, and that of its mirror image."""
    image = rescaled(path.read_bytes(), scale).astype(np.float32)
    both = [np.asarray(features.activations(backbone, v, (layer,))[layer]) for v in (image, image[:, ::-1])]
    return np.mean([v.mean((0, 1)) for v in both], 0)


def test_last_features_are_those_of_all_branches():
    for configuration, whole, of_map in (
        ("D", "relu7", "relu5_3"),
        ("AlexNet", "relu7", "relu5"),
        ("GoogLeNet", "concat5b", "concat5b"),
        ("ResNet-18", "relu5_2", "relu5_2"),
    ):
        layers = NetworkSpec(configuration).layers()
        assert (last_features(layers), last_features(layers, is_map=True)) == (whole, of_map)


def test_exif_orientations_of_a_folder_and_unicode_forms_of_its_classes(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 5
    paths = [tmp_path / split / kind / "0.png" for split, kind in (("a", "caf\u00e9"), ("b", "cafe\u0301"), ("a", "x"))]
    for path in paths:
        path.parent.mkdir(parents=True)
        Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3)).save(path, exif=exif)
    listed = {exif: datasets.folder(tmp_path, exif) for exif in (False, True)}
    assert listed[False].class_names == listed[True].class_names == ["caf\u00e9", "x"]
    assert listed[False].labels.tolist() == [0, 1, 0]
    assert listed[False].images.digest != listed[True].images.digest
    turned = np.asarray(ImageOps.exif_transpose(Image.open(paths[0])))
    np.testing.assert_array_equal(decode(read_image(paths[0], exif=True)), turned)


@pytest.mark.slow
def test_descriptors_of_another_dtype_and_of_the_score_map(weights_file, photos, tmp_path):
    images = datasets.image_files(photos[:2])
    for dtype in ("float32", "bfloat16"):
        backbone = vgg_jax.load(weights_file, dtype)
        found = descriptors(backbone, ("score_map",), images, 64, tmp_path)["score_map"]
        wanted = np.stack([alone(backbone, path, "score_map", 64) for path in photos[:2]])
        np.testing.assert_allclose(found, wanted, rtol=0.05, atol=0.05 * np.abs(wanted).max())
    assert len(list(tmp_path.glob("*.npz"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [8, 1])
def test_descriptors_are_those_of_each_image_alone(weights_file, photos, tmp_path, batch_size):
    backbone = vgg_jax.load(weights_file)
    found = descriptors(backbone, LAYERS, datasets.image_files(photos), 64, tmp_path, batch_size)
    for layer in LAYERS:
        wanted = np.stack([alone(backbone, path, layer, 64) for path in photos])
        assert wanted.std() > 0
        np.testing.assert_allclose(found[layer], wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_cached_descriptors_are_not_computed_again(weights_file, photos, tmp_path, monkeypatch):
    backbone, images = vgg_jax.load(weights_file), datasets.image_files(photos)
    first = descriptors(backbone, ("relu1_1", "relu2_2"), images, 64, tmp_path)
    monkeypatch.setattr("vgg_jax.transfer.descriptors.run_jobs", None)
    for layer in ("relu1_1", "relu2_2"):
        np.testing.assert_array_equal(descriptors(backbone, (layer,), images, 64, tmp_path)[layer], first[layer])


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_array(change):
    def damage(path):
        with np.load(path) as file:
            arrays = dict(file)
        change(arrays["descriptors"])
        with open(path, "wb") as file:
            np.savez(file, **arrays)

    return damage


def row_of_zeros(rows):
    rows[2] = 0


def scaled_column(rows):
    rows[:, -1] *= -1000


def nan_in_the_last_column(rows):
    rows[1, -1] = np.nan


def infinity(rows):
    rows[0, 2] = np.inf


def in_place(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 64] = bytes(64)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [cut, in_place, *map(with_array, (row_of_zeros, scaled_column, nan_in_the_last_column, infinity))],
)
def test_a_cached_file_that_is_not_whole_is_computed_again(weights_file, photos, tmp_path, capsys, damage):
    backbone, images = vgg_jax.load(weights_file), datasets.image_files(photos[:3])
    first = descriptors(backbone, ("relu1_2",), images, 32, tmp_path)["relu1_2"]
    (path,) = tmp_path.glob("*.np[yz]")
    damage(path)
    again = descriptors(backbone, ("relu1_2",), images, 32, tmp_path)["relu1_2"]
    np.testing.assert_allclose(again, first, rtol=1e-5, atol=1e-5 * np.abs(first).max())
    assert f"{path} is damaged; it is computed again" in capsys.readouterr().out


def test_descriptors_of_an_interrupted_run_are_not_computed_again(weights_file, photos, tmp_path, monkeypatch):
    backbone, images, counted = vgg_jax.load(weights_file), datasets.image_files(photos), []
    whole = descriptors(backbone, LAYERS_OF_SHARDS, images, 32, tmp_path / "whole")
    portrait = photos[4].read_bytes()  # portrait images are computed last

    def interrupted(encoded, scale):
        if encoded == portrait:
            raise KeyboardInterrupt
        return rescaled(encoded, scale)

    with monkeypatch.context() as patch:
        patch.setattr("vgg_jax.evaluation.run.rescaled", interrupted)
        with pytest.raises(KeyboardInterrupt):
            descriptors(backbone, LAYERS_OF_SHARDS, images, 32, tmp_path / "cut")
    monkeypatch.setattr("vgg_jax.evaluation.run.rescaled", lambda *args: counted.append(args) or rescaled(*args))
    again = descriptors(backbone, LAYERS_OF_SHARDS, images, 32, tmp_path / "cut")
    assert len(counted) == 2
    for layer in LAYERS_OF_SHARDS:
        np.testing.assert_allclose(again[layer], whole[layer], rtol=1e-5, atol=1e-5)


def test_descriptors_that_are_not_finite_are_not_cached(weights_file, photos, tmp_path):
    backbone = vgg_jax.load(weights_file)
    kernel = jnp.full_like(backbone.params["conv1_1"]["bias"], jnp.nan)
    broken = dataclasses.replace(
        backbone, params=backbone.params | {"conv1_1": backbone.params["conv1_1"] | {"bias": kernel}}
    )
    with pytest.raises(UserError, match=r"activations of .*\.png are not finite"):
        descriptors(broken, ("relu1_1",), datasets.image_files(photos[:2]), 32, tmp_path)
    assert not list(tmp_path.rglob("*.npz"))


def test_what_was_computed_with_another_mean_is_not_taken(weights_file, photos, tmp_path):
    backbone, images = vgg_jax.load(weights_file), datasets.image_files(photos[:1])
    other = dataclasses.replace(backbone, mean_rgb=backbone.mean_rgb + 40)
    kept = [descriptors(b, ("relu1_1",), images, 64, tmp_path / "kept")["relu1_1"] for b in (backbone, other)]
    fresh = descriptors(other, ("relu1_1",), images, 64, tmp_path / "fresh")["relu1_1"]
    np.testing.assert_array_equal(kept[1], fresh)
    assert not np.array_equal(*kept)


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_kept(weights_file, photos, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(photos[0].read_bytes()[:40])
    with pytest.raises(UserError, match=r"bad.png, .* cannot be decoded: .*; leave it out"):
        descriptors(
            vgg_jax.load(weights_file), ("relu1_1",), datasets.image_files([*photos, bad]), 64, tmp_path / "kept"
        )
    np.testing.assert_allclose(np.linalg.norm(normalized(np.array([[3, 4.0], [0, 0]])), axis=1), [1, 0])


def test_splits_are_of_every_class_and_share_no_image():
    labels = np.repeat(np.arange(4), (5, 9, 7, 40))
    drawn = caltech_splits(labels, "abcd", train=4, test=6, splits=3, seed=0)
    for train, test in drawn:
        assert np.bincount(labels[train]).tolist() == [4] * 4
        assert np.bincount(labels[test]).tolist() == [1, 5, 3, 6]
        assert not set(train) & set(test)
    assert len({train.tobytes() for train, _ in drawn}) == 3
    with pytest.raises(UserError, match=r"2 classes have no more than 7 images.*\(a, c\); .*--train_images=4"):
        caltech_splits(labels, "abcd", train=7, test=6, splits=3, seed=0)
    assert len(caltech_splits(labels, "abcd", train=4, test=6, splits=1, seed=0)) == 1
    with pytest.raises(UserError, match=r"1 classes have fewer than 3 images.*\(b\); add images, or take"):
        caltech_splits(np.repeat(np.arange(3), (9, 2, 5)), "abc", train=30, test=6, splits=1, seed=0)


def test_the_descriptor_that_tells_classes_apart_is_chosen_and_recall_is_by_class():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (60, 40, 20))
    good = normalized(np.eye(3)[labels] + 0.1 * rng.normal(size=(120, 3)))
    noise = normalized(rng.normal(size=(120, 3)))
    (split,) = caltech_splits(labels, "abc", 12, 50, 1, 0)
    outcome = single_label({"noise": noise, "good": good}, labels, split, 0, fitted_svm)
    assert outcome.descriptor == "good"
    assert outcome.score == pytest.approx(outcome.by_class.mean())
    assert outcome.score > 0.95
    chance = single_label({"noise": noise}, labels, split, 0, fitted_svm).score
    assert 0.1 < chance < 0.6


def noisy_problem(images, num_features, classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, images)
    positive = np.maximum(
        0, rng.normal(size=(images, num_features)) + 0.1 * rng.normal(size=(classes, num_features))[labels]
    )
    return normalized(positive), labels


def test_the_same_descriptors_give_the_same_machines():
    features_, labels = noisy_problem(160, 400, 4)
    (split,) = caltech_splits(labels, "abcd", 20, 50, 1, 0)
    machines = []

    def fit(*arguments):
        machines.append(fitted_svm(*arguments))
        return machines[-1]

    runs = []
    for _ in range(4):
        machines.clear()
        outcome = single_label({"x": features_}, labels, split, 0, fit)
        runs.append((outcome.score, outcome.c, sorted((one.C, one.coef_.tobytes()) for one in machines)))
    assert runs == runs[:1] * 4


@pytest.mark.parametrize("num_features", [250, 400])
def test_support_vector_machines_reach_the_least_objective(num_features):
    features_, labels = noisy_problem(300, num_features, 2)
    machine, c = fitted_svm(features_, labels, 100.0), 100.0
    signs, extended = np.where(labels == 1, 1, -1), np.c_[features_, np.ones(len(labels))]
    weights = np.r_[machine.coef_[0], machine.intercept_]  # liblinear's bias is a weight like any other
    slacks = np.maximum(0, 1 - signs * (extended @ weights))
    objective = weights @ weights / 2 + c * slacks @ slacks
    # No weights have a smaller objective than the dual problem's, at any multipliers (Fan et al. 2008, LIBLINEAR).
    multipliers = 2 * c * slacks
    primal = extended.T @ (signs * multipliers)
    bound = multipliers.sum() - primal @ primal / 2 - multipliers @ multipliers / (4 * c)
    assert objective < 1.002 * bound


def test_machines_that_do_not_converge_say_so(monkeypatch, capsys):
    monkeypatch.setattr("vgg_jax.transfer.classifiers._MAX_ITERATIONS", 2)
    fitted_svm(*noisy_problem(60, 20, 2), 100.0)
    assert "C = 100: stopped after 2 iterations" in capsys.readouterr().out


def test_average_precision_is_the_interpolated_one():
    """By hand: true at ranks 1, 3 and 4 of five: precisions 1, 2/3, 3/4, of which the second is raised to 3/4."""
    scores, is_true = np.array([5, 4, 3, 2, 1.0]), np.array([True, False, True, True, False])
    assert average_precision(scores, is_true) == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)
    # VOC 2007's eleven points: recalls 0 to 0.3 at precision 1, 0.4 to 1 at 3/4.
    assert average_precision(scores, is_true, points=11) == pytest.approx((4 * 1 + 7 * 3 / 4) / 11)


@pytest.mark.parametrize("fit", [fitted_svm, fitted_logistic])
def test_several_labels_and_those_that_do_not_count(fit):
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((200, 3)) < 0.4, 1, -1)
    features_ = labels + 0.3 * rng.normal(size=labels.shape)
    features_[150:, 1] *= -1  # wrong, but hard to say
    labels[150:, 1] = 0
    outcome = multi_label({"x": normalized(features_)}, labels, (np.arange(100), np.arange(100, 200)), 0, fit)
    assert outcome.score > 0.9
    assert outcome.by_class.shape == (3,)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("c", [1.0, 100.0])
def test_logistic_regression_by_optax_is_scikit_learns(classes, c):
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 90) * 2 + 5
    features_ = normalized(np.eye(10)[labels] + 0.5 * rng.normal(size=(90, 10))).astype(np.float32)
    found = fitted_logistic(features_, labels, c)
    wanted = linear_model.LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(features_, labels)
    logits = wanted.decision_function(features_)
    np.testing.assert_allclose(found.decision_function(features_), logits, atol=0.01 * np.abs(logits).max())
    assert found.predict(features_).tolist() == wanted.predict(features_).tolist()


def test_a_set_of_tfds_is_its_images(images, tmp_path):
    made = sources.prepared_data("folder", epath.Path(tmp_path), str(images))
    name = made.name.replace("/1.0.0", ":1.0.0")
    listed, found = datasets.folder(images), datasets.prepared(name, str(tmp_path))

    def contents(data):
        return sorted((data.images.records[i]["image"], data.class_names[k]) for i, k in enumerate(data.labels))

    assert contents(found) == contents(listed)
    again = datasets.prepared(name, str(tmp_path))
    assert found.images.digest == again.images.digest != listed.images.digest


def voc_kit(root, photos, prefix=""):
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for i, photo in enumerate(photos[:6]):
        Image.open(photo).save(root / "JPEGImages" / f"{prefix}00{i}.jpg")
    for kind, labels in (("cat", (1, -1, 1, -1, 0, 1)), ("dog", (-1, 1, -1, 1, 1, -1))):
        for listing, numbers in (("trainval", range(4)), ("test", (4, 5))):
            lines = "".join(f"{prefix}00{i} {labels[i]:2d}\n" for i in numbers)
            (root / "ImageSets" / "Main" / f"{kind}_{listing}.txt").write_text(lines)
    return root


def test_a_voc_kit_is_read_by_its_lists(photos, tmp_path):
    root = voc_kit(tmp_path / "VOC2007", photos)
    data = datasets.voc(root, "trainval", "test")
    assert data.class_names == ["cat", "dog"]
    assert [Path(record["file_name"]).stem for record in data.images.records] == [
        "000",
        "001",
        "002",
        "003",
        "004",
        "005",
    ]
    assert data.labels.tolist() == [[1, -1], [-1, 1], [1, -1], [-1, 1], [0, 1], [1, -1]]
    assert (data.train.tolist(), data.test.tolist()) == ([0, 1, 2, 3], [4, 5])
    with pytest.raises(UserError, match="--train_list=trainval and --test_list=trainval share 4 images"):
        datasets.voc(root, "trainval", "trainval")
    (root / "JPEGImages" / "003.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 6 images of the lists are missing, the first .*003.jpg"):
        datasets.voc(root, "trainval", "test")
    with pytest.raises(UserError, match="cat_val.txt cannot be read"):
        datasets.voc(root, "trainval", "val")
    with pytest.raises(UserError, match="has no ImageSets/Main"):
        datasets.voc(tmp_path, "trainval", "test")
    (root / "ImageSets" / "Main" / "cat_test.txt").write_text("004 yes\n")
    with pytest.raises(UserError, match="is no list of VOC"):
        datasets.voc(root, "trainval", "test")


@pytest.mark.parametrize(
    ("listing", "lines", "message"),
    [
        (
            "cat_test",
            "004 1\n",
            "dog_test.txt and cat_test.txt differ in 1 images, the first 005",
        ),
        ("test", "004\n005\n006\n", r"cat_test.txt and .*test.txt differ in 1 images, the first 006"),
        ("cat_test", "004 1\n005 -1\n004 -1\n", "cat_test.txt has 004 in two lines"),
        ("cat_test", "../004 1\n005 -1\n", "names '../004', which is not an image of JPEGImages"),
        ("cat_test", "/etc/004 1\n005 -1\n", "names '/etc/004', which is not"),
        ("cat_test", "4" * 5000 + " 1\n005 -1\n", "names '444.*, which is not"),
        ("cat_test", "0\x004 1\n005 -1\n", "which is not an image of JPEGImages"),
        ("cat_test", "004 2\n005 -1\n", "is no list of VOC"),
    ],
)
def test_lists_of_a_voc_kit_that_do_not_agree_are_refused(photos, tmp_path, listing, lines, message):
    root = voc_kit(tmp_path / "VOC2007", photos)
    (root / "ImageSets" / "Main" / f"{listing}.txt").write_text(lines)
    with pytest.raises(UserError, match=message):
        datasets.voc(root, "trainval", "test")


def test_classes_that_a_voc_kit_cannot_score_are_named(photos, tmp_path):
    root = voc_kit(tmp_path / "VOC2007", photos)
    assert datasets.classes_left_out(datasets.voc(root, "trainval", "test")) == {}
    (root / "ImageSets" / "Main" / "dog_test.txt").write_text("004 -1\n005 -1\n")
    assert datasets.classes_left_out(datasets.voc(root, "trainval", "test")) == {"dog": "no image with it to test"}
    (root / "ImageSets" / "Main" / "cat_trainval.txt").write_text("".join(f"00{i} 1\n" for i in range(4)))
    with pytest.raises(
        UserError, match=r"no class .* \(cat: no image without it to train on, dog: no image with it to test\)"
    ):
        datasets.classes_left_out(datasets.voc(root, "trainval", "test"))


def test_a_class_without_positives_is_not_in_the_mean():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((80, 3)) < 0.4, 1, -1)
    labels[40:, 1] = -1
    features_ = {"x": normalized(labels + 0.5 * rng.normal(size=labels.shape))}
    outcome = multi_label(features_, labels, (np.arange(40), np.arange(40, 80)), 0, fitted_svm)
    assert np.isnan(outcome.by_class).tolist() == [False, True, False]
    assert outcome.score == pytest.approx((outcome.by_class[0] + outcome.by_class[2]) / 2)


@pytest.mark.parametrize(("prefix", "points"), [("", 11), ("2008_", 0)])
def test_the_year_of_a_voc_kit_is_that_of_its_images(photos, tmp_path, prefix, points):
    root = voc_kit(tmp_path / "renamed", photos, prefix)
    assert datasets.voc(root, "trainval", "test").recall_points == points


def test_a_folder_is_read_with_and_without_splits(photos, tmp_path):
    for place in ("train/a", "train/b", "val/a", "val/b", "test/unlabelled"):
        (tmp_path / place).mkdir(parents=True)
        for photo in photos[:2]:
            (tmp_path / place / photo.name).write_bytes(photo.read_bytes())
    whole, part = datasets.folder(tmp_path), datasets.folder(tmp_path / "train")
    assert (whole.class_names, part.class_names) == (["a", "b"], ["a", "b"])
    assert (whole.labels.tolist(), part.labels.tolist()) == ([0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 1, 1])
    with pytest.raises(UserError, match="has images of fewer than two classes"):
        datasets.folder(tmp_path / "train" / "a")


def test_without_scikit_learn_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'vgg-jax\[transfer\]'"):
        need_scikit_learn()


@pytest.mark.slow
def test_the_command_writes_its_results_and_keeps_descriptors(weights_file, tmp_path):
    rng = np.random.default_rng(0)
    for kind, color in (("red", 0), ("green", 1), ("blue", 2)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(8):
            image = rng.integers(0, 60, (70, 80 + 10 * (i % 2), 3)).astype(np.uint8)
            image[..., color] += 150
            Image.fromarray(image).save(tmp_path / "data" / kind / f"{i}.png")
    flags = (
        f"--weights={weights_file}",
        f"--data_root={tmp_path / 'data'}",
        f"--output={tmp_path / 'out'}",
        "--scales=64,72",
    )
    status, out, err = run_command("transfer", *flags, "--train_images=5", "--layers=relu1_2,relu2_2", "--splits=2")
    assert status == 0, err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [outcome["descriptor"] for outcome in results["outcomes"]] == ["relu1_2"] * 2 or results["outcomes"][0][
        "score"
    ] > 0.6
    assert len(list((tmp_path / "out" / "descriptors").glob("*.npz"))) == 4
    assert "Table 11" not in out  # whose networks are of full width
    voc_kit(tmp_path / "kit", sorted((tmp_path / "data" / "red").iterdir()))
    (tmp_path / "kit" / "ImageSets" / "Main" / "dog_test.txt").write_text("004 -1\n005 -1\n")
    kit = (f"--data_root={tmp_path / 'kit'}", f"--output={tmp_path / 'voc'}", "--protocol=voc", "--scales=64")
    status, out, err = run_command("transfer", flags[0], *kit, "--layers=relu1_2")
    assert status == 0, err
    assert "dog is left out of the mean: the lists have no image with it to test" in out
    results = json.loads((tmp_path / "voc" / "results.json").read_text(), parse_constant=pytest.fail)
    assert results["outcomes"][0]["by_class"][1] is None
    assert results["outcomes"][0]["score"] == results["outcomes"][0]["by_class"][0]
    status, out, err = run_command("transfer", *flags)
    assert status == 2
    assert "3 classes have no more than 30 images" in err
    status, _, err = run_command("transfer", *flags[:2], "--scales=big")
    assert (status, "--scales=big: give whole numbers" in err) == (2, True)


def test_the_papers_figures_are_for_its_whole_networks_alone():
    networks = [
        make_network("D"),
        make_network("E", 384),
        make_network("D", width_multiplier=0.5),
        make_network(NetworkSpec("D", head="none"), 224, num_classes=0),
        make_network("D-BN", 224),
        make_network("B"),
    ]
    assert [paper_name(features.Backbone({}, jnp.zeros(3), network, NetworkSpec("D"))) for network in networks] == [
        *"D?????"
    ]
