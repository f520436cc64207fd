"""Kills training, preparing, evaluating and reporting at random moments; results must equal uninterrupted ones.

    python -m benchmarks.kills --workdir=DIR [--kills=60] [--seed=0]

A very narrow model is trained for some seconds on drawn images. Each command runs once uninterrupted, as the reference.
Copies of it are killed (SIGKILL to all their processes) up to three times each before they may end. Compared are:

* train: the digest of all parameters, the best step and error, and the evaluation of the best checkpoint;
* prepare: every record;
* evaluate: the probabilities;
* report: the page.

The exit status is 1 if anything differs.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from etils import epath

from vgg_jax.commands import cli
from vgg_jax.data.builtin import CLASS_NAMES, render
from vgg_jax.data.prepared import read
from vgg_jax.data.splits import open_split

flags = cli.Flags()
_WORKDIR = flags.DEFINE_string("workdir", "", "Where everything goes; must not exist.")
_KILLS = flags.DEFINE_integer("kills", 60, "How many in all.", lower_bound=5)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")

_SHARES = {"training": 0.35, "saving": 0.2, "preparing": 0.15, "evaluating": 0.15, "reporting": 0.15}
_IN_A_ROW = 3  # kills of one copy
_CLASSES = 6
_CONFIG = {
    "model.configuration": "A",
    "model.num_classes": _CLASSES,
    "model.width_multiplier": 0.0625,
    "model.fc_width": 16,
    "image.crop": 32,
    "image.scale_min": 36,
    "image.scale_max": 40,
    "batch_size": 8,
    "num_epochs": 8.0,
    "eval_every_epochs": 0.5,
    "log_every_steps": 1,
    "checkpoint_every_steps": 4,
    "plateau.patience": 100,
    "data.name": "folder",
    "data.threads": 2,
}


class Work:
    """One kind of work: its command in a directory, what it needs there, and what it leaves, as a digest."""

    def __init__(self, root: Path):
        self.root = root

    def python(self, command: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "vgg_jax", command, *arguments]

    def train(self, directory: Path) -> list[str]:
        config = _CONFIG | {"data.root": self.root / "images", "data.dir": self.root / "data"}
        values = [f"--config.{key}={value}" for key, value in config.items()]
        return self.python("train", "--config=configs/quickstart.py", f"--workdir={directory / 'run'}", *values)

    def prepare(self, directory: Path) -> list[str]:
        return self.python(
            "prepare", "folder", f"--data_root={self.root / 'images'}", f"--data_dir={directory / 'data'}"
        )

    def evaluate(self, directory: Path) -> list[str]:
        options = ("--protocol=dense+multi_crop", "--scales=36,40,44", "--batch_size=8")
        return self.python("evaluate", f"--workdir={directory / 'run'}", *options)

    def report(self, directory: Path) -> list[str]:
        return self.python("report", str(directory / "run"))

    def digest(self, kind: str, copy: Path) -> str:
        if kind in ("training", "saving"):
            return self._digest_of_training(copy)
        if kind == "preparing":
            # Not the files' bytes: protobuf writes the fields of a record in an order of its own.
            (directory,) = (copy / "data").glob("*/*/1.0.0")
            data = read(epath.Path(directory))
            splits = [open_split(data, split, "split") for split in sorted(data.splits)]
            records = [records[i] for records in splits for i in range(len(records))]
            return _sha256(*(part for r in records for part in (r["image"], r["file_name"], b"%d" % r["label"])))
        if kind == "evaluating":
            files = sorted((copy / "run").glob("evaluation/*/*/*.npz"))
            return _sha256(*(array.tobytes() for file in files for array in np.load(file).values()))
        page = (copy / "run" / "report.html").read_text().replace(str(copy), "")
        return _sha256(re.sub(r"Made [-0-9]+ [:0-9]+", "", page).encode())

    def _digest_of_training(self, directory: Path) -> str:
        summary = json.loads((directory / "run" / "summary.json").read_text())
        best = directory / "run" / "checkpoints" / str(summary["best_step"])
        results = directory / "best.json"
        run(self.python("evaluate", f"--workdir={best}", "--protocol=center_crop", f"--json={results}"))
        (row,) = json.loads(results.read_text())["rows"]
        if not np.isclose(row["top1_error"], summary["best_top1_error"]):
            return f"the best checkpoint has an error of {row['top1_error']}, not {summary['best_top1_error']}"
        steps = [line["step"] for line in _lines(directory / "run" / "metrics.jsonl") if "train/loss" in line]
        facts = [summary[key] for key in ("params_sha256", "steps", "best_step", "best_top1_error")]
        return _sha256(json.dumps([facts, steps]).encode())


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def run(command: list[str]) -> float:
    """Runs a command to its end, and returns its seconds; raises RuntimeError with what it said where it fails."""
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:4])} ended with {done.returncode}: {done.stderr[-500:]}")
    return time.monotonic() - began


def kill(command: list[str], seconds: float, moment: Path | None) -> bool:
    """Starts a command and kills it, with all its processes.

    Args:
      command: to start.
      seconds: after which it is killed.
      moment: a directory; it is killed as soon as a checkpoint is being written there, once the seconds are over.

    Returns:
      Whether it was still at work.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + seconds
    while process.poll() is None:
        writing = moment is None or any(moment.glob("*orbax-checkpoint-tmp*"))
        if time.monotonic() >= until and writing:
            break
        time.sleep(0.002)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def try_kind(kind: str, kills: int, work: Work, rng: random.Random) -> tuple[int, int, list[str]]:
    """Kills one kind of work: (kills that met it at work, copies that were let end, what differed)."""
    command_in = {
        "training": work.train,
        "saving": work.train,
        "preparing": work.prepare,
        "evaluating": work.evaluate,
        "reporting": work.report,
    }[kind]
    trained = work.root / "reference" / "run"

    def new_place(name: str) -> Path:
        directory = work.root / kind / name
        directory.mkdir(parents=True)
        if kind in ("evaluating", "reporting"):
            shutil.copytree(trained, directory / "run", ignore=shutil.ignore_patterns("evaluation", "report.html"))
        return directory

    reference = new_place("reference")
    run(command_in(reference))
    seconds = run(command_in(new_place("warm")))  # what the first has compiled is not compiled again
    expected = work.digest(kind, reference)
    met, copies, faults = 0, 0, []
    while met < kills:
        copy = new_place(str(copies))
        copies += 1
        for _ in range(rng.randint(1, _IN_A_ROW)):
            if met == kills:
                break
            moment = copy / "run" / "checkpoints" if kind == "saving" else None
            alive = kill(command_in(copy), rng.uniform(0, 1 if moment else 0.95) * seconds, moment)
            if not alive:
                break  # it had ended before
            met += 1
        try:
            run(command_in(copy))
            outcome = work.digest(kind, copy)
        except (RuntimeError, OSError, KeyError, ValueError) as error:
            outcome = str(error)
        if outcome != expected:
            faults.append(f"{copy}: {outcome}")
        print(f"{kind}: {met} of {kills} kills, {copies} copies, {len(faults)} differ", flush=True)
    return met, copies, faults


def main(arguments: list[str]) -> None:
    if arguments or not _WORKDIR.value:
        cli.fail("say where everything goes: --workdir=DIR.")
    root = Path(_WORKDIR.value).expanduser().absolute()
    if root.exists():
        cli.fail(f"--workdir={root} exists; name a directory that does not.")
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for split, count, first in (("train", 96, 0), ("validation", 60, 100_000)):
        for i in range(count):
            image, label = render(first + 10 * (i // _CLASSES) + i % _CLASSES)
            file = root / "images" / split / CLASS_NAMES[label] / f"{i:03d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    work, rng = Work(root), random.Random(_SEED.value)
    run(work.train(root / "reference"))
    rows, faults = [], []
    for kind, share in _SHARES.items():
        met, copies, its_faults = try_kind(kind, round(share * _KILLS.value), work, rng)
        rows.append(f"| {kind} | {met} | {copies} | {copies - len(its_faults)} |")
        faults += its_faults
    print(
        "\n".join(
            ["", "| killed while | kills | copies | ended as the reference |", "| --- | --- | --- | --- |", *rows]
        )
    )
    if faults:
        cli.fail("\n  ".join([f"{len(faults)} copies ended otherwise:", *faults]), status=1)


if __name__ == "__main__":
    cli.run(main, flags)
