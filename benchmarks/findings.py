"""The paper's findings, tried at a size that two cores can train; Markdown on standard output.

    python -m benchmarks.findings --workdir=DIR [--width=0.125] [--crop=64] [--epochs=12] [--seeds=3] [--batch_size=32]

Trains the runs of GROUPS one after another, each in an ordinary workdir, DIR/seed<k>/<name>; then evaluates and
compares. The data set is imagenette-5k (4,000 training and 1,000 validation photographs of ten classes). The same
command continues after an interruption and skips finished runs. `--groups` chooses groups; `--notrain` compares the
runs that exist. DIR/findings.json has the same figures.

Differences are paired over the same images: one model's mistakes on each image, averaged over the seeds, less the
other's. After the sign ± come 1.96 standard errors over images, and in brackets the difference of each seed. Runs
whose training loss never left ln K are counted, not averaged.
"""

import functools
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.evaluation_findings import split_probs
from vgg_jax.commands import cli
from vgg_jax.config import default_config
from vgg_jax.evaluation.results import average, top5_classes
from vgg_jax.reproduction.runner import planned_runs
from vgg_jax.reproduction.stages import STAGES, Stage, plan_defaults
from vgg_jax.runs import PlanDir, RunDir
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.files import write_json

PICTURES = Path(os.environ.get("VGG_JAX_PICTURES", Path(__file__).parents[2] / "shared" / "data"))
PRESETS = ("glorot", "he", "torch", "paper", "std001")
RATES = (1e-2, 1e-3)
_FIXED = (256, 256)

GROUPS: dict[str, tuple[Stage, ...]] = {
    # Which presets train at all, at which rate and depth? A few epochs of one seed.
    "presets": tuple(
        Stage(
            f"{model}-{preset}-{rate:g}",
            model,
            _FIXED,
            "",
            {"model.init": preset, "optimizer.learning_rate": rate, "num_epochs": 3.0},
        )
        for model in ("A", "D", "E")
        for preset in PRESETS
        for rate in RATES
    ),
    # The paper's recipe: A from a random start, deeper models from its layers.
    "recipe": STAGES[:7],
    # The deeper models from a random start.
    "random": tuple(Stage(f"{model}-random", model, _FIXED) for model in ("D", "E")),
    # The paper's own situation: a start too small to learn from, with and without A's layers.
    "std001": tuple(
        Stage(name, "E", _FIXED, start, {"model.init": "std001", "num_epochs": 4.0})
        for name, start in (("E-std001-random", ""), ("E-std001-256", "A-256"))
    ),
    "jitter": tuple(stage for stage in STAGES if stage.name in ("D-384", "D-jitter")),
}

# What is compared with what: (finding, a, b, protocol, scales), errors of a less those of b.
COMPARISONS = (
    ("the transplant at the end of training", "D-256", "D-random", "center_crop", "single"),
    ("the transplant at the end of training", "E-256", "E-random", "center_crop", "single"),
    ("LRN does not help", "A-LRN-256", "A-256", "dense", "single"),
    ("depth", "B-256", "A-256", "dense", "single"),
    ("B beats B-5x5", "B-256", "B-5x5-256", "center_crop", "single"),
    ("C beats B", "C-256", "B-256", "dense", "single"),
    ("D beats C", "D-256", "C-256", "dense", "single"),
    ("depth", "D-256", "B-256", "dense", "single"),
    ("E is no better than D", "E-256", "D-256", "dense", "single"),
    ("depth", "E-256", "A-256", "dense", "single"),
    ("jitter beats fixed S", "D-jitter", "D-384", "dense", "multi"),
)
# The test protocol on one model: (finding, model, (protocol, scales) a, b). Crops: benchmarks/evaluation_findings.py.
PROTOCOL_COMPARISONS = (
    ("several scales beat one", "D-256", ("dense", "multi"), ("dense", "single")),
    ("several scales beat one", "D-jitter", ("dense", "multi"), ("dense", "single")),
)
FUSION = ("D-256", "E-256")

flags = cli.Flags()
_WORKDIR = flags.DEFINE_string("workdir", "", "Where all runs go.")
_GROUPS = flags.DEFINE_list("groups", list(GROUPS), "Which groups to train.")
_WIDTH = flags.DEFINE_float("width", 0.125, "Factor on the channels of all convolutions.")
_FC_WIDTH = flags.DEFINE_integer("fc_width", 256, "Features of fc6 and fc7.")
_CROP = flags.DEFINE_integer("crop", 64, "Pixels; S in proportion.")
_EPOCHS = flags.DEFINE_float("epochs", 12, "Of every run that a group does not give its own.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Of all groups but presets.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images in a step.")
_TRAIN = flags.DEFINE_bool("train", True, "Train what is not there; else only compare.")
_DROPOUT_RATE = flags.DEFINE_float("dropout_rate", 0.1, "After fc6 and fc7.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
_THREADS = flags.DEFINE_integer("threads", 2, "That read and decode ahead.")
_RATE = flags.DEFINE_float("rate", 5e-3, "Learning rate of all groups but presets.")


def settings():
    config, plan = default_config(), plan_defaults()
    config.model.num_classes = 10
    config.model.width_multiplier = _WIDTH.value
    config.model.fc_width = _FC_WIDTH.value
    config.model.dropout_rate = _DROPOUT_RATE.value
    config.model.dtype = _DTYPE.value
    config.image.crop = _CROP.value
    config.batch_size = _BATCH_SIZE.value
    config.num_epochs = float(_EPOCHS.value)
    config.log_every_steps = 25
    config.checkpoint_every_steps = 0
    config.optimizer.learning_rate = _RATE.value
    config.plateau.patience = 2
    config.plateau.min_improvement = 0.005
    config.data.name = "folder"
    config.data.root = str(PICTURES / "imagenette-5k")
    config.data.dir = str(Path(_WORKDIR.value).resolve() / "data")
    config.data.val_split = "val"
    config.data.threads = _THREADS.value
    plan.later_epochs = 6.0
    plan.later_learning_rate = _RATE.value / 5
    return config, plan


def train_all(directory):
    from vgg_jax.training.train import Interrupted, train

    config, plan = settings()
    plan.seeds = _SEEDS.value
    stages = [stage for group in _GROUPS.value for stage in GROUPS[group]]
    everything = [stage for group in GROUPS.values() for stage in group]
    # One seed after another, so that an early end leaves whole ones.
    for step in planned_runs(stages, config, plan, directory, everything):
        if step.summary or (step.workdir / "diverged.json").exists():
            continue
        if step.seed and step.stage in GROUPS["presets"]:
            continue
        print(f"\n== seed{step.seed}/{step.stage.name} ==", file=sys.stderr, flush=True)
        try:
            train(step.config, step.workdir, quiet=True)
        except Interrupted as interruption:
            cli.fail(str(interruption), 128 + interruption.signum)
        except UserError as error:
            if "diverged" not in str(error):
                raise
            write_json(step.workdir / "diverged.json", {"message": str(error)})


class Run:
    """What a run logged, and its mistakes by protocol."""

    def __init__(self, workdir):
        self.workdir = workdir
        self.finished = RunDir(workdir).is_finished()
        self.diverged = (workdir / "diverged.json").exists()
        lines, _ = RunDir(workdir).metrics()
        self.losses = [line["train/loss"] for line in lines if "train/loss" in line]
        self.validation = [line for line in lines if "val/loss" in line]

    def learnt(self):
        """Whether the training loss has left that of guessing."""
        return self.finished and min(self.losses) < 0.97 * math.log(10)

    def probs(self, protocol, scales):
        return _posteriors(str(self.workdir), protocol, scales)

    def mistakes(self, protocol, scales):
        """[N], 1 where the likeliest class is wrong."""
        probs, labels = self.probs(protocol, scales)
        return (top5_classes(probs)[:, 0] != labels).astype(float)


@functools.cache
def _posteriors(workdir, protocol, scales):
    return split_probs(workdir, protocol, scales, "")


def runs_of(directory, name):
    return [Run(PlanDir(directory).run(name, seed).path) for seed in range(_SEEDS.value)]


def presets(directory):
    """A row a model and preset, a column a rate."""
    rows = []
    for stage in GROUPS["presets"]:
        run = Run(PlanDir(directory).run(stage.name, 0).path)
        if run.diverged:
            message = json.loads((run.workdir / "diverged.json").read_text())["message"]
            outcome = f"NaN at step {message.split('at step ')[1].split()[0]}"
        elif not run.finished:
            continue
        elif run.learnt():
            outcome = f"learns: {run.validation[-1]['val/top1_error']:.1%}"
        else:
            outcome = f"stays at ln K ({run.losses[-1]:.3f})"
        rows.append({"model": stage.configuration} | stage.overrides | {"outcome": outcome})
    return rows


def curves(directory):
    """Mean validation top-1 error by epoch, of models from A's layers and from a random start."""
    rows = []
    for name in ("D-random", "D-256", "E-random", "E-256", "E-std001-random", "E-std001-256"):
        runs = [run for run in runs_of(directory, name) if run.finished]
        errors = [[line["val/top1_error"] for line in run.validation] for run in runs if run.learnt()]
        length = min(map(len, errors), default=0)
        by_epoch = {epoch + 1: float(np.mean([e[epoch] for e in errors])) for epoch in range(length)}
        rows.append({"run": name, "seeds": len(runs), "left_ln_K": len(errors), "top1_error_by_epoch": by_epoch})
    return rows


def single(directory):
    """Errors of every model, mean and standard deviation over seeds."""
    rows = []
    for stage in (*GROUPS["recipe"], *GROUPS["random"], *GROUPS["jitter"]):
        runs = [run for run in runs_of(directory, stage.name) if run.finished]
        learnt = [run for run in runs if run.learnt()]
        row = {"run": stage.name, "seeds": len(runs), "left_ln_K": len(learnt)}
        for protocol, scales in (("center_crop", "single"), ("dense", "single"), ("dense", "multi")):
            row[f"{protocol}, {scales}"] = [float(run.mistakes(protocol, scales).mean()) for run in learnt]
        rows.append(row)
    return rows


def difference(pairs):
    """Of mistakes [(a, b), ...] over seeds: mean, intervals of 95 % over images and over seeds, each seed's."""
    by_image = np.mean([a - b for a, b in pairs], 0)
    return {
        "difference": float(by_image.mean()),
        "interval": float(1.96 * by_image.std(ddof=1) / len(by_image) ** 0.5),
        **over_seeds([float((a - b).mean()) for a, b in pairs]),
    }


def over_seeds(values):
    """Each seed's difference, and half the width of Student's interval of 95 % of their mean; NaN for one seed."""
    count = len(values)
    half = stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5 if count > 1 else float("nan")
    return {"seeds": values, "seed_interval": float(half)}


def comparisons(directory):
    rows = []
    for a, b in (("D-256", "D-random"), ("E-256", "E-random")):
        both = zip(runs_of(directory, a), runs_of(directory, b), strict=True)
        early = [
            float(np.mean([x.validation[i]["val/top1_error"] - y.validation[i]["val/top1_error"] for i in range(4)]))
            for x, y in both
            if x.learnt() and y.learnt()
        ]
        if early:
            title = f"{a} against {b}, centre crop, mean of epochs 1 to 4"
            mean = float(np.mean(early))
            rows.append(
                {"finding": "the transplant at the beginning", "what": title, "difference": mean} | over_seeds(early)
            )
    for finding, a, b, protocol, scales in COMPARISONS:
        both = zip(runs_of(directory, a), runs_of(directory, b), strict=True)
        pairs = [
            (x.mistakes(protocol, scales), y.mistakes(protocol, scales)) for x, y in both if x.learnt() and y.learnt()
        ]
        if pairs:
            rows.append({"finding": finding, "what": f"{a} against {b}, {protocol}, {scales}"} | difference(pairs))
    for finding, model, a, b in PROTOCOL_COMPARISONS:
        pairs = [(run.mistakes(*a), run.mistakes(*b)) for run in runs_of(directory, model) if run.learnt()]
        if pairs:
            rows.append(
                {"finding": finding, "what": f"{model}: {', '.join(a)} against {', '.join(b)}"} | difference(pairs)
            )
    for alone in FUSION:  # each of them, as choosing the better one on the same images would favour it
        pairs = []
        for models in zip(*(runs_of(directory, name) for name in FUSION), strict=True):
            if all(model.learnt() for model in models):
                results = [model.probs("dense", "multi") for model in models]
                fused = (top5_classes(average(probs for probs, _ in results))[:, 0] != results[0][1]).astype(float)
                pairs.append((fused, models[FUSION.index(alone)].mistakes("dense", "multi")))
        if pairs:
            title = f"{' + '.join(FUSION)} fused against {alone} alone, dense, multi"
            rows.append({"finding": "two models beat one", "what": title} | difference(pairs))
    return rows


def markdown(findings):
    lines = [
        "### Presets",
        "",
        "| model | preset | " + " | ".join(f"{rate:g}" for rate in RATES) + " |",
        "| --- " * (2 + len(RATES)) + "|",
    ]
    for model, preset in dict.fromkeys((row["model"], row["model.init"]) for row in findings["presets"]):
        cells = {
            row["optimizer.learning_rate"]: row["outcome"]
            for row in findings["presets"]
            if (row["model"], row["model.init"]) == (model, preset)
        }
        lines.append(f"| {model} | {preset} | " + " | ".join(cells.get(rate, "") for rate in RATES) + " |")
    epochs = sorted({epoch for row in findings["curves"] for epoch in row["top1_error_by_epoch"]})
    lines += ["", "### Starts: validation top-1 error by epoch, %, mean over the seeds that left ln K", ""]
    lines += ["| run | left ln K | " + " | ".join(map(str, epochs)) + " |", "| --- " * (2 + len(epochs)) + "|"]
    for row in findings["curves"]:
        errors = (row["top1_error_by_epoch"].get(epoch) for epoch in epochs)
        cells = ("" if error is None else f"{100 * error:.1f}" for error in errors)
        lines.append(f"| {row['run']} | {row['left_ln_K']} of {row['seeds']} | " + " | ".join(cells) + " |")
    columns = [key for key in findings["single"][0] if key not in ("run", "seeds", "left_ln_K")]
    lines += ["", "### Top-1 errors, %, mean ± standard deviation over seeds", ""]
    lines += ["| run | left ln K | " + " | ".join(columns) + " |", "| --- " * (2 + len(columns)) + "|"]
    for row in findings["single"]:
        cells = (
            f"{100 * np.mean(row[c]):.1f}" + (f" ± {100 * np.std(row[c], ddof=1):.1f}" if len(row[c]) > 1 else "")
            if row[c]
            else ""
            for c in columns
        )
        lines.append(f"| {row['run']} | {row['left_ln_K']} of {row['seeds']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "### Differences of top-1 errors, points",
        "",
        "| the paper's finding | compared | over images | over seeds |",
        "| --- | --- | --- | --- |",
    ]
    for row in findings["comparisons"]:
        seeds = ", ".join(f"{100 * value:+.1f}" for value in row["seeds"])
        interval = f" ± {100 * row['interval']:.1f}" if "interval" in row else ""
        wider = f"{100 * row['difference']:+.1f} ± {100 * row['seed_interval']:.1f} ({seeds})"
        lines.append(f"| {row['finding']} | {row['what']} | {100 * row['difference']:+.1f}{interval} | {wider} |")
    return "\n".join(lines)


def main(arguments):
    if arguments or not _WORKDIR.value:
        cli.fail("say where the runs go: --workdir=DIR.")
    directory = Path(_WORKDIR.value)
    if _TRAIN.value:
        train_all(directory)
    findings = {
        name: of(directory)
        for name, of in (("presets", presets), ("curves", curves), ("single", single), ("comparisons", comparisons))
    }
    write_json(directory / "findings.json", findings)
    print(markdown(findings))


if __name__ == "__main__":
    cli.run(main, flags, outlives_stdout=True)
