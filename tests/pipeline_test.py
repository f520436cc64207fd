"""The batch at step t is a pure function of (seed, t): proven on contents."""

import contextlib
import hashlib
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import grain
import jax
import numpy as np
import psutil
import pytest
import tensorflow_datasets as tfds

from tests.conftest import REPOSITORY
from vgg_jax.config import recipe_of
from vgg_jax.data.crops import random_crop
from vgg_jax.data.pipeline import batches, eval_examples, local_batches, placed, train_examples
from vgg_jax.data.sources import open_dataset, prepared_data
from vgg_jax.data.splits import open_split
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.sharding import batch_sharding, make_mesh


@pytest.fixture
def dataset(tiny_config):
    return open_dataset(recipe_of(tiny_config))


class Marked:
    """Records that can be told apart after decoding: a label of their own each."""

    def __init__(self, records):
        self.records, self.cut_short = records, records.cut_short

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return {**self.records[index], "label": index}

    def describe(self, index):
        return self.records.describe(index)


def digests(config, examples, count, start=0, devices=1):
    mesh = make_mesh(devices=jax.devices()[:devices])
    with contextlib.closing(batches(recipe_of(config), examples, mesh, start)) as iterator:
        collected = [next(iterator) for _ in range(count)]
    return [
        hashlib.sha256(np.asarray(b["image"]).tobytes() + np.asarray(b["label"]).tobytes()).hexdigest()
        for b in collected
    ]


def test_a_restart_continues_at_the_very_next_image(tiny_config, dataset):
    examples = train_examples(recipe_of(tiny_config), dataset.train)
    whole = digests(tiny_config, examples, 30)
    assert len(set(whole)) == 30
    for start in (1, 11, 12, 25):  # 11.25 batches make an epoch
        assert (
            digests(tiny_config, train_examples(recipe_of(tiny_config), dataset.train), 4, start)
            == whole[start : start + 4]
        )
    tiny_config.seed = 1
    assert digests(tiny_config, train_examples(recipe_of(tiny_config), dataset.train), 4) != whole[:4]


def test_threads_and_devices_do_not_matter(tiny_config, dataset):
    whole = digests(tiny_config, train_examples(recipe_of(tiny_config), dataset.train), 6)
    tiny_config.data.threads = 7
    assert digests(tiny_config, train_examples(recipe_of(tiny_config), dataset.train), 6, devices=8) == whole


@pytest.mark.slow
def test_processes_give_the_same_batches_where_no_flags_were_parsed(tiny_config, dataset):
    whole = digests(tiny_config, train_examples(recipe_of(tiny_config), dataset.train), 20)
    tiny_config.data.processes = 2
    # A program of its own, as a notebook is: absl has parsed nothing there.
    code = f"""
if __name__ == "__main__":
    import json
    from absl import flags
    from ml_collections import ConfigDict
    from tests.pipeline_test import digests
    from vgg_jax.config import recipe_of
    from vgg_jax.data.pipeline import train_examples
    from vgg_jax.data.sources import open_dataset
    config = ConfigDict(json.loads({tiny_config.to_json()!r}))
    assert not flags.FLAGS.is_parsed()
    print(*digests(config, train_examples(recipe_of(config), open_dataset(recipe_of(config)).train), 17, start=3))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.stdout.split() == whole[3:], run.stderr
    assert "Traceback" not in run.stderr
    assert "resource_tracker" not in run.stderr


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_share_the_same_global_batches(tiny_config, dataset, processes):
    examples = train_examples(recipe_of(tiny_config), dataset.train)
    parts = [local_batches(recipe_of(tiny_config), examples, rows) for rows in np.split(np.arange(8), processes)]
    whole = local_batches(recipe_of(tiny_config), examples, np.arange(8))
    for step in (0, 1, 11, 12, 40):
        joined = [np.concatenate([part[step][key] for part in parts]) for key in ("image", "label")]
        np.testing.assert_array_equal(joined[0], whole[step]["image"])
        np.testing.assert_array_equal(joined[1], whole[step]["label"])


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_are_those_of_grain_where_a_cpu_device_takes_them_without_a_copy(tiny_config, dataset, processes):
    examples = eval_examples(recipe_of(tiny_config), dataset.validation)
    ours = local_batches(recipe_of(tiny_config), examples, np.split(np.arange(8), processes)[-1])
    theirs = grain.MapDataset.source(examples).batch(tiny_config.batch_size // processes)[processes - 1 :: processes]
    assert len(ours) == len(theirs) == 4
    for step in range(4):
        jax.tree.map(np.testing.assert_array_equal, ours[step], theirs[step])
        assert jax.tree.map(lambda x: (x.dtype, x.shape), ours[step]) == jax.tree.map(
            lambda x: (x.dtype, x.shape), theirs[step]
        )
    image = ours[0]["image"]
    on_device = placed(image, np.arange(len(image)), len(image), batch_sharding(make_mesh(devices=jax.devices()[:1])))
    assert on_device.unsafe_buffer_pointer() == image.ctypes.data


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_an_example_is_drawn_from_its_seed_and_number_alone(tiny_config, dataset, seed):
    tiny_config.seed, marked = seed, Marked(dataset.train)
    image = tiny_config.image
    examples = train_examples(recipe_of(tiny_config), marked)
    for numbers in (range(12), range(85, 95), range(89_999_990, 90_000_000)):
        for number, example in zip(numbers, examples.make(numbers), strict=True):
            epoch, position = divmod(number, 90)
            index = np.random.default_rng((seed, epoch)).permutation(90)[position]
            rng = np.random.Generator(np.random.Philox(seed, counter=[0, 0, 0, number]))
            crop = random_crop(marked[index]["image"], rng, image.scale_min, image.scale_max, image.crop)
            assert example["label"] == index
            np.testing.assert_array_equal(example["image"], crop)
            np.testing.assert_array_equal(examples[number]["image"], crop)
    with pytest.raises(IndexError):
        examples[90_000_000]


def test_every_image_once_an_epoch_in_a_new_order_across_batches(tiny_config, dataset):
    marked = Marked(dataset.train)
    local = local_batches(recipe_of(tiny_config), train_examples(recipe_of(tiny_config), marked), np.arange(8))
    stream = np.concatenate([local[step]["label"] for step in range(45)])  # four epochs of 90 are 45 batches of 8
    epochs = stream.reshape(4, 90)
    for epoch in epochs:
        assert sorted(epoch) == list(range(90))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_an_image_is_cropped_differently_every_epoch(tiny_config, dataset):
    examples = train_examples(recipe_of(tiny_config), Marked(dataset.train))
    views = {}
    for i in range(180):
        example = examples[i]
        views.setdefault(int(example["label"]), []).append(example["image"])
    same = [np.array_equal(*pair) for pair in views.values()]
    assert np.mean(same) < 0.2


@pytest.mark.parametrize("batch_size", [1, 8, 31, 32, 40])
def test_validation_holds_every_image_once(tiny_config, dataset, batch_size):
    tiny_config.batch_size = batch_size
    examples = eval_examples(recipe_of(tiny_config), Marked(dataset.validation))
    with contextlib.closing(
        batches(recipe_of(tiny_config), examples, make_mesh(devices=jax.devices()[:1]))
    ) as iterator:
        collected = list(iterator)
    assert {b["image"].shape for b in collected} == {(batch_size, 32, 32, 3)}
    labels = np.concatenate([np.asarray(b["label"])[np.asarray(b["mask"])] for b in collected])
    assert sorted(labels) == list(range(31))


@pytest.mark.slow
def test_decoding_processes_end_with_a_killed_program(tiny_config):
    tiny_config.data.processes = 2
    open_dataset(recipe_of(tiny_config))  # prepares what the program reads, which says what it does
    code = f"""
if __name__ == "__main__":
    import json, multiprocessing, time
    from ml_collections import ConfigDict
    from vgg_jax.config import recipe_of
    from vgg_jax.data.pipeline import batches, train_examples
    from vgg_jax.data.sources import open_dataset
    from vgg_jax.runtime.sharding import make_mesh
    recipe = recipe_of(ConfigDict(json.loads({tiny_config.to_json()!r})))
    stream = batches(recipe, train_examples(recipe, open_dataset(recipe).train), make_mesh())
    for _ in range(4):
        next(stream)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    children = [int(pid) for pid in process.stdout.readline().split()]
    assert len(children) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) for pid in children)


def readable(source, index):
    try:
        source[index]
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("processes", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_byte_that_changed_on_the_disk_is_reported_with_its_record(tiny_config, tmp_path, processes):
    tiny_config.data.dir, tiny_config.data.processes = str(tmp_path / "prepared"), processes
    data = prepared_data("folder", tmp_path / "prepared", tiny_config.data.root)
    (file,) = (tmp_path / "prepared").rglob("*train.array_record*")
    content = bytearray(file.read_bytes())
    content[100_000] ^= 0x10
    file.write_bytes(content)
    builder = tfds.builder_from_directory(data.directory)
    source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    (index,) = [i for i in range(90) if not readable(source, i)]
    examples = train_examples(recipe_of(tiny_config), open_split(data, "train", "split"))
    sentence = (
        rf"record {index} of vgg_jax_folder/.*, "
        rf"train \(number {index} in {re.escape(str(file))}\) cannot be read: .*hash"
    )
    with (
        contextlib.closing(batches(recipe_of(tiny_config), examples, make_mesh(devices=jax.devices()[:1]))) as iterator,
        pytest.raises(UserError, match=sentence),
    ):
        for _ in range(12):
            next(iterator)


def test_a_file_cut_short_on_the_disk_is_reported(tiny_config, tmp_path):
    data = prepared_data("folder", tmp_path / "prepared", tiny_config.data.root)
    (file,) = (tmp_path / "prepared").rglob("*train.array_record*")
    file.write_bytes(file.read_bytes()[:70_000])
    with pytest.raises(UserError, match="cannot be read: .*bring it back from a copy, or delete its directory"):
        open_split(data, "train", "split")[80]


def test_jpegs_that_are_cut_short_are_named_once(tiny_config, dataset, capsys):
    class Shortened(Marked):
        def __getitem__(self, index):
            record = self.records[index]
            return {**record, "image": record["image"][:-200]} if index in (5, 7) else record

    make = train_examples(recipe_of(tiny_config), Shortened(dataset.train)).make
    for _ in make(range(180)):  # two epochs
        pass
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    names = [dataset.train[index]["file_name"].decode() for index in (5, 7)]
    for line in lines:
        assert line.startswith("WARNING: ")
        assert line.endswith("is a JPEG that is cut short; its last rows are made up.")
        assert any(name in line for name in names)


def test_too_little_shared_memory_is_refused_before_anything_is_begun(tiny_config, dataset, monkeypatch):
    monkeypatch.setattr("vgg_jax.data.pipeline.shutil.disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    tiny_config.data.processes, tiny_config.batch_size, tiny_config.image.crop = 2, 2048, 64
    examples = train_examples(recipe_of(tiny_config), dataset.train)
    with pytest.raises(
        UserError, match=r"processes=2 hand their batches over in /dev/shm, which has 64 MiB free, and 144 M"
    ):
        batches(recipe_of(tiny_config), examples, make_mesh(devices=jax.devices()[:1]))


def test_a_record_that_cannot_be_decoded_is_named(tiny_config, dataset):
    class Spoilt(Marked):
        def __getitem__(self, index):
            record = self.records[index]
            return {**record, "image": record["image"][:300]} if index == 5 else record

    examples = train_examples(recipe_of(tiny_config), Spoilt(dataset.train))
    name = dataset.train[5]["file_name"].decode()
    with (
        contextlib.closing(batches(recipe_of(tiny_config), examples, make_mesh(devices=jax.devices()[:1]))) as iterator,
        pytest.raises(
            UserError, match=rf"{name}, record 5 of vgg_jax_folder/.*, train \(.*\), cannot be decoded: JPEG"
        ),
    ):
        for _ in range(12):
            next(iterator)
