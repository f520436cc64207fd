"""Starting from another model's parameters: pure pytree surgery, by layer name (Paper §3.1, docs/decisions.md)."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vgg_jax.config import flatten
from vgg_jax.models import NETWORK_KEYS, NO_HEAD
from vgg_jax.runs import RunDir
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.training.checkpoints import load_variables
from vgg_jax.weights import hub
from vgg_jax.weights.file import folded_variables

# "We initialised the first four convolutional layers and the last three fully-connected layers with the layers of net
# A" (Paper §3.1). By name: by position they would not fit the deeper models (docs/decisions.md).
NET_A_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")
# Of networks with several FC layers and with one, and of auxiliary classifiers, which are never alone.
_HEADS = ("fc8", "fc", "aux1_fc2", "aux2_fc2")
_FIRST = ("conv1_1", "conv1")
_NETWORK_VALUES = (
    *(f"model.{name}" for name in NETWORK_KEYS),
    *("model.width_multiplier", "model.fc_width", "image.crop", "image.scale_min", "image.scale_max"),
)


class Donor(NamedTuple):
    """A model to start from."""

    path: Path  # of the checkpoint or the file
    variables: dict  # the first argument of `model.apply`, NumPy arrays
    mean_rgb: np.ndarray | None  # that it expects pixels to be without, [3], 0 to 255; None where nothing says
    class_names: tuple[list[str], ...]  # of its head, by one or two names; () where nothing says


def read_donor(source: str) -> Donor:
    """Reads a model to start from.

    Args:
      source: a run's workdir (its best checkpoint is taken), one of its checkpoints/<step>, or a weights file of
        `vgg-jax convert` or a name of published weights (`weights.hub`), whose preprocessing becomes part of
        conv1_1.

    Raises:
      UserError: nothing to read there.
    """
    try:
        path, weights = hub.load(source)
        if weights:
            names = tuple(names for names in (weights.class_names, weights.class_titles) if names)
            return Donor(path, folded_variables(weights), weights.preprocessing.mean_rgb(), names)
        path, variables = load_variables(path)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    mean, names, run = None, (), RunDir.containing(path)
    # A checkpoint that was copied alone has neither next to it.
    with contextlib.suppress(UserError):
        names = (run.dataset()["class_names"],)
        mean, _ = run.colors()
    return Donor(path, variables, mean, names)


def network_values(source: str) -> dict[str, Any]:
    """Returns a model's network, width, crop and S as values of a configuration, {"model.configuration": "D", ...}.

    A trunk has no classifier; a network on top of it has global average pooling, which adds the fewest parameters.

    Args:
      source: see `read_donor`.

    Raises:
      UserError: nothing to read there.
    """
    try:
        path, weights = hub.load(source)
        if not weights:
            values = flatten(RunDir.containing(path).config())
            return {key: values[key] for key in _NETWORK_VALUES}
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    network = dataclasses.asdict(weights.network)
    if weights.network.head == NO_HEAD:
        network["head"] = "gap"
    size = (weights.width_multiplier, weights.fc_width, weights.crop, *weights.training_scales)
    return dict(zip(_NETWORK_VALUES, (*(network[name] for name in NETWORK_KEYS), *size), strict=True))


def check_fit(variables: dict, donor: Donor, layers: str = "") -> None:
    """Raises UserError where `start_from` would; needs only the shapes of the new model's variables."""
    source = str(donor.path)
    chosen = chosen_layers(variables["params"], donor.variables["params"], layers, source)
    _check_shapes(variables, donor.variables, chosen, source)


def start_from(
    donor: Donor, variables: dict, mean_rgb: np.ndarray, layers: str = "", class_names: Sequence[str] = ()
) -> tuple[dict, str]:
    """Replaces layers of freshly initialised variables by another model's.

    Where both models know the names of their classes, fc8 is moved by class name. It stays random where the names
    differ, unless `layers` names it.

    Args:
      donor: of `read_donor`.
      variables: of the new model; the result lies on the devices as they do.
      mean_rgb: that the new model's pixels will be without, [3], 0 to 255. Where the donor's differs, the first
        convolution's bias takes up the difference, or the mean of its batch normalisation.
      layers: which, see `chosen_layers`.
      class_names: of the new model, in order; () where they are unknown.

    Returns:
      The new variables, and a text that says what was copied from where and what stayed random.

    Raises:
      UserError: what `chosen_layers` and `transplant` refuse.
    """
    source, params, donor_variables = str(donor.path), variables["params"], donor.variables
    chosen = chosen_layers(params, donor_variables["params"], layers, source)
    first, head = (next(name for name in names if name in params) for names in (_FIRST, _HEADS))
    if first in chosen and donor.mean_rgb is not None:
        donor_variables = _for_mean(donor_variables, first, donor.mean_rgb, mean_rgb)
    donor_params = donor_variables["params"]
    remark = ""
    if head in chosen and _classes(params) == _classes(donor_params):
        order, remark = _order_of_classes(donor.class_names, list(class_names))
        if order is not None:
            heads = [name for name in _HEADS if name in chosen]
            donor_params = donor_params | {
                name: jax.tree.map(lambda x: x[..., order], donor_params[name]) for name in heads
            }
        elif remark == _OTHER_CLASSES:
            named = [word.strip() for word in layers.split(",")]
            chosen = [name for name in chosen if name not in _HEADS or name in named]
    elif head not in chosen and _classes(params) != _classes(donor_params):
        remark = f"{_classes(donor_params) or 'no'} classes there, {_classes(params)} here"
    copied = transplant(variables, {**donor_variables, "params": donor_params}, chosen, source)
    return copied, _report(params, chosen, source, remark)


_OTHER_CLASSES = "its classes have other names there"


def _order_of_classes(there: tuple[list[str], ...], here: list[str]) -> tuple[list[int] | None, str]:
    """Returns the position of each new class in the donor's head, None where nothing moves; and a remark."""
    if not here:
        return None, ""
    if not there:
        return None, "whether its classes are the same there is unknown"
    for names in there:
        if names == here:
            return None, ""
        if sorted(names) == sorted(here) and len(set(here)) == len(here):
            return [names.index(name) for name in here], "its classes have another order there, and were moved by name"
    return None, _OTHER_CLASSES


def chosen_layers(params: dict, donor: dict, layers: str, source: str = "the source") -> list[str]:
    """Returns the names of the layers to copy, in the new model's order.

    Args:
      params: of the new model.
      donor: of the model to copy from.
      layers: "" for the default: all layers that both have, but between VGGs of other convolutions NET_A_LAYERS; the
        head is left out where the number of classes differs. Names with commas between, * and ? as in file names,
        replace the default; a minus leaves one out: "conv*", "-fc6,-fc7", "conv*,-conv5_*".
      source: path of the donor, for messages.

    Raises:
      UserError: a name that no layer has, or nothing left.
    """
    words = [word.strip() for word in layers.split(",") if word.strip()]
    included, excluded = [w for w in words if not w.startswith("-")], [w[1:] for w in words if w.startswith("-")]
    names = sorted({**params, **donor})
    for word in (*included, *excluded):
        if not fnmatch.filter(names, word):
            raise UserError(
                f"config.init_layers={layers} names {word!r}, and there is no such layer: {', '.join(names)}."
            )
    if included:
        # A pattern means what both models have; a name must be there, and `transplant` says so.
        both = [name for name in names if name in params and name in donor]
        chosen = {name for word in included for name in (fnmatch.filter(both, word) if _is_pattern(word) else [word])}
    else:
        common, is_vgg = set(params) & set(donor), "conv1_1" in params and "conv1_1" in donor
        of_net_a = is_vgg and _convolutions(params) != _convolutions(donor)
        # With global average pooling, or as a trunk, one of them or both are without fc6 to fc8.
        of_both = common if "fc6" not in params or "fc6" not in donor else set(params) | set(donor)
        chosen = set(NET_A_LAYERS) & of_both if of_net_a else common
        # Normalisation stays with its convolution.
        chosen |= common & {f"bn{name.removeprefix('conv')}" for name in chosen}
        if _classes(params) != _classes(donor):
            chosen -= set(_HEADS)
    chosen -= {name for word in excluded for name in fnmatch.filter(names, word)}
    if not chosen:
        raise UserError(f"config.init_layers={layers} leaves no layer to copy from {source}.")
    return sorted(chosen)


def transplant(variables: dict, donor: dict, layers: Iterable[str], source: str = "the source") -> dict:
    """Returns the variables with these layers' arrays from `donor`, in the dtype and sharding of those they replace.

    Raises:
      UserError: a layer that either model lacks, or of another shape: each is named.
    """
    layers = list(layers)
    _check_shapes(variables, donor, layers, source)

    def replaced(collection: str, layer: str, arrays: dict) -> dict:
        if layer not in layers:
            return arrays
        return jax.tree.map(
            lambda new, old: jax.device_put(old.astype(new.dtype), new.sharding), arrays, donor[collection][layer]
        )

    return {
        collection: {layer: replaced(collection, layer, arrays) for layer, arrays in of_layers.items()}
        for collection, of_layers in variables.items()
    }


def _check_shapes(variables: dict, donor: dict, layers: list[str], source: str) -> None:
    if "batch_stats" in donor and "batch_stats" not in variables and any(name.startswith("conv") for name in layers):
        raise UserError(
            f"config.init_from: {source} has batch normalisation, without which its convolutions mean nothing, and "
            "this network has none; say --config.model.batch_norm=True."
        )
    here, there = _shapes(variables, layers), _shapes(donor, layers)
    present = {name.partition("/")[0] for name in (*here, *there)}
    missing = [f"{layer}/kernel" for layer in layers if layer not in present]
    different = [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in (*{**here, **there}, *missing)
        if name in missing or here.get(name) != there.get(name)
    ]
    if different:
        wrong = dict.fromkeys(text.partition("/")[0] for text in different)
        remedy = f"To leave what does not fit random: --config.init_layers={','.join('-' + layer for layer in wrong)}"
        if [len({tuple(s["fc6/kernel"][:2]) for s in (here, there) if "fc6/kernel" in s})] == [2]:
            remedy = f"Is config.image.crop as it is there? {remedy}"
        if len(wrong) > 4:
            remedy = "Is the width another? config.model.width_multiplier and fc_width must be as they are there."
            different[4:] = [f"and {len(different) - 4} more"]
        raise UserError(f"config.init_from: {source} does not fit: {'; '.join(different)}. {remedy}")


def _for_mean(variables: dict, first: str, mean_there: np.ndarray, mean_here: np.ndarray) -> dict:
    """Returns variables for pixels from which another mean was subtracted.

    The first convolution's bias takes up the difference of the means, or, where it has none, the mean of the batch
    normalisation that follows. That is exact but at the borders: there zero padding now stands for the new mean.
    """
    layer = variables["params"][first]
    difference = np.asarray(mean_here, np.float64) - np.asarray(mean_there, np.float64)
    shift = np.einsum("hwcf,c->f", layer["kernel"].astype(np.float64), difference).astype(np.float32)
    if "bias" in layer:
        return variables | {"params": variables["params"] | {first: layer | {"bias": layer["bias"] + shift}}}
    norm, statistics = f"bn{first.removeprefix('conv')}", variables["batch_stats"]
    shifted = statistics[norm] | {"mean": statistics[norm]["mean"] - shift}
    return variables | {"batch_stats": statistics | {norm: shifted}}


def _report(params: dict, chosen: list[str], source: str, remark: str) -> str:
    random = [name for name in sorted(params) if name not in chosen]
    head = next(name for name in _HEADS if name in params)
    remark = f" ({head}: {remark})" if remark else ""
    if not random:
        return f"all layers start from {source}{remark}"
    if head in random:
        return f"from {source}: {', '.join(chosen)}\nrandom: {', '.join(random)}{remark}"
    return f"from {source}: {', '.join(chosen)}{remark}\nrandom: {', '.join(random)}"


def _convolutions(params: dict) -> dict[str, tuple[int, ...]]:
    """Returns the convolutions' kernel sizes by name, which tell the configurations apart (A and A-LRN are one)."""
    return {
        name: layer["kernel"].shape[:2]
        for name, layer in params.items()
        if "kernel" in layer and name.startswith("conv")
    }


def _classes(params: dict) -> int | None:
    return next((params[head]["bias"].shape[0] for head in _HEADS if head in params), None)


def _is_pattern(word: str) -> bool:
    return any(character in word for character in "*?[")


def _shapes(variables: dict, layers: list[str]) -> dict[str, list[int]]:
    """Returns the shapes of these layers' arrays by name, as {"fc6/kernel": [7, 7, 512, 4096]}."""
    return {
        f"{layer}/{name}": list(array.shape)
        for layer in layers
        for of_layers in variables.values()
        # The kernel first, then the bias.
        for name, array in sorted(of_layers.get(layer, {}).items(), reverse=True)
    }
