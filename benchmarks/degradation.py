"""Degradation (He et al. 2015, Figures 1 and 6): training and test error of plain and residual networks; Markdown on standard output.

    python -m benchmarks.degradation --root=DIR --workdir=DIR [--share=20] [--epochs=8] [--seeds=1]

DIR of --root is a folder of CIFAR-10's images, train/<class>/<image> and test/<class>/<image>. Trains Plain-20, ResNet-20, Plain-56
and ResNet-56 by configs/resnet_cifar.py, shortened: that share of both splits, in per cent, and so many epochs, with drops of the rate
two and one epochs before the end. Each is an ordinary workdir, WORKDIR/seed<k>/<network>; what is finished stays, and the same
command continues. `--share=100 --epochs=163.84` is the paper's whole recipe but for its drops.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from vgg_jax import cli

NETWORKS = {"plain-20": "Plain-20", "20": "ResNet-20", "plain-56": "Plain-56", "56": "ResNet-56"}

flags = cli.Flags()
_ROOT = flags.DEFINE_string("root", "", "The folder of images.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Where the runs are written.")
_SHARE = flags.DEFINE_integer("share", 20, "Per cent of the images, of both splits.", 1, 100)
_EPOCHS = flags.DEFINE_float("epochs", 8.0, "Epochs.", 3.0)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds.", 1)


def main(arguments: list[str]) -> None:
    if arguments or not _ROOT.value or not _WORKDIR.value:
        cli.fail("say where the images are and where the runs go: --root=DIR --workdir=DIR")
    workdirs = {name: [_train(name, seed) for seed in range(_SEEDS.value)] for name in NETWORKS}
    epochs = list(range(1, round(_EPOCHS.value) + 1))
    print("| network | error, % |", *(f"{epoch} |" for epoch in epochs))
    print("| --- | --- |", *("--- |" for _ in epochs))
    for name, title in NETWORKS.items():
        for split, key in (("training", "train/top1_error"), ("test", "val/top1_error")):
            curves = [_by_epoch(workdir, key) for workdir in workdirs[name]]
            cells = (f"{100 * statistics.mean(curve[epoch] for curve in curves):.1f} |" for epoch in epochs)
            print(f"| {title} | {split} |", *cells)


def _train(name: str, seed: int) -> Path:
    workdir, share, epochs = Path(_WORKDIR.value) / f"seed{seed}" / name, _SHARE.value, _EPOCHS.value
    values = {
        "seed": seed,
        "data.name": "folder",
        "data.root": _ROOT.value,
        "data.dir": Path(_WORKDIR.value) / "data",
        "data.train_split": f"train[:{share}%]",
        "data.val_split": f"test[:{share}%]",
        "num_epochs": epochs,
        "schedule.drop_epochs": f"{epochs - 2:g},{epochs - 1:g}",
        "log_every_steps": 10,
    }
    command = [sys.executable, "-m", "vgg_jax.main", f"--config=configs/resnet_cifar.py:{name}", f"--workdir={workdir}"]
    if not (workdir / "summary.json").exists():
        subprocess.run(
            [*command, *(f"--config.{key}={value}" for key, value in values.items())], check=True, stdout=sys.stderr
        )
    return workdir


def _by_epoch(workdir: Path, key: str) -> dict[int, float]:
    """Returns a metric by the epoch that it is of: of training the mean over the epoch's log lines."""
    steps_per_epoch = json.loads((workdir / "dataset.json").read_text())["train_images"] / 128
    of_epoch: dict[int, list[float]] = {}
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        if key in line:
            # A log line is of the steps before it, and so is an evaluation.
            of_epoch.setdefault(max(1, round((line["step"] - 1) / steps_per_epoch + 0.49)), []).append(line[key])
    return {epoch: statistics.mean(values) for epoch, values in of_epoch.items()}


if __name__ == "__main__":
    cli.run(main, flags)
