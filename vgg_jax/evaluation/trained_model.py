"""A trained model with everything that belongs to it, from a workdir, a checkpoint or a weights file."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vgg_jax.config import recipe_of
from vgg_jax.data.colors import ColorStatistics
from vgg_jax.features.backbone import Backbone, names_and_titles
from vgg_jax.models import Network, NetworkSpec
from vgg_jax.recipe import Recipe
from vgg_jax.runs import RunDir
from vgg_jax.runtime.digests import leaf_names, params_sha256
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.sharding import make_mesh, replicated
from vgg_jax.training.state import make_model, model_shapes
from vgg_jax.weights import file as weights_file
from vgg_jax.weights import hub
from vgg_jax.weights.file import Weights, folded_variables
from vgg_jax.weights.imagenet_classes import titles
from vgg_jax.weights.preprocessing import Preprocessing

_REMEDY = "--workdir must name a training run's directory, with config.json, dataset.json and checkpoints/ in it"


class TrainedModel(NamedTuple):
    """A model with its variables on the devices, and what it was trained on."""

    workdir: Path  # of its evaluations
    checkpoint: Path  # the directory or file that its variables came from
    recipe: Recipe  # the run's, but for model.dtype where another was asked for
    model: Network
    variables: dict  # first argument of `model.apply`
    digest: str  # `params_sha256`
    class_names: list[str]
    class_titles: list[str]  # what a person calls the classes
    statistics: ColorStatistics
    mesh: Mesh  # every device sees other images and holds all variables, however they were sharded in training
    averages: bool = True  # whether they were asked for, see `checkpoints.load_variables`


def load_trained(source: str | Path, dtype: str = "", averages: bool = True) -> TrainedModel:
    """Reads a trained model.

    Args:
      source: a run's workdir, which stands for its best checkpoint, one of its checkpoints/<step>, a weights file, or a
        name of published weights (`weights.hub`).
      dtype: of the computation; "" for the run's own, float32 for weights.
      averages: see `checkpoints.load_variables`.

    Raises:
      UserError: nothing to read there, or a checkpoint that is not of the configuration next to it.
    """
    path, weights = hub.load(source)
    return _from_weights(path, weights, dtype) if weights else _from_run(path, dtype, averages)


def _from_run(source: Path, dtype: str, averages: bool) -> TrainedModel:
    # Imported here, since Orbax takes a third of a second, and weights need none.
    from vgg_jax.training.checkpoints import load_variables

    run = RunDir.containing(source, _REMEDY)
    if not run.path.is_dir():
        raise UserError(
            f"{source}: there is no such directory or file; give a training run's workdir, one of its "
            "checkpoints/<step>, or a weights file."
        )
    recipe, class_names = recipe_of(run.config()), run.dataset()["class_names"]
    statistics = ColorStatistics(*run.colors())
    checkpoint, variables = load_variables(source, averages)
    _check_belongs(run, checkpoint, recipe, variables, class_names)
    if dtype:
        recipe = recipe.with_values({"model.dtype": dtype})
    trained = _placed(run.path, checkpoint, recipe, variables, class_names, statistics)
    return trained._replace(averages=averages)


def _from_weights(source: Path, weights: Weights, dtype: str) -> TrainedModel:
    """Returns the model of a weights file, its preprocessing folded into conv1_1: all models see the same pixels."""
    if not weights.num_classes:
        raise UserError(
            f"{source} is a trunk, without a classifier; take its activations (vgg_jax.features), or train one on top "
            f"of it: --config.init_from={source}."
        )
    network = weights_file.make_model(weights, dtype or "float32")
    recipe = _recipe(network, weights.network, weights.training_scales)
    names, class_titles = names_and_titles(weights)
    # Colours are shifted in training only, which a file knows nothing of.
    statistics = ColorStatistics(weights.preprocessing.mean_rgb(), np.zeros((3, 3), np.float32))
    variables = folded_variables(weights)
    workdir = source.with_suffix("")
    if (
        source in hub.BUILTIN.values()
        or workdir.is_file()
        or not os.access(workdir if workdir.exists() else workdir.parent, os.W_OK)
    ):
        workdir = hub.cache_dir() / "evaluations" / f"{workdir.name}-{params_sha256(weights.params)[:8]}"
    trained = _placed(workdir, source, recipe, variables, names, statistics)
    return trained._replace(class_titles=class_titles)


def trained_model_of(model: Backbone) -> TrainedModel:
    """Returns the public model as the test protocol takes it; its digest and workdir are empty.

    Raises:
      UserError: a trunk.
    """
    if not model.num_classes:
        raise UserError(f"{model} has no classifier; take its activations (vgg_jax.features.activations).")
    mesh, recipe = make_mesh(), _recipe(model.network, model.spec, model.training_scales)
    recipe = recipe.with_values({"image.eval_scale": model.eval_scale, "data.exif": model.exif})
    statistics = ColorStatistics(np.asarray(model.mean_rgb, np.float32), np.zeros((3, 3), np.float32))
    variables = jax.device_put(model.variables, replicated(mesh))
    names, class_titles = list(model.class_names), list(model.class_titles)
    source = Path(model.source)
    return TrainedModel(source, source, recipe, model.network, variables, "", names, class_titles, statistics, mesh)


def backbone_of_run(source: Path, dtype: str = "") -> Backbone:
    """Returns the public model of a run's checkpoint, its variables on the first device.

    Args and errors as of `load_trained`.
    """
    trained = load_trained(source, dtype)
    variables = jax.tree.map(lambda x: x.addressable_data(0), trained.variables)
    image = trained.recipe.image
    return Backbone(
        params=variables.pop("params"),
        mean_rgb=jnp.asarray(trained.statistics.mean_rgb),
        network=trained.model,
        spec=trained.recipe.model.network,
        model_state=variables,
        class_names=tuple(trained.class_names),
        class_titles=tuple(trained.class_titles),
        training_scales=(image.scale_min, image.scale_max),
        eval_scale=image.eval_scale,
        exif=trained.recipe.data.exif,
        source=str(trained.checkpoint),
    )


def _recipe(network: Network, spec: NetworkSpec, training_scales: tuple[int, int]) -> Recipe:
    """Returns the recipe of a model that brings none."""
    values = {
        **{f"model.{name}": value for name, value in dataclasses.asdict(spec).items()},
        **{f"model.{name}": getattr(network, name) for name in ("num_classes", "width_multiplier", "fc_width")},
        "model.dtype": str(jnp.dtype(network.dtype)),
        "image.crop": network.crop,
        **dict(zip(("image.scale_min", "image.scale_max"), training_scales, strict=True)),
    }
    return Recipe.from_values(values)


def _placed(
    workdir: Path,
    checkpoint: Path,
    recipe: Recipe,
    variables: dict,
    class_names: list[str],
    statistics: ColorStatistics,
) -> TrainedModel:
    mesh, model_state = make_mesh(), {name: tree for name, tree in variables.items() if name != "params"}
    return TrainedModel(
        workdir,
        checkpoint,
        recipe,
        make_model(recipe),
        jax.device_put(variables, replicated(mesh)),
        params_sha256(variables["params"], model_state),
        class_names,
        [titles().get(name, name) for name in class_names],
        statistics,
        mesh,
    )


def weights_of_run(source: str | Path) -> Weights:
    """Returns a run's checkpoint as a weights file holds it.

    Args:
      source: a workdir, which stands for its best checkpoint, or one of its checkpoints/<step>.

    Raises:
      UserError: as `load_trained`.
    """
    trained = load_trained(source)
    to_numpy = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float32))
    red, green, blue = map(float, trained.statistics.mean_rgb)
    return Weights(
        params=to_numpy(trained.variables["params"]),
        network=trained.recipe.model.network,
        width_multiplier=trained.recipe.model.width_multiplier,
        fc_width=trained.recipe.model.fc_width,
        crop=trained.recipe.image.crop,
        training_scales=(trained.recipe.image.scale_min, trained.recipe.image.scale_max),
        preprocessing=Preprocessing("RGB", 255.0, (red, green, blue), (1.0, 1.0, 1.0)),
        class_names=trained.class_names,
        class_titles=None,
        source=f"the run {trained.workdir.name}, checkpoint {trained.checkpoint.name}",
        model_state={name: to_numpy(tree) for name, tree in trained.variables.items() if name != "params"},
    )


def _check_belongs(run: RunDir, checkpoint: Path, recipe: Recipe, variables: dict, class_names: list[str]) -> None:
    """Raises UserError where a checkpoint's variables, the configuration and the class names are not of one run."""
    config_name = run.config_file.name
    if len(class_names) != recipe.model.num_classes:
        raise UserError(
            f"{run.path}: {config_name} has {recipe.model.num_classes} classes and {run.dataset_file.name} "
            f"{len(class_names)}; they are not of one run."
        )
    there, here = (
        {name.removeprefix("params/"): list(leaf.shape) for name, leaf in leaf_names(tree).items()}
        for tree in (variables, model_shapes(recipe))
    )
    different = [
        f"{name} is {there.get(name, 'missing')} in the checkpoint and {here.get(name, 'missing')} by {config_name}"
        for name in sorted({**there, **here})
        if there.get(name) != here.get(name)
    ]
    if different:
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        raise UserError(
            f"the checkpoint {checkpoint} is not of {recipe.model.network.title} with "
            f"{recipe.model.num_classes} classes, as {run.config_file} says: {'; '.join(different[:3])}{more}. "
            "Give the workdir that it was made in."
        )
