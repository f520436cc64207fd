"""Launchers in a fake cloud: a clone of this repository, programs played by tests/fake_cloud.py, and their calls."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PROGRAMS = ("gcloud", "sbatch", "srun", "scontrol", "nvidia-smi", "trainer")  # the last for an interpreter
CLOUD = {"PROJECT": "my-project", "ZONE": "us-west4-a", "BUCKET": "gs://my-bucket"}
VM = ("tpu_vm.sh", CLOUD)
SLICE = ("tpu_slice.sh", CLOUD | {"TOPOLOGY": "2x4"})
SLURM = ("slurm.sh", {"SHARED": "/shared", "NODES": "2", "GPUS": "8", "TIME": "2-00:00:00"})
CONFIG = "--config=configs/vgg16.py"

# What a cloud with everything answers. Patterns before these are a test's own.
WELL = {
    "buckets describe": [{"out": "True\n"}],
    "instances describe": [{"out": "RUNNING\n"}],
    r"list-instances.*instanceStatus": [{"out": "RUNNING\nRUNNING\n"}],
    "list-instances": [{"out": "slice-a\nslice-b\n"}],
}


def make_clone(clone: Path) -> Path:
    """A repository with the working tree as its one commit."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in ("launch", "configs", "vgg_jax"):
        shutil.copytree(REPOSITORY / part, clone / part, ignore=ignored)
    for part in (".gitignore", "constraints.txt"):
        shutil.copy(REPOSITORY / part, clone / part)
    git(clone, "init", "-q")
    git(clone, "add", "-A")
    git(clone, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "All")
    return clone


def git(directory: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(directory), *words], capture_output=True, text=True, check=True
    ).stdout.strip()


class Cloud:
    """A fake cloud in a directory, and launchers that run in it."""

    def __init__(self, directory: Path, clone: Path):
        self.directory, self.clone = directory, clone
        (directory / "bin").mkdir()
        for program in PROGRAMS:
            file = directory / "bin" / program
            file.write_text(
                f'#!/bin/sh\nexec "{sys.executable}" -S -E "{REPOSITORY}/tests/fake_cloud.py" {program} "$@"\n'
            )
            file.chmod(0o755)
        self.plays({})

    def plays(self, script: dict) -> None:
        (self.directory / "script.json").write_text(
            json.dumps(script | {pattern: WELL[pattern] for pattern in WELL if pattern not in script})
        )

    def start(self, launcher: str, environment: dict, *flags: str) -> subprocess.Popen:
        fast = {"POLL_SECONDS": "0", "BACKOFF_SECONDS": "0", "LAUNCH": "time", "FAKE_CLOUD": str(self.directory)}
        return subprocess.Popen(
            [str(self.clone / "launch" / launcher), *flags],
            env={"PATH": f"{self.directory}/bin:{os.environ['PATH']}", "HOME": str(self.directory)}
            | fast
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, launcher: str, environment: dict, *flags: str) -> tuple[int, str]:
        """(exit status, all that was printed)"""
        process = self.start(launcher, environment, *(flags or ("--", CONFIG)))
        out, _ = process.communicate(timeout=60)
        return process.returncode, out

    def calls(self, pattern: str = "") -> list[str]:
        file = self.directory / "calls.jsonl"
        if not file.exists():
            return []
        calls = [" ".join(json.loads(line)["call"]) for line in file.read_text().splitlines()]
        return [call for call in calls if re.search(pattern, call)]

    def left(self) -> set[str]:
        """What was made, or may have been, and not deleted."""
        there: set[str] = set()
        for call in self.calls():
            made = re.match(r"gcloud ([a-z -]+) create(?: workload-policy)? (\S+)", call)
            gone = re.match(r"gcloud ([a-z -]+) delete (\S+)", call)
            if made:
                there.add(" ".join(made.groups()))
            elif gone:
                there.discard(" ".join(gone.groups()))
        return there
