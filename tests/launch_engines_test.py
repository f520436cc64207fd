"""launch/sky.yaml, and docs/launch.md's commands for SkyPilot and xpk; both tools check them where installed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

yaml = pytest.importorskip("yaml")
FILE = REPOSITORY / "launch" / "sky.yaml"
TASK = yaml.safe_load(FILE.read_text())
GIVEN = {"BUCKET": "gs://my-bucket", "NAME": "mine", "FLAGS": "--config=configs/vgg16.py '--config.seed=a b'"}
TPU_SLICE = {"SKYPILOT_NUM_NODES": "4", "SKYPILOT_NUM_GPUS_PER_NODE": "0", "SKYPILOT_NODE_RANK": "3"}
GPU_MACHINES = {
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
}
ONE = {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_RANK": "0"}


def commands(program: str) -> list[list[str]]:
    """The words of every command of the launching page, and of the file's head, that calls `program`."""
    text = (REPOSITORY / "docs" / "launch.md").read_text() + FILE.read_text().replace("\n#", "\n")
    lines = re.findall(rf"^ +({program} (?:.*\\\n)*.*)$", text, re.MULTILINE)
    return [shlex.split(line.replace("\\\n", " ")) for line in lines]


def program(name: str) -> str:
    """The path of an engine's program, which has its own environment; skips the test where it is not installed."""
    return shutil.which(name) or pytest.skip(
        f"{name} is not on the PATH (pip install 'skypilot[gcp]' xpk, in its own environment)"
    )


@pytest.fixture
def host(cloud, tmp_path):
    """Runs a section of the file as a host does, with a directory for the bucket and a played interpreter."""
    bucket = tmp_path / "bucket"
    (bucket / "code").mkdir(parents=True)

    def run(section: str, environment: dict, *statuses: int, **settings: str) -> tuple[int, list[str]]:
        cloud.plays({"trainer": [{"status": status} for status in statuses]})
        settings = {
            "MOUNT": str(bucket),
            "SKYPILOT_TASK_ID": "job-1",
            "PYTHON": "trainer",
            "BACKOFF_SECONDS": "0",
        } | settings
        result = subprocess.run(
            ["bash", "-c", TASK[section]],
            cwd=cloud.clone,
            env={
                "PATH": f"{cloud.directory}/bin:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "FAKE_CLOUD": str(cloud.directory),
            }
            | {name: value for name, value in TASK["envs"].items() if value is not None}
            | GIVEN
            | environment
            | settings,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return result.returncode, cloud.calls("trainer")

    return run


@pytest.mark.parametrize(
    ("environment", "flags"),
    [
        (ONE, ""),
        (TPU_SLICE, " --distributed"),
        (GPU_MACHINES, " --coordinator_address=10.0.0.1:8476 --num_processes=2 --process_id=1"),
    ],
)
def test_every_host_trains_with_the_flags_of_its_cluster(environment, flags, host, tmp_path):
    assert host("setup", environment) == (0, [])
    status, calls = host("run", environment, 0)
    workdir = tmp_path / "bucket" / "runs" / "mine"
    assert (status, calls) == (
        0,
        [f"trainer -m vgg_jax.main --workdir={workdir} --config=configs/vgg16.py --config.seed=a b{flags}"],
    )


def test_the_file_names_flags_that_exist():
    shown = subprocess.run(
        [sys.executable, "-m", "vgg_jax.main", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout
    named = re.findall(r"--(distributed|[a-z]+_[a-z_]+)", TASK["run"])
    assert set(named) == {"distributed", "coordinator_address", "num_processes", "process_id"}
    for flag in named:
        assert re.search(rf"--(\[no\])?{flag}\b", shown), flag
    assert [name for name, value in TASK["envs"].items() if value is None] == list(GIVEN)


@pytest.mark.parametrize(("status", "ends"), [(0, 0), (2, 2), (1, 75), (134, 75), (143, 75)])
def test_a_crash_is_recovered_from_and_a_refusal_is_not(status, ends, host):
    assert host("run", TPU_SLICE, status)[0] == ends
    assert TASK["resources"]["job_recovery"] == {"recover_on_exit_codes": [75]}


def test_a_host_gives_up_after_so_many_crashes(host):
    assert [host("run", TPU_SLICE, 143, TRIES="3")[0] for _ in range(3)] == [75, 75, 75]  # preempted
    assert [host("run", TPU_SLICE, 139, TRIES="3")[0] for _ in range(3)] == [75, 75, 139]


def test_training_is_stopped_when_the_hours_are_over(host, cloud):
    saves = "trap 'echo saved; exit 143' TERM; while :; do sleep 0.05; done"
    (cloud.directory / "bin" / "trainer").write_text(f"#!/bin/bash\n{saves}\n")
    assert host("run", TPU_SLICE, MAX_HOURS="0.0003")[0] == 124


def test_skypilot_reads_the_file(tmp_path):
    python = Path(program("sky")).parent / "python"
    check = f"""
import copy, types, yaml, sky
from sky.jobs.recovery_strategy import StrategyExecutor
config = yaml.safe_load(open({str(FILE)!r}).read().replace("# volumes:", "volumes:"))
try:
    sky.Task.from_yaml_config(copy.deepcopy(config))
    raise SystemExit("accepts a task without its values")
except ValueError as error:
    assert "'BUCKET' is None" in str(error), error
for accelerators, spot in (("tpu-v5litepod-16", True), ("tpu-v6e-8", False), ("H100:8", True)):
    task = sky.Task.from_yaml_config(copy.deepcopy(config), env_overrides=list({GIVEN!r}.items()))
    task.set_resources_override({{"accelerators": accelerators, "use_spot": spot}})
    (machine,) = task.resources
    assert str(machine.cloud) == "GCP" and machine.use_spot == spot, machine
    assert list(machine.accelerators) == [accelerators.partition(":")[0]], machine
    assert [disk["path"] for disk in machine.volumes] == ["/mnt/imagenet"], machine.volumes
    codes = machine.job_recovery["recover_on_exit_codes"]
    for exit_codes, again in (([75], True), ([137, 75], True), ([2, 137], False), ([124], False)):
        state = types.SimpleNamespace(recover_on_exit_codes=codes, max_restarts_on_errors=0, restart_cnt_on_failure=0)
        assert StrategyExecutor.should_restart_on_failure(state, exit_codes) == again, exit_codes
"""
    environment = os.environ | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    result = subprocess.run([python, "-c", check], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    shown = subprocess.run(["sky", "jobs", "launch", "--help"], env=environment, capture_output=True, text=True).stdout
    for words in commands("sky jobs launch"):
        for flag in re.findall(r"(?<!\S)(--?[a-z-]+)", shlex.join(words[4:])):
            assert re.search(rf"(?<!\S){flag}\b", shown), flag


def test_xpk_accepts_the_command_of_the_page_and_restarts_after_crashes_only(tmp_path):
    program("xpk")
    (words,) = commands("xpk workload create")
    manifest = tmp_path / "jobset.yaml"
    result = subprocess.run(
        [*words, "--dry-run", "--skip-validation", f"--output-manifest-file={manifest}"],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    jobset = yaml.safe_load(manifest.read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    assert {1, 134, 137, 139, 143} <= set(rule["onExitCodes"]["values"])
    assert 2 not in rule["onExitCodes"]["values"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


@pytest.mark.parametrize("name", ["sky jobs launch", "xpk workload create"])
def test_the_page_shows_commands_whose_training_flags_are_files_that_exist(name):
    shown = commands(name)
    assert shown
    for words in shown:
        (config,) = re.findall(r"--config=(\S+?\.py)", " ".join(words))
        assert (REPOSITORY / config).exists()
