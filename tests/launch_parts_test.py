"""What runs on the machines that launchers reach: launch/node.sh, SLURM's job, the GPUs of a box."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cloud import CONFIG, SLURM, VM, Cloud, git
from tests.conftest import REPOSITORY

COMMIT = ["rev-parse", "HEAD"]


class Node:
    """A machine whose bucket is a directory and whose interpreter is played."""

    def __init__(self, cloud: Cloud):
        self.cloud, self.home, self.bucket = cloud, cloud.directory / "home", cloud.directory / "bucket"
        self.commit = git(cloud.clone, *COMMIT)
        for directory in (self.home, self.bucket / "code", self.bucket / "datasets" / "x"):
            directory.mkdir(parents=True)
        git(cloud.clone, "bundle", "create", "--quiet", str(self.bucket / "code" / f"{self.commit}.bundle"), "HEAD")
        (self.bucket / "datasets" / "x" / "records").write_bytes(b"12345")

    def start(self, part: str = "all", **settings) -> subprocess.Popen:
        environment = {
            "PATH": f"{self.cloud.directory}/bin:{os.environ['PATH']}",
            "FAKE_CLOUD": str(self.cloud.directory),
            "HOME": str(self.home),
            "MOUNT": str(self.bucket),
            "PYTHON": "trainer",
            "SYNC_SECONDS": "1",
            "BUCKET": "gs://my-bucket",
            "NAME": "mine",
            "COMMIT": self.commit,
            "LAUNCH": "time-1",
            "WORKER": "worker-0",
            "EXTRA": "tpu",
            "DATA": "datasets",
            "FLAGS": "--config=configs/vgg16.py '--config.seed=a b'",
        } | settings
        return subprocess.Popen(
            ["bash", str(REPOSITORY / "launch" / "node.sh"), part],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, part: str = "all", **settings) -> tuple[int, str]:
        process = self.start(part, **settings)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out

    def report(self, suffix: str) -> str:
        return (self.bucket / "launches" / "mine" / "time-1" / f"worker-0.{suffix}").read_text()


def program(file: Path, script: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.fixture
def node(cloud) -> Node:
    return Node(cloud)


@pytest.mark.parametrize("status", [0, 2, 139])
def test_a_node_trains_the_commit_on_a_copy_of_the_data_and_reports(status, node):
    node.cloud.plays({"trainer": [{"status": status, "out": "step 1\n"}]})
    returned, out = node.run()
    assert returned == status, out
    assert node.cloud.calls("trainer") == [
        f"trainer -m vgg_jax.main --workdir={node.bucket}/runs/mine --config.data.dir={node.home}/data "
        "--config=configs/vgg16.py --config.seed=a b"
    ]
    assert node.report("status") == f"{status}\n"
    assert node.report("log") == "step 1\n"
    assert git(node.home / f"vgg_jax-{node.commit}", *COMMIT) == node.commit
    assert (node.home / "data" / "x" / "records").read_bytes() == b"12345"


def test_a_node_that_was_interrupted_in_copying_continues(node):
    copy = node.home / "data" / "x"
    copy.mkdir(parents=True)
    (copy / "records").write_bytes(b"123")  # cut off by something else than this script, which renames
    (copy / "other.unfinished").write_bytes(b"1")
    assert node.run()[0] == 0
    assert (copy / "records").read_bytes() == b"12345"


def test_a_node_names_missing_programs(node):
    status, out = node.run(DATA="datasetz")
    assert status == 2
    assert (
        out
        == "error: there is no directory datasetz in gs://my-bucket; prepare the data there, or name another DATA.\n"
    )
    program(node.cloud.directory / "bin" / "df", "printf 'Avail\\n0\\n'")
    (node.bucket / "datasets" / "large").write_bytes(bytes(5_000_000))
    status, out = node.run()
    assert status == 2
    assert "the data in gs://my-bucket/datasets are 6 MB and there are 1 MB for them on the disk of worker-0" in out
    assert node.cloud.calls("trainer") == []


def test_a_download_that_fails_is_not_a_refusal(node):
    """uv ends with 2 where the network is away, which would be taken for a mistake of the user's."""
    program(node.cloud.directory / "bin" / "python3", "exit 0")
    program(node.home / ".local" / "bin" / "uv", "exit 2")
    assert node.run("prepare", PYTHON="")[0] == 1


def test_a_bucket_that_fails_for_a_moment_costs_no_report(node):
    failed = node.cloud.directory / "failed"
    once = f'[ -e {failed} ] || {{ touch {failed}; echo "cp: {failed}" >&2; exit 1; }}'
    program(node.cloud.directory / "bin" / "cp", f'case $2 in *.log) {once} ;; esac; exec /bin/cp "$@"')
    node.cloud.plays({"trainer": [{"out": "step 1\n", "shell": "sleep 2.5"}]})
    assert node.run()[0] == 0
    assert failed.exists()
    assert (node.report("status"), node.report("log")) == ("0\n", "step 1\n")
    assert int(node.report("alive").splitlines()[-1]) == pytest.approx(time.time(), abs=60)


def test_a_signal_after_training_has_ended_costs_no_report(node):
    program(node.cloud.directory / "bin" / "cp", 'case $2 in *.log) sleep 1 ;; esac; exec /bin/cp "$@"')
    node.cloud.plays({"trainer": [{"status": 2}]})
    process = node.start()
    while not node.cloud.calls("trainer"):
        time.sleep(0.02)
    time.sleep(0.5)
    process.terminate()
    process.communicate(timeout=20)
    assert (process.returncode, node.report("status")) == (2, "2\n")


def test_a_signal_to_a_node_is_training_s_and_is_waited_for(node):
    saves = "trap 'sleep 0.3; echo saved; exit 143' TERM; while :; do sleep 0.05; done"
    node.cloud.plays({"trainer": [{"shell": saves}]})
    process = node.start()
    while not node.cloud.calls("trainer"):
        time.sleep(0.02)
    time.sleep(0.3)
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 143
    assert (node.report("status"), node.report("log")) == ("143\n", "saved\n")


def test_a_node_is_prepared_without_training(node):
    (node.home / f"vgg_jax-{node.commit}.unfinished").mkdir()  # of a machine that went down
    assert node.run("prepare") == (0, "")
    assert node.run("prepare") == (0, "")
    assert (node.home / "data" / "x" / "records").exists()
    assert git(node.home / f"vgg_jax-{node.commit}", *COMMIT) == node.commit
    assert node.cloud.calls("trainer") == []


def test_a_node_without_a_commit_trains_the_code_that_is_there(node):
    assert node.run(COMMIT="", CODE=str(node.cloud.clone))[0] == 0
    assert len(node.cloud.calls("trainer")) == 1


def test_a_node_reads_data_of_a_disk_where_they_are(node, tmp_path):
    assert node.run(DATA=str(tmp_path))[0] == 0
    assert f" --config.data.dir={tmp_path} " in node.cloud.calls("trainer")[0]
    assert not (node.home / "data").exists()


def test_a_node_whose_bucket_is_not_mounted_yet_reports_nothing(node):
    """What is written below a mount point before the mount is hidden by it, or prevents it."""
    (node.bucket / "code").rename(node.bucket / "elsewhere")
    program(node.cloud.directory / "bin" / "gcsfuse", f"sleep 2; mv {node.bucket}/elsewhere {node.bucket}/code")
    program(node.cloud.directory / "bin" / "mountpoint", "exit 1")
    process = node.start()
    time.sleep(1.5)
    assert not (node.bucket / "launches").exists()
    process.communicate(timeout=60)
    assert (process.returncode, node.report("status")) == (0, "0\n")


# --- SLURM ---


def test_slurm_takes_a_job_on_the_commit(cloud, tmp_path):
    shared = tmp_path / "shared"
    cloud.plays({"sbatch": [{"out": "77;cluster\n"}]})
    status, out = cloud.run("slurm.sh", SLURM[1] | {"SHARED": str(shared), "PYTHON": "trainer"})
    assert status == 0, out
    assert out.splitlines()[-1].startswith(
        f"submitted as job 77; log: {shared}/logs/vgg16-77.log; run: {shared}/runs/vgg16."
    )
    commit = git(cloud.clone, *COMMIT)
    assert git(shared / "code" / commit, *COMMIT) == commit
    (call,) = cloud.calls("sbatch")
    assert "--nodes=2 --ntasks-per-node=8 --gpus-per-node=8" in call
    assert call.endswith(f"{shared}/code/{commit}/launch/slurm_job.sh {CONFIG}")
    cloud.plays({"sbatch": [{"status": 1, "err": "sbatch: error: Invalid partition specified\n"}]})
    status, out = cloud.run("slurm.sh", SLURM[1] | {"SHARED": str(shared), "PYTHON": "trainer"})
    assert status == 1
    assert out.splitlines()[-1] == "error: SLURM did not take the job: sbatch: error: Invalid partition specified"


def job(cloud, **settings) -> subprocess.Popen:
    environment = {"SHARED": "/shared", "NAME": "mine", "DATA": "/data", "TRIES": "3", "PYTHON": "trainer"}
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]", "FAKE_CLOUD": str(cloud.directory)}
    return subprocess.Popen(
        ["bash", str(REPOSITORY / "launch" / "slurm_job.sh"), CONFIG],
        env=environment | slurm | {"PATH": f"{cloud.directory}/bin:{os.environ['PATH']}"} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("status", "restarts", "queued_again", "sentence"),
    [
        (0, 0, False, "finished: the run is in /shared/runs/mine"),
        (2, 0, False, "error: training was refused, see above; the job is not queued again."),
        (
            143,
            0,
            True,
            "training ended with status 143; the job is queued again and continues from the last checkpoint",
        ),
        (
            139,
            1,
            True,
            "training ended with status 139; the job is queued again and continues from the last checkpoint",
        ),
        (143, 2, False, "error: gave up after 3 tries, the last of which ended with status 143;"),
    ],
)
def test_slurm_s_job_continues_a_limited_number_of_times(status, restarts, queued_again, sentence, cloud):
    cloud.plays({"srun": [{"status": status}]})
    process = job(cloud, SLURM_RESTART_COUNT=str(restarts))
    out, _ = process.communicate(timeout=20)
    assert process.returncode == status
    assert out.splitlines()[-1].startswith(sentence)
    assert cloud.calls("scontrol") == (["scontrol requeue 77"] if queued_again else [])
    assert cloud.calls("srun") == [
        "srun --kill-on-bad-exit=0 trainer -m vgg_jax.main --config=configs/vgg16.py --distributed "
        "--workdir=/shared/runs/mine --config.data.dir=/data"
    ]


def test_slurm_s_job_says_where_it_is_not_queued_again(cloud):
    cloud.plays({"srun": [{"status": 143}], "scontrol": [{"status": 1}]})  # after scontrol update Requeue=0
    process = job(cloud)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 143
    assert out.splitlines()[-1].startswith("error: SLURM does not queue the job again; submit again")


def test_slurm_s_job_outlives_the_signal_that_training_saves_at(cloud):
    cloud.plays({"srun": [{"shell": "sleep 0.6; exit 143"}]})
    process = job(cloud)
    while not cloud.calls("srun"):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143
    assert cloud.calls("scontrol") == ["scontrol requeue 77"]


# --- the GPUs of a box ---


@pytest.mark.parametrize(
    ("statuses", "returned", "times"), [([0], 0, 1), ([139, 0], 0, 2), ([2], 2, 1), ([143], 143, 1), ([139], 1, 3)]
)
def test_the_gpus_of_a_box_continue_after_a_crash(statuses, returned, times, cloud):
    cloud.plays({"trainer -m": [{"status": status} for status in statuses], "nvidia-smi": [{"out": "GPU 0\nGPU 1\n"}]})
    status, out = cloud.run("gpus.sh", {"PYTHON": "trainer", "TRIES": "3", "DATA": "/data"})
    assert status == returned, out
    assert "on 2 GPU(s)" in out
    assert cloud.calls("trainer -m") == times * [
        f"trainer -m vgg_jax.main {CONFIG} --config.data.dir=/data --workdir=runs/vgg16"
    ]


# As training does, which a second signal kills.
_SAVES = """
import os, signal, time
received = []
numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
def handle(number, frame):
    received.append(number)
    for each in numbers:
        signal.signal(each, signal.SIG_DFL)
for number in numbers:
    signal.signal(number, handle)
while not received:
    time.sleep(0.02)
time.sleep(0.3)
print("saved", flush=True)
os._exit(143)
"""


@pytest.mark.parametrize("launcher", ["gpus.sh", "local.sh"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_training_gets_one_signal_of_the_terminal_and_is_waited_for(launcher, number, cloud):
    cloud.plays({"trainer.* -m": [{"shell": f"exec {sys.executable} -c {shlex.quote(_SAVES)}"}]})
    flags = ["-n", "1", "--", CONFIG] if launcher == "local.sh" else ["--", CONFIG]
    process = cloud.start(launcher, {"PYTHON": "trainer", "PORT": "1234"}, *flags)
    while not cloud.calls("trainer"):
        time.sleep(0.02)
    while not [call for call in cloud.calls("trainer") if " -m " in call]:
        time.sleep(0.02)
    time.sleep(0.3)  # until it has its traps
    os.killpg(process.pid, number)  # as a terminal does, to all in its group
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 143, out
    assert out.splitlines()[-1] == "saved"


def test_the_gpus_of_a_box_that_jax_does_not_see(cloud):
    cloud.plays({"trainer -c": [{"status": 1}]})
    status, out = cloud.run("gpus.sh", {"PYTHON": "trainer"})
    assert (status, cloud.calls("trainer -m")) == (1, [])
    assert "error: JAX of PYTHON=trainer sees no GPU, so it would train on the CPU;" in out


# --- all of it ---


@pytest.mark.slow
def test_a_launch_from_the_command_to_the_summary(cloud):
    """Nothing is played but the cloud: the node checks out the commit and trains, and its logs and run come back."""
    bucket, node = cloud.directory / "bucket", cloud.directory / "node"
    node.mkdir()
    cloud.plays(
        {
            "storage cp": [{"shell": f'mkdir -p {bucket}/code && cp "$4" "{bucket}/${{5#gs://my-bucket/}}"'}],
            "storage rsync": [{"shell": f'cp -r "{bucket}/${{4#gs://my-bucket/}}/." "$5"'}],
            "instances create": [
                {
                    "shell": (
                        "for word; do case $word in *startup-script=*) "
                        f'sed "s:HOME=/root:HOME={node}:" "${{word#*startup-script=}}" >{node}/startup.sh ;; '
                        "esac; done; "
                        f"MOUNT={bucket} SYNC_SECONDS=1 WORKER=vgg-jax-mine PYTHON={sys.executable} "
                        f"setsid bash {node}/startup.sh >/dev/null 2>&1 &"
                    )
                }
            ],
        }
    )
    small = ["--config.num_epochs=0.2", "--config.model.width_multiplier=0.0625", "--config.model.fc_width=16"]
    process = cloud.start(
        VM[0], VM[1] | {"POLL_SECONDS": "1", "NAME": "mine"}, "--", "--config=configs/quickstart.py", *small
    )
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "finished at the end of the epochs: 25 steps" in out  # training's own words, come back
    assert (bucket / "runs" / "mine" / "summary.json").exists()
    assert (cloud.clone / "runs/launches/mine/time-1/vgg-jax-mine.log").exists()
    assert cloud.left() == set()
