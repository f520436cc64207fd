"""CIFAR-10's two archives: the same records from both, under the name that TFDS gives the set."""

import gzip
import io
import os
import pickle
import re
import struct
import tarfile

import numpy as np
import pytest
from etils import epath

from vgg_jax.config import default_config, recipe_of
from vgg_jax.data import cifar, prepared
from vgg_jax.data.decode import decode
from vgg_jax.data.sources import open_dataset
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights import pickles

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


def text(content: bytes) -> bytes:
    """The instruction that pushes a string of Python 2."""
    return (
        b"U" + bytes([len(content)]) + content
        if len(content) < 256
        else b"T" + struct.pack("<I", len(content)) + content
    )


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def several(open_with: bytes, items: list[bytes], close_with: bytes) -> bytes:
    return open_with + b"".join(items) + close_with


DTYPE = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
DTYPE_STATE = several(b"(", [number(3), text(b"|"), b"NNN", number(-1), number(-1), number(0)], b"tb")


def array(shape: tuple[int, ...], content: bytes, dtype: bytes = DTYPE + DTYPE_STATE) -> bytes:
    """The instructions by which Python 2 makes an array."""
    shape = several(b"(", [number(n) for n in shape], b"t")
    return EMPTY_ARRAY + several(b"(", [number(1), shape, dtype, b"\x89", text(content)], b"tb")


def python_2_pickle(labels: bytes, data: bytes) -> bytes:
    """A batch as the official archive has it: protocol 2, strings of bytes, the values memoised."""
    items = [text(b"batch_label"), text(b"training batch 1 of 5") + b"q\x01", text(b"labels"), labels + b"q\x02"]
    items += [text(b"data"), data, text(b"filenames"), several(b"](", [text(b"a.png"), b"h\x01"], b"e")]
    return b"\x80\x02}" + several(b"(", items, b"u.")


def good_labels(labels) -> bytes:
    return several(b"](", [number(int(label)) for label in labels], b"e")


def good_data(pixels) -> bytes:
    return array(pixels.shape, pixels.tobytes())


def python_files():
    return {
        name: python_2_pickle(good_labels(labels), good_data(pixels)) for name, (labels, pixels) in batches().items()
    }


def python_archive(path):
    return archive(path, python_files())


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
    dataset = open_dataset(recipe_of(config))
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


def test_the_standard_library_reads_the_same_from_these_pickles():
    for name, content in python_files().items():
        read = pickle.loads(content, encoding="bytes")
        labels, pixels = batches()[name]
        assert read[b"labels"] == labels.tolist()
        np.testing.assert_array_equal(read[b"data"], pixels)


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_an_extracted_archive_is_read(below, tmp_path):
    (tmp_path / "root" / below).mkdir(parents=True)
    for name, content in python_files().items():
        (tmp_path / "root" / below / name).write_bytes(content)
    data = cifar.prepare(tmp_path / "root", epath.Path(tmp_path / "data"))
    by_tar = cifar.prepare(python_archive(tmp_path / "archive.tar.gz"), epath.Path(tmp_path / "by_tar"))
    assert prepared.image_digests(data, ["train", "test"]) == prepared.image_digests(by_tar, ["train", "test"])


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-was-here",)


LABELS, DATA = good_labels([1] * COUNT), good_data(np.zeros((COUNT, 3072), np.uint8))
ROWS = (COUNT, 3072)
# An array of objects whose state says that there are none, over raw bytes: pointers of the file's choice.
POINTER = b"cnumpy\ndtype\n" + text(b"V8") + number(0) + number(1) + b"\x87R"
POINTER += several(b"(", [number(3), text(b"|"), b"NNN", number(8), number(1), number(0)], b"tb")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (pickle.dumps(Hostile(), 2), r"it asks for \w+.mkdir"),
        (pickle.dumps(np.zeros(3, np.uint8), 2), "it asks for"),
        (python_2_pickle(LABELS, array(ROWS, bytes(COUNT * 3072), POINTER)), "something else than bytes"),
        (python_2_pickle(LABELS, array((COUNT, 2**30), bytes(COUNT * 3072))), "its array is not 20 images of 32 x 32"),
        (python_2_pickle(LABELS, array((-1, 3072), bytes(COUNT * 3072))), "its array is not 20 images"),
        (python_2_pickle(LABELS, array(ROWS, b"short")), "its array is not 20 images"),
        (python_2_pickle(LABELS, good_labels([-1])), "its data are not an array"),
        (python_2_pickle(LABELS, EMPTY_ARRAY), "its data are not an array"),
        (python_2_pickle(good_labels([10] * COUNT), DATA), "not 20 images of 32 x 32 in ten classes"),
        (python_2_pickle(good_labels([-1] * COUNT), DATA), "its labels are not a list of small numbers"),
        (python_2_pickle(b"]\x8a\x09" + b"\xff" * 8 + b"\0a", DATA), "its labels are not a list of small numbers"),
        (python_2_pickle(good_labels([1]), DATA), "a row of bytes for each label"),
        (b"\x80\x02(].", "its labels are not a list"),
        (b"\x80\x04\x8e" + (2**60).to_bytes(8, "little"), "its pickle is damaged"),
        (b"\x80\x02" + b"]" * 2**13 + b".", "far more instructions"),
        (b"\x80\x03", "its pickle"),
    ],
)
def test_a_hostile_pickle_is_refused_and_runs_nothing(content, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pickles, "_MOST_INSTRUCTIONS", 2**12, raising=False)
    path = archive(tmp_path / "archive.tar.gz", {"data_batch_1": content})
    with pytest.raises(UserError, match=rf"as published \(.*{sentence}"):
        cifar.prepare(path, epath.Path(tmp_path / "data"))
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "hostile-was-here").exists()


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        ({"data_batch_1.bin": b"123"}, "cannot reshape"),
        ({"data_batch_1.bin": bytes([11, *[0] * 3072]) * COUNT}, "in ten classes"),
        ({"data_batch_1.bin": bytes(3073)}, "not 20 images"),
        ({"data_batch_1.bin": b""}, "not 20 images"),
        ({"readme.html": b""}, "it holds no data_batch_1"),
    ],
)
def test_another_archive_is_refused(contents, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        cifar.prepare(archive(tmp_path / "archive.tar.gz", contents), epath.Path(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("data_batch_1", 2**32, "data_batch_1 has 4,294,967,296 bytes, more than 33,554,432"),
        ("data_batch_1", 2**26, "data_batch_1 has 67,108,864 bytes, more than 33,554,432"),
        ("another", 2**32, "it unpacks to more than 268,435,456 bytes"),
        ("another", -(2**20), "it unpacks to more than"),
    ],
)
def test_an_archive_that_unpacks_to_gigabytes_is_refused_by_its_headers(name, size, sentence, tmp_path, monkeypatch):
    """Gigabytes that are not even there, so that a reader that waits for them says something else."""
    monkeypatch.setattr(cifar, "_MOST_BYTES_IN_ALL", 2**28 if name == "another" else 2**40, raising=False)
    member = tarfile.TarInfo(name)
    member.size = size
    header = member.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(header + bytes(2**20)))
    with pytest.raises(UserError, match=re.escape(sentence)):
        cifar.prepare(tmp_path / "a.tar.gz", epath.Path(tmp_path / "data"))


@pytest.mark.parametrize("kind", ["gz", "xz"])
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
