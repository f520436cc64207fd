"""Weights out: torchvision's names, Keras's file, ONNX, a StableHLO program, a folder for a hub."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vgg_jax import __version__
from vgg_jax.models import ALIASES, NetworkSpec
from vgg_jax.runtime.exceptions import UserError, writing_to
from vgg_jax.runtime.files import ANOTHER_PLACE, write_atomically, write_directory
from vgg_jax.weights import layouts, preprocessing
from vgg_jax.weights.file import (
    EXPORTED_KEY,
    SUFFIX,
    Weights,
    folded_params,
    folded_variables,
    make_model,
    save_weights,
    write_safetensors,
)
from vgg_jax.weights.onnx_file import write_onnx
from vgg_jax.weights.preprocessing import Preprocessing

KERAS_NETS = {"D": "VGG16", "E": "VGG19"}
# What a stored program may be run on; it is compiled where it is loaded.
PLATFORMS = ("cpu", "cuda", "tpu")


def to_torchvision(weights: Weights) -> tuple[dict[str, np.ndarray], Preprocessing]:
    """Returns the state dictionary of torchvision's model, and the preprocessing it expects.

    Weights that expect RGB on 0 to 1 stay as they are, to the last bit. Others are changed in conv1_1 alone so that
    they do: torchvision's std, and as mean the colour that was zero before, which keeps the borders exact.

    Raises:
      UserError: a configuration that torchvision does not have.
    """
    if not torchvision_name(weights):
        raise UserError(
            f"torchvision has no model of configuration {weights.configuration}"
            f"{_options(weights.network)}; it has those of "
            "A, B, D, E, with batch normalisation too, and ResNet-18 to ResNet-152."
        )
    params, expected = weights.params, weights.preprocessing
    if (expected.order, expected.scale) != ("RGB", 1.0):
        red, green, blue = map(float, expected.mean_rgb().astype(np.float64) / 255)
        expected = Preprocessing("RGB", 1.0, (red, green, blue), preprocessing.KNOWN["torchvision"].std)
        params = _expecting(weights, expected)
    variables = {"params": params, **weights.model_state}
    return layouts.from_variables(variables, "torchvision", weights.network), expected


def _expecting(weights: Weights, expected: Preprocessing) -> dict:
    """Returns the parameters for pixels that are prepared in another way, of the same mean."""
    params, first = folded_params(weights), weights.layers[0].name
    kernel = preprocessing.unfold_from_conv1(params[first]["kernel"], expected)
    return {**params, first: {**params[first], "kernel": kernel}}


def write_keras(path: Path, weights: Weights) -> Preprocessing:
    """Writes a `.weights.h5` that Keras 3's VGG16 or VGG19 loads, a trunk's with include_top=False, whole or not at
    all.

    Returns:
      What the model expects of its pixels: blue first, minus the mean colour, as Keras's own models do.

    Raises:
      UserError: another configuration, or h5py is not installed.
    """
    if weights.configuration not in KERAS_NETS or weights.model_state or weights.network.head == "gap":
        raise UserError(
            "Keras has VGG16 and VGG19, which are configurations D and E as published, and this is "
            f"{weights.configuration}{_options(weights.network)}."
        )
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            "Keras's files are written by h5py, which is not installed: pip install 'vgg-jax[h5]'."
        ) from error
    blue, green, red = map(float, weights.preprocessing.mean_rgb()[::-1])
    expected = Preprocessing("BGR", 255.0, (blue, green, red), (1.0, 1.0, 1.0))
    params = weights.params if weights.preprocessing == expected else _expecting(weights, expected)
    tensors = layouts.from_variables({"params": params}, "Keras", weights.network)
    counts = {"conv2d": 0, "dense": 0}
    with write_atomically(path, ANOTHER_PLACE) as unfinished, h5py.File(unfinished, "w") as file:
        for name, array in tensors.items():
            stem, leaf = name.split("/")
            kind = "conv2d" if "conv" in stem else "dense"
            number = counts[kind]
            file[f"layers/{kind}{f'_{number}' if number else ''}/vars/{int(leaf == 'bias')}"] = array
            counts[kind] += leaf == "bias"
    return expected


def torchvision_name(weights: Weights) -> str:
    """Returns the name of torchvision's function for such a model; "" where it has none."""
    network = weights.network.with_head()
    is_known = (
        network in layouts.FRAMEWORKS["torchvision"].networks and network.configuration not in layouts.CIFAR_RESNETS
    )
    return next((alias for alias, name in ALIASES.items() if name == network.name), "") if is_known else ""


def _options(network: NetworkSpec) -> str:
    """Returns the options that are not the default's, for messages: " with {'head': 'gap'}"."""
    return f" with {options}" if (options := network.to_json()) else ""


def to_stablehlo(weights: Weights) -> bytes:
    """Returns a program for jax.export.deserialize: uint8 RGB crops [b, crop, crop, 3] -> probabilities [b, K] float32.

    Of a trunk it returns the means [b, C] of the last map.

    Parameters and preprocessing are inside; nothing of this project is needed to run it.

    Raises:
      UserError: flatbuffers, with which JAX writes programs, is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            "jax.export writes programs with flatbuffers, which is not installed: pip install 'vgg-jax[export]', or "
            "pip install flatbuffers."
        )
    model, variables, mean = make_model(weights), folded_variables(weights), weights.preprocessing.mean_rgb()

    def program(images_BxHxWx3: jax.Array) -> jax.Array:
        logits, _ = model.apply(variables, images_BxHxWx3.astype(jnp.float32) - mean)
        return jax.nn.softmax(logits) if weights.num_classes else logits

    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, weights.crop, weights.crop, 3), jnp.uint8)
    return bytes(export.export(jax.jit(program), platforms=PLATFORMS)(images).serialize())


_PAPER = (
    '"Very Deep Convolutional Networks for Large-Scale Image Recognition" '
    "([arXiv 1409.1556](https://arxiv.org/abs/1409.1556)): "
)
_CARD = """---
library_name: vgg-jax
pipeline_tag: image-classification
tags:
- image-classification
- {family}
- jax
- flax
---

# {title}

{paper}{title}, written by vgg_jax {version}.

| what | value |
| --- | --- |
| parameters | {parameters:,} |
| crop; training scale S | {crop} pixels; {scales} |
| classes | {classes} |
| pixels | ({order} x {scale:g} / 255 - {mean}) / {std} |
| from | {source} |

    pip install 'vgg-jax[hub]'
    vgg-jax predict --weights=hf://OWNER/REPOSITORY photo.jpg
    vgg-jax evaluate --weights=hf://OWNER/REPOSITORY --protocol=dense --scales=multi

Error, training data, licence and limits: not known to the program that wrote this card; write them here before it is \
published.
"""


def write_hub_folder(folder: Path, weights: Weights) -> Path:
    """Writes what a model repository of the Hugging Face hub holds, whole or not at all: model.safetensors and a card.

    Returns:
      The file of weights, which is of this project's form; `hf://OWNER/REPOSITORY` names it once it is uploaded.

    Raises:
      UserError: it cannot be written.
    """
    expected, title = weights.preprocessing, weights.network.title
    card = _CARD.format(
        title=title,
        family=title.replace("-", " ").split()[0].lower(),
        paper=_PAPER if weights.network.is_vgg else "",
        version=__version__,
        parameters=sum(array.size for layer in weights.params.values() for array in layer.values()),
        crop=weights.crop,
        scales=" to ".join(map(str, sorted(set(weights.training_scales)))) + " pixels",
        classes=weights.num_classes,
        **expected._asdict(),
        source=weights.source,
    )
    with writing_to(folder, ANOTHER_PLACE), write_directory(folder) as unfinished:
        save_weights(unfinished / f"model{SUFFIX}", weights)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
    return folder / f"model{SUFFIX}"


class Export(NamedTuple):
    """A written file of weights, and how it is used."""

    path: Path
    usage: tuple[str, ...] = ()  # lines


def _torchvision(path: Path, weights: Weights) -> Export:
    tensors, expected = to_torchvision(weights)
    write_safetensors(path, tensors, {EXPORTED_KEY: json.dumps(expected._asdict())})
    classes = "" if weights.num_classes in (0, 1000) else f"num_classes={weights.num_classes}"
    # Of a trunk the FC layers stay as they are.
    strict = "" if weights.num_classes else ", strict=False"
    loading = f"load_state_dict(safetensors.torch.load_file({str(path)!r}){strict})"
    usage = (
        f"torchvision.models.{torchvision_name(weights)}({classes}).{loading}",
        f"its pixels: torchvision.transforms.Normalize(mean={list(expected.mean)}, std={list(expected.std)})",
    )
    return Export(path, usage + _note_of_shape(weights, "torchvision's class"))


def _keras(path: Path, weights: Weights) -> Export:
    expected = write_keras(path, weights)
    top = f"classes={weights.num_classes}" if weights.num_classes else "include_top=False"
    name = KERAS_NETS[weights.configuration]
    usage = (
        f"keras.applications.{name}(weights=None, {top}).load_weights({str(path)!r})",
        f"its pixels: blue first, minus {list(expected.mean)}",
    )
    return Export(path, usage + _note_of_shape(weights, "that of keras.applications"))


def _note_of_shape(weights: Weights, their_class: str) -> tuple[str, ...]:
    note = f"this model is not of the published width and crop, so {their_class} must be changed to take it"
    return () if has_published_shape(weights) else (note,)


def has_published_shape(weights: Weights) -> bool:
    """Returns whether the published class of a network, made for crops of 224, takes its parameters."""
    has_fc6 = "fc6" in weights.params
    return weights.width_multiplier == 1 and (not has_fc6 or (weights.fc_width, weights.crop // 32) == (4096, 7))


def _onnx(path: Path, weights: Weights) -> Export:
    write_onnx(path, weights)
    result = f"probabilities [b, {weights.num_classes}]" if weights.num_classes else "features [b, C, h, w]"
    usage = (
        f"onnxruntime.InferenceSession({str(path)!r}).run(None, {{'images': images}}): uint8 RGB [b, height, width, "
        f"3], from {weights.crop} x {weights.crop} up -> {result}"
    )
    return Export(path, (usage,))


def _stablehlo(path: Path, weights: Weights) -> Export:
    program = to_stablehlo(weights)
    with write_atomically(path, ANOTHER_PLACE) as unfinished:
        unfinished.write_bytes(program)
    result = f"probabilities [b, {weights.num_classes}]" if weights.num_classes else "features [b, C]"
    usage = (
        f"jax.export.deserialize(bytearray(open({str(path)!r}, 'rb').read())).call(images): uint8 RGB [b, "
        f"{weights.crop}, {weights.crop}, 3] -> {result}, on {', '.join(PLATFORMS)}",
        "JAX promises to read it for six months; docs/weights.md says more. Keep the weights next to it.",
    )
    return Export(path, usage)


def _hub_folder(path: Path, weights: Weights) -> Export:
    file = write_hub_folder(path, weights)
    return Export(file, (f"upload it with: hf upload OWNER/REPOSITORY {shlex.quote(str(path))}",))


# What `vgg-jax convert --to` writes, apart from this project's own file.
EXPORTS: dict[str, Callable[[Path, Weights], Export]] = {
    "torchvision": _torchvision,
    "keras": _keras,
    "onnx": _onnx,
    "stablehlo": _stablehlo,
    "hf": _hub_folder,
}
