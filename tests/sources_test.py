"""Data sets by name: the folder and the bad folders, splits, statistics, and what is said where something is wrong."""

import contextlib
import errno
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image, ImageOps

from tests.runs import make_run
from vgg_jax.config import default_config, recipe_of
from vgg_jax.data import prepared
from vgg_jax.data.decode import decode
from vgg_jax.data.listing import list_folder
from vgg_jax.data.sources import expanded, open_dataset, values_of_data
from vgg_jax.data.splits import open_split
from vgg_jax.data.statistics import moments, split_statistics
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.training.train import train


@pytest.fixture
def folder_config(tiny_config, tmp_path, images):
    """A configuration over a copy of the folder that a test may spoil, with an empty place for prepared data."""
    shutil.copytree(images, tmp_path / "images")
    tiny_config.data.root = str(tmp_path / "images")
    tiny_config.data.dir = str(tmp_path / "prepared")
    return tiny_config


def test_a_folder_becomes_records_with_labels_by_sorted_name(folder_config, tmp_path):
    dataset = open_dataset(recipe_of(folder_config))
    assert dataset.class_names == ["arrow", "crescent", "cross"]
    assert (len(dataset.train), len(dataset.validation)) == (90, 31)
    for record in (dataset.train[i] for i in range(90)):
        name = record["file_name"].decode()
        assert name.split("/")[0] == dataset.class_names[record["label"]]
        assert record["image"] == (tmp_path / "images" / "train" / name).read_bytes()
    assert len({dataset.train[i]["file_name"] for i in range(90)}) == 90


def test_a_folder_is_prepared_once_and_again_when_it_changes(folder_config, tmp_path, capsys):
    first = open_dataset(recipe_of(folder_config))
    assert "packing" in capsys.readouterr().out
    open_dataset(recipe_of(folder_config))
    assert capsys.readouterr().out == ""
    (tmp_path / "images" / "train" / "arrow" / "000.jpg").unlink()
    second = open_dataset(recipe_of(folder_config))
    assert "packing" in capsys.readouterr().out
    assert (len(first.train), len(second.train)) == (90, 89)


def swapped(root):
    """Two images of different classes exchange their bytes."""
    first, second = root / "train" / "arrow" / "000.jpg", root / "train" / "cross" / "002.jpg"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])


def moved(root):
    """Two images exchange their classes."""
    (root / "train" / "arrow" / "000.jpg").rename(root / "train" / "cross" / "000.jpg")
    (root / "train" / "cross" / "002.jpg").rename(root / "train" / "arrow" / "002.jpg")


def renamed(root):
    (root / "train" / "arrow" / "000.jpg").rename(root / "train" / "arrow" / "another.jpg")


def validation_classes_swapped(root):
    (root / "validation" / "arrow").rename(root / "validation" / "x")
    (root / "validation" / "cross").rename(root / "validation" / "arrow")
    (root / "validation" / "x").rename(root / "validation" / "cross")


@pytest.mark.parametrize("edit", [swapped, moved, renamed, validation_classes_swapped])
def test_relabelled_images_are_other_data(folder_config, tmp_path, edit):
    before = open_dataset(recipe_of(folder_config)).description()
    edit(tmp_path / "images")
    after = open_dataset(recipe_of(folder_config)).description()
    changed = "validation" if edit is validation_classes_swapped else "train"
    same = ({"train", "validation"} - {changed}).pop()
    assert before["image_digests"][changed] != after["image_digests"][changed]
    assert before["image_digests"][same] == after["image_digests"][same]


@pytest.mark.slow
def test_a_run_of_relabelled_images_is_refused_and_the_remedy_works(folder_config, tmp_path):
    run = make_run(tmp_path / "run", folder_config)
    (run / "dataset.json").write_text(json.dumps(open_dataset(recipe_of(folder_config)).description()))
    swapped(tmp_path / "images")
    with pytest.raises(UserError, match="the images of train have changed") as caught:
        train(folder_config, run)
    folder_config.init_from = re.search(r"--config.init_from=(\S+)\.", str(caught.value))[1]
    folder_config.num_epochs = 0.1
    assert train(folder_config, tmp_path / "second", quiet=True)["steps"] == 2


def test_digests_are_those_of_sha256sum_and_of_a_copy_elsewhere(folder_config, tmp_path):
    digests = open_dataset(recipe_of(folder_config)).description()["image_digests"]
    for split, digest in digests.items():
        printed = "cd $0 && sha256sum */* | LC_ALL=C sort | sha256sum"
        out = subprocess.run(["sh", "-c", printed, tmp_path / "images" / split], stdout=subprocess.PIPE, check=True)
        assert out.stdout.split()[0].decode() == digest
    assert set(digests) == {"train", "validation"}
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere").rglob("*.jpg"):
        os.utime(path, (1, 1))
    folder_config.data.root = str(tmp_path / "elsewhere")
    assert open_dataset(recipe_of(folder_config)).description()["image_digests"] == digests
    folder_config.data.train_split, folder_config.data.val_split = "train[:50%]", "train[50%:]"
    assert open_dataset(recipe_of(folder_config)).description()["image_digests"] == {"train": digests["train"]}


def test_data_that_version_0_4_packed_get_their_digests_once(folder_config, tmp_path, capsys):
    digests = open_dataset(recipe_of(folder_config)).image_digests
    (file,) = (tmp_path / "prepared").rglob("image_digests.json")
    for damage in (None, "[]", "{", '{"train": 7}'):
        file.unlink() if damage is None else file.write_text(damage)
        capsys.readouterr()
        assert open_dataset(recipe_of(folder_config)).image_digests == digests
        assert "digest of train (once): 90 images" in capsys.readouterr().out
        assert open_dataset(recipe_of(folder_config)).image_digests == digests
        assert capsys.readouterr().out == ""


def test_statistics_are_those_of_all_pixels_and_kept(folder_config, tmp_path):
    dataset = open_dataset(recipe_of(folder_config))
    files = sorted((tmp_path / "images" / "train").rglob("*.jpg"))
    pixels = [np.asarray(Image.open(file)).reshape(-1, 3).astype(float) for file in files]
    weights = np.concatenate([np.full(len(p), 1 / len(p)) for p in pixels])  # every image counts the same
    pixels = np.concatenate(pixels)
    covariance = np.cov(pixels.T, aweights=weights, ddof=0)
    np.testing.assert_allclose(dataset.statistics.mean_rgb, np.average(pixels, axis=0, weights=weights), rtol=1e-5)
    vectors = dataset.statistics.color_vectors
    np.testing.assert_allclose(vectors @ vectors.T, covariance, rtol=1e-4)
    np.testing.assert_allclose(
        vectors.T @ vectors, np.diag(np.diag(vectors.T @ vectors)), atol=1e-2
    )  # axes at right angles
    assert np.diff(np.diag(vectors.T @ vectors)).max() < 0  # the largest first
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").rglob("color_statistics-train.json")}
    assert len(times) == 1
    open_dataset(recipe_of(folder_config))
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_statistics_that_cannot_be_kept_are_warned_of(folder_config, tmp_path, monkeypatch, capsys):
    expected = open_dataset(recipe_of(folder_config)).statistics
    (cached,) = (tmp_path / "prepared").rglob("color_statistics-train.json")
    cached.unlink()

    def fails(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(epath.Path(cached)), "write_text", fails)
    np.testing.assert_allclose(open_dataset(recipe_of(folder_config)).statistics.mean_rgb, expected.mean_rgb, rtol=1e-5)
    assert f"WARNING: {cached} cannot be written (Permission denied); each start" in capsys.readouterr().err


def test_statistics_of_a_folder_come_from_its_check(folder_config, tmp_path, monkeypatch):
    """To the last bit, though the records are in another order, and nothing is decoded a second time."""
    records = open_dataset(recipe_of(folder_config)).train
    expected = split_statistics(records, 3).colors
    folder_config.data.dir = str(tmp_path / "again")
    monkeypatch.setattr("vgg_jax.data.sources.split_statistics", None)
    statistics = open_dataset(recipe_of(folder_config)).statistics
    np.testing.assert_array_equal(statistics.mean_rgb, expected.mean_rgb)
    np.testing.assert_array_equal(statistics.color_vectors, expected.color_vectors)


@pytest.mark.parametrize("shape", [(1, 1, 3), (16, 16, 3), (333, 500, 3)])
@pytest.mark.parametrize("darkest", [0, 255])
def test_moments_are_exact(shape, darkest):
    pixels = np.random.default_rng(0).integers(darkest, 256, shape).astype(np.uint8)
    wide = pixels.reshape(-1, 3).astype(np.int64)
    sums = np.concatenate([wide.sum(0), (wide.T @ wide).ravel()])
    np.testing.assert_array_equal(moments(pixels), sums / len(wide))


def test_statistics_do_not_depend_on_threads(folder_config):
    records = open_dataset(recipe_of(folder_config)).train
    single, many = (split_statistics(records, 3, threads=n).colors for n in (1, 5))
    np.testing.assert_array_equal(single.color_vectors, many.color_vectors)


def test_tfds_reads_what_was_prepared(folder_config):
    # The folder's ArrayRecord files, found by TFDS under their own name: the path of any TFDS set.
    by_folder = open_dataset(recipe_of(folder_config))
    folder_config.data.name = f"vgg_jax_folder/{by_folder.name.split('/')[1]}"
    folder_config.data.root = ""
    folder_config.data.train_split = "train[:50%]"
    by_name = open_dataset(recipe_of(folder_config))
    assert len(by_name.train) == 45
    assert by_name.train[7]["image"] == by_folder.train[7]["image"]
    assert by_name.class_names == by_folder.class_names


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="the package for buckets is there")
def test_a_bucket_without_its_package(tiny_config):
    tiny_config.data.dir = "gs://bucket/datasets"
    refused(tiny_config, r"gs://bucket/datasets is in a bucket, .*: Please install gcsfs")


def test_where_prepared_data_lies(tiny_config, monkeypatch, tmp_path):
    tiny_config.data.dir = "http://example.org/data"
    refused(tiny_config, "http://example.org/data is neither a directory nor a bucket that can be read")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert expanded(default_config().data.dir) == tmp_path
    assert expanded("~/elsewhere") == Path.home() / "elsewhere"
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert expanded(default_config().data.dir) == Path.home() / "tensorflow_datasets"
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where nobody knows a home
    with pytest.raises(RuntimeError, match="home directory"):
        expanded("~/elsewhere")


@pytest.mark.parametrize("key", ["dir", "root"])
@pytest.mark.parametrize("value", ["", "/tmp/\0x", "/tmp/\ud800"])
def test_an_impossible_directory_name_is_refused(folder_config, tmp_path, monkeypatch, key, value):
    monkeypatch.chdir(tmp_path)
    folder_config.data[key] = value
    refused(folder_config, rf"config.data.{key} is {re.escape(repr(value))}, which is not a directory's name")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_directories_that_cannot_be_listed_are_named(folder_config, tmp_path, monkeypatch):
    folder_config.data.root = "/proc/self"
    refused(folder_config, r"config.data.root is '/proc/\d+', which the kernel makes up; name a directory on a disk")
    folder_config.data.root = str(tmp_path / "images")

    def fails(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("os.scandir", fails)
    refused(folder_config, rf"config.data.root: {tmp_path}/images cannot be listed: Input/output error; mend that")


def test_what_tfds_says_is_one_line(folder_config):
    folder_config.data.root, folder_config.data.name = "", "/etc"
    message = refused(
        folder_config, "config.data.name is '/etc', which TFDS cannot open: Parsing .* failed; write NAME,"
    )
    assert "\n" not in message


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset_info.json", DEEP),
        ("features.json", DEEP),
        ("dataset_info.json", {"shardLengths": [10**20]}),
        ("dataset_info.json", {"shardLengths": [-1]}),
        ("dataset_info.json", {"shardLengths": ["9" * 4000]}),
        ("dataset_info.json", {"filepathTemplate": "{NOTHING}"}),
        ("dataset_info.json", "[]"),
        ("features.json", {"numClasses": 10**20}),
    ],
)
def test_a_hostile_description_is_one_sentence(folder_config, tmp_path, file, content):
    open_dataset(recipe_of(folder_config))
    (info,) = (tmp_path / "prepared").rglob("dataset_info.json")
    path = info.with_name(file)
    if isinstance(content, dict):
        value = json.loads(path.read_text())
        if file == "dataset_info.json":
            value["splits"][0] |= content
        else:
            value["featuresDict"]["features"]["label"]["classLabel"] = content
            info.with_name("label.labels.txt").unlink()
    path.write_text(content if isinstance(content, str) else json.dumps(value))
    message = refused(
        folder_config, rf"{info.parent} holds a data set whose description cannot be read \(.*\.\) bring it"
    )
    assert len(message) < 600


def test_a_template_of_file_names_asks_for_no_memory(folder_config, tmp_path):
    open_dataset(recipe_of(folder_config))
    (info,) = (tmp_path / "prepared").rglob("dataset_info.json")
    info.write_text(info.read_text().replace("{DATASET}", "{DATASET:>100000000}"))
    tracemalloc.start()
    with contextlib.suppress(UserError):
        open_dataset(recipe_of(folder_config))
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_commands_to_copy_name_the_variant_and_are_quoted(folder_config, tmp_path):
    folder_config.data.root, folder_config.data.name = "", "imagenet_resized/8x8"
    folder_config.data.dir = str(tmp_path / "my data")
    message = refused(folder_config, "tfds build imagenet_resized/8x8 --file_format=array_record --data_dir='")
    assert f"--data_dir='{tmp_path}/my data'" in message


def refused(config, message):
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(recipe_of(config))
    return str(caught.value)


def test_every_file_that_is_not_an_image_is_named(folder_config, tmp_path):
    root = tmp_path / "images"
    (root / "train" / "cross" / "notes.txt").write_text("not an image")
    cut = root / "validation" / "arrow" / "000.jpg"
    cut.write_bytes(cut.read_bytes()[:500])
    message = refused(folder_config, r"2 of 122 files are not valid images")
    assert str(root / "train" / "cross" / "notes.txt") + ": not an image" in message
    assert str(cut) in message
    assert not list((tmp_path / "prepared").rglob("*.array_record*"))


def test_an_empty_class_is_named(folder_config, tmp_path):
    (tmp_path / "images" / "train" / "disc").mkdir()
    refused(folder_config, re.escape(f"no image in {tmp_path}/images/train/disc; put some there"))


def test_a_class_that_training_lacks_is_named(folder_config, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(root / "validation" / "arrow", root / "validation" / "ring")
    refused(folder_config, r"validation has classes that .*train lacks: ring")


def flat_folder(root, sizes):
    """Images of one colour a class, <root>/<class>/<number>.png."""
    for label, (kind, count) in enumerate(sizes.items()):
        (root / kind).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 40), (40 * label, number, 0)).save(root / kind / f"{number}.png")


def test_a_folder_without_splits_keeps_a_tenth_of_each_class_for_validation(folder_config, tmp_path, capsys):
    sizes = {"a dog": 1, "bee": 2, "cat": 14, "dove": 15, "eel": 40}
    root = tmp_path / "flat"
    flat_folder(root, sizes)
    (root / "notes").mkdir()
    (root / "notes" / "read.txt").touch()
    folder_config.data.root, folder_config.model.num_classes = str(root), 0

    def names():
        recipe = recipe_of(folder_config)
        recipe = recipe.with_values(values_of_data(recipe))
        dataset = open_dataset(recipe)
        assert dataset.class_names == list(sizes)
        assert recipe.model.num_classes == 5
        splits = (dataset.train, dataset.validation)
        return [{records[i]["file_name"].decode() for i in range(len(records))} for records in splits]

    train, validation = names()
    assert f"{root} has no splits: 8 images, a tenth of each class, validate; 64 train" in capsys.readouterr().out
    counts = {kind: sum(name.startswith(f"{kind}/") for name in validation) for kind in sizes}
    assert counts == {"a dog": 0, "bee": 1, "cat": 1, "dove": 2, "eel": 4}
    assert train | validation == {f"{kind}/{number}.png" for kind, count in sizes.items() for number in range(count)}
    assert not train & validation
    Image.new("RGB", (40, 40)).save(root / "cat" / "14.png")
    assert len(names()[1] - validation) <= 1, "an image more lets no other change sides but one"


@pytest.mark.parametrize(
    ("given", "taken"), [(["val", "test"], "val"), (["valid"], "valid"), (["test"], "test"), (["other"], "validation")]
)
def test_the_usual_names_of_the_validation_split_are_known(given, taken, folder_config, tmp_path):
    root = tmp_path / "images"
    for name in given:
        shutil.copytree(root / "validation", root / name)
    shutil.rmtree(root / "validation")
    recipe = recipe_of(folder_config)
    assert recipe.with_values(values_of_data(recipe)).data.val_split == taken


def test_two_splits_that_could_validate_are_refused_until_one_is_named(folder_config, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(root / "validation", root / "valid")
    (root / "validation").rename(root / "val")
    with pytest.raises(UserError, match="has val and valid.*say which: --config.data.val_split=val"):
        values_of_data(recipe_of(folder_config))
    folder_config.data.val_split = "valid"
    assert "data.val_split" not in values_of_data(recipe_of(folder_config))


@pytest.mark.parametrize("sizes", [{"a": 1, "b": 2}, {f"class{number:05}": 1 + number % 2 for number in range(10_000)}])
def test_flat_folders_of_two_and_of_ten_thousand_classes_are_listed(sizes, tmp_path):
    for kind, count in sizes.items():
        (tmp_path / kind).mkdir()
        for number in range(count):
            (tmp_path / kind / f"{number}.png").touch()
    listing = list_folder(tmp_path)
    assert listing.class_names() == sorted(sizes)
    assert set(listing.splits["validation"]) == {kind for kind, count in sizes.items() if count == 2}


def test_a_flat_folder_of_one_image_a_class_cannot_validate(folder_config, tmp_path):
    flat_folder(tmp_path / "flat", {"ant": 1, "bee": 1})
    folder_config.data.root, folder_config.model.num_classes = str(tmp_path / "flat"), 2
    refused(folder_config, "every class of .* has one image, so none is left to validate with.*data.val_split=train")
    folder_config.data.val_split = "train"
    assert len(open_dataset(recipe_of(folder_config)).validation) == 2


@pytest.mark.parametrize("depth", ["", "train"])
def test_a_folder_of_another_layout_is_explained(folder_config, tmp_path, depth):
    root = tmp_path / "flat"
    (root / depth).mkdir(parents=True)
    render_to = root / depth / "a.jpg"
    Image.new("RGB", (40, 40)).save(render_to)
    folder_config.data.root = str(root)
    refused(folder_config, "should be laid out as <split>/<class>/<image>")


def test_a_split_that_is_not_there_lists_those_that_are(folder_config):
    refusal = "config.data.val_split is 'val'.*its splits are train, validation .*: --config.data.val_split=validation"
    folder_config.data.val_split = "val"
    refused(folder_config, refusal)


def test_the_validation_split_is_not_offered_for_training(folder_config, tmp_path):
    root = tmp_path / "renamed"
    shutil.copytree(folder_config.data.root, root)
    for old, new in (("train", "training"), ("validation", "val")):
        (root / old).rename(root / new)
    folder_config.data.root, folder_config.data.val_split = str(root), "val"
    refused(folder_config, "config.data.train_split is 'train'.*: --config.data.train_split=training")
    (root / "training").rename(root / "learn")  # of no such name, but the only one left
    refused(folder_config, "config.data.train_split is 'train'.*: --config.data.train_split=learn")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("validation[:0]", "which takes no image of"),
        ("validation[:x]", "which is no split or part of one"),
        ("validation[99:]", "but .* has 31 records of that split; take fewer"),
    ],
)
def test_a_part_of_a_split_that_cannot_be_taken_is_explained(folder_config, split, message):
    folder_config.data.val_split = split
    refused(folder_config, rf"config.data.val_split is {re.escape(repr(split))}, {message}")


@pytest.mark.parametrize("split", ["train[50%:10%]", "train[5:5]"])
def test_an_empty_slice_is_refused(folder_config, split):
    folder_config.data.train_split = split
    refused(folder_config, r"config.data.train_split is .*, which takes no image of")


def test_a_split_that_is_not_there_is_found_before_anything_is_packed(folder_config, tmp_path, capsys):
    folder_config.data.train_split = "train[:50%]+extra"
    refused(folder_config, r"config.data.train_split is 'train\[:50%\]\+extra', which the folder .* does not have")
    folder_config.data.name, folder_config.data.root, folder_config.data.train_split = "builtin", "", "training"
    refused(folder_config, "'training', which the built-in set does not have; its splits are train, validation")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "prepared").exists()


def test_a_folder_of_one_split_is_to_be_shared_out(folder_config, tmp_path):
    shutil.rmtree(tmp_path / "images" / "validation")
    message = refused(folder_config, "config.data.val_split is 'validation'")
    advice = "--config.data.train_split='train[:90%]' and --config.data.val_split='train[90%:]'"
    assert advice in message
    folder_config.data.train_split, folder_config.data.val_split = "train[:90%]", "train[90%:]"
    dataset = open_dataset(recipe_of(folder_config))
    assert (len(dataset.train), len(dataset.validation), dataset.warnings) == (81, 9, ())


@pytest.mark.parametrize(
    ("train", "validation", "warning"),
    [
        ("train", "train", "90 of the 90 validation images are training images too"),
        ("all", "validation", "31 of the 31 validation images are training images too"),
        ("train[:50%]", "train[40%:60%]", "9 of the 18 validation images are training images too"),
        ("train+train", "validation", "train_split=train+train takes 90 images more than once in an epoch"),
        ("train[:4]", "validation", "config.batch_size is 8, more than the 4 training images"),
        ("train[:50%]", "train[50%:]", ""),
    ],
)
def test_what_is_rarely_meant_is_said(folder_config, train, validation, warning):
    folder_config.data.train_split, folder_config.data.val_split = train, validation
    warnings = [said for said in open_dataset(recipe_of(folder_config)).warnings if "no training image in" not in said]
    assert len(warnings) == (1 if warning else 0)
    assert warning in "".join(warnings)


def test_statistics_of_every_expression_are_kept_apart(folder_config):
    means = []
    for split in ("train[-5:]", "train[:5%]", "train[-5:]"):  # which differ in nothing but signs
        folder_config.data.train_split = split
        means.append(open_dataset(recipe_of(folder_config)).statistics.mean_rgb.tolist())
    assert means[0] == means[2] != means[1]


def test_damaged_statistics_are_computed_again(folder_config, tmp_path):
    mean = open_dataset(recipe_of(folder_config)).statistics.mean_rgb.tolist()
    (cached,) = (tmp_path / "prepared").rglob("color_statistics-train.json")
    whole = json.loads(cached.read_text())
    without = {key: value for key, value in whole.items() if key != "sha256"}  # as version 0.4 wrote it
    changed = [json.dumps(whole | {"mean_rgb": [77.0, *whole["mean_rgb"][1:]]}), json.dumps(without)]
    for damage in ("", "{}", "[]", "\0\0", '{"mean_rgb": "x"}', "[" * 10**5, *changed):
        cached.write_text(damage)
        assert open_dataset(recipe_of(folder_config)).statistics.mean_rgb.tolist() == mean


def test_nested_images_are_of_the_class_above_and_all_else_is_named(folder_config, tmp_path, capsys):
    root = tmp_path / "images"
    deep = root / "train" / "arrow" / "camera" / "2024"
    deep.mkdir(parents=True)
    shutil.copy(root / "train" / "arrow" / "000.jpg", deep / "000.jpg")
    (deep / "round").symlink_to(root / "train" / "arrow")  # back up: must end
    (root / "train" / "arrow" / "gone.jpg").symlink_to("/nowhere.jpg")
    (root / "train" / "arrow" / "itself.jpg").symlink_to("itself.jpg")
    shutil.copy(root / "train" / "arrow" / "000.jpg", root / "train" / "loose.jpg")
    (root / "labels.csv").write_text("")
    (root / "annotations" / "xml").mkdir(parents=True)
    (root / "annotations" / "xml" / "000.xml").write_text("<a/>")
    (root / "all" / "arrow").mkdir(parents=True)
    shutil.copy(root / "train" / "arrow" / "000.jpg", root / "all" / "arrow" / "000.jpg")
    dataset = open_dataset(recipe_of(folder_config))
    assert (len(dataset.train), dataset.class_names) == (91, ["arrow", "crescent", "cross"])
    names = [dataset.train[i]["file_name"].decode() for i in range(91)]
    assert names.count("arrow/camera/2024/000.jpg") == 1
    line = (
        f"6 files and directories in {root} left out: labels.csv, all, annotations, "
        "train/arrow/gone.jpg (a dangling link), train/arrow/itself.jpg (a dangling link), ...\n"
    )
    assert line in capsys.readouterr().out


def test_unlabelled_images_next_to_training_ones(folder_config, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(root / "validation" / "arrow", root / "test" / "unlabelled")
    dataset = open_dataset(recipe_of(folder_config))
    assert dataset.class_names == ["arrow", "crescent", "cross"]
    folder_config.data.val_split = "test"
    refused(folder_config, r"test has classes that .*train lacks: unlabelled")


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_unicode_forms_of_a_name_are_one_class(folder_config, tmp_path):
    root = tmp_path / "images"
    (root / "train" / "cross").rename(root / "train" / COMPOSED)
    (root / "validation" / "cross").rename(root / "validation" / DECOMPOSED)
    (root / "train" / "arrow" / "000.jpg").rename(root / "train" / "arrow" / f"{DECOMPOSED}.jpg")
    dataset = open_dataset(recipe_of(folder_config))
    assert dataset.class_names == ["arrow", COMPOSED, "crescent"]
    assert f"arrow/{COMPOSED}.jpg" in {record["file_name"].decode() for record in dataset.train}
    (root / "train" / DECOMPOSED).mkdir()
    refused(folder_config, f"train has two directories of the class '{COMPOSED}', whose names differ in their Unicode")
    (root / "train" / DECOMPOSED).rmdir()
    shutil.copy(root / "train" / "arrow" / f"{DECOMPOSED}.jpg", root / "train" / "arrow" / f"{COMPOSED}.jpg")
    refused(folder_config, f"train has two images 'arrow/{COMPOSED}.jpg', whose names differ in their Unicode form")


def test_a_class_without_training_images_is_warned_of(folder_config, tmp_path):
    root = tmp_path / "images"
    for path in sorted((root / "train" / "arrow").iterdir())[1:]:
        path.unlink()
    folder_config.data.train_split, folder_config.data.val_split = "train[:90%]", "train[90%:]"
    opened = {
        split: open_dataset(with_split(folder_config, split)) for split in ("train[:90%]", "train[10%:]", "train")
    }
    for split, dataset in opened.items():
        has_arrow = any(record["label"] == 0 for record in dataset.train)
        warned = [sentence for sentence in dataset.warnings if "no training image in 1 class, as 'arrow'" in sentence]
        assert len(warned) == (0 if has_arrow else 1)
        assert all(f"config.data.train_split={split}" in sentence for sentence in warned)
    assert len({any(record["label"] == 0 for record in dataset.train) for dataset in opened.values()}) == 2


def with_split(config, split):
    config.data.train_split = split
    return config


def test_a_flat_validation_split_is_explained(folder_config, tmp_path):
    root = tmp_path / "images"
    for path in sorted((root / "validation").rglob("*.jpg")):
        path.rename(root / "validation" / f"{path.parent.name}-{path.name}")
    for kind in ("arrow", "crescent", "cross"):
        (root / "validation" / kind).rmdir()
    sentence = (
        rf"config.data.val_split is 'validation', and {root}/validation holds 31 images and no directory of a class"
    )
    refused(folder_config, sentence + rf"; put each image into {root}/validation/<class>/")


def test_dim_images_of_sixteen_bits_are_warned_of_once(folder_config, tmp_path, capsys):
    root = tmp_path / "images"
    deep = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)  # 12 bits
    Image.fromarray(deep).save(root / "train" / "arrow" / "dim.png")
    Image.fromarray(deep).save(root / "train" / "cross" / "dim.tif")
    Image.fromarray(deep * 16).save(root / "train" / "arrow" / "bright.png")
    Image.fromarray((deep // 256).astype(np.uint8)).save(root / "train" / "arrow" / "dark.png")  # 8 bits, as meant
    open_dataset(recipe_of(folder_config))
    warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert len(warned) == 1
    assert "2 of 125 images have 16 bits and nothing brighter than 1/16 of white, as train/arrow/dim.png" in warned[0]
    open_dataset(recipe_of(folder_config))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("number", range(1, 9))
def test_exif_orientations_are_ignored_with_a_line_or_applied(folder_config, tmp_path, capsys, number):
    file = tmp_path / "images" / "train" / "arrow" / "000.jpg"
    exif = Image.Exif()
    exif[0x0112] = number
    image = Image.open(file).resize((40, 64))
    image.save(file, exif=exif)
    stored, turned = np.asarray(Image.open(file)), np.asarray(ImageOps.exif_transpose(Image.open(file)))
    datasets = {}
    for folder_config.data.exif in (False, True):
        datasets[folder_config.data.exif] = open_dataset(recipe_of(folder_config))
    line = "1 of 121 images have an EXIF orientation, as train/arrow/000.jpg, which is ignored"
    assert capsys.readouterr().out.count(line) == (number > 1)
    for exif, dataset in datasets.items():
        (encoded,) = [record["image"] for record in dataset.train if record["file_name"] == b"arrow/000.jpg"]
        np.testing.assert_array_equal(decode(encoded), turned if exif else stored)
    same = datasets[True].image_digests == datasets[False].image_digests
    assert same == (number == 1)
    assert datasets[True].name != datasets[False].name


def test_exif_is_for_folders(folder_config):
    folder_config.data.name, folder_config.data.exif = "builtin", True
    refused(folder_config, "config.data.exif is for folders of images, and config.data.name is 'builtin'")


def test_names_that_are_not_utf8_or_hold_control_characters(folder_config, tmp_path):
    root = os.fsencode(tmp_path / "images")
    os.rename(root + b"/train/arrow/000.jpg", root + b"/train/arrow/caf\xe9.jpg")
    os.rename(root + b"/train/arrow/006.jpg", root + "/train/arrow/Käfer.jpg".encode())
    for split in (b"/train", b"/validation"):
        os.rename(root + split + b"/cross", root + split + b"/cross\x1b[31m\n\xff")
    dataset = open_dataset(recipe_of(folder_config))
    assert dataset.class_names == ["arrow", "crescent", r"cross\x1b[31m\n\udcff"]
    names = {dataset.train[i]["file_name"].decode() for i in range(len(dataset.train))}
    assert {r"arrow/caf\udce9.jpg", "arrow/Käfer.jpg"} <= names


def test_another_number_of_classes_is_named_before_anything_is_packed(folder_config, tmp_path):
    folder_config.model.num_classes = 10
    refused(folder_config, "config.model.num_classes is 10, but folder has 3 classes; say --config.model.num_classes=3")
    root = tmp_path / "one"
    shutil.copytree(Path(folder_config.data.root) / "train" / "arrow", root / "train" / "arrow")
    folder_config.data.root, folder_config.data.val_split = str(root), "train"
    refused(folder_config, "has but one class; images must lie in <class>/ or <split>/<class>/, of two classes or more")
    assert not (tmp_path / "prepared").exists()


def test_unknown_and_unprepared_sets_say_what_to_do(folder_config):
    folder_config.data.root = ""
    folder_config.data.name = "imagenet2021"
    refused(folder_config, "neither `builtin` nor `folder` nor a TFDS data set. Did you mean 'imagenet2012'")
    folder_config.data.name = "imagenet2012"
    refused(folder_config, "is not prepared in .*vgg-jax prepare imagenet2012 --tars=DIR --data_dir=")
    folder_config.data.name = "cifar100"
    refused(
        folder_config, "is not prepared in .*TensorFlow.*tfds build cifar100 --file_format=array_record --data_dir="
    )


def test_a_directory_that_cannot_be_written_is_named(folder_config, tmp_path):
    (tmp_path / "occupied").write_text("a file")
    folder_config.data.dir = str(tmp_path / "occupied" / "data")
    refused(folder_config, "cannot write prepared data to .*occupied.*--config.data.dir=DIR")


def test_real_photographs(tiny_config, real_images, tmp_path):
    if not (real_images / "caltech101-30").is_dir():
        pytest.skip(f"no caltech101-30 in {real_images}")
    root = tmp_path / "photos"
    for split, count in (("train", 5), ("val", 2)):
        for kind in ("Faces", "accordion"):  # colour and one-channel JPEGs of many sizes
            (root / split / kind).mkdir(parents=True)
            for file in sorted((real_images / "caltech101-30" / split / kind).iterdir())[:count]:
                shutil.copy(file, root / split / kind)
    tiny_config.data.root, tiny_config.data.dir, tiny_config.data.val_split = str(root), str(tmp_path / "d"), "val"
    tiny_config.model.num_classes = 2
    dataset = open_dataset(recipe_of(tiny_config))
    assert (len(dataset.train), len(dataset.validation)) == (10, 4)


EXPRESSIONS = [
    *(
        "train",
        "train[:50%]",
        "train[33.3%:66.6%]",
        "train[-10%:]",
        "train[:-20%]",
        "train[7:]",
        "train[:7]",
        "train[-7:-2]",
    ),
    *(
        "train[3:1_00]",
        "train[2shard]",
        "train[1shard:]",
        "train[:2shard]",
        "train[-1shard:]",
        "train+validation",
        "train[:9]+train[5:]",
        "all",
    ),
    *("validation[0.4%:99.6%]", "train[:12.5%]", "train[12.5%:]", "train[1shard:3shard]"),
]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A set of several files to a split, of records that name their split and place."""
    directory = tmp_path_factory.mktemp("sharded")
    lengths = {"train": [40, 1, 33, 26], "validation": [17, 14]}
    for split, of in lengths.items():
        for i, count in enumerate(of):
            made = ({"image": b"", "label": 0, "file_name": b"%s %d %d" % (split.encode(), i, n)} for n in range(count))
            prepared.write_shard(directory / f"made-{split}.array_record-{i:05d}-of-{len(of):05d}", made)
    sizes = {split: [[20] * count for count in of] for split, of in lengths.items()}
    prepared.write_description(directory, prepared.Description("made/1.0.0", "", ["one"]), sizes)
    return prepared.read(epath.Path(directory))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_parts_of_splits_are_those_that_tfds_takes(sharded, expression):
    builder = tfds.builder_from_directory(sharded.directory)
    raw = builder.as_data_source(expression, decoders={"image": tfds.decode.SkipDecoding()})
    split = open_split(sharded, expression, "split")
    assert [split[i]["file_name"] for i in range(len(split))] == [record["file_name"] for record in raw]


@pytest.mark.parametrize(
    "expression",
    [
        *("train[:101%]", "train[3:1000]", "train[-101:]", "train[4shard]", "train[:5shard]"),
        *("train[5]", "train[:]", "train[::2]", "train[a:]", "train[1.5:]", "train[", "all[:5]", ""),
    ],
)
def test_what_is_no_part_of_a_split(sharded, expression):
    with pytest.raises(UserError, match=r"no split or part of one; write train|which made does not have|take fewer"):
        open_split(sharded, expression, "split")


def test_training_on_a_folder_imports_no_tfds(images, tmp_path):
    code = f"""
import sys
from vgg_jax.config import default_config, recipe_of
from vgg_jax.data.decode import decode
from vgg_jax.data.listing import list_folder
from vgg_jax.data.sources import open_dataset
config = default_config()
config.data.name, config.data.root, config.data.dir = "folder", {str(images)!r}, {str(tmp_path)!r}
config.model.num_classes = {len(list((images / "train").iterdir()))}
for _ in range(2):  # prepared, and found
    assert open_dataset(recipe_of(config)).train[0]["image"]
assert not {{"tensorflow_datasets", "pyarrow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
