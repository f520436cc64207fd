"""`vgg-jax prepare`: what it makes, what it leaves out, and a sentence for every mistake."""

import json
import shlex
import shutil
import signal
import time

import pytest
import tensorflow_datasets as tfds

from tests.command import help_of, run_command, start_command
from tests.refusals import assert_refused, refused
from vgg_jax.config import recipe_of
from vgg_jax.data import disk
from vgg_jax.data.preparation import PrepareRequest, prepare
from vgg_jax.data.sources import open_dataset, prepared_data


def run(*arguments):
    status, out, err = run_command("prepare", *arguments)
    assert "Traceback" not in err
    return status, out, " ".join(err.split())


@pytest.fixture
def spoilt(tmp_path, images):
    """A folder with three files that are not valid images, and their names."""
    root = tmp_path / "images"
    shutil.copytree(images, root)
    (root / "train" / "cross" / "empty.jpg").write_bytes(b"")
    (root / "train" / "arrow" / "page.jpg").write_text("<html>404</html>")
    cut = root / "validation" / "arrow" / "000.jpg"
    cut.write_bytes(cut.read_bytes()[:-2])
    return root, ["train/arrow/page.jpg", "train/cross/empty.jpg", "validation/arrow/000.jpg"]


def test_help_answers_without_loading_jax():
    shown = help_of("prepare")
    assert "--tars" in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "say what to prepare, one thing: imagenet2012, folder, cifar10, builtin or the name of a TFDS set"),
        (("folder",), "say which folder: --data_root=DIR"),
        (("folder", "--data_root=/nowhere"), "--data_root is '/nowhere', and there is no such directory"),
        (("builtin", "--tars=/nowhere"), "--tars goes with `imagenet2012`, not with `builtin`"),
        (("builtin", "--skipbad"), "Unknown command line flag 'skipbad'. Did you mean: skip_bad"),
        (("imagenet2012", "--tars=/nowhere"), "--tars=/nowhere: there is no such directory"),
        (
            ("imagenet2012", "--tars=/tmp", "--data_dir=gs://bucket"),
            "gs://bucket is no directory of this machine",
        ),
        (("imagenet2102",), "neither `builtin` nor `folder` nor a TFDS data set. Did you mean 'imagenet2012'"),
        (("cifar10",), "vgg-jax prepare cifar10 --data_root=cifar-10-python.tar.gz"),
        (("builtin", "--exif"), "--exif goes with `folder`, not with `builtin`"),
        (("cifar100",), "tfds build cifar100 --file_format=array_record"),
        (("cifar10", "--root=/nowhere"), "--data_root=/nowhere is not one of CIFAR-10's archives as published"),
    ],
)
def test_a_mistake_gets_a_sentence_and_a_status(arguments, sentence, tmp_path):
    if not any("data_dir" in argument for argument in arguments):
        arguments = (*arguments, f"--data_dir={tmp_path}")
    assert_refused(run(*arguments), sentence)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [(), ("--train_split=training",)])
def test_the_command_that_is_printed_names_both_splits(images, tmp_path, tiny_config, flags):
    root = tmp_path / "images"
    shutil.copytree(images, root)
    for old, new in (("train", "training"), ("validation", "dev")):
        (root / old).rename(root / new)
    status, out, _ = run("folder", f"--root={root}", f"--data_dir={tmp_path / 'data'}", *flags)
    assert status == 0
    printed = dict(word.removeprefix("--config.").split("=") for word in shlex.split(out) if "--config." in word)
    assert (printed["data.train_split"], printed["data.val_split"]) == ("training", "dev")
    with tiny_config.unlocked():
        tiny_config.update_from_flattened_dict({"data.name": "folder", "model.num_classes": 0, **printed})
    assert len(open_dataset(recipe_of(tiny_config)).train) == 90


def test_a_folder_is_prepared_from_python(images, tmp_path):
    lines = []
    data = prepare(PrepareRequest("folder", data_dir=str(tmp_path / "data"), data_root=str(images)), lines.append)
    assert lines[0] == f"{data.name} is prepared in {data.directory}: train 90, validation 31 images"
    assert lines[1].startswith("mean RGB ")
    assert lines[2].startswith("train on it with: vgg-jax train --config=small --config.data.")
    with refused("--exif goes with `folder`, not with `builtin`"):
        prepare(PrepareRequest("builtin", exif=True))


def test_all_bad_images_of_a_folder_are_listed_or_left_out(spoilt, tmp_path, tiny_config):
    root, bad = spoilt
    prepared = tmp_path / "prepared"
    status, _, err = run("folder", f"--root={root}", f"--data_dir={prepared}")
    assert status == 2
    assert "3 of 123 files are not valid images" in err
    for name, reason in zip(bad, ("not an image", "0 bytes", "Premature end of JPEG file"), strict=True):
        assert f"{root / name}: {reason}" in err
    assert not list(tmp_path.rglob("*.array_record*"))

    status, out, err = run("folder", f"--root={root}", f"--data_dir={prepared}", "--skip_bad")
    assert (status, err) == (0, "")
    assert "train 90, validation 30 images" in out
    assert "3 bad images were left out" in out
    (skipped,) = prepared.rglob("skipped.json")
    assert sorted(json.loads(skipped.read_text())) == bad

    # Training finds it, with the mean and colour vectors that were computed then.
    tiny_config.data.root, tiny_config.data.dir = str(root), str(prepared)
    before = {file: file.stat().st_mtime_ns for file in prepared.rglob("*") if file.is_file()}
    assert len(open_dataset(recipe_of(tiny_config)).train) == 90
    assert {file: file.stat().st_mtime_ns for file in prepared.rglob("*") if file.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_preparation_starts_again(tmp_path, number):
    process = start_command("prepare", "builtin", f"--data_dir={tmp_path}")
    while not list(tmp_path.rglob("*unfinished*")):
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or "unfinished" in path.name]
    if number != signal.SIGINT:
        return
    status, out, _ = run("builtin", f"--data_dir={tmp_path}")
    assert status == 0
    assert "train 4,000, validation 1,000 images" in out
    assert (
        tfds.builder_from_directory(next(tmp_path.rglob("dataset_info.json")).parent).info.splits["train"].num_examples
    )


def test_no_room_for_a_folder_is_said_before_anything_is_written(images, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: free)
    with refused(r"has 0.1 MB free, and [\d.]+ MB are needed; .*Nothing was written"):
        prepared_data("folder", tmp_path, str(images))
    assert not list(tmp_path.iterdir())
