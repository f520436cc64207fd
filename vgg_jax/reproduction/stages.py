"""The stages of the paper's experiments, a small graph: model, S, and the stage it starts from (Paper §3.1, §4)."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vgg_jax.config import flatten, resolved_copy, scaled_length
from vgg_jax.runs import PlanDir
from vgg_jax.runtime.exceptions import UserError, did_you_mean


class Stage(NamedTuple):
    """One training run."""

    name: str
    configuration: str
    scales: tuple[int, int]  # S as the paper has it, at crop 224; equal ends: fixed
    starts_from: str = ""  # the stage whose layers it starts with; "": a random start
    overrides: dict[str, Any] = {}  # flat configuration keys -> values, over everything else


_S256, _S384, _JITTER = (256, 256), (384, 384), (256, 512)

# The order is one in which every start comes first.
STAGES = (
    # "Training the network with a shallower architecture" first (Paper §3.1). A-LRN is as shallow as A.
    Stage("A-256", "A", _S256),
    Stage("A-LRN-256", "A-LRN", _S256),
    # The ablation of §4.1 has no layer of A's shape but the FC layers.
    Stage("B-5x5-256", "B-5x5", _S256),
    *(Stage(f"{model}-256", model, _S256, "A-256") for model in "BCDE"),
    *(Stage(f"{model}-384", model, _S384, f"{model}-256") for model in "CDE"),
    # "by fine-tuning all layers of a single-scale model with the same configuration, pre-trained with fixed S = 384".
    *(Stage(f"{model}-jitter", model, _JITTER, f"{model}-384") for model in "CDE"),
    # The submission's: its FC layers alone were fine-tuned on jitter (Paper §4.4).
    Stage("D-jitter-fc", "D", _JITTER, "D-384", {"optimizer.lr_factors": "conv*=0"}),
)
# The seven models of Paper Table 6's first line.
SUBMISSION = ("D-256", "D-384", "D-jitter-fc", "C-256", "C-384", "E-256", "E-384")


def plan_defaults() -> ConfigDict:
    """Returns `config.plan`: the keys of a plan that a training configuration does not have."""
    plan = ConfigDict()
    plan.seeds = 1  # runs of every stage: config.seed, config.seed + 1, ...
    # Of stages with S = 384 and jitter. The paper gives the rate for S = 384 alone (Paper §3.1).
    plan.later_learning_rate = 1e-3
    plan.later_epochs = 20.0  # at most; the paper does not say
    plan.later_drops = 1  # of the rate, at most: from 1e-3 to where the earlier stage ended; the paper does not say
    # What single stages have otherwise: {"E-*": {"optimizer.learning_rate": 1e-3}}; later entries win.
    plan.stages = ConfigDict()
    return plan


def split_config(config: ConfigDict) -> tuple[ConfigDict, ConfigDict]:
    """Returns the training configuration that all stages share, and the plan's own.

    Raises:
      UserError: no plan in it, or an unknown or impossible value.
    """
    if "plan" not in config:
        raise UserError("this configuration has no config.plan; give one of a whole plan, as configs/paper.py.")
    shared = config.copy_and_resolve_references()
    plan, known = shared.plan, plan_defaults()
    with shared.unlocked():
        del shared["plan"]
    for key in plan:
        if key not in known:
            raise UserError(f"config.plan.{key} is not a known key.{did_you_mean(key, known)}")
    if missing := set(known) - set(plan):
        raise UserError(
            f"config.plan.{min(missing)} is missing; start from vgg_jax.reproduction.stages.plan_defaults()."
        )
    for key, least, greatest in (("seeds", 1, 1000), ("later_drops", 0, 100)):
        if not isinstance(plan[key], int) or not least <= plan[key] <= greatest:
            raise UserError(
                f"config.plan.{key} is {plan[key]!r}; it must be a whole number of at least {least} and at most "
                f"{greatest}."
            )
    for key in ("later_learning_rate", "later_epochs"):
        if not isinstance(plan[key], int | float) or not plan[key] > 0:
            raise UserError(f"config.plan.{key} is {plan[key]!r}; it must be a number greater than 0.")
    if shared.init_from or shared.init_layers:
        raise UserError("config.init_from and init_layers are the stages' own in a plan; leave them empty.")
    return shared, plan


def stage_config(shared: ConfigDict, plan: ConfigDict, stage: Stage, directory: Path, seed: int) -> ConfigDict:
    """Returns the configuration of one run of a stage.

    Args:
      shared: what all stages have in common, of `split_config`.
      plan: the plan's own.
      stage: which.
      directory: of the whole plan.
      seed: number of the run, from 0.

    Raises:
      UserError: an override of a key that does not exist.
    """
    config = resolved_copy(shared)
    config.seed = shared.seed + seed
    config.model.configuration = stage.configuration
    config.image.scale_min, config.image.scale_max = (scaled_length(s, config.image.crop) for s in stage.scales)
    if stage.starts_from:
        config.init_from = str(PlanDir(directory.absolute()).run(stage.starts_from, seed).path)
    if stage.scales != _S256:
        config.optimizer.learning_rate = plan.later_learning_rate
        config.num_epochs = plan.later_epochs
        config.plateau.max_drops = plan.later_drops
    given = [values for pattern, values in plan.stages.items() if fnmatch.fnmatchcase(stage.name, pattern)]
    for values in (*given, stage.overrides):
        flat, known = values if isinstance(values, dict) else flatten(ConfigDict(values)), flatten(config)
        for key, value in flat.items():
            if key not in known:
                raise UserError(
                    f"config.plan.stages gives {stage.name} a value of {key}, which is not a known key."
                    f"{did_you_mean(key, known)}"
                )
            config.update_from_flattened_dict({key: value})
    return config


def chosen_stages(stages: Sequence[Stage], models: Iterable[str] = (), names: Iterable[str] = ()) -> list[Stage]:
    """Returns the selected stages, in their order.

    Args:
      stages: all.
      models: configurations; with each come the stages that it starts from.
      names: names of stages, with nothing else; both empty: all.

    Raises:
      UserError: one that is not in the plan.
    """
    models, names = list(models), list(names)
    by_name = {stage.name: stage for stage in stages}
    for flag, given, known in (
        ("models", models, {stage.configuration: None for stage in stages}),
        ("stages", names, by_name),
    ):
        for word in given:
            if word not in known:
                raise UserError(f"--{flag}={word}: unknown; choose from {', '.join(known)}.{did_you_mean(word, known)}")
    if not models and not names:
        return list(stages)
    chosen = set(names)
    for stage in stages:
        if stage.configuration in models:
            needed: Stage | None = stage
            while needed and needed.name not in chosen:
                chosen.add(needed.name)
                needed = by_name.get(needed.starts_from)
    return [stage for stage in stages if stage.name in chosen]
