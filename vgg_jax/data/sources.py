"""Where pictures come from: every kind of data set, opened as random-access records of encoded bytes.

All of them are TFDS builders that hold ArrayRecord files, read without TensorFlow: the built-in set, a folder of
pictures, and any TFDS classification set by name.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from vgg_jax.augment import IMAGENET_STATISTICS, ColorStatistics
from vgg_jax.config import did_you_mean
from vgg_jax.data.builtin import VggJaxShapes
from vgg_jax.data.folder import VggJaxFolder, check_pictures, list_folder
from vgg_jax.data.statistics import color_statistics, load_statistics, save_statistics
from vgg_jax.errors import UserError


class Dataset(NamedTuple):
    """An opened data set. Records are dicts: image (encoded bytes), label (int), file_name (bytes, where there is one)."""

    name: str
    train: Sequence[dict[str, Any]]
    validation: Sequence[dict[str, Any]]
    class_names: list[str]
    statistics: ColorStatistics

    def description(self) -> dict[str, Any]:
        """What `dataset.json` in a workdir says."""
        return {
            "name": self.name,
            "class_names": self.class_names,
            "train_images": len(self.train),
            "validation_images": len(self.validation),
            **{key: value.tolist() for key, value in self.statistics._asdict().items()},
        }


def open_dataset(config: ConfigDict) -> Dataset:
    """Opens the configured data set, preparing it first where this project can.

    The built-in set and a folder are prepared on first use; a TFDS set must have been prepared as ArrayRecord. The
    training split's colour statistics are computed once and kept beside the prepared data (ImageNet's are constants).

    Raises:
      UserError: an unknown set or split, one that is not prepared, a bad folder, an empty split, another number of
        classes than the configuration's, or a directory that cannot be written.
    """
    data_dir = epath.Path(os.path.expanduser(config.data.dir))
    builder = _builder(config, data_dir)
    splits = list(builder.info.splits)
    train, validation = (_open_split(builder, key, config.data[key], splits) for key in ("train_split", "val_split"))
    class_names = list(builder.info.features["label"].names)
    if len(class_names) != config.model.num_classes:
        raise UserError(
            f"config.model.num_classes is {config.model.num_classes}, but {config.data.name} has {len(class_names)} "
            f"classes; say --config.model.num_classes={len(class_names)}."
        )
    statistics = _statistics(builder, config.data.train_split, train)
    return Dataset(builder.info.full_name, train, validation, class_names, statistics)


def _builder(config: ConfigDict, data_dir: epath.Path) -> tfds.core.DatasetBuilder:
    options = {"data_dir": data_dir, "file_format": "array_record"}
    if config.data.name == "builtin":
        return _prepared(VggJaxShapes(**options), "rendering the built-in data set")
    if config.data.name == "folder":
        root = Path(config.data.root).expanduser().resolve()
        listing = list_folder(root)
        builder = VggJaxFolder(root=root, listing=listing, **options)
        if not builder.is_prepared():
            check_pictures(listing, lambda files, total: _bar(files, total, f"checking the pictures in {root}"))
        return _prepared(builder, f"packing {root}")
    return _tfds_builder(config.data.name, data_dir)


def _prepared(builder: tfds.core.DatasetBuilder, what: str) -> tfds.core.DatasetBuilder:
    if not builder.is_prepared():
        print(f"{what} into {builder.data_dir} (once)", flush=True)
        with _tfds_progress(), _writable(builder.data_dir):
            builder.download_and_prepare()
    return builder


def _tfds_builder(name: str, data_dir: epath.Path) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = ["builtin", "folder", *tfds.list_builders(with_community_datasets=False)]
        raise UserError(
            f"config.data.name is {name!r}, which is neither `builtin` nor `folder` nor a TFDS data set."
            + did_you_mean(name, known)
        ) from None
    except Exception as error:
        raise UserError(f"config.data.name: TFDS cannot open {name!r}: {error}") from error
    if not builder.is_prepared() or builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        state = (
            f"prepared in {data_dir}, but as {builder.info.file_format.value}"
            if builder.is_prepared()
            else f"not prepared in {data_dir}"
        )
        raise UserError(
            f"the TFDS data set {name!r} is {state}. Prepare it as ArrayRecord, in an environment that has TensorFlow: "
            f"tfds build {name} --file_format=array_record --data_dir={data_dir}; or name another place with "
            "--config.data.dir=DIR."
        )
    features = dict(builder.info.features.items())
    if not (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        raise UserError(
            f"the TFDS data set {name!r} is no image classification set: it needs an `image` and a class `label`, and "
            f"has {', '.join(features)}."
        )
    return builder


def _open_split(builder: tfds.core.DatasetBuilder, key: str, split: str, splits: list[str]) -> Sequence[dict[str, Any]]:
    try:
        # The pictures stay encoded: the crops' geometry decides how they are decoded.
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except (ValueError, KeyError) as error:
        raise UserError(
            f"config.data.{key} is {split!r}, which {builder.info.name} does not have; its splits are "
            f"{', '.join(splits)}: --config.data.{key}={splits[-1]}."
        ) from error
    if not len(source):
        raise UserError(f"config.data.{key}={split} of {builder.info.name} has no picture in it.")
    return source


def _statistics(builder: tfds.core.DatasetBuilder, split: str, records: Sequence[dict[str, Any]]) -> ColorStatistics:
    if builder.info.name == "imagenet2012":
        return IMAGENET_STATISTICS
    kept = epath.Path(builder.data_dir) / f"color_statistics-{''.join(c if c.isalnum() else '_' for c in split)}.json"
    if kept.exists():
        return load_statistics(kept)
    statistics = color_statistics(records, lambda done: _bar(done, len(records), "mean RGB and colour vectors (once)"))
    with _writable(builder.data_dir):
        save_statistics(kept, statistics)
    return statistics


@contextlib.contextmanager
def _writable(directory: os.PathLike | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write prepared data to {directory}: {error.strerror or error}; free some space or give another "
            "place with --config.data.dir=DIR. Nothing half-written is used."
        ) from error


@contextlib.contextmanager
def _tfds_progress() -> Iterator[None]:
    """TFDS's own bars where somebody watches (a log file would fill with them), and nothing else of what it prints."""
    (tfds.enable_progress_bar if sys.stderr.isatty() else tfds.disable_progress_bar)()
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _bar(iterable, total: int, what: str):
    if not sys.stderr.isatty():
        print(f"{what}: {total} pictures", flush=True)
    return tqdm(iterable, what, total, unit=" pictures", disable=not sys.stderr.isatty())
