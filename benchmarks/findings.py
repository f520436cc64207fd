"""The paper's findings, tried at a size that two cores can train; Markdown on standard output.

    python -m benchmarks.findings --workdir=DIR [--width=0.125] [--crop=64] [--epochs=12] [--seeds=3] [--batch_size=32]

Trains the runs of GROUPS one after another, each an ordinary workdir in DIR/seed<k>/<name>, on imagenette-5k (4,000 and 1,000
photographs of ten classes). What is finished stays, and the same command goes on after an interruption; `--groups` chooses.
"""

import os
from pathlib import Path

from absl import flags

from vgg_jax import cli
from vgg_jax.config import default_config
from vgg_jax.errors import UserError
from vgg_jax.logbook import write_json
from vgg_jax.reproduction.plan import STAGES, Stage, plan_defaults
from vgg_jax.reproduction.run import steps_of

PICTURES = Path(os.environ.get("VGG_JAX_PICTURES", Path(__file__).parents[2] / "shared" / "data"))
PRESETS = ("glorot", "he", "torch", "paper", "std001")
RATES = (1e-2, 1e-3)
_FIXED = (256, 256)

GROUPS: dict[str, tuple[Stage, ...]] = {
    # Which presets train at all, at which rate and depth? A few epochs of one seed.
    "presets": tuple(
        Stage(
            f"{net}-{preset}-{rate:g}",
            net,
            _FIXED,
            "",
            {"model.init": preset, "optimizer.learning_rate": rate, "num_epochs": 3.0},
        )
        for net in ("A", "D", "E")
        for preset in PRESETS
        for rate in RATES
    ),
    # The paper's recipe: A from a random start, deeper nets from its layers.
    "recipe": STAGES[:7],
    # The deeper nets from a random start.
    "random": tuple(Stage(f"{net}-random", net, _FIXED) for net in ("D", "E")),
    # The paper's own situation: a start too small to learn from, with and without A's layers.
    "std001": tuple(
        Stage(name, "E", _FIXED, start, {"model.init": "std001", "num_epochs": 4.0})
        for name, start in (("E-std001-random", ""), ("E-std001-256", "A-256"))
    ),
    "jitter": tuple(stage for stage in STAGES if stage.name in ("D-384", "D-jitter")),
}

_WORKDIR = flags.DEFINE_string("workdir", "", "Where all runs go.")
_GROUPS = flags.DEFINE_list("groups", list(GROUPS), "Which groups to train.")
_WIDTH = flags.DEFINE_float("width", 0.125, "Factor on the channels of all convolutions.")
_FC_WIDTH = flags.DEFINE_integer("fc_width", 256, "Features of fc6 and fc7.")
_CROP = flags.DEFINE_integer("crop", 64, "Pixels; S in proportion.")
_EPOCHS = flags.DEFINE_float("epochs", 12, "Of every run that a group does not give its own.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Of all groups but presets.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images in a step.")
_RATE = flags.DEFINE_float("rate", 5e-3, "Learning rate of all groups but presets.")


def settings():
    config, plan = default_config(), plan_defaults()
    config.model.num_classes = 10
    config.model.width_multiplier = _WIDTH.value
    config.model.fc_width = _FC_WIDTH.value
    config.model.dropout_rate = 0.1
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
    config.data.threads = 2
    plan.later_epochs = 8.0
    plan.later_learning_rate = _RATE.value / 5
    return config, plan


def main(arguments):
    if arguments or not _WORKDIR.value:
        cli.fail("say where the runs go: --workdir=DIR.")
    from vgg_jax.train import train

    config, plan = settings()
    directory = Path(_WORKDIR.value)
    everything = [stage for group in GROUPS.values() for stage in group]
    for group in _GROUPS.value:
        plan.seeds = 1 if group == "presets" else _SEEDS.value
        for step in steps_of(GROUPS[group], config, plan, directory, everything):
            if step.summary or (step.workdir / "diverged.json").exists():
                continue
            print(f"\n== seed{step.seed}/{step.stage.name} ==", flush=True)
            try:
                train(step.config, step.workdir)
            except UserError as error:
                if "diverged" not in str(error):
                    raise
                print(error, flush=True)
                write_json(step.workdir / "diverged.json", {"message": str(error)})


if __name__ == "__main__":
    cli.run(main)
