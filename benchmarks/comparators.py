"""What changed from VGG to ResNet, tried at a size that two cores can train; Markdown on standard output.

    python -m benchmarks.comparators --workdir=DIR [--groups=norm,start] [--seeds=3] [--cifar=DIR] [--notrain]

Trains the runs of GROUPS one after another, each in an ordinary workdir, DIR/seed<k>/<name>. The same command continues
after an interruption and skips finished runs. All groups but `degradation` train on imagenette-5k (4,000 training and
1,000 validation photographs of ten classes). --cifar is a folder of CIFAR-10's images, train/<class>/<image> and
test/<class>/<image>.

Errors are of centre crops. Differences are paired over the same images, as in `benchmarks.findings`.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.findings import PICTURES, Run, difference
from configs.resnet_cifar import get_config as cifar_config
from vgg_jax.commands import cli
from vgg_jax.config import default_config, scaled_length
from vgg_jax.runs import PlanDir, RunDir
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.files import write_json

BN, GAP = {"model.batch_norm": True}, {"model.head": "gap"}
INCEPTION = {
    "model.configuration": "GoogLeNet",
    "model.dropout_rate": 0.1,
    "image.crop": 96,
    "model.width_multiplier": 0.25,
}
TODAY = {
    "image.area_min": 0.25,
    "augment.color_std": 0.0,
    "augment.mixup": 0.2,
    "augment.cutmix": 1.0,
    "label_smoothing": 0.1,
    "ema_decay": 0.99,
    "schedule.name": "cosine",
    "schedule.warmup_epochs": 1.0,
}


class Group(NamedTuple):
    """Runs that are compared."""

    question: str
    runs: dict[str, dict[str, Any]]  # name -> what it changes
    pairs: tuple[tuple[str, str], ...]  # (a, b): errors of a less those of b


GROUPS = {
    "degradation": Group(
        "Plain and residual networks of 20 and 56 layers on CIFAR-10 (He et al. 2015, Figure 6)",
        {"plain-20": {}, "20": {}, "plain-56": {}, "56": {}},
        (("plain-56", "plain-20"), ("56", "20"), ("56", "plain-56")),
    ),
    "norm": Group(
        "Net A without normalisation, with LRN and with batch normalisation",
        {
            "A": {"model.configuration": "A"},
            "A-LRN": {"model.configuration": "A-LRN"},
            "A-BN": {"model.configuration": "A", **BN},
        },
        (("A-LRN", "A"), ("A-BN", "A")),
    ),
    "start": Group(
        "D and E from a random start of deviation 0.01, with and without batch normalisation",
        {
            f"{name}{suffix}-std001": {"model.configuration": name, "model.init": "std001", "num_epochs": 4.0, **extra}
            for name in ("D", "E")
            for suffix, extra in (("", {}), ("-BN", BN))
        },
        (("E-BN-std001", "D-BN-std001"),),
    ),
    "head": Group(
        "D with batch normalisation: three FC layers, or global average pooling and one",
        {"D-BN": {"model.configuration": "D", **BN}, "D-BN-GAP": {"model.configuration": "D", **BN, **GAP}},
        (("D-BN-GAP", "D-BN"),),
    ),
    "auxiliary": Group(
        "GoogLeNet, a quarter as wide, without and with its auxiliary classifiers",
        {"GoogLeNet": INCEPTION, "GoogLeNet-auxiliary": INCEPTION | {"model.auxiliary": True}},
        (("GoogLeNet-auxiliary", "GoogLeNet"),),
    ),
    "recipe": Group(
        "D-BN-GAP by the paper's recipe and by one of today",
        {
            "D-BN-GAP": {"model.configuration": "D", **BN, **GAP},
            "D-BN-GAP-today": {"model.configuration": "D", **BN, **GAP, **TODAY},
        },
        (("D-BN-GAP-today", "D-BN-GAP"),),
    ),
}

flags = cli.Flags()
_WORKDIR = flags.DEFINE_string("workdir", "", "Where all runs go.")
_GROUPS = flags.DEFINE_list("groups", list(GROUPS), "Which groups.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds.", 1)
_EPOCHS = flags.DEFINE_float("epochs", 8.0, "Of every run that a group does not give its own.", 3.0)
_WIDTH = flags.DEFINE_float(
    "width", 0.125, "Factor on the channels of all convolutions, but of degradation and auxiliary."
)
_CROP = flags.DEFINE_integer("crop", 64, "Pixels; S in proportion; but of degradation and auxiliary.")
_CIFAR = flags.DEFINE_string("cifar", "", "The folder of CIFAR-10's images, for degradation.")
_SHARE = flags.DEFINE_integer("share", 20, "Per cent of CIFAR-10's images, of both splits.", 1, 100)
_PROCESSES = flags.DEFINE_integer("processes", 0, "That decode, for degradation.", 0)
_TRAIN = flags.DEFINE_bool("train", True, "Train what is not there; else only compare.")


def settings(group, name, seed):
    """Returns a run's configuration."""
    config = cifar_config(name) if group == "degradation" else default_config()
    values = {"seed": seed, "log_every_steps": 10, "data.name": "folder", "num_epochs": _EPOCHS.value}
    values["data.dir"] = str(Path(_WORKDIR.value).resolve() / "data")
    if group == "degradation":
        values |= {
            "data.root": _CIFAR.value,
            "data.train_split": f"train[:{_SHARE.value}%]",
            "data.val_split": f"test[:{_SHARE.value}%]",
            "data.processes": _PROCESSES.value,
        }
        if _EPOCHS.value < config.num_epochs:  # the paper's drops lie at a half and three quarters of its epochs
            values["schedule.drop_epochs"] = f"{_EPOCHS.value - 2:g},{_EPOCHS.value - 1:g}"
    else:
        values |= {
            "data.root": str(PICTURES / "imagenette-5k"),
            "data.val_split": "val",
            "data.threads": 2,
            "model.num_classes": 10,
            "model.width_multiplier": _WIDTH.value,
            "model.fc_width": 256,
            "model.dropout_rate": 0.1,
            "image.crop": _CROP.value,
            "batch_size": 32,
            "checkpoint_every_steps": 0,
            "optimizer.learning_rate": 1e-2,
            "schedule.name": "steps",
            "schedule.drop_epochs": f"{_EPOCHS.value - 2:g},{_EPOCHS.value - 1:g}",
        } | GROUPS[group].runs[name]
        values["image.scale_min"] = values["image.scale_max"] = scaled_length(256, values["image.crop"])
        if values["num_epochs"] < _EPOCHS.value:
            values["schedule.drop_epochs"] = ""
    config.update_from_flattened_dict(values)
    return config


def train_all(directory, groups):
    from vgg_jax.runtime.exceptions import Interrupted
    from vgg_jax.training.train import train

    for seed in range(_SEEDS.value):  # one after another, so that an early end leaves whole ones
        for group in groups:
            for name in GROUPS[group].runs:
                workdir = PlanDir(directory).run(name, seed).path
                if RunDir(workdir).is_finished() or (workdir / "diverged.json").exists():
                    continue
                print(f"\n== seed{seed}/{name} ==", file=sys.stderr, flush=True)
                try:
                    train(settings(group, name, seed), workdir, quiet=True)
                except Interrupted as interruption:
                    cli.fail(str(interruption), 128 + interruption.signum)
                except UserError as error:
                    if "diverged" not in str(error):
                        raise
                    write_json(workdir / "diverged.json", {"message": str(error)})


def metrics(workdir):
    """Returns the lines of a run's metrics, and its steps in an epoch."""
    run = RunDir(workdir)
    lines, _ = run.metrics()
    return lines, run.dataset()["train_images"] / run.config().batch_size


def by_epoch(workdir, key, epochs):
    """Returns a metric by the epoch that it is of: of training the mean over the epoch's log lines."""
    lines, steps = metrics(workdir)
    of_epoch = {epoch: [] for epoch in range(1, epochs + 1)}
    for line in lines:
        if key in line:  # a log line is of the steps before it, and so is an evaluation
            of_epoch[min(epochs, max(1, round((line["step"] - 1) / steps + 0.49)))].append(line[key])
    return {epoch: np.mean(values) for epoch, values in of_epoch.items() if values}


def gradient_norms(workdir):
    """Returns the gradient's norm by block in the first log line and after one epoch."""
    lines, steps = metrics(workdir)
    lines = [line for line in lines if "train/loss" in line]
    later = next((line for line in lines if line["step"] >= steps), lines[-1])
    return [
        {key.rpartition("/")[2]: value for key, value in line.items() if "gradient_norm" in key}
        for line in (lines[0], later)
    ]


def markdown(directory, group):
    question, names, pairs = GROUPS[group]
    runs = {
        name: [
            run
            for run in (Run(PlanDir(directory).run(name, seed).path) for seed in range(_SEEDS.value))
            if run.finished or run.diverged
        ]
        for name in names
    }
    epochs = max((len(run.validation) for group_runs in runs.values() for run in group_runs), default=0)
    lines = [
        f"### {question}",
        "",
        "| run | seeds that learn | error, % |" + "".join(f" {n} |" for n in range(1, epochs + 1)),
    ]
    lines.append("| --- " * (3 + epochs) + "|")
    for name, group_runs in runs.items():
        finished = [run for run in group_runs if run.finished]
        learn = sum(run.learnt() for run in group_runs)
        for split, key in (("training", "train/top1_error"), ("validation", "val/top1_error")):
            curves = [by_epoch(run.workdir, key, epochs) for run in finished]
            cells = (
                f" {100 * np.mean([c[n] for c in curves]):.1f} |" if curves and all(n in c for c in curves) else "  |"
                for n in range(1, epochs + 1)
            )
            lines.append(f"| {name} | {learn} of {len(group_runs)} | {split} |" + "".join(cells))
    lines += ["", "| difference of the validation error, points | over images | over seeds |", "| --- | --- | --- |"]
    for a, b in pairs:
        both = [(x, y) for x, y in zip(runs[a], runs[b], strict=False) if x.learnt() and y.learnt()]
        if both:
            row = difference([tuple(run.mistakes("center_crop", "single") for run in pair) for pair in both])
            seeds = ", ".join(f"{100 * value:+.1f}" for value in row["seeds"])
            lines.append(
                f"| {a} less {b} | {100 * row['difference']:+.1f} ± {100 * row['interval']:.1f} | "
                f"± {100 * row['seed_interval']:.1f} ({seeds}) |"
            )
    lines += ["", "Gradient norms by block, seed 0, of the first logged step; of the first one after an epoch:", ""]
    for name, group_runs in runs.items():
        if group_runs:
            start, later = gradient_norms(group_runs[0].workdir)
            cells = (f"{block} {start[block]:.2g}; {later[block]:.2g}" for block in start)
            lines.append(f"- {name}: {', '.join(cells)}")
    return "\n".join(lines)


def main(arguments):
    groups = _GROUPS.value
    if arguments or not _WORKDIR.value:
        cli.fail("say where the runs go: --workdir=DIR.")
    if unknown := set(groups) - set(GROUPS):
        cli.fail(f"--groups={','.join(sorted(unknown))}: there are {', '.join(GROUPS)}.")
    if "degradation" in groups and not _CIFAR.value:
        cli.fail("degradation needs CIFAR-10's images: --cifar=DIR, or --groups without it.")
    directory = Path(_WORKDIR.value)
    if _TRAIN.value:
        train_all(directory, groups)
    print("\n\n".join(markdown(directory, group) for group in groups))


if __name__ == "__main__":
    cli.run(main, flags, outlives_stdout=True)
