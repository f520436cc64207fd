"""Records are parsed as protobuf parses them."""

import random
import re
import resource

import pytest
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from vgg_jax.config import recipe_of
from vgg_jax.data.records import _parse, _parse_fast, serialized
from vgg_jax.data.sources import open_dataset
from vgg_jax.runtime.exceptions import UserError


def example(label=(3,), image=(bytes(range(256)) * 9,), name=(b"a.jpg",), **others):
    made = tf_example_pb2.Example()
    made.features.feature["image"].bytes_list.value.extend(image)
    made.features.feature["label"].int64_list.value.extend(label)
    if name:
        made.features.feature["file_name"].bytes_list.value.extend(name)
    for key, values in others.items():
        made.features.feature[key].float_list.value.extend(values)
    return made.SerializeToString()


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"name": ()},
        {"label": (0,)},
        {"label": (999,)},
        {"label": (2**28,)},
        {"label": (2**63 - 1,)},
        {"label": (-1,)},
        {"image": (b"",)},
        {"image": (b"x" * 127,)},
        {"image": (b"x" * 3_000_000,)},
        {"box": (0.5, 1.0)},
        {"unnamed": ()},
    ],
)
def test_plain_layouts(plain):
    content = example(**plain)
    assert _parse_fast(content) == _parse(content)


@pytest.mark.parametrize("odd", [{"label": (1, 2)}, {"image": (b"x", b"y")}, {"name": (b"x", b"y")}])
def test_other_layouts_are_left_to_protobuf(odd):
    assert _parse_fast(example(**odd)) is None
    assert _parse(example(**odd))["label"] == odd.get("label", (3,))[0]


@pytest.mark.parametrize("lacking", [{"image": ()}, {"label": ()}])
def test_an_example_that_lacks_what_is_needed(lacking):
    assert _parse_fast(example(**lacking)) is None
    with pytest.raises(IndexError):
        _parse(example(**lacking))


@pytest.mark.parametrize("label", [0, 127, 128, 999, -1, 2**63 - 1])
def test_what_is_written_is_what_protobuf_reads(label):
    record = {"image": bytes(range(256)) * 99, "label": label, "file_name": "ä.jpg".encode()}
    assert _parse(serialized(record)) == record
    assert serialized(record) == tf_example_pb2.Example.FromString(serialized(record)).SerializeToString(
        deterministic=True
    )


def test_as_many_files_may_be_open_as_a_data_set_has(tiny_config):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        open_dataset(recipe_of(tiny_config))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 65_536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("open() failed: Too many open files", "let more be open, as with `ulimit -n 4096`."),
        ("open() failed: Permission denied", "The file is not there or may not be read; mend that"),
        ("CRC", "The file has changed since it was prepared: bring it back from a copy"),
    ],
)
def test_what_cannot_be_read_has_the_remedy_for_its_reason(tiny_config, monkeypatch, reason, remedy):
    records = open_dataset(recipe_of(tiny_config)).train

    def fails(_):
        raise RuntimeError(reason)

    monkeypatch.setattr(records, "_source", type("Source", (), {"__getitem__": lambda self, i: fails(i)})())
    with pytest.raises(UserError, match=re.escape(f"cannot be read: {reason}. ") + ".*" + re.escape(remedy)):
        records[0]


def test_what_is_prepared_is_plain(tiny_config):
    records = open_dataset(recipe_of(tiny_config)).train
    for index in range(len(records)):
        assert _parse_fast(records._source[index]) == _parse(records._source[index])


def test_a_damaged_example_is_never_read_as_another():
    rng, read = random.Random(0), 0
    for _ in range(20_000):
        content = bytearray(example(image=(b"0123456789",), box=(1.0,)))
        for _ in range(rng.choice((1, 1, 1, 2))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        found = _parse_fast(bytes(content))
        if found is not None:
            read += 1
            try:
                wanted = _parse(bytes(content))
            except DecodeError:  # what is not needed is not looked at
                continue
            assert found == wanted
    assert read > 1000
