"""ImageNet's tars, tiny ones of the same build: three classes, read back by TFDS and by this project."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vgg_jax.config import default_config, recipe_of
from vgg_jax.data import disk, imagenet
from vgg_jax.data.builtin import render
from vgg_jax.data.imagenet import prepare
from vgg_jax.data.imagenet_tars import ILSVRC2012, Edition, Tar
from vgg_jax.data.sources import open_dataset
from vgg_jax.data.splits import open_split
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights.imagenet_classes import titles

CLASSES = ("n01440764", "n01443537", "n15075141")  # labels 0, 1 and 999
VALIDATION = ("n15075141", "n01440764", "n01440764", "n01443537", "n15075141")


def encoded(seed, form="JPEG", mode="RGB"):
    file = io.BytesIO()
    render(seed)[0].convert(mode).save(file, form)
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def tar_of_tars(path, classes):
    inner = {}
    for wnid, members in classes.items():
        file = path.with_name("inner.tar")
        write_tar(file, members)
        inner[f"{wnid}.tar"] = file.read_bytes()
        file.unlink()
    write_tar(path, inner)


def edition_of(tars):
    """What to expect in these tars: the table of the real ones, replaced."""

    def split(name, images, shards):
        path = tars / f"ILSVRC2012_img_{name}.tar"
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        return Tar(path.name, path.stat().st_size, md5, images, shards)

    return Edition({"train": split("train", 30, 4), "validation": split("val", 5, 2)}, CLASSES, VALIDATION)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Directory of the tars, and every image's bytes by name."""
    tars = tmp_path_factory.mktemp("tars")
    train = {wnid: {f"{wnid}_{i}.JPEG": encoded(100 * k + i) for i in range(10)} for k, wnid in enumerate(CLASSES)}
    train[CLASSES[0]][f"{CLASSES[0]}_3.JPEG"] = encoded(3, mode="CMYK")  # as 22 of ImageNet's
    train[CLASSES[1]][f"{CLASSES[1]}_4.JPEG"] = encoded(104, form="PNG")  # as one of ImageNet's
    tar_of_tars(tars / "ILSVRC2012_img_train.tar", train)
    validation = {
        f"ILSVRC2012_val_{i:08d}.JPEG": encoded(900 + i) for i in (3, 1, 5, 2, 4)
    }  # the tar's order is no order
    write_tar(tars / "ILSVRC2012_img_val.tar", validation)
    return tars, {**validation, **{name: content for members in train.values() for name, content in members.items()}}


@pytest.fixture
def tars(made, tmp_path):
    """A copy of the tars that a test may spoil."""
    shutil.copytree(made[0], tmp_path / "tars")
    return tmp_path / "tars"


def refused(message, *args, **kwargs):
    with pytest.raises(UserError, match=message) as caught:
        prepare(*args, **kwargs)
    return str(caught.value)


def test_the_real_table_is_that_of_the_challenge():
    assert len(ILSVRC2012.classes) == 1000
    assert list(ILSVRC2012.classes) == sorted(ILSVRC2012.classes)
    assert ILSVRC2012.splits["train"].images == 1_281_167
    counts = np.unique(ILSVRC2012.validation_classes, return_counts=True)
    assert list(counts[0]) == list(ILSVRC2012.classes)
    assert set(counts[1]) == {50}


def test_classes_have_the_wnids_of_tfds_and_the_names_that_people_know():
    names = titles()
    labels = Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "labels.txt"
    assert list(names) == labels.read_text().split()
    assert len(set(names.values())) == 1000
    known = {
        "n01440764": "tench",
        "n02099712": "Labrador retriever",
        "n02123045": "tabby",
        "n15075141": "toilet tissue",
    }
    assert {wnid: names[wnid] for wnid in known} == known


def test_tars_become_a_data_set_that_tfds_reads_too(made, tmp_path):
    tars, contents = made[0], dict(made[1])
    prepare(tars, tmp_path, md5=True, edition=edition_of(tars))
    builder = tfds.builder("imagenet2012", data_dir=tmp_path)
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {"train": 30, "validation": 5}
    assert builder.info.splits["train"].shard_lengths == [8, 8, 7, 7]
    raw = {"image": tfds.decode.SkipDecoding()}
    for split, kinds in (("train", None), ("validation", VALIDATION)):
        decoded = builder.as_data_source(split)
        for record, image in zip(builder.as_data_source(split, decoders=raw), decoded, strict=True):
            name = record["file_name"].decode()
            wnid = name.split("_")[0] if kinds is None else kinds[int(name[15:23]) - 1]
            assert record["label"] == ILSVRC2012.classes.index(wnid)
            original = Image.open(io.BytesIO(contents.pop(name)))
            if original.format == "JPEG" and original.mode == "RGB":
                original.fp.seek(0)
                assert record["image"] == original.fp.read()
            assert image["image"].shape == (original.height, original.width, 3)
            assert np.abs(image["image"].astype(int) - np.asarray(original.convert("RGB"))).mean() < 1.5
    assert not contents  # every image once
    assert sorted(p.name for p in (tmp_path / "imagenet2012").iterdir()) == ["5.1.0"]  # nothing unfinished stays
    assert not (tmp_path / "imagenet2012" / "5.1.0" / "work").exists()


def test_a_part_of_the_training_split_mixes_the_classes(made, tmp_path):
    prepare(made[0], tmp_path, edition=edition_of(made[0]))
    config = default_config()
    config.data.dir, config.data.train_split = str(tmp_path), "train[:60%]"
    dataset = open_dataset(recipe_of(config))
    labels = [dataset.train[i]["label"] for i in range(18)]
    assert set(labels) == {0, 1, 999}
    assert dataset.statistics.mean_rgb[0] == np.float32(123.68)
    assert len(dataset.class_names) == 1000


def test_an_interrupted_preparation_goes_on(made, tmp_path, monkeypatch):
    tars, _ = made
    edition = edition_of(tars)
    prepare(tars, tmp_path / "whole", edition=edition)
    checked, real = [], imagenet.check

    def stops_in_the_third_shard(content):
        checked.append(content)
        if len(checked) > 20:
            raise KeyboardInterrupt
        real(content)

    monkeypatch.setattr(imagenet, "check", stops_in_the_third_shard)
    with pytest.raises(KeyboardInterrupt):
        prepare(tars, tmp_path / "resumed", edition=edition)
    assert not tfds.builder("imagenet2012", data_dir=tmp_path / "resumed").is_prepared()
    checked.clear()
    monkeypatch.setattr(imagenet, "check", lambda content: (checked.append(content), real(content)))
    prepare(tars, tmp_path / "resumed", edition=edition)
    assert len(checked) in (19, 27)  # one or two of the shards, of 8, 8, 7, 7, 3 and 2, were whole
    files = [sorted((tmp_path / place).rglob("*.array_record*")) for place in ("whole", "resumed")]
    assert [a.read_bytes() for a in files[0]] == [b.read_bytes() for b in files[1]]
    checked.clear()
    prepare(tars, tmp_path / "resumed", edition=edition)
    assert not checked  # done is done


def test_every_bad_picture_is_listed_and_can_be_left_out(made, tmp_path, monkeypatch):
    tars, contents = made
    spoilt = tmp_path / "tars"
    spoilt.mkdir()
    shutil.copy(tars / "ILSVRC2012_img_val.tar", spoilt)
    train = {wnid: {n: c for n, c in contents.items() if n.startswith(wnid)} for wnid in CLASSES}
    train[CLASSES[0]]["n01440764_1.JPEG"] = train[CLASSES[0]]["n01440764_1.JPEG"][:-2]
    train[CLASSES[1]]["n01443537_0.JPEG"] = b"<html>404</html>"
    train[CLASSES[2]]["n15075141_9.JPEG"] = b""
    tar_of_tars(spoilt / "ILSVRC2012_img_train.tar", train)
    edition = edition_of(spoilt)
    message = refused(r"3 of 35 images are not sound.*--skip_bad", spoilt, tmp_path / "d", edition=edition)
    for line in ("n01440764_1.JPEG: Premature end", "n01443537_0.JPEG: not an image", "n15075141_9.JPEG: 0 bytes"):
        assert line in message
    assert not tfds.builder("imagenet2012", data_dir=tmp_path / "d").is_prepared()
    monkeypatch.setattr(imagenet, "check", None)  # nothing is checked again
    data = prepare(spoilt, tmp_path / "d", skip_bad=True, edition=edition)
    assert data.counts()["train"] == 27
    builder = tfds.builder_from_directory(data.directory)
    assert len(builder.as_data_source("train")) == 27
    skipped = json.loads((tmp_path / "d" / "imagenet2012" / "5.1.0" / "skipped.json").read_text())
    assert sorted(skipped) == ["n01440764_1.JPEG", "n01443537_0.JPEG", "n15075141_9.JPEG"]


def test_names_of_any_letters(made, tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    contents = made[1]
    train = {wnid: {n: c for n, c in contents.items() if n.startswith(wnid)} for wnid in CLASSES}
    first, second = list(train[CLASSES[0]])[:2]
    train[CLASSES[0]]["käfer.JPEG"] = train[CLASSES[0]].pop(first)
    train[CLASSES[0]]["caf\udce9.JPEG"] = train[CLASSES[0]].pop(second)
    tar_of_tars(tars / "ILSVRC2012_img_train.tar", train)
    shutil.copy(made[0] / "ILSVRC2012_img_val.tar", tars)
    data = prepare(tars, tmp_path / "d", edition=edition_of(tars))
    records = open_split(data, "train", "split")
    names = {records[i]["file_name"].decode() for i in range(len(records))}
    assert {"käfer.JPEG", r"caf\udce9.JPEG"} <= names


def test_tars_that_changed_are_read_anew(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(tars, tmp_path / "d", edition=edition_of(tars))
    monkeypatch.undo()
    changed = {f"ILSVRC2012_val_{i:08d}.JPEG": encoded(700 + i) for i in range(1, 6)}
    write_tar(tars / "ILSVRC2012_img_val.tar", changed)
    builder = tfds.builder_from_directory(prepare(tars, tmp_path / "d", edition=edition_of(tars)).directory)
    raw = {"image": tfds.decode.SkipDecoding()}
    found = {r["file_name"].decode(): r["image"] for r in builder.as_data_source("validation", decoders=raw)}
    assert found == changed


def test_tars_that_are_not_there_are_explained(tars, tmp_path):
    edition = edition_of(tars)
    refused("--tars=.*nowhere: there is no such directory", tmp_path / "nowhere", tmp_path, edition=edition)
    (tars / "ILSVRC2012_img_train.tar").rename(tars / "train.tar")
    (tars / "ILSVRC2012_img_val.tar").unlink()
    message = refused("the tars are not all as they should be", tars, tmp_path, edition=edition)
    assert "train.tar has its size: if it is that file, rename it" in message
    assert "ILSVRC2012_img_val.tar is missing" in message
    assert "It comes from image-net.org" in message
    (tars / "train.tar").unlink()
    (tars / "n01440764").mkdir()
    message = refused("it seems to have been unpacked. The tar itself is wanted", tars, tmp_path, edition=edition)
    (tars / "n01440764").rmdir()
    (tars / "ILSVRC2010_images_train.tar").write_bytes(b"")
    refused("there are ILSVRC2010_images_train.tar, perhaps of another year", tars, tmp_path, edition=edition)
    assert not (tmp_path / "imagenet2012").exists()


def test_a_tar_cut_short_is_named_with_its_size(tars, tmp_path):
    edition, train = edition_of(tars), tars / "ILSVRC2012_img_train.tar"
    whole = train.read_bytes()
    train.write_bytes(whole[:-1024])
    refused(
        f"has {len(whole) - 1024:,} bytes, and image-net.org's has {len(whole):,}: it is cut short",
        tars,
        tmp_path,
        edition=edition,
    )
    train.write_bytes(whole[:3000] + b"\x00" + whole[3001:])
    refused("has the MD5 sum .* download it again", tars, tmp_path, md5=True, edition=edition)


def test_another_years_content_is_seen(tars, tmp_path):
    contents = {f"n01440764_{i}.JPEG": encoded(i) for i in range(30)}
    tar_of_tars(tars / "ILSVRC2012_img_train.tar", {"n99999999": contents})
    refused("holds n99999999.tar, and this year's holds nothing but", tars, tmp_path / "a", edition=edition_of(tars))
    tar_of_tars(tars / "ILSVRC2012_img_train.tar", {"n01440764": contents, "n01443537": {}})
    refused("has no image of 2 of the 3 classes: n01443537, n15075141", tars, tmp_path / "b", edition=edition_of(tars))
    few = {wnid: {f"{wnid}_1.JPEG": encoded(1)} for wnid in CLASSES}
    tar_of_tars(tars / "ILSVRC2012_img_train.tar", few)
    refused("holds 3 images, and 30 are expected", tars, tmp_path / "c", edition=edition_of(tars))


def test_no_room_is_said_before_anything_is_written(made, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: free)
    refused(
        r"has 0.0 MB free, and 0.2 MB are needed.*--config.data.dir=DIR", made[0], tmp_path, edition=edition_of(made[0])
    )
    assert not list(tmp_path.rglob("*.array_record*"))


def test_two_preparations_do_not_meet(made, tmp_path):
    work = tmp_path / "imagenet2012" / "5.1.0.unfinished" / "work"
    work.mkdir(parents=True)
    with imagenet._alone(work / "lock"):
        refused("another preparation is at work", made[0], tmp_path, edition=edition_of(made[0]))


def test_other_versions_and_formats_in_the_way_are_named(made, tmp_path):
    prepare(made[0], tmp_path, edition=edition_of(made[0]))
    place = tmp_path / "imagenet2012" / "5.1.0"
    info = json.loads((place / "dataset_info.json").read_text())
    (place / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    refused("is prepared already, but as tfrecord", made[0], tmp_path, edition=edition_of(made[0]))
    config = default_config()
    config.data.dir = str(tmp_path)
    with pytest.raises(UserError, match="but as tfrecord, not ArrayRecord. Prepare it from the tars"):
        open_dataset(recipe_of(config))
    (place / "dataset_info.json").write_text(json.dumps(info | {"version": "5.0.0"}))
    place.rename(place.with_name("5.0.0"))
    config.data.name = "imagenet2012:5.1.0"
    with pytest.raises(UserError, match=re.escape("--config.data.name=imagenet2012:5.0.0 would take it")):
        open_dataset(recipe_of(config))
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    refused("holds something that is no prepared data set", made[0], tmp_path, edition=edition_of(made[0]))
    assert (place / "notes.txt").exists()
