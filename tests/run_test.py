"""Computing on any number of devices: every image once, long ones exactly, what stops it named, and gone on with."""

import itertools
import os
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.evaluations import close, kept, request
from tests.reference import Reference
from tests.runs import SIZES, make_run, random_params, records_of, varied_images
from vgg_jax.evaluation import plan
from vgg_jax.evaluation import run as run_lib
from vgg_jax.evaluation.passes import EvalPass
from vgg_jax.evaluation.plan import Devices, plan_pass
from vgg_jax.evaluation.protocol import evaluate
from vgg_jax.evaluation.run import Chunk, CompiledSteps, EvalStats, run_jobs
from vgg_jax.evaluation.split import ImageIndex, Split, assemble, split_probs
from vgg_jax.evaluation.trained_model import load_trained
from vgg_jax.runtime.console import Console
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.sharding import make_mesh, replicated

DENSE, CROPS = EvalPass("dense", 73, 64, True), EvalPass("multi_crop", 73, 64, True)
QUIET = Console(quiet=True)


def net_on(run, devices):
    trained = load_trained(run)
    mesh = make_mesh(devices=jax.devices()[:devices])
    return trained._replace(mesh=mesh, variables=jax.device_put(jax.device_get(trained.variables), replicated(mesh)))


def split_of(records, trained=None):
    return Split("drawn/1.0.0", "validation", records, trained and trained.class_names, QUIET)


def computed(trained, records, eval_pass, batch_size, threads=2):
    """Probabilities in the order of the split, the chunks they came in, and what it took."""
    index, stats = split_of(records).index(threads), EvalStats()
    compiled = CompiledSteps(trained, stats)
    devices = trained.mesh.shape["data"]
    jobs = plan_pass(eval_pass, compiled.network, index.sizes, np.arange(len(records)), batch_size, Devices(devices))
    chunks = list(run_jobs(compiled, eval_pass, jobs, records, threads, stats))
    assert sum(chunk.macs for chunk in chunks) == sum(job.macs for job in jobs) == stats.computed
    return assemble(index, np.zeros(len(records), bool), chunks), chunks, stats


@pytest.fixture(scope="module")
def by_hand():
    """Dense probabilities of the images at Q = 73, computed once, by file name."""
    found = {}

    def of(config, photos):
        if not found:
            reference = Reference(random_params(config, 0), photos)
            found.update({f"{f.parent.name}/{f.name}": reference.dense(f, 73) for f in reference.files})
        return found

    return of


def test_every_device_sees_other_pictures_however_the_net_lay_in_training(net_config, tmp_path):
    net_config.sharding, net_config.model_parallel = "fc_model_parallel", 2
    trained = load_trained(make_run(tmp_path / "run", net_config))
    assert trained.mesh.shape == {"data": jax.device_count(), "model": 1}
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(trained.variables))


@pytest.mark.parametrize(
    ("batch_size", "devices"), [pytest.param(1, 1, marks=pytest.mark.slow), (7, 3), (64, 8), (1000, 5)]
)
def test_every_picture_once_for_any_batch_and_number_of_devices(run, net_config, photos, by_hand, batch_size, devices):
    whole, chunks, stats = computed(net_on(run, devices), records_of(net_config), DENSE, batch_size)
    wanted = by_hand(net_config, photos)
    assert sorted(whole.keys) == sorted(wanted)
    close(whole.probs, np.stack([wanted[key] for key in whole.keys]))
    assert sum(len(chunk.indices) for chunk in chunks) == len(SIZES)
    assert 0 < stats.needed < stats.computed
    assert stats.shapes <= 9  # eight buckets and one of tiles


def test_each_process_has_an_equal_part_of_every_batch(monkeypatch):
    for processes in (1, 2, 4, 8):
        monkeypatch.setattr(jax, "process_count", lambda count=processes: count)
        taken = []
        for process in range(processes):
            monkeypatch.setattr(jax, "process_index", lambda index=process: index)
            taken.append(list(range(24))[run_lib.rows_of_process(24)])
        assert list(itertools.chain(*taken)) == list(range(24))
        assert {len(part) for part in taken} == {24 // processes}


def test_what_is_not_there_exactly_once_is_an_error():
    index = ImageIndex(np.array(["a", "b", "c"]), np.zeros(3, np.int64), np.zeros((3, 2), np.int64))
    none, values = np.zeros(3, bool), np.ones((3, 2), np.float32)

    def chunks(*indices):
        return [Chunk(np.array(indices[:1]), values[:1], 0), Chunk(np.array(indices[1:]), values[1:], 0)]

    assert assemble(index, none, chunks(2, 0, 1)).probs.shape == (3, 2)
    with pytest.raises(RuntimeError, match="of 3 images, 0 skipped, 1 were not computed and 1 more than once"):
        assemble(index, none, chunks(2, 0, 0))
    with pytest.raises(RuntimeError, match="1 skipped, 0 were not computed"):
        assemble(index, np.array([True, False, False]), chunks(2, 0, 1))


@pytest.mark.slow
def test_an_extreme_image_is_computed_in_tiles_with_bounded_memory(net_config, tmp_path):
    # 1 x 300 pixels, which Q = 73 makes 73 x 21,900: dense, and its crops.
    root = varied_images(tmp_path / "long", sizes=[(1, 300), (90, 80)])
    net_config.data.root, net_config.data.dir = str(root), str(tmp_path / "d")
    trained, records = load_trained(make_run(tmp_path / "run", net_config)), records_of(net_config)
    reference = Reference(random_params(net_config, 0), root)
    shapes = []
    compiled = run_lib.compile_step
    try:
        run_lib.compile_step = lambda step, *args, **kw: shapes.append(args[1].shape) or compiled(step, *args, **kw)
        dense, _, stats = computed(trained, records, DENSE, 16)
        crops, _, _ = computed(trained, records, CROPS, 16)
        ten, _, _ = computed(trained, records, CROPS._replace(method="ten_crop"), 16)
        squares, _, _ = computed(trained, records, CROPS._replace(method="square_crop"), 16)
    finally:
        run_lib.compile_step = compiled
    assert max(max(shape) for shape in shapes) < 1000
    assert stats.computed < 1.5 * stats.needed
    for whole, function in (
        (dense, reference.dense),
        (crops, reference.multi_crop),
        (ten, reference.ten_crop),
        (squares, reference.square_crop),
    ):
        for key, found in zip(whole.keys, whole.probs, strict=True):
            close(found, function(root / "validation" / key, 73))


def test_an_image_too_large_is_skipped_by_name_and_counts_as_wrong(net_config, tmp_path, monkeypatch):
    root = varied_images(tmp_path / "long", sizes=[(90, 80), (80, 90), (5, 700)])
    net_config.data.root, net_config.data.dir = str(root), str(tmp_path / "d")
    run = make_run(tmp_path / "run", net_config)
    monkeypatch.setattr(plan, "MAX_PIXELS", 73 * 5000)
    summary = evaluate(request(run, protocol="dense+multi_crop", scales="73"), quiet=True)
    assert summary["skipped"] == ["cross/002.png"]
    stored = kept(run, "*/dense-Q73")
    assert stored["skipped"].tolist() == [False, False, True]
    wrong = (stored["probs"].argmax(1) != stored["labels"]) | stored["skipped"]
    assert summary["rows"][0]["top1_error"] == pytest.approx(wrong.mean())
    assert summary["rows"][0]["top5_error"] is None  # of three classes


class Spoilt:
    """Records of which one cannot be decoded, or whose reading is interrupted."""

    def __init__(self, records, index, error=None):
        self.records, self.index, self.error, self.read = records, index, error, []

    def __len__(self):
        return len(self.records)

    def describe(self, index):
        return self.records.describe(index)

    def __getitem__(self, index):
        record = self.records[index]
        self.read.append(index)
        if index != self.index:
            return record
        if self.error:
            raise self.error
        return {**record, "image": record["image"][: len(record["image"]) // 2]}


@pytest.mark.parametrize(("error", "raised"), [(None, UserError), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_what_was_computed_before_a_bad_picture_or_ctrl_c_is_kept(run, net_config, tmp_path, error, raised):
    trained, records = net_on(run, 1), records_of(net_config)

    def evaluated(split):
        return split_probs(trained, [DENSE], split, 2, EvalStats())[DENSE]

    before = evaluated(split_of(records, trained))
    (run / "evaluation").rename(tmp_path / "before")
    index = split_of(records).index(2)
    # The image whose turn comes last among those that need no tiles.
    jobs = plan.plan_pass(DENSE, CompiledSteps(trained, EvalStats()).network, index.sizes, np.arange(10), 2, Devices(1))
    last = [job for job in jobs if not job.is_long][-1].bucket.indices[0]
    bad = split_of(Spoilt(records, last, error), trained)
    bad._index = index
    with pytest.raises(raised) as caught:
        evaluated(bad)
    if raised is UserError:
        assert re.match(
            rf"{index.keys[last]}, record {last} of .*, cannot be decoded: .*so far is kept", str(caught.value)
        )
    assert not list(run.glob("evaluation/7/*/dense-Q73.npz"))
    (part,) = run.glob("evaluation/7/*/dense-Q73.part-00000.npz")
    with np.load(part) as arrays:
        done = arrays["indices"].tolist()
    assert 0 < len(done) < 10

    mended = Spoilt(records, None)
    again = split_of(mended, trained)
    again._index = index
    found = evaluated(again)
    assert sorted(mended.read) == sorted(set(range(10)) - set(done))  # nothing is computed twice
    np.testing.assert_allclose(found.probs, before.probs, rtol=1e-5, atol=1e-7)
    assert not list(run.glob("evaluation/7/*/*part*"))


def test_bfloat16_is_kept_apart_and_nearly_the_same(run):
    exact = evaluate(request(run), quiet=True)
    rough = evaluate(request(run, dtype="bfloat16"), quiet=True)
    assert rough["models"][0]["dtype"] == "bfloat16"
    assert exact["computing"]["computed"] == rough["computing"]["computed"] > 0
    both = [kept(run, f"*/{name}")["probs"] for name in ("dense-Q73", "dense-bfloat16-Q73")]
    assert 0 < np.abs(both[0] - both[1]).max() < 0.1


def test_split_probs_another_training_are_not_taken_for_this_ones(run, net_config, tmp_path):
    evaluate(request(run), quiet=True)
    before = kept(run, "*/dense-Q73")["probs"]
    other = make_run(tmp_path / "other", net_config, seed=1)
    (run / "checkpoints").rename(tmp_path / "old")
    (other / "checkpoints").rename(run / "checkpoints")
    assert evaluate(request(run), quiet=True)["computing"]["computed"] > 0
    assert np.abs(kept(run, "*/dense-Q73")["probs"] - before).max() > 0.01


_ONE_OF_TWO = """
import sys
from vgg_jax.evaluation.protocol import Request, evaluate
from vgg_jax.runtime.session import joined
with joined(sys.argv[1], 2, int(sys.argv[2])):
    evaluate(Request((sys.argv[3],), "dense+multi_crop", "73"), quiet=True)
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_does(run, net_config, tmp_path):
    other = make_run(tmp_path / "two" / "run", net_config)
    evaluate(request(run, protocol="dense+multi_crop", scales="73"), quiet=True)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "3"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _ONE_OF_TWO, address, str(rank), str(other)],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err.decode()[-2000:]
    for name in ("dense-Q73", "multi_crop-Q73"):
        alone, together = kept(run, f"*/{name}"), kept(other, f"*/{name}")
        assert together["keys"].tolist() == alone["keys"].tolist()
        close(together["probs"], alone["probs"])


def test_shapes_are_compiled_ahead_in_order_and_those_that_nobody_waits_for_are_left_alone(
    run, net_config, monkeypatch
):
    begun, may_end = [], threading.Semaphore(0)

    def compile_step(*arguments, **_):
        shape = arguments[2].shape  # of the step, the variables, the images, and more
        begun.append(shape)
        may_end.acquire(timeout=60)
        return lambda *_: np.zeros((shape[0], 3), np.float32)

    monkeypatch.setattr(run_lib, "compile_step", compile_step)
    trained, records = net_on(run, 1), records_of(net_config)
    compiled, sizes = CompiledSteps(trained, EvalStats()), split_of(records).index(2).sizes
    jobs = plan_pass(DENSE, compiled.network, sizes, np.arange(len(records)), 1, Devices(1))
    shapes = list(dict.fromkeys((job.bucket.batch_size, *job.bucket.shape, 3) for job in jobs if job.kind == "dense"))
    stream = run_jobs(compiled, DENSE, jobs, records, 2, EvalStats())
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, stream)
        may_end.release(2)  # the second job is begun before the first is fetched
        assert first.result(timeout=60).indices.tolist() == jobs[0].bucket.indices.tolist()
    stream.close()
    may_end.release(len(shapes))
    compiled._compiler.shutdown()
    assert begun == shapes[: len(begun)]
    assert len(begun) <= 3 < len(shapes)
