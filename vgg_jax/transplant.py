"""Starting from another net's parameters: pure pytree surgery, by layer name (Paper §3.1, PAPER.md §5.2)."""

from __future__ import annotations

import contextlib
import fnmatch
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from vgg_jax.checkpoints import load_params
from vgg_jax.errors import UserError
from vgg_jax.weights import hub
from vgg_jax.weights.file import folded_params, load_weights

# "We initialised the first four convolutional layers and the last three fully-connected layers with the layers of net A"
# (Paper §3.1). By name: by position they would not fit the deeper nets (PAPER.md §5.2).
NET_A_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")
_HEAD = "fc8"


class Donor(NamedTuple):
    """A net to start from."""

    path: Path  # of the checkpoint or the file
    params: dict  # as NumPy arrays
    mean_rgb: np.ndarray | None  # that it expects pixels to be without, [3], 0 to 255; None where nothing says
    class_names: tuple[list[str], ...]  # of its head, by one or two names; () where nothing says


def read_donor(source: str) -> Donor:
    """Reads a net to start from.

    Args:
      source: a run's workdir (its best checkpoint is taken), one of its checkpoints/<step>, or a weights file of
        `python -m vgg_jax.convert` or a name of published weights (`weights.hub`), whose preprocessing becomes part of
        conv1_1.

    Raises:
      UserError: nothing to read there.
    """
    try:
        place = hub.weights_file(source)
        if place.is_file():
            weights = load_weights(place)
            names = tuple(its for its in (weights.class_names, weights.class_titles) if its)
            return Donor(place, folded_params(weights), weights.preprocessing.mean_rgb(), names)
        path, params = load_params(place)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    mean, names = None, ()
    with contextlib.suppress(
        OSError, ValueError, KeyError, TypeError
    ):  # a run's, or a checkpoint that was copied alone
        dataset = json.loads((path.parent.parent / "dataset.json").read_text())
        names = (list(dataset["class_names"]),)
        mean = np.array(dataset["mean_rgb"], np.float32)
    return Donor(path, params, mean, names)


def check_fit(params: dict, donor: Donor, layers: str = "") -> None:
    """Raises UserError where `start_from` would; needs but the shapes of the new net's parameters."""
    _check_shapes(params, donor.params, chosen_layers(params, donor.params, layers, str(donor.path)), str(donor.path))


def start_from(
    donor: Donor, params: dict, mean_rgb: np.ndarray, layers: str = "", class_names: Sequence[str] = ()
) -> tuple[dict, str]:
    """Replaces layers of freshly initialised parameters by those of another net.

    Where both nets know the names of their classes, fc8 is moved by name, and stays random where the names are others,
    unless `layers` names it.

    Args:
      donor: of `read_donor`.
      params: of the new net; the result lies on the devices as they do.
      mean_rgb: that the new net's pixels will be without, [3], 0 to 255. Where the donor's differs, conv1_1's bias takes
        up the difference.
      layers: which, see `chosen_layers`.
      class_names: of the new net, in order; () where they are unknown.

    Returns:
      The new parameters, and a text that says what was copied from where and what stayed random.

    Raises:
      UserError: what `chosen_layers` and `transplant` refuse.
    """
    place, donor_params = str(donor.path), donor.params
    chosen = chosen_layers(params, donor_params, layers, place)
    if "conv1_1" in chosen and donor.mean_rgb is not None:
        donor_params = donor_params | {"conv1_1": _for_mean(donor_params["conv1_1"], donor.mean_rgb, mean_rgb)}
    remark = ""
    if _HEAD in chosen and _classes(params) == _classes(donor_params):
        order, remark = _order_of_classes(donor.class_names, list(class_names))
        if order is not None:
            donor_params = donor_params | {_HEAD: jax.tree.map(lambda x: x[..., order], donor_params[_HEAD])}
        elif remark == _OTHER_CLASSES and _HEAD not in [word.strip() for word in layers.split(",")]:
            chosen.remove(_HEAD)
    elif _HEAD not in chosen and _classes(params) != _classes(donor_params):
        remark = f"{_classes(donor_params)} classes there, {_classes(params)} here"
    return transplant(params, donor_params, chosen, place), _report(params, chosen, donor.path, remark)


_OTHER_CLASSES = "its classes have other names there"


def _order_of_classes(there: tuple[list[str], ...], here: list[str]) -> tuple[list[int] | None, str]:
    """Where each class of the new head lies in the donor's, None where nothing moves; and a remark."""
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


def chosen_layers(params: dict, donor: dict, layers: str, place: str = "the source") -> list[str]:
    """The names of the layers to copy, in the new net's order.

    Args:
      params: of the new net.
      donor: of the net to copy from.
      layers: "" for the default: all layers between nets of the same convolutions, else NET_A_LAYERS; the head fc8 is
        left out where the number of classes differs. Names with commas between, * and ? as in file names, take its
        place; those with a minus before them are left out of it: "conv*", "-fc6,-fc7", "conv*,-conv5_*".
      place: of the donor, for messages.

    Raises:
      UserError: a name that no layer has, or nothing left.
    """
    words = [word.strip() for word in layers.split(",") if word.strip()]
    wanted, unwanted = [w for w in words if not w.startswith("-")], [w[1:] for w in words if w.startswith("-")]
    names = sorted({**params, **donor}, key=_order)
    for word in (*wanted, *unwanted):
        if not fnmatch.filter(names, word):
            raise UserError(
                f"config.init_layers={layers} names {word!r}, and there is no such layer: {', '.join(names)}."
            )
    if wanted:
        # A pattern means what both nets have; a name must be there, and `transplant` says so.
        both = [name for name in names if name in params and name in donor]
        chosen = {name for word in wanted for name in (fnmatch.filter(both, word) if _is_pattern(word) else [word])}
    else:
        chosen = set(params) | set(donor) if _convolutions(params) == _convolutions(donor) else set(NET_A_LAYERS)
        if _classes(params) != _classes(donor):
            chosen.discard(_HEAD)
    chosen -= {name for word in unwanted for name in fnmatch.filter(names, word)}
    if not chosen:
        raise UserError(f"config.init_layers={layers} leaves no layer to copy from {place}.")
    return sorted(chosen, key=_order)


def transplant(params: dict, donor: dict, layers: Iterable[str], place: str = "the source") -> dict:
    """`params` with these layers' kernels and biases from `donor`, in the dtype and on the devices of those they replace.

    Raises:
      UserError: a layer that either net lacks, or of another shape: each is named.
    """
    layers = list(layers)
    _check_shapes(params, donor, layers, place)
    copied = {
        layer: jax.tree.map(
            lambda new, old: jax.device_put(old.astype(new.dtype), new.sharding), params[layer], donor[layer]
        )
        for layer in layers
    }
    return {**params, **copied}


def _check_shapes(params: dict, donor: dict, layers: list[str], place: str) -> None:
    different = [
        f"{layer}/{name} is {_shape(donor, layer, name)} there and {_shape(params, layer, name)} here"
        for layer in layers
        for name in ("kernel", "bias")
        if _shape(donor, layer, name) != _shape(params, layer, name)
        or "missing" in (_shape(donor, layer, name), _shape(params, layer, name))
    ]
    if different:
        wrong = dict.fromkeys(text.partition("/")[0] for text in different)
        remedy = f"To leave what does not fit random: --config.init_layers={','.join('-' + layer for layer in wrong)}"
        if len(wrong) > 4:
            remedy = "Is the width another? config.model.width_multiplier and fc_width must be as they are there."
            different[4:] = [f"and {len(different) - 4} more"]
        raise UserError(f"config.init_from: {place} does not fit: {'; '.join(different)}. {remedy}")


def _for_mean(layer: dict, mean_there: np.ndarray, mean_here: np.ndarray) -> dict:
    """conv1_1 for pixels without another mean than its own.

    The bias takes up the difference of the means, which is exact but at the borders: there zero padding now stands for the
    new mean.
    """
    difference = np.asarray(mean_here, np.float64) - np.asarray(mean_there, np.float64)
    if not difference.any():
        return layer
    bias = layer["bias"] + np.einsum("hwcf,c->f", layer["kernel"].astype(np.float64), difference)
    return {"kernel": layer["kernel"], "bias": bias.astype(np.float32)}


def _report(params: dict, chosen: list[str], path: Path, remark: str) -> str:
    random = [name for name in sorted(params, key=_order) if name not in chosen]
    remark = f" ({_HEAD}: {remark})" if remark else ""
    if not random:
        return f"all layers start from {path}{remark}"
    if _HEAD in random:
        return f"from {path}: {', '.join(chosen)}\nrandom: {', '.join(random)}{remark}"
    return f"from {path}: {', '.join(chosen)}{remark}\nrandom: {', '.join(random)}"


def _convolutions(params: dict) -> dict[str, tuple[int, ...]]:
    """The convolutions by name with their kernel sizes, which tell the configurations apart (A and A-LRN are one)."""
    return {name: layer["kernel"].shape[:2] for name, layer in params.items() if name.startswith("conv")}


def _classes(params: dict) -> int | None:
    return params[_HEAD]["bias"].shape[0] if _HEAD in params else None


def _is_pattern(word: str) -> bool:
    return any(character in word for character in "*?[")


def _order(layer: str) -> tuple[bool, str]:
    return not layer.startswith("conv"), layer  # the way of the data: convolutions, then FC layers


def _shape(params: dict, layer: str, name: str) -> str:
    return str(list(params[layer][name].shape)) if layer in params else "missing"
