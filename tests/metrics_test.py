"""metrics.jsonl and its cut back, lengths of time, JSON files that are whole or not there."""

import errno
import json
import os
import struct
import threading
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from vgg_jax.config import default_config, recipe_of
from vgg_jax.runtime.console import duration
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.files import read_json, write_atomically, write_json
from vgg_jax.training.metrics import MetricsLog, TrainMetrics


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_lies_beyond_the_checkpoint_is_cut_back(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (5, 10, 15):
        log.write(step, {"train/loss": 1 / step})
    log.close()
    path = tmp_path / "metrics.jsonl"
    with open(path, "a") as file:
        file.write('{"step": 20, "tra')  # killed in the middle of a line
    log = MetricsLog(tmp_path, 10)
    log.write(15, {"train/loss": 7.0})
    log.close()
    assert lines(path) == [
        {"step": 5, "train/loss": 0.2},
        {"step": 10, "train/loss": 0.1},
        {"step": 15, "train/loss": 7.0},
    ]
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("log_every", [1, 5, 20])
def test_the_speed_is_that_of_finished_steps(log_every, monkeypatch):
    """A step takes a second, an evaluation after every hundredth fifty."""
    clock, written = [0.0], []
    monkeypatch.setattr("vgg_jax.training.metrics.time.monotonic", lambda: clock[0])
    config = default_config()
    config.log_every_steps, config.batch_size = log_every, 32
    log = SimpleNamespace(write=lambda step, values: written.append(values["train/images_per_second"]))
    metrics = TrainMetrics(
        recipe_of(config), 100.0, 200, log, SimpleNamespace(log=lambda _: 0, progress=lambda *_: 0), None
    )
    names = ("loss", "top1_error", "top5_error", "lr", "gradient_norm/fc6", "update_ratio/fc6")
    for step in range(1, 201):
        metrics.add(step, dict.fromkeys(names, 1e-3))  # and the one before has ended
        clock[0] += 1
        if step % 100 == 0:
            metrics.flush({})
            clock[0] += 50
            metrics.resume_clock()
    assert written == [pytest.approx(32)] * (200 // log_every)


def test_a_new_run_begins_with_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    MetricsLog(tmp_path, 0).close()
    assert lines(tmp_path / "metrics.jsonl") == []


def test_damaged_lines_are_dropped_with_one_warning(tmp_path):
    good = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": float("inf")}]
    damage = [b"\0" * 40, b"\xff\xfe\x80", b"[1, 2]", b"null", b'{"train/loss": 1}', b'{"step": "1"}', b"[" * 100_000]
    first, second = (json.dumps(line).encode() for line in good)
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([first, *damage, second, b'{"step": 3, "tr']))
    said = []
    log = MetricsLog(tmp_path, 5, warn=said.append)
    log.write(6, {"train/loss": 1.0})
    log.close()
    assert said == [f"WARNING: 7 lines of {tmp_path}/metrics.jsonl are damaged and left out."]
    infinite = good.pop() | {"train/loss": None}  # JSON has no infinity
    assert lines(tmp_path / "metrics.jsonl") == [*good, infinite, {"step": 6, "train/loss": 1.0}]


def no_space(_):
    return open("/dev/full", "wb")


def input_output_error(_):
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("open_file", [no_space, input_output_error])
def test_events_that_cannot_be_written_stop_nothing(tmp_path, monkeypatch, open_file):
    monkeypatch.setattr("tensorboardX.record_writer.open_file", open_file)
    said, rows = [], [{"step": step, **{f"train/{i}": step / 7 for i in range(20)}} for step in range(1, 101)]

    def train():
        log = MetricsLog(tmp_path, 0, warn=said.append)
        for row in rows:
            log.write(row["step"], {name: value for name, value in row.items() if name != "step"})
        log.close()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert lines(tmp_path / "metrics.jsonl") == rows
    assert len(said) == 1
    assert said[0].startswith(f"WARNING: cannot write to {tmp_path}/tensorboard: ")


def test_where_metrics_cannot_be_written_it_is_said(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log._file = open("/dev/full", "a", buffering=1)
    with pytest.raises(UserError, match="cannot write to /dev/full: No space left on device; free some space"):
        log.write(5, {"train/loss": 1.0})


def test_events_are_what_metrics_are(tmp_path):
    log = MetricsLog(tmp_path, 40)
    log.write(41, {"train/loss": 0.5, "train/lr": 0.25})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    records, events = file.read_bytes(), []
    while records:  # of https://www.tensorflow.org/tutorials/load_data/tfrecord: length, its CRC, content, its CRC
        (length,) = struct.unpack_from("<Q", records)
        events.append(Event.FromString(records[12 : 12 + length]))
        records = records[16 + length :]
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (41, SessionLog.START)
    values = {value.tag: value.simple_value for value in events[2].summary.value}
    assert (events[2].step, values) == (41, {"train/loss": 0.5, "train/lr": 0.25})


def test_what_is_no_regular_file_stays_what_it_is(tmp_path):
    target, link, pipe = tmp_path / "target.json", tmp_path / "link.json", tmp_path / "pipe"
    target.write_text("1")
    link.symlink_to(target)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert json.loads(target.read_text()) == {"a": 1}
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, {"a": 2})
    assert pipe.is_fifo()
    assert json.loads(os.read(reader, 100)) == {"a": 2}
    os.close(reader)


def test_two_processes_may_write_one_file_at_once(tmp_path):
    path = tmp_path / f"{'ü' * 120}.txt"
    with write_atomically(path) as first, write_atomically(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # which ends last
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_a_killed_process_left_goes_when_it_is_old(tmp_path):
    names = {
        f"{name}{suffix}" for name in ("old", "new") for suffix in (".0123abcd.unfinished", ".json.unfinished", "")
    }
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        if name.startswith("old"):
            os.utime(tmp_path / name, (0, 0))
    write_json(tmp_path / "x.json", 1)
    assert {entry.name for entry in tmp_path.iterdir()} == names - {"old.0123abcd.unfinished"} | {"x.json"}


def test_json_has_null_for_what_is_not_finite(tmp_path):
    nan, inf = float("nan"), float("inf")
    write_json(tmp_path / "x.json", {"a": [nan, 1.5, (inf,)], "b": {"c": -inf, "d": True, "e": 2}})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [None, 1.5, [None]],
        "b": {"c": None, "d": True, "e": 2},
    }


def test_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(UserError, match="cannot write to .*a.json.*; free some space"):
        write_json(path / "b.json", {})
    write_json(tmp_path / "new" / "a.json", [1])
    assert read_json(tmp_path / "new" / "a.json", "give another") == [1]
    (tmp_path / "new" / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"new/a.json cannot be read \(.*\); give another\."):
        read_json(tmp_path / "new" / "a.json", "give another")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (273_600, "3 d 04 h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
