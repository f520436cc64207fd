"""Training and evaluation from Python: `vgg_jax.fit` and `vgg_jax.evaluate_run`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vgg_jax.commands import configuration
from vgg_jax.config import resolved_copy
from vgg_jax.runtime.exceptions import UserError, first_line


def fit(
    config: ConfigDict | str | os.PathLike,
    workdir: str | os.PathLike = "",
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains a network, or continues the run in `workdir`, as `vgg-jax train` does.

    Args:
      config: a configuration, or its name or file, with an argument if need be: "quickstart", "vgg19:S=384".
      workdir: of checkpoints and logs; "" for `runs/<config>[-<argument>]`.
      overrides: values of keys: {"num_epochs": 2, "data.root": "photos"}. The given configuration stays as it is.
      quiet: print nothing.

    Returns:
      The content of summary.json.

    Raises:
      UserError: an unknown configuration or key, or as `training.train.train`.
      Interrupted: by a signal, after saving.
    """
    from vgg_jax.training.train import train

    if isinstance(config, str | os.PathLike):
        name = os.fspath(config)
        values = configuration.load_config(name)
        workdir = workdir or configuration.default_workdir(name)
    elif not isinstance(config, ConfigDict):
        raise UserError(
            f"the configuration is of type {type(config).__name__}; give its name, its file or a ConfigDict."
        )
    elif workdir:
        values = resolved_copy(config)
    else:
        raise UserError("the configuration has no name to make a workdir of; give workdir.")
    try:
        values.update_from_flattened_dict(overrides or {})
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"the overrides {dict(overrides or {})} cannot be: {first_line(error).rstrip('.')}.") from error
    directory = Path(workdir).expanduser()
    return train(configuration.with_start(values, overrides or {}, directory), directory, quiet)


def evaluate_run(
    workdir: str | os.PathLike, protocol: str = "dense", scales: str = "", quiet: bool = False, **options: Any
) -> dict[str, Any]:
    """Evaluates a run's best checkpoint by the test protocol (Paper §3.2, §4), as `vgg-jax evaluate` does.

    Args:
      workdir: of the run, or one of its checkpoints/<step>.
      protocol: center_crop, ten_crop, dense, multi_crop, square_crop or dense+multi_crop.
      scales: test scales Q: "single", "multi", numbers with commas between; "" for the protocol's own.
      quiet: print nothing.
      options: other fields of `evaluation.protocol.Request`: split, data_root, maps, ...

    Returns:
      The content of the results file: `rows` has the errors, as fractions.

    Raises:
      UserError: as `evaluation.protocol.evaluate`.
    """
    from vgg_jax.evaluation.protocol import Request, evaluate

    return evaluate(Request(workdirs=(os.fspath(workdir),), protocol=protocol, scales=scales, **options), quiet)
