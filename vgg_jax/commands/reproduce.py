"""`vgg-jax reproduce --config=configs/paper.py`: the paper's models one after another, and its Tables 3 to 6."""

from __future__ import annotations

import shlex

from ml_collections import config_flags

from vgg_jax.commands import cli

flags = cli.Flags()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The configuration of a whole plan: paper, paper:crop=64, or a file. Any value can be "
    "overridden for all stages: --config.data.dir=DIR, --config.plan.seeds=3.", flag_values=flags.values
)  # fmt: skip
_WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "Where all runs go, as seed<k>/<stage>; the same workdir continues. Default: runs/<config>[-<argument>].",
)
_MODELS = flags.DEFINE_list("models", [], "Only these configurations, with what they start from: A,D.")
_STAGES = flags.DEFINE_list("stages", [], "Only these stages: A-256,D-256. What they start from must be finished.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan, its lengths and what is finished; train nothing.")


def main(arguments: list[str]) -> None:
    if arguments:
        cli.fail(f"{arguments[0]!r} is not a flag; flags begin with two dashes, as --config=paper.")
    if _CONFIG.value is None:
        cli.fail("say what to reproduce: --config=paper, for example; --help lists the flags.")
    if _MODELS.value and _STAGES.value:
        cli.fail("--models and --stages both choose a part of the plan; give one of them.")
    from vgg_jax.reproduction import runner, stages, tables
    from vgg_jax.runtime.compilation import check_devices  # here, so that --help answers at once
    from vgg_jax.runtime.exceptions import Interrupted

    check_devices()
    shared, own = stages.split_config(_CONFIG.value)
    directory = cli.run_workdir(flags, _WORKDIR.value)
    chosen = stages.chosen_stages(stages.STAGES, _MODELS.value, _STAGES.value)
    steps = runner.planned_runs(chosen, shared, own, directory, stages.STAGES)
    print(runner.describe(steps), flush=True)
    if _DRY_RUN.value:
        return
    runner.write_plan(steps, stages.STAGES, own.seeds, directory)
    try:
        runner.run(steps)
    except Interrupted as interruption:
        cli.fail(str(interruption), 128 + interruption.signum)
    print("\n== tables ==", flush=True)
    content = tables.fill(directory, range(own.seeds), stages.STAGES, lambda line: print(line, flush=True))
    print(tables.write(content, directory))
    print(
        f"the same: {directory / 'tables.md'}, {directory / 'tables.json'}; all of it: vgg-jax report "
        f"{shlex.quote(str(directory))}"
    )


if __name__ == "__main__":
    cli.run(main, flags, outlives_stdout=True)
