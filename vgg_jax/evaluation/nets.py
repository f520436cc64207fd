"""A trained net, ready to be evaluated: a run's checkpoint with everything that belongs to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vgg_jax.augment import ColorStatistics
from vgg_jax.checkpoints import load_variables
from vgg_jax.config import default_config
from vgg_jax.exceptions import UserError
from vgg_jax.models import CONFIGURATIONS, VGG
from vgg_jax.sharding import make_mesh, replicated
from vgg_jax.state import leaf_names, make_model, model_shapes, params_sha256
from vgg_jax.weights.file import Weights, folded_params, load_weights
from vgg_jax.weights.preprocessing import Preprocessing


class Net(NamedTuple):
    """A net with its parameters on the devices, and what it was trained on."""

    workdir: Path
    checkpoint: Path  # the directory its parameters came from
    config: ConfigDict  # the run's, but for model.dtype where another was asked for
    model: VGG
    variables: dict  # first argument of `model.apply`
    digest: str  # `params_sha256`
    class_names: list[str]
    statistics: ColorStatistics
    mesh: Mesh  # every device sees other pictures and holds all parameters, however they lay in training


def load_net(source: Path, dtype: str = "") -> Net:
    """Reads a run.

    Args:
      source: a workdir, which stands for its best checkpoint, or one of its checkpoints/<step>.
      dtype: of the computation; "" for the run's own.

    Raises:
      UserError: no run or no checkpoint there, or a checkpoint that is not of the configuration beside it.
    """
    source = source.expanduser()
    workdir = source.parent.parent if source.parent.name == "checkpoints" else source
    if not workdir.is_dir():
        raise UserError(f"--workdir={source}: there is no such directory; give one that a training run has made.")
    config = _config(workdir / "config.json")
    dataset = _read_json(workdir / "dataset.json")
    try:
        class_names = list(dataset["class_names"])
        statistics = ColorStatistics(*(np.array(dataset[name], np.float32) for name in ColorStatistics._fields))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{workdir / 'dataset.json'} is no data set's description ({error!r}).") from error
    checkpoint, variables = load_variables(source)
    _check_fit(workdir, checkpoint, config, variables, class_names)
    if dtype:
        config.model.dtype = dtype
    mesh, digest = (
        make_mesh(),
        params_sha256(variables["params"], {k: v for k, v in variables.items() if k != "params"}),
    )
    variables = jax.device_put(variables, replicated(mesh))
    return Net(workdir, checkpoint, config, make_model(config), variables, digest, class_names, statistics, mesh)


def load_weights_net(source: Path, dtype: str = "") -> Net:
    """Reads a weights file. Its preprocessing becomes part of conv1_1, so that all nets here see pixels alike.

    Args:
      source: of `python -m vgg_jax.convert`. What is computed with it is kept in a directory of its name beside it.
      dtype: of the computation; "" for float32.

    Raises:
      UserError: as `load_weights`.
    """
    source = source.expanduser()
    weights = load_weights(source)
    config = default_config()
    config.model.configuration = weights.configuration
    config.model.num_classes = weights.num_classes
    config.model.width_multiplier = weights.width_multiplier
    config.model.fc_width = weights.fc_width
    config.model.dtype = dtype or "float32"
    config.image.crop = weights.crop
    config.image.scale_min, config.image.scale_max = weights.training_scales
    names = weights.class_names or [f"class {i}" for i in range(weights.num_classes)]
    # Colours are shifted in training only, which a file knows nothing of.
    statistics = ColorStatistics(weights.preprocessing.mean_rgb(), np.zeros((3, 3), np.float32))
    mesh, params = make_mesh(), folded_params(weights)
    digest = params_sha256(params)
    variables = jax.device_put({"params": params}, replicated(mesh))
    return Net(source.with_suffix(""), source, config, make_model(config), variables, digest, names, statistics, mesh)


def weights_of_run(source: Path) -> Weights:
    """A run's checkpoint as a weights file holds it.

    Args:
      source: a workdir, which stands for its best checkpoint, or one of its checkpoints/<step>.

    Raises:
      UserError: as `load_net`.
    """
    net = load_net(source)
    red, green, blue = map(float, net.statistics.mean_rgb)
    return Weights(
        params=jax.tree.map(lambda x: np.asarray(x, np.float32), net.variables["params"]),
        configuration=net.config.model.configuration,
        width_multiplier=net.config.model.width_multiplier,
        fc_width=net.config.model.fc_width,
        crop=net.config.image.crop,
        training_scales=(net.config.image.scale_min, net.config.image.scale_max),
        preprocessing=Preprocessing("RGB", 255.0, (red, green, blue), (1.0, 1.0, 1.0)),
        class_names=net.class_names,
        class_titles=None,
        source=f"the run {net.workdir.name}, checkpoint {net.checkpoint.name}",
    )


def _config(path: Path) -> ConfigDict:
    config = default_config()
    try:
        config.update(_read_json(path))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no run's configuration: {error}.") from error
    if config.model.configuration not in CONFIGURATIONS:
        raise UserError(
            f"{path} has the configuration {config.model.configuration!r}; there are {', '.join(CONFIGURATIONS)}."
        )
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); --workdir must name a training run's directory, with config.json, "
            "dataset.json and checkpoints/ in it."
        ) from error


def _check_fit(workdir: Path, checkpoint: Path, config: ConfigDict, variables: dict, class_names: list[str]) -> None:
    """Raises UserError where parameters, configuration and class names do not belong together."""
    if len(class_names) != config.model.num_classes:
        raise UserError(
            f"{workdir}: config.json has {config.model.num_classes} classes and dataset.json {len(class_names)}; "
            "they are not of one run."
        )
    there, here = (
        {name.removeprefix("params/"): leaf.shape for name, leaf in leaf_names(tree).items()}
        for tree in (variables, model_shapes(config))
    )
    different = [
        f"{name} is {list(there[name]) if name in there else 'missing'} in the checkpoint and "
        f"{list(here[name]) if name in here else 'missing'} by config.json"
        for name in sorted({**there, **here})
        if there.get(name) != here.get(name)
    ]
    if different:
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        raise UserError(
            f"the checkpoint {checkpoint} is not of configuration {config.model.configuration} with "
            f"{config.model.num_classes} classes, as {workdir / 'config.json'} says: {'; '.join(different[:3])}{more}. "
            "Give the workdir that it was made in."
        )
