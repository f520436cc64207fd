"""`vgg-jax reproduce --config=CONFIG [flags]`: the paper's networks one after another, and its Tables 3 to 6.

vgg-jax reproduce --config=paper --dry_run
vgg-jax reproduce --config=paper --models=A,D --config.data.dir=DIR
"""

from __future__ import annotations

from ml_collections import config_flags

from vgg_jax.commands import cli, configuration

flags = cli.Flags()
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The configuration of a whole plan: paper, paper:crop=64, or a file. Any value can be overridden for all stages: "
    "--config.data.dir=DIR, --config.plan.seeds=3.",
    flag_values=flags.values,
)
flags.DEFINE_string(
    "workdir",
    "",
    "Directory of all runs, as seed<k>/<stage>; name it again to continue. Default: runs/<config>[-<argument>].",
)
_MODELS = flags.DEFINE_list("models", [], "Train these configurations alone, with what they start from: A,D.")
_STAGES = flags.DEFINE_list(
    "stages", [], "Train these stages alone: A-256,D-256. What they start from must be finished."
)
cli.define_format(flags)
flags.DEFINE_bool("dry_run", False, "Print the plan, its lengths and what is finished; train nothing.")


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--config=paper")
    cli.require(_CONFIG.value is not None, "what to reproduce: --config=paper")
    if _MODELS.value and _STAGES.value:
        cli.fail("--models and --stages both choose a part of the plan; give one of them.")
    cli.use_huge_pages()
    from vgg_jax.reproduction.execution import ReproductionRequest, reproduce

    reproduce(flags.request(ReproductionRequest, workdir=configuration.run_workdir(flags.values), config=_CONFIG.value))
