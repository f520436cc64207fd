"""Kept posteriors: whole or not at all, of exactly these settings, and parts of an interrupted evaluation."""

import json

import numpy as np
import pytest

from vgg_jax.evaluation.store import Posteriors, Store
from vgg_jax.exceptions import UserError

SETTINGS = {"params_sha256": "abc", "scale": 73, "images": 4}
WHOLE = Posteriors(
    np.array(["a", "b", "c", "d"]),
    np.array([2, 0, 1, -1], np.int32),
    np.arange(12, dtype=np.float32).reshape(4, 3) / 11,
    np.array([False, False, True, False]),
)


def store(directory, **changes):
    return Store(directory / "evaluation", "dense-Q73", SETTINGS | changes, 3)


def test_what_was_finished_is_found_with_the_same_settings_only(tmp_path):
    assert store(tmp_path).load() is None
    store(tmp_path).finish(WHOLE)
    for found, wanted in zip(store(tmp_path).load(), WHOLE, strict=True):
        np.testing.assert_array_equal(found, wanted)
    for changes in ({"params_sha256": "abd"}, {"scale": 82}, {"images": 5}, {"dtype": "bfloat16"}):
        assert store(tmp_path, **changes).load() is None
    assert sorted(file.name for file in (tmp_path / "evaluation").iterdir()) == ["dense-Q73.json", "dense-Q73.npz"]
    assert json.loads((tmp_path / "evaluation" / "dense-Q73.json").read_text()) == SETTINGS


def test_a_damaged_or_half_made_file_counts_as_none(tmp_path):
    store(tmp_path).finish(WHOLE)
    file = tmp_path / "evaluation" / "dense-Q73.npz"
    sound = file.read_bytes()
    for damaged in (sound[: len(sound) // 2], b"", sound[:200] + b"\0" * 8 + sound[208:]):
        file.write_bytes(damaged)
        assert store(tmp_path).load() is None
    file.write_bytes(sound)
    assert store(tmp_path).load() is not None
    (tmp_path / "evaluation" / "dense-Q73.json").unlink()  # killed before the very last write
    assert store(tmp_path).load() is None


def test_parts_come_back_until_all_is_finished(tmp_path):
    indices, posteriors = store(tmp_path).parts()
    assert (indices.shape, posteriors.shape) == ((0,), (0, 3))
    store(tmp_path).add_part(np.array([3, 1]), WHOLE.posteriors[[3, 1]])
    store(tmp_path).add_part(np.array([0]), WHOLE.posteriors[[0]])
    indices, posteriors = store(tmp_path).parts()
    assert indices.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(posteriors, WHOLE.posteriors[[0, 1, 3]])
    (tmp_path / "evaluation" / "dense-Q73.part-00000.npz").write_bytes(b"cut off")
    assert store(tmp_path).parts()[0].tolist() == [0]
    store(tmp_path).finish(WHOLE)
    assert store(tmp_path).parts()[0].tolist() == []
    assert not list(tmp_path.glob("evaluation/*part*"))


def test_parts_of_other_settings_are_given_up(tmp_path):
    store(tmp_path).add_part(np.array([3, 1]), WHOLE.posteriors[[3, 1]])
    other = store(tmp_path, params_sha256="abd")
    assert other.parts()[0].tolist() == []
    other.add_part(np.array([2]), WHOLE.posteriors[[2]])
    assert other.parts()[0].tolist() == [2]
    assert store(tmp_path).parts()[0].tolist() == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "evaluation").write_text("a file")
    with pytest.raises(UserError, match="cannot write to .*evaluation: .*give the same command again"):
        store(tmp_path).add_part(np.array([2]), WHOLE.posteriors[[2]])


def arrays(**changes):
    return {**WHOLE._asdict(), **changes}


NAN = np.where(np.eye(4, 3, dtype=bool), np.nan, WHOLE.posteriors).astype(np.float32)


@pytest.mark.parametrize(
    "content",
    [
        arrays(labels=WHOLE.labels[:3]),
        arrays(labels=np.array([0, 1, 2, 3], np.int32)),  # there are three classes
        arrays(labels=np.array([0, 1, 2, -2], np.int32)),
        arrays(labels=WHOLE.labels.astype(float)),
        arrays(refused=WHOLE.refused[:2]),
        arrays(refused=np.zeros(4, int)),
        arrays(keys=WHOLE.keys[1:]),
        arrays(keys=np.arange(4)),
        arrays(posteriors=NAN),
        arrays(posteriors=-WHOLE.posteriors),
        arrays(posteriors=WHOLE.posteriors[:, :2]),
        arrays(posteriors=WHOLE.posteriors[:3]),
        arrays(more=np.zeros(1)),
        {name: array for name, array in arrays().items() if name != "keys"},
        {"keys": np.array([None, "b"], object)},
    ],
)
def test_a_file_that_does_not_fit_counts_as_none_and_is_named(tmp_path, capsys, content):
    store(tmp_path).finish(WHOLE)
    np.savez(tmp_path / "evaluation" / "dense-Q73.npz", **content)
    assert store(tmp_path).load() is None
    assert capsys.readouterr().out == f"{tmp_path}/evaluation/dense-Q73.npz is damaged; it is computed anew\n"


def test_a_compressed_file_is_not_read(tmp_path):
    store(tmp_path).finish(WHOLE)
    np.savez_compressed(tmp_path / "evaluation" / "dense-Q73.npz", **arrays())
    assert store(tmp_path).load() is None


@pytest.mark.parametrize(
    "content",
    [
        {"indices": np.array([2])},
        {"posteriors": WHOLE.posteriors[[2]]},
        {"indices": np.array([4]), "posteriors": WHOLE.posteriors[[2]]},
        {"indices": np.array([-1]), "posteriors": WHOLE.posteriors[[2]]},
        {"indices": np.array([2]), "posteriors": WHOLE.posteriors[[2], :2]},
        {"indices": np.array([2, 1]), "posteriors": WHOLE.posteriors[[2]]},
        {"indices": np.array([2.0]), "posteriors": WHOLE.posteriors[[2]]},
        {"indices": np.array(2), "posteriors": WHOLE.posteriors[[2]]},
        {"indices": np.array([0]), "posteriors": NAN[[0]]},
    ],
)
def test_a_part_that_does_not_fit_is_computed_anew(tmp_path, capsys, content):
    store(tmp_path).add_part(np.array([3, 1]), WHOLE.posteriors[[3, 1]])
    store(tmp_path).add_part(np.array([1, 0]), WHOLE.posteriors[[1, 0]])  # 1 twice
    np.savez(tmp_path / "evaluation" / "dense-Q73.part-00002.npz", **content)
    (tmp_path / "evaluation" / "dense-Q73.part-copy.npz").write_bytes(b"")  # of somebody else
    indices, posteriors = store(tmp_path).parts()
    assert indices.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(posteriors, WHOLE.posteriors[[0, 1, 3]])
    assert capsys.readouterr().out.count("is damaged") == 1
    store(tmp_path).add_part(np.array([2]), WHOLE.posteriors[[2]])
    assert store(tmp_path).parts()[0].tolist() == [0, 1, 2, 3]
