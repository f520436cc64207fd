"""This project's own weights file: safetensors, with everything that using the model takes next to its parameters.

The tensors are `conv1_1/kernel` and so on, float32 or float16, as in the params of `models.VGG`, for the model's own
input. The metadata has one entry, `vgg_jax`, a JSON object: form, configuration, num_classes, width_multiplier,
fc_width, crop, training_scales (S, from and to), preprocessing, class_names and class_titles (or null), source,
params_sha256.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from vgg_jax.models import CONFIGURATIONS, NO_HEAD, Layers, Network, NetworkSpec, make_network, variable_shapes
from vgg_jax.models.description import LARGEST_CROP, LARGEST_SCALE, LEAST_CROP
from vgg_jax.runtime.digests import params_sha256
from vgg_jax.runtime.exceptions import UNPRINTABLE, UserError, printable
from vgg_jax.runtime.files import ANOTHER_PLACE, write_atomically
from vgg_jax.weights import containers, preprocessing
from vgg_jax.weights.preprocessing import Preprocessing
from vgg_jax.weights.tensors import TensorFile, WeightsError, short

# Form 2 holds a network that is not the paper's, and `network` describes it.
KEY, FORMS = "vgg_jax", (1, 2)
# In files with another framework's names, the preprocessing alone. One entry, for the package writes several in any
# order.
EXPORTED_KEY = "vgg_jax_preprocessing"
SUFFIX = ".safetensors"
# Of the numbers in a file; a model has them in float32.
DTYPES = ("float32", "float16")
# Letters of a class name.
_LONGEST_NAME = 1000
_ALTERED = "its numbers are not those that were written (their digest differs); take a sound copy"


class Weights(NamedTuple):
    """A model, its parameters and what belongs to them."""

    params: dict  # {layer: {"kernel", "bias"}}, NumPy float32, for the input that `preprocessing` gives
    network: NetworkSpec
    width_multiplier: float
    fc_width: int
    crop: int  # pixels
    training_scales: tuple[int, int]  # S, pixels, from and to
    preprocessing: Preprocessing
    class_names: list[str] | None  # in the order of the classes; None: not known
    class_titles: list[str] | None  # what a person calls them
    source: str  # where they come from, for a person
    model_state: dict = {}  # {"batch_stats": {layer: {"mean", "var"}}} where batch normalisation has any

    @property
    def configuration(self) -> str:
        """Returns the network's configuration, one of `models.CONFIGURATIONS`."""
        return self.network.configuration

    @property
    def layers(self) -> Layers:
        """Returns the network's layers."""
        return self.network.layers(self.crop)

    @property
    def num_classes(self) -> int:
        """Returns the classes of the head; 0 for a trunk, which has none."""
        return self.params[self.layers[-1].name]["bias"].shape[0] if self.layers[-1].kind == "head" else 0


def make_model(weights: Weights, dtype: str = "float32") -> Network:
    """Returns the module that takes the parameters."""
    return make_network(
        weights.network,
        weights.crop,
        num_classes=weights.num_classes,
        width_multiplier=weights.width_multiplier,
        fc_width=weights.fc_width,
        dtype=jnp.dtype(dtype),
    )


def folded_params(weights: Weights) -> dict:
    """Returns the parameters for RGB on 0 to 255 minus `preprocessing.mean_rgb()`, as `models.Network` expects it."""
    name = weights.layers[0].name
    kernel = preprocessing.fold_into_conv1(weights.params[name]["kernel"], weights.preprocessing)
    return {**weights.params, name: {**weights.params[name], "kernel": kernel}}


def folded_variables(weights: Weights) -> dict:
    """Returns `folded_params` and the model state, the first argument of `Network.apply`."""
    return {"params": folded_params(weights), **weights.model_state}


def load_weights(source: str | os.PathLike) -> Weights:
    """Reads a file that `save_weights` or `vgg-jax convert` wrote.

    Raises:
      UserError: it cannot be read, is another framework's, or is damaged: shapes, dtypes, finiteness and a digest of
        all parameters are checked.
    """
    path = Path(source).expanduser()
    with containers.open_tensors(path) as contents:
        if KEY not in contents.metadata:
            raise UserError(
                f"{path} is {contents.kind}, but not of this project; make one of it with: vgg-jax convert "
                f"{shlex.quote(str(path))} NAME{SUFFIX}"
            )
        return load_own(contents)


def is_own(source: str | os.PathLike) -> bool:
    """Returns whether a file is of this project's format."""
    with containers.open_tensors(Path(source).expanduser()) as contents:
        return KEY in contents.metadata


def load_own(contents: TensorFile) -> Weights:
    """Takes this project's own model out of an opened file; raises WeightsError as `load_weights` does UserError."""
    try:
        parsed = json.loads(contents.metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"its description is damaged ({short(str(error))})") from error
    description = _description(parsed)
    network = make_network(
        description["network"],
        description["crop"],
        num_classes=description["num_classes"],
        width_multiplier=description["width_multiplier"],
        fc_width=description["fc_width"],
    )
    shapes = variable_shapes(network)
    expected = {
        f"{layer}/{leaf}": leaves[leaf].shape
        for of_layers in shapes.values()
        for layer, leaves in of_layers.items()
        for leaf in leaves
    }
    if different := sorted(set(expected) ^ set(contents.tensors)):
        missing = "missing" if different[0] in expected else "too many"
        raise WeightsError(f"it is not the network that its description says: {short(different[0])} is {missing}")
    # Shapes are compared before memory is taken for any array.
    for name, shape in expected.items():
        if contents.tensors[name].shape != shape:
            raise WeightsError(f"{name} is {short(list(contents.tensors[name].shape))}, but should be {list(shape)}")
    variables = {
        collection: {
            layer: {leaf: containers.read_array(contents, f"{layer}/{leaf}") for leaf in leaves}
            for layer, leaves in of_layers.items()
        }
        for collection, of_layers in shapes.items()
    }
    params = variables.pop("params")
    if params_sha256(params, variables) != description["params_sha256"]:
        raise WeightsError(_ALTERED)
    fields = {key: description[key] for key in set(Weights._fields) - {"params", "model_state"}}
    return Weights(params=params, model_state=variables, **fields)


def _description(parsed: Any) -> dict[str, Any]:
    """Returns the checked description, `network` as a NetworkSpec.

    Raises:
      WeightsError: a value that is missing or cannot be.
    """

    def whole(key: str, least: int, most: int) -> int:
        return value if type(value := checked[key]) is int and least <= value <= most else _refuse(key, value)

    if not isinstance(parsed, dict) or parsed.get("form") not in FORMS:
        raise WeightsError(f"its description is not of form {FORMS[0]} or {FORMS[1]}, which this version knows")
    checked: dict[str, Any] = dict.fromkeys(
        ("configuration", "num_classes", "width_multiplier", "fc_width", "crop", "training_scales", "preprocessing")
    )
    checked |= dict.fromkeys(("class_names", "class_titles", "source", "params_sha256")) | {"network": {}}
    checked |= {key: value for key, value in parsed.items() if key in checked}
    if checked["configuration"] not in CONFIGURATIONS:
        _refuse("configuration", checked["configuration"])
    is_trunk = _as_dict(checked["network"]).get("head") == NO_HEAD
    classes = whole("num_classes", *((0, 0) if is_trunk else (2, 2**24)))
    whole("fc_width", 1, 2**24)
    crop = whole("crop", LEAST_CROP, LARGEST_CROP)
    try:
        network = NetworkSpec.from_json(checked["configuration"], checked["network"])
        network.layers(crop)
    except ValueError:
        _refuse("network", {"configuration": checked["configuration"], "crop": crop, **_as_dict(checked["network"])})
    width = checked["width_multiplier"]
    if not isinstance(width, int | float) or isinstance(width, bool) or not 0 < width < 100 or not math.isfinite(width):
        _refuse("width_multiplier", width)
    scales = checked["training_scales"]
    if not isinstance(scales, list) or len(scales) != 2 or not all(type(n) is int for n in scales):
        _refuse("training_scales", scales)
    if not crop <= scales[0] <= scales[1] <= LARGEST_SCALE:
        _refuse("training_scales", scales)
    try:
        checked["preprocessing"] = preprocessing.from_json(checked["preprocessing"])
    except ValueError as error:
        raise WeightsError(f"its preprocessing is damaged ({error})") from error
    for key in ("class_names", "class_titles"):
        names = checked[key]
        if names is not None and not (
            isinstance(names, list) and len(names) == classes and all(isinstance(n, str) for n in names)
        ):
            _refuse(key, names)
        if names and (fault := fault_of_names(names, once=key == "class_names")):
            raise WeightsError(f"its {key} cannot be: {fault}")
    for key in ("source", "params_sha256"):
        if not isinstance(checked[key], str):
            _refuse(key, checked[key])
    checked["source"] = printable(checked["source"])[:_LONGEST_NAME]
    return checked | {"network": network, "training_scales": tuple(scales), "width_multiplier": float(width)}


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"network": value}


def fault_of_names(names: Sequence[str], once: bool) -> str:
    """Returns the fault of names of classes, or "": empty, overlong, not printable, or, with `once`, a name twice."""
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not name.strip() or len(name) > _LONGEST_NAME or UNPRINTABLE.search(name):
            return f"number {number} is {short(printable(name)) or 'empty'!r}, which is not a name"
        if once and name in seen:
            return f"{short(name)!r} is there twice, as number {number}"
        seen.add(name)
    return ""


def _refuse(key: str, value: Any) -> Any:
    raise WeightsError(f"its description has {short(value)} for {key}, which cannot be")


def save_weights(path: Path, weights: Weights, dtype: str = "float32") -> None:
    """Writes the file, whole or not at all; the same weights give the same bytes.

    Args:
      path: of the file.
      weights: float32.
      dtype: of the numbers in the file, one of DTYPES; float16 keeps 11 bits of each.

    Raises:
      UserError: it cannot be written, or has a number that is too large for float16.
    """
    with np.errstate(over="ignore"):
        variables = jax.tree.map(
            lambda array: np.asarray(array, dtype), {"params": weights.params, **weights.model_state}
        )
    if not all(np.isfinite(array).all() for array in jax.tree.leaves(variables)):
        raise UserError(f"{path} cannot be written in {dtype}: a number is too large for it; write float32.")
    # Of the numbers as they are read again.
    as_read = jax.tree.map(lambda array: array.astype(np.float32), variables)
    description = {
        "form": FORMS[0] if weights.network.is_plain else FORMS[1],
        **{
            key: getattr(weights, key)
            for key in ("configuration", "num_classes", "width_multiplier", "fc_width", "crop")
        },
        "training_scales": list(weights.training_scales),
        "preprocessing": weights.preprocessing._asdict(),
        **{key: getattr(weights, key) for key in ("class_names", "class_titles", "source")},
        "params_sha256": params_sha256(as_read.pop("params"), as_read),
        **({} if weights.network.is_plain else {"network": weights.network.to_json()}),
    }
    tensors = {
        f"{layer}/{name}": array
        for of_layers in variables.values()
        for layer, leaves in of_layers.items()
        for name, array in leaves.items()
    }
    write_safetensors(path, tensors, {KEY: json.dumps(description)})


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a safetensors file, whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    with write_atomically(path, ANOTHER_PLACE) as unfinished:
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, unfinished, metadata)
        except SafetensorError as error:
            # The package raises it for a full disk.
            raise OSError(str(error)) from error
        mask = os.umask(0)
        os.umask(mask)
        # The package makes its files readable by their owner alone.
        unfinished.chmod(0o666 & ~mask)
