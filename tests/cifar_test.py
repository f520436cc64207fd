"""CIFAR-10's two archives: the same records from both, under the name that TFDS gives the set."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from etils import epath

from vgg_jax.config import default_config
from vgg_jax.data import cifar
from vgg_jax.data.decode import decode
from vgg_jax.data.sources import open_dataset
from vgg_jax.exceptions import UserError

COUNT = 20  # images of a batch, in place of 10,000
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def batches():
    rng = np.random.default_rng(0)
    return {
        name: (rng.permutation(COUNT) % 10, rng.integers(0, 256, (COUNT, 3072)).astype(np.uint8)) for name in BATCHES
    }


def archive(path, contents):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def python_archive(path):
    return archive(
        path,
        {
            name: pickle.dumps({b"labels": labels.tolist(), b"data": pixels, b"batch_label": b"x"}, protocol=3)
            for name, (labels, pixels) in batches().items()
        },
    )


def binary_archive(path):
    rows = {
        name: np.concatenate([labels[:, None].astype(np.uint8), pixels], 1)
        for name, (labels, pixels) in batches().items()
    }
    return archive(
        path, {f"{name}.bin": content.tobytes() for name, content in rows.items()} | {"batches.meta.txt": b""}
    )


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(cifar, "_IN_BATCH", COUNT)


@pytest.mark.parametrize("make", [python_archive, binary_archive])
def test_the_images_come_back_bit_for_bit_under_tfdss_name(make, tmp_path):
    data = cifar.prepare(make(tmp_path / "archive.tar.gz"), epath.Path(tmp_path / "data"))
    assert data.counts() == {"train": 5 * COUNT, "test": COUNT}
    config = default_config()
    config.data.name, config.data.dir, config.data.val_split = "cifar10", str(tmp_path / "data"), "test"
    config.model.num_classes = 10
    dataset = open_dataset(config)
    assert dataset.class_names[0] == "airplane"
    assert dataset.class_names[9] == "truck"
    labels, pixels = (np.concatenate(parts) for parts in zip(*(batches()[name] for name in BATCHES[:5]), strict=True))
    seen = set()
    for record in dataset.train:
        number = int(record["file_name"].decode()[-9:-4])
        seen.add(number)
        assert record["label"] == labels[number]
        np.testing.assert_array_equal(decode(record["image"]), pixels[number].reshape(3, 32, 32).transpose(1, 2, 0))
    assert seen == set(range(5 * COUNT))


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-was-here",)


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        ({"data_batch_1": pickle.dumps(Hostile())}, r"a pickle that names \w+.mkdir"),
        (
            {"data_batch_1": pickle.dumps({b"labels": [1], b"data": np.zeros((1, 3072), np.uint8)}, protocol=3)},
            "not 20 images of 32 x 32",
        ),
        ({"data_batch_1": b"\x80\x03"}, "is not one of CIFAR-10's archives as published"),
        ({"data_batch_1.bin": b"123"}, "cannot reshape"),
        ({"data_batch_1.bin": bytes([11, *[0] * 3072]) * COUNT}, "in ten classes"),
        ({"readme.html": b""}, "it holds no data_batch_1"),
    ],
)
def test_another_archive_is_refused_and_runs_nothing(contents, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        cifar.prepare(archive(tmp_path / "archive.tar.gz", contents), epath.Path(tmp_path / "data"))
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "hostile-was-here").exists()


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2"])
def test_a_damaged_archive_is_refused(kind, tmp_path):
    with tarfile.open(tmp_path / f"a.tar.{kind}", f"w:{kind}") as tar:
        member = tarfile.TarInfo("data_batch_1.bin")
        member.size = 1_000_000
        tar.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(member.size)))
    path = tmp_path / f"a.tar.{kind}"
    whole = path.read_bytes()
    for place in range(len(whole) // 8, len(whole), len(whole) // 8):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) * 40 + whole[place + 40 :])
        with pytest.raises(UserError, match="is not one of CIFAR-10's archives as published"):
            cifar.prepare(path, epath.Path(tmp_path / "data"))


def test_an_archive_that_is_cut_short_is_refused(tmp_path):
    path = python_archive(tmp_path / "archive.tar.gz")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="is not one of CIFAR-10's archives as published"):
        cifar.prepare(path, epath.Path(tmp_path / "data"))
