"""Metadata of timm and transformers next to weights on the Hugging Face hub: config.json, preprocessor_config.json."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from vgg_jax.models.description import LARGEST_CROP, LEAST_CROP
from vgg_jax.weights import preprocessing
from vgg_jax.weights.file import fault_of_names
from vgg_jax.weights.preprocessing import Preprocessing
from vgg_jax.weights.tensors import WeightsError, short

FILES = ("config.json", "preprocessor_config.json")
# PIL's numbers, which transformers writes.
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


class ModelConfig(NamedTuple):
    """Description of a model; "", 0 and None for what is not said."""

    preprocessing: Preprocessing | None
    crop: int  # pixels
    scale: int  # S, pixels: the shorter side, from which the crop is cut
    interpolation: str  # by which its makers resize
    num_classes: int
    labels: list[str] | None  # in the order of the classes


def parse(texts: list[str]) -> ModelConfig:
    """Reads the files.

    Args:
      texts: of FILES that are there; a later one says more.

    Raises:
      WeightsError: no JSON object, a value that cannot be, or a ResNet of transformers that is computed in another way.
    """
    content: dict[str, Any] = {}
    for text in texts:
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"the config.json next to it is damaged ({short(str(error))})") from error
        content |= parsed if isinstance(parsed, dict) else _refuse("its content", parsed)
        content |= parsed["pretrained_cfg"] if isinstance(parsed.get("pretrained_cfg"), dict) else {}
    for key in ("downsample_in_bottleneck", "downsample_in_first_stage"):
        if content.get(key):
            raise WeightsError(f"the config.json next to it says {key}, and ResNets here have their strides elsewhere")
    mean, std = (content.get(key, content.get(f"image_{key}")) for key in ("mean", "std"))
    crop, part = _crop(content), content.get("crop_pct")
    if part is not None and not (isinstance(part, int | float) and 0.1 <= part <= 1):
        _refuse("crop_pct", part)
    resample = content.get(
        "interpolation", _RESAMPLING.get(content["resample"]) if content.get("resample") in _RESAMPLING else ""
    )
    labels = _labels(content)
    classes = content.get("num_classes", len(labels or ()))
    return ModelConfig(
        preprocessing=_preprocessing(mean, std) if mean is not None and std is not None else None,
        crop=crop,
        scale=round(crop / part) if crop and part else 0,
        interpolation=resample if isinstance(resample, str) else _refuse("interpolation", resample),
        num_classes=classes if type(classes) is int and classes >= 0 else _refuse("num_classes", classes),
        labels=labels,
    )


def _preprocessing(mean: Any, std: Any) -> Preprocessing:
    try:
        return preprocessing.from_json({"order": "RGB", "scale": 1.0, "mean": mean, "std": std})
    except ValueError as error:
        raise WeightsError(f"the config.json next to it has a mean and std that cannot be ({error})") from error


def _crop(content: dict[str, Any]) -> int:
    size = content.get("input_size", content.get("crop_size"))
    if isinstance(size, dict):
        size = size.get("height")
    elif isinstance(size, list):
        # [3, height, width].
        size = size[-1] if len(size) == 3 and size[1:] == size[-1:] * 2 else _refuse("input_size", size)
    if size is None:
        return 0
    return size if type(size) is int and LEAST_CROP <= size <= LARGEST_CROP else _refuse("input_size", size)


def _labels(content: dict[str, Any]) -> list[str] | None:
    names = content.get("label_names")
    if names is None and isinstance(by_number := content.get("id2label"), dict):
        if set(by_number) != {str(i) for i in range(len(by_number))}:
            _refuse("id2label", sorted(by_number))
        names = [by_number[str(i)] for i in range(len(by_number))]
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        _refuse("label_names", names)
    if fault := fault_of_names(names, once=False):
        raise WeightsError(f"the labels in the config.json next to it cannot be: {fault}")
    return names


def _refuse(key: str, value: Any) -> Any:
    raise WeightsError(f"the config.json next to it has {short(value)} for {key}, which cannot be")
