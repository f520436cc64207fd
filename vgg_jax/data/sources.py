"""Where pictures come from: every kind of data set, opened as random-access records of encoded bytes.

All of them are TFDS builders that hold ArrayRecord files, read without TensorFlow: the built-in set, a folder of
pictures, ImageNet (`vgg_jax.data.imagenet` prepares it), and any other TFDS classification set by name.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict

from vgg_jax.augment import IMAGENET_STATISTICS, ColorStatistics
from vgg_jax.config import DATA_DIR
from vgg_jax.data.builtin import CLASS_NAMES, COUNTS, VggJaxShapes
from vgg_jax.data.folder import VggJaxFolder, check_classes, faults, left_out_line, list_folder, sizes
from vgg_jax.data.records import Records
from vgg_jax.data.space import SKIPPED, need_space, writable
from vgg_jax.data.statistics import color_statistics, load_statistics, save_statistics
from vgg_jax.errors import UserError, did_you_mean, first_line, printable
from vgg_jax.logbook import write_json


class Dataset(NamedTuple):
    """An opened data set."""

    name: str
    train: Records
    validation: Records
    class_names: list[str]
    statistics: ColorStatistics
    warnings: tuple[str, ...] = ()  # sentences, of what is rarely meant

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
    """Opens the configured data set, preparing it first where that needs nothing but what the configuration says.

    The built-in set and a folder are prepared on first use; ImageNet and other TFDS sets must have been prepared as
    ArrayRecord. The training split's colour statistics are computed once and kept beside the prepared data
    (ImageNet's are constants).

    Raises:
      UserError: an unknown set or split, one that is not prepared, a bad folder, an empty split, another number of
        classes than the configuration's, or a directory that cannot be written.
    """
    splits = {f"config.data.{key}": config.data[key] for key in ("train_split", "val_split")}
    builder = prepared_builder(
        config.data.name,
        expanded(config.data.dir),
        config.data.root,
        splits=splits,
        num_classes=config.model.num_classes,
    )
    train, validation = (open_split(builder, split, key) for key, split in splits.items())
    class_names = list(builder.info.features["label"].names)
    _check_num_classes(config.model.num_classes, config.data.name, len(class_names))
    statistics = statistics_of(builder, config.data.train_split, train)
    return Dataset(
        builder.info.full_name, train, validation, class_names, statistics, _warnings(config, train, validation)
    )


def _warnings(config: ConfigDict, train: Records, validation: Records) -> tuple[str, ...]:
    """Says what is rarely meant: pictures that are trained on and validated on, or twice in an epoch; less than a batch."""
    sentences = []
    if common := validation.in_common(train):
        sentences.append(
            f"{common:,} of the {len(validation):,} validation pictures are training pictures too (config.data.train_split="
            f"{config.data.train_split}, config.data.val_split={config.data.val_split}), so the error says less than it "
            f"seems to; where there is but one split, {_ADVICE} share it out."
        )
    if (twice := train.in_common(train) - len(train)) > 0:
        sentences.append(
            f"config.data.train_split={config.data.train_split} takes {twice // 2:,} pictures more than once in an epoch."
        )
    if config.batch_size > len(train):
        sentences.append(
            f"config.batch_size is {config.batch_size}, more than the {len(train):,} training pictures, so every batch has "
            "some of them several times; a smaller one is usually meant."
        )
    return tuple(sentences)


_ADVICE = "--config.data.train_split='train[:90%]' and --config.data.val_split='train[90%:]'"


def expanded(directory: str) -> epath.Path:
    """The path of a directory of prepared data, with ~ replaced; in place of the default, what TFDS_DATA_DIR says.

    Raises:
      UserError: a bucket whose Python package is missing, or an address of something else.
    """
    if directory == DATA_DIR:
        directory = os.environ.get("TFDS_DATA_DIR") or directory
    if "://" not in directory:
        return epath.Path(Path(directory).expanduser())
    try:
        path = epath.Path(directory)
        path.exists()
    except ImportError as error:
        raise UserError(f"{directory} is in a bucket, for which a package is missing: {error}.") from error
    except Exception as error:  # of whatever stands behind the kind of address
        raise UserError(
            f"{directory} is neither a directory nor a bucket that can be read: {first_line(error)} Give a directory, or "
            "gs://BUCKET/DIR (--config.data.dir; for other tools --data_dir)."
        ) from error
    return path


def prepared_builder(
    name: str,
    data_dir: epath.Path,
    root: str = "",
    skip_bad: bool = False,
    splits: Mapping[str, str] | None = None,
    num_classes: int = 0,
) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a data set that is prepared, now if need be.

    Args:
      name: `builtin`, `folder`, or the name of a TFDS data set.
      data_dir: where prepared data lies.
      root: for `folder`: a directory laid out <split>/<class>/<picture>.
      skip_bad: for `folder`: leave files out that are no sound pictures, and record which, rather than stop.
      splits: expressions that will be opened, by the key that they come from: checked before anything is prepared.
      num_classes: that all pictures of these splits must be of, checked as early; 0: any, and pictures without a label.

    Raises:
      UserError: as `open_dataset`.
    """
    options = {"data_dir": data_dir, "file_format": "array_record"}
    splits = splits or {}
    if name == "builtin":
        _check_splits(splits, list(COUNTS), "the built-in set")
        _check_num_classes(num_classes, name, len(CLASS_NAMES))
        return _prepared(VggJaxShapes(**options), "rendering the built-in data set")
    if name == "folder":
        return _prepared_folder(Path(root).expanduser().resolve(), skip_bad, splits, num_classes, options)
    return _tfds_builder(name, data_dir)


def open_split(builder: tfds.core.DatasetBuilder, split: str, key: str) -> Records:
    """The records of a split expression; `key` says in a UserError where the expression came from."""
    try:
        records = Records(builder, split)
    except (ValueError, KeyError) as error:
        splits, name = list(builder.info.splits), builder.info.name
        _check_splits({key: split}, splits, name)
        if "0 length" in str(error):
            raise UserError(
                f"{key} is {split!r}, which takes no picture of {name}; take more: --{key}={splits[-1]}."
            ) from error
        raise UserError(f"{key} is {split!r}, which TFDS refuses: {' '.join(str(error).split())}") from error
    if not len(records):
        raise UserError(f"{key}={split} of {builder.info.name} has no picture in it.")
    return records


def _names(split: str) -> list[str]:
    """The splits of which a TFDS expression, as train[:90%]+test, takes pictures."""
    return [re.split(r"[^\w-]", part.strip())[0] for part in split.split("+")]


def _check_splits(splits: Mapping[str, str], known: list[str], owner: str) -> None:
    for key, split in splits.items():
        if set(_names(split)) <= {*known, "all"}:
            continue
        advice = f"--{key}={known[-1]}"
        if known == ["train"] and key.startswith("config.data"):
            advice = _ADVICE
        raise UserError(
            f"{key} is {split!r}, which {owner} does not have; its splits are {', '.join(known)} (or parts of them, as "
            f"{known[0]}[:90%]): {advice}."
        )


def _check_num_classes(num_classes: int, name: str, count: int) -> None:
    if num_classes not in (0, count):
        raise UserError(
            f"config.model.num_classes is {num_classes}, but {name} has {count} classes; say "
            f"--config.model.num_classes={count}."
        )


def _flag(name: str, value: object) -> str:
    """A flag as a shell takes it."""
    return f"--{name}={shlex.quote(str(value))}"


def statistics_of(builder: tfds.core.DatasetBuilder, split: str, records: Records) -> ColorStatistics:
    """Mean RGB and colour vectors of a split: ImageNet's customary ones, or computed once and kept (PAPER.md §5.8)."""
    if builder.info.name == "imagenet2012":
        return IMAGENET_STATISTICS
    kept = epath.Path(builder.data_dir) / f"color_statistics-{urllib.parse.quote(split, safe='')}.json"
    if kept.exists():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: computed anew
            return load_statistics(kept)
    statistics = color_statistics(records)
    with writable(builder.data_dir):
        save_statistics(kept, statistics)
    return statistics


def _prepared_folder(
    root: Path, skip_bad: bool, splits: Mapping[str, str], num_classes: int, options: dict[str, Any]
) -> tfds.core.DatasetBuilder:
    listing = list_folder(root)
    _check_splits(splits, list(listing.splits), f"the folder {root}")
    _check_num_classes(num_classes, "folder", len(listing.class_names()))
    if num_classes:
        check_classes(root, listing, {name for split in splits.values() for name in _names(split)})
    builder = VggJaxFolder(root=root, listing=listing, **options)
    if builder.is_prepared():
        return builder
    if listing.left_out:
        print(left_out_line(root, listing.left_out), flush=True)
    total = sum(sizes(listing))
    # TFDS sorts what is more than a gigabyte on the disk, so all of it lies there twice for a while.
    needed = total if total < 1e9 else 2 * total
    need_space(builder.data_dir, needed, "--config.data.dir=DIR (for vgg_jax.prepare: --data_dir=DIR)")
    bad = faults(root, listing)
    if bad and not skip_bad:
        raise UserError(
            f"{len(bad)} of {len(sizes(listing))} files are no sound pictures; repair or remove them and start again, or "
            f"leave them out with: python -m vgg_jax.prepare folder {_flag('root', root)} {_flag('data_dir', options['data_dir'])} "
            "--skip_bad. Nothing was prepared.\n  "
            + "\n  ".join(f"{printable(str(root / name))}: {reason}" for name, reason in bad.items())
        )
    builder = VggJaxFolder(root=root, listing=listing, skip=frozenset(bad), **options)
    _prepared(builder, f"packing {root}")
    if bad:
        write_json(Path(builder.data_dir) / SKIPPED, bad)
    return builder


def _prepared(builder: tfds.core.DatasetBuilder, what: str) -> tfds.core.DatasetBuilder:
    if not builder.is_prepared():
        print(f"{what} into {builder.data_dir} (once)", flush=True)
        with _tfds_progress(), writable(builder.data_dir):
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
        raise UserError(
            f"the TFDS data set {name!r} is {_what_is_there(builder, data_dir)}. {how_to_prepare(name, data_dir)}; or "
            "name another place with --config.data.dir=DIR."
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


def how_to_prepare(name: str, data_dir: epath.Path) -> str:
    """The command that prepares a TFDS data set as ArrayRecord, in a sentence without its end."""
    if re.split("[:/]", name)[0] == "imagenet2012":
        return (
            "Prepare it from the tars of image-net.org: python -m vgg_jax.prepare imagenet2012 --tars=DIR "
            f"{_flag('data_dir', data_dir)}"
        )
    return (
        "Prepare it as ArrayRecord, in an environment of its own that has TensorFlow (pip install tensorflow "
        f"tensorflow-datasets): tfds build {shlex.quote(name)} --file_format=array_record {_flag('data_dir', data_dir)}"
    )


def _what_is_there(builder: tfds.core.DatasetBuilder, data_dir: epath.Path) -> str:
    if builder.is_prepared():
        return f"prepared in {data_dir}, but as {builder.info.file_format.value}, not ArrayRecord"
    version = epath.Path(builder.data_dir)
    variant = f"{builder.name}/{builder.builder_config.name}" if builder.builder_config else builder.name
    others = sorted(
        f"{variant}:{other.name}"
        for other in (version.parent.iterdir() if version.parent.is_dir() else ())
        if other.name != version.name and (other / "dataset_info.json").exists()
    )
    if others:
        return (
            f"in {data_dir} in another version than {version.name}: --config.data.name={others[-1]} would take "
            f"{'it' if len(others) == 1 else 'the last of ' + ', '.join(others)}"
        )
    return f"not prepared in {data_dir}"


@contextlib.contextmanager
def _tfds_progress() -> Iterator[None]:
    """TFDS's own bars where somebody watches (a log file would fill with them), and nothing else of what it prints."""
    (tfds.enable_progress_bar if sys.stderr.isatty() else tfds.disable_progress_bar)()
    with contextlib.redirect_stdout(io.StringIO()):
        yield
