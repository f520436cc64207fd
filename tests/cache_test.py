"""Cached probabilities: whole or not at all, of exactly these settings, and shards of an interrupted evaluation."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vgg_jax.evaluation.cache import Cache, Probs
from vgg_jax.runtime.exceptions import UserError

SETTINGS = {"params_sha256": "abc", "scale": 73, "images": 4}
WHOLE = Probs(
    np.array(["a", "b", "c", "d"]),
    np.array([2, 0, 1, -1], np.int32),
    np.arange(12, dtype=np.float32).reshape(4, 3) / 11,
    np.array([False, False, True, False]),
)


def cache(directory, **changes):
    return Cache(directory / "evaluation", "dense-Q73", SETTINGS | changes, 3)


def test_what_was_finished_is_found_with_the_same_settings_only(tmp_path):
    assert cache(tmp_path).load() is None
    cache(tmp_path).finish(WHOLE)
    for found, wanted in zip(cache(tmp_path).load(), WHOLE, strict=True):
        np.testing.assert_array_equal(found, wanted)
    for changes in ({"params_sha256": "abd"}, {"scale": 82}, {"images": 5}, {"dtype": "bfloat16"}):
        assert cache(tmp_path, **changes).load() is None
    assert sorted(file.name for file in (tmp_path / "evaluation").iterdir()) == ["dense-Q73.json", "dense-Q73.npz"]
    assert json.loads((tmp_path / "evaluation" / "dense-Q73.json").read_text()) == SETTINGS


def test_a_damaged_or_half_made_file_counts_as_none(tmp_path):
    cache(tmp_path).finish(WHOLE)
    file = tmp_path / "evaluation" / "dense-Q73.npz"
    sound = file.read_bytes()
    for damaged in (sound[: len(sound) // 2], b"", sound[:200] + b"\0" * 8 + sound[208:]):
        file.write_bytes(damaged)
        assert cache(tmp_path).load() is None
    file.write_bytes(sound)
    assert cache(tmp_path).load() is not None
    (tmp_path / "evaluation" / "dense-Q73.json").unlink()  # killed before the very last write
    assert cache(tmp_path).load() is None


def test_parts_come_back_until_all_is_finished(tmp_path):
    indices, probs = cache(tmp_path).shards()
    assert (indices.shape, probs.shape) == ((0,), (0, 3))
    cache(tmp_path).add_shard(np.array([3, 1]), WHOLE.probs[[3, 1]])
    cache(tmp_path).add_shard(np.array([0]), WHOLE.probs[[0]])
    indices, probs = cache(tmp_path).shards()
    assert indices.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(probs, WHOLE.probs[[0, 1, 3]])
    (tmp_path / "evaluation" / "dense-Q73.part-00000.npz").write_bytes(b"cut off")
    assert cache(tmp_path).shards()[0].tolist() == [0]
    cache(tmp_path).finish(WHOLE)
    assert cache(tmp_path).shards()[0].tolist() == []
    assert not list(tmp_path.glob("evaluation/*part*"))


def test_parts_of_other_settings_are_given_up(tmp_path):
    cache(tmp_path).add_shard(np.array([3, 1]), WHOLE.probs[[3, 1]])
    other = cache(tmp_path, params_sha256="abd")
    assert other.shards()[0].tolist() == []
    other.add_shard(np.array([2]), WHOLE.probs[[2]])
    assert other.shards()[0].tolist() == [2]
    assert cache(tmp_path).shards()[0].tolist() == []


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "evaluation").write_text("a file")
    with pytest.raises(UserError, match="cannot write to .*evaluation: .*give the same command again"):
        cache(tmp_path).add_shard(np.array([2]), WHOLE.probs[[2]])


def arrays(**changes):
    return {**WHOLE._asdict(), **changes}


NAN = np.where(np.eye(4, 3, dtype=bool), np.nan, WHOLE.probs).astype(np.float32)


@pytest.mark.parametrize(
    "content",
    [
        arrays(labels=WHOLE.labels[:3]),
        arrays(labels=np.array([0, 1, 2, 3], np.int32)),  # there are three classes
        arrays(labels=np.array([0, 1, 2, -2], np.int32)),
        arrays(labels=WHOLE.labels.astype(float)),
        arrays(skipped=WHOLE.skipped[:2]),
        arrays(skipped=np.zeros(4, int)),
        arrays(keys=WHOLE.keys[1:]),
        arrays(keys=np.arange(4)),
        arrays(probs=NAN),
        arrays(probs=-WHOLE.probs),
        arrays(probs=WHOLE.probs[:, :2]),
        arrays(probs=WHOLE.probs[:3]),
        arrays(more=np.zeros(1)),
        {name: array for name, array in arrays().items() if name != "keys"},
        {"keys": np.array([None, "b"], object)},
    ],
)
def test_a_file_that_does_not_fit_counts_as_none_and_is_named(tmp_path, capsys, content):
    cache(tmp_path).finish(WHOLE)
    np.savez(tmp_path / "evaluation" / "dense-Q73.npz", **content)
    assert cache(tmp_path).load() is None
    assert capsys.readouterr().out == f"{tmp_path}/evaluation/dense-Q73.npz is damaged; it is computed again\n"


def test_a_compressed_file_is_not_read(tmp_path):
    cache(tmp_path).finish(WHOLE)
    np.savez_compressed(tmp_path / "evaluation" / "dense-Q73.npz", **arrays())
    assert cache(tmp_path).load() is None


@pytest.mark.parametrize(
    "content",
    [
        {"indices": np.array([2])},
        {"probs": WHOLE.probs[[2]]},
        {"indices": np.array([4]), "probs": WHOLE.probs[[2]]},
        {"indices": np.array([-1]), "probs": WHOLE.probs[[2]]},
        {"indices": np.array([2]), "probs": WHOLE.probs[[2], :2]},
        {"indices": np.array([2, 1]), "probs": WHOLE.probs[[2]]},
        {"indices": np.array([2.0]), "probs": WHOLE.probs[[2]]},
        {"indices": np.array(2), "probs": WHOLE.probs[[2]]},
        {"indices": np.array([0]), "probs": NAN[[0]]},
    ],
)
def test_a_part_that_does_not_fit_is_computed_anew(tmp_path, capsys, content):
    cache(tmp_path).add_shard(np.array([3, 1]), WHOLE.probs[[3, 1]])
    cache(tmp_path).add_shard(np.array([1, 0]), WHOLE.probs[[1, 0]])  # 1 twice
    np.savez(tmp_path / "evaluation" / "dense-Q73.part-00002.npz", **content)
    (tmp_path / "evaluation" / "dense-Q73.part-copy.npz").write_bytes(b"")  # of somebody else
    indices, probs = cache(tmp_path).shards()
    assert indices.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(probs, WHOLE.probs[[0, 1, 3]])
    assert capsys.readouterr().out.count("is damaged") == 1
    cache(tmp_path).add_shard(np.array([2]), WHOLE.probs[[2]])
    assert cache(tmp_path).shards()[0].tolist() == [0, 1, 2, 3]


def test_several_writers_of_one_pass_do_not_stop_each_other(tmp_path, capsys):
    def compute(_):
        for _ in range(10):
            cache(tmp_path).add_shard(np.array([3, 1]), WHOLE.probs[[3, 1]])
            cache(tmp_path).shards()
            cache(tmp_path).finish(WHOLE)
            assert cache(tmp_path).load() is not None

    with ThreadPoolExecutor(4) as writers:
        list(writers.map(compute, range(4)))
    assert "damaged" not in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "evaluation").iterdir()) == ["dense-Q73.json", "dense-Q73.npz"]


def altered(path, change):
    with np.load(path) as file:
        content = dict(file)
    change(content)
    np.savez(path, **content)


@pytest.mark.parametrize("name", ["dense-Q73.npz", "dense-Q73.part-00000.npz"])
def test_numbers_in_range_that_are_not_those_written_are_not_used(tmp_path, capsys, name):
    if "part" in name:
        cache(tmp_path).add_shard(np.arange(4), WHOLE.probs)
    else:
        cache(tmp_path).finish(WHOLE)
    altered(tmp_path / "evaluation" / name, lambda content: content["probs"][1:3].fill(0.5))
    assert cache(tmp_path).load() is None
    assert cache(tmp_path).shards()[0].tolist() == []
    assert capsys.readouterr().out == f"{tmp_path}/evaluation/{name} is damaged; it is computed again\n"


def test_a_finished_file_of_version_0_4_is_used(tmp_path):
    cache(tmp_path).finish(WHOLE)
    altered(tmp_path / "evaluation" / "dense-Q73.npz", lambda content: content.pop("sha256"))
    np.testing.assert_array_equal(cache(tmp_path).load().probs, WHOLE.probs)
