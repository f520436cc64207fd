"""Several processes act as one: the same losses, one stop, one sentence; a run continues on any number of devices."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from jax.errors import JaxRuntimeError

from tests.command import REPOSITORY, as_flags, run_main, start_main
from vgg_jax.runtime import distributed, lock, session
from vgg_jax.training.checkpoints import Checkpoints

QUICKSTART = "--config=configs/quickstart.py"
STEPS = 40


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start_processes(count, devices, *arguments, own=None):
    """Starts them; `own` gives more arguments to some, by number."""
    address = f"--coordinator_address=localhost:{free_port()}"
    return [
        start_main(
            *arguments,
            *(own or {}).get(i, ()),
            address,
            f"--num_processes={count}",
            f"--process_id={i}",
            devices=devices,
        )
        for i in range(count)
    ]


def ended(processes, timeout=240):
    """[(exit status, standard error)] of each."""
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def start_local(*arguments):
    """launch/local.sh, in a session of its own as under a terminal."""
    return subprocess.Popen(
        [REPOSITORY / "launch" / "local.sh", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> dict[int, int]:
    """Process number -> id, of a launch."""
    pids = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        pids |= {int(word.partition("=")[2]): int(child) for word in words if word.startswith("--process_id=")}
    return pids


def wait_for_step(process, workdir, step):
    path = workdir / "metrics.jsonl"
    until = time.monotonic() + 480
    while process.poll() is None and time.monotonic() < until:
        if path.exists() and path.read_text().count("train/loss") >= step:
            return
        time.sleep(0.02)
    process.terminate()
    pytest.fail(f"step {step} was not reached: {process.communicate()}")


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    lines = [line for line in metrics(workdir) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["train/loss"] for line in lines]


def agree(ours, theirs, steps):
    """Within 1e-4 for so many steps; sums in another order are rounded otherwise, which grows from step to step."""
    assert ours[:steps] == pytest.approx(theirs[:steps], rel=1e-4)
    assert ours == pytest.approx(theirs, rel=1e-3)


def errors(workdir):
    return [(line["val/top1_error"], line["val/top5_error"]) for line in metrics(workdir) if "val/loss" in line]


@pytest.fixture
def config(tiny_config):
    """40 steps with a line at each and two evaluations."""
    tiny_config.num_epochs = STEPS * 8 / 90
    tiny_config.eval_every_epochs = 20 * 8 / 90
    tiny_config.log_every_steps = 1
    tiny_config.checkpoint_every_steps = 0
    return tiny_config


def flags(config, workdir):
    return QUICKSTART, f"--workdir={workdir}", *as_flags(config)


@pytest.mark.slow
def test_processes_train_as_one_and_a_run_continues_on_any_number_of_devices(config, tmp_path):
    assert run_main(*flags(config, tmp_path / "one"))[0] == 0
    single = losses(tmp_path / "one")
    assert len(single) == STEPS
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())

    # 2 x 2, parameters split over processes too.
    config.sharding = "fsdp"
    for status, err in ended(start_processes(2, 2, *flags(config, tmp_path / "two"))):
        assert status == 0, err
    agree(losses(tmp_path / "two"), single, 20)
    assert errors(tmp_path / "two") == errors(tmp_path / "one")
    assert json.loads((tmp_path / "two" / "summary.json").read_text()).keys() == summary.keys()

    # 4 x 1, with pairs of processes that see the same images. SIGTERM to one of them stops all after one step.
    config.sharding, config.model_parallel = "fc_model_parallel", 2
    processes = start_processes(4, 1, *flags(config, tmp_path / "four"))
    wait_for_step(processes[0], tmp_path / "four", 7)
    processes[2].send_signal(signal.SIGTERM)
    for status, err in ended(processes):
        assert status == 128 + signal.SIGTERM, err
        assert "Traceback" not in err
    (saved,) = [int(path.name) for path in (tmp_path / "four" / "checkpoints").iterdir()]
    assert 7 <= saved < 20
    assert losses(tmp_path / "four") == pytest.approx(single[:saved], rel=1e-4)

    for devices, sharding, parallel in ((1, "replicated", 1), (8, "fc_model_parallel", 4)):
        workdir = shutil.copytree(tmp_path / "four", tmp_path / f"four-{devices}")
        config.sharding, config.model_parallel = sharding, parallel
        status, out, err = run_main(*flags(config, workdir), devices=devices)
        assert status == 0, err
        assert f"continuing from {workdir}/checkpoints/{saved}" in out
        agree(losses(workdir), single, saved + 20)
        assert errors(workdir) == errors(tmp_path / "one")

    # These losses do tell what was learnt from: those of one step later are others.
    assert min(abs(a / b - 1) for a, b in itertools.pairwise(single)) > 1e-4
    assert max(abs(a / b - 1) for a, b in itertools.pairwise(single)) > 1e-2


@pytest.mark.slow
def test_a_killed_process_takes_the_others_down_and_ctrl_c_saves_once(config, tmp_path):
    config.num_epochs = 100.0
    config.eval_every_epochs = 100.0
    config.checkpoint_every_steps = 5
    command = ("-n", 2, "--devices-per-process", 2, "--", *flags(config, tmp_path / "run"))
    launch = start_local(*command)
    wait_for_step(launch, tmp_path / "run", 7)
    ids = children(launch.pid)
    began = time.monotonic()
    os.kill(ids[1], signal.SIGKILL)
    _, err = launch.communicate(timeout=60)
    assert time.monotonic() - began < 30  # 10 s that the launch states, and a busy machine
    assert launch.returncode == 137
    assert "process 1 of 2 has ended with status 137; the others end too" in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in ids.values())

    # The same launch continues, and Ctrl-C stops it.
    steps = len(losses(tmp_path / "run"))
    launch = start_local(*command)
    wait_for_step(launch, tmp_path / "run", steps + 5)
    launch.send_signal(signal.SIGINT)
    out, err = launch.communicate(timeout=120)
    assert launch.returncode == 130, err
    assert "continuing from" in out
    assert err.count("stopped by SIGINT after step") == 1  # process 0 speaks for all
    last = metrics(tmp_path / "run")[-1]["step"]
    assert f"stopped by SIGINT after step {last} of" in err
    assert (tmp_path / "run" / "checkpoints" / str(last)).is_dir()
    assert not list((tmp_path / "run").glob("**/*orbax-checkpoint-tmp*"))


@pytest.mark.slow
def test_a_process_that_loses_another_in_a_step_says_so(config, tmp_path):
    config.num_epochs = config.eval_every_epochs = 1000.0
    processes = start_processes(2, 1, *flags(config, tmp_path / "run"))
    wait_for_step(processes[0], tmp_path / "run", 7)
    processes[1].kill()
    (status, err), _ = ended(processes)
    assert status == 1
    assert err.startswith(LOST)
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "lock.json").exists()


LOST = "error: the connection to another process broke, so that one has died; what it printed may say why"
BROKEN = [
    ValueError(
        "UNKNOWN: Gloo AllGather failed: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:23"
    ),
    ValueError(
        "UNKNOWN: Gloo all-reduce failed: [gloo/transport/tcp/pair.cc:538] Read error: Connection reset by peer"
    ),
    JaxRuntimeError("UNAVAILABLE: Task 1 heartbeat timeout. This indicates that the remote task has failed"),
]


@pytest.fixture
def one_of_two(monkeypatch):
    """This process as one of two; what ends it raises SystemExit."""

    def install(failure):
        names = ("close", "leave", "report_failure")
        coordinator = SimpleNamespace(failure=lambda: failure, **{name: lambda *_: None for name in names})
        monkeypatch.setattr("vgg_jax.runtime.distributed._coordinator", coordinator)

    monkeypatch.setattr("vgg_jax.runtime.session._aborting", threading.Lock(), raising=False)
    monkeypatch.setattr("vgg_jax.runtime.session.os._exit", sys.exit)
    before = signal.getsignal(signal.SIGTERM)
    yield install
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("error", BROKEN)
@pytest.mark.parametrize("reported", [False, True])
def test_a_lost_process_is_not_a_disk_error_and_has_one_sentence(
    one_of_two, tmp_path, monkeypatch, capsys, error, reported
):
    def save(*_, **__):
        raise error

    one_of_two({"process": 1, "status": 2, "message": "it was refused."} if reported else None)
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", save)
    with pytest.raises(type(error)) as raised:
        checkpoints.wait()
    with pytest.raises(SystemExit) as end:
        session._fail(raised.value)
    assert end.value.code == (2 if reported else 1)
    assert capsys.readouterr().err.startswith("error: process 1: it was refused." if reported else LOST)


def test_other_errors_are_not_lost_processes(one_of_two):
    one_of_two(None)
    for error in (ValueError("connection is not a key"), OSError("peer"), JaxRuntimeError("INTERNAL: out of range")):
        assert not distributed.peer_is_lost(error)
    distributed.install(None)
    assert not distributed.peer_is_lost(BROKEN[0])


def test_a_failure_of_another_process_leaves_no_lock(one_of_two, tmp_path):
    one_of_two(None)
    with lock.locked(tmp_path, print):
        assert (tmp_path / "lock.json").exists()
        with pytest.raises(SystemExit, match="2"):
            session._abort_on_peer_failure({"process": 1, "status": 2, "message": "it was refused."})
        assert not (tmp_path / "lock.json").exists()


def test_processes_that_were_started_differently_stop_with_a_sentence(config, tmp_path):
    processes = start_processes(2, 1, *flags(config, tmp_path / "run"), own={1: ["--config.seed=1"]})
    for i, (status, err) in enumerate(ended(processes)):
        assert status == 2, err
        told = "error: process 1: " if i == 0 else "error: "
        assert f"{told}the processes were not started alike: config.seed is 1 on process 1 and 0 on process 0." in err
        assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_refusal_in_one_process_stops_all(config, tmp_path):
    processes = start_processes(2, 1, *flags(config, tmp_path / "run"), own={1: ["--config.data.root=/nowhere"]})
    (status, err), other = ended(processes)
    assert (status, other[0]) == (2, 2)
    assert "error: process 1: config.data.root is '/nowhere', and there is no such directory." in err
    assert other[1].count("error: config.data.root is '/nowhere'") == 1


@pytest.mark.parametrize(("index", "missing"), [(0, "the other processes"), (1, "process 0")])
def test_processes_that_do_not_come_are_waited_for_only_so_long(index, missing):
    status, _, err = run_main(
        QUICKSTART,
        f"--coordinator_address=localhost:{free_port()}",
        "--num_processes=2",
        f"--process_id={index}",
        "--join_timeout=3",
    )
    assert status == 2
    assert "error: waited 3 s at localhost:" in err
    assert f", and {missing} did not come. Is every process running" in err
    assert "Traceback" not in err
    assert "Check failure" not in err


def test_of_processes_that_a_cluster_started_those_that_wait_in_vain_end_as_a_crash(monkeypatch, capsys):
    """A machine that froze before it joined is no mistake of the user's: launchers try 1 again, 2 not."""
    monkeypatch.setattr(session.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(session.jax.distributed, "initialize", lambda *_, **__: time.sleep(3))
    monkeypatch.setattr(session, "_exit", sys.exit)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="1"), session.joined("", None, None, 1):
            pass
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "error: waited 1 s for the processes that JAX finds here by itself" in capsys.readouterr().err


def test_the_launch_prints_what_it_would_run_and_explains_mistakes():
    out, _ = start_local("-n", 2, "--devices-per-process", 3, "--dry-run", "--", "--config=x y").communicate(timeout=60)
    first, second = out.splitlines()
    assert "'JAX_NUM_CPU_DEVICES=3' 'JAX_LOCAL_DEVICE_IDS=0,1,2'" in first
    assert "'JAX_LOCAL_DEVICE_IDS=3,4,5'" in second
    assert second.endswith("'--num_processes=2' '--process_id=1' '--config=x y'")
    for arguments, sentence in [
        ((), "say how many processes: -n 2"),
        (("-n", "0"), "-n is '0'; it must be a whole number of at least 1 and at most 1024."),
        (("-n", 10**30), "-n is '1000000000000000000000000000000'; it must be"),
        (("-n", 2, "--devices-per-process", 1025), "--devices-per-process is '1025'; it must be"),
        (("-n",), "-n needs a value"),
        (("-n", 2), "say after -- what to run"),
        (("-n", 2, "--config=x"), "'--config=x' is not known; arguments of vgg_jax.main come after --"),
    ]:
        launch = start_local(*arguments)
        _, err = launch.communicate(timeout=60)
        assert (launch.returncode, err.startswith("error: ")) == (2, True)
        assert sentence in err
    assert "Starts PROCESSES processes" in start_local("--help").communicate(timeout=60)[0]
