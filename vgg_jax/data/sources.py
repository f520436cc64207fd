"""Where images come from: every kind of data set, opened as random-access records of encoded bytes.

All of them are ArrayRecord files in TFDS's layout, read without TensorFlow (`vgg_jax.data.prepared`): the built-in set,
a folder of images, ImageNet (`vgg_jax.data.imagenet` prepares it), and any other TFDS classification set by name.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from etils import epath

from vgg_jax.data import builtin, folder, prepared, tfds_sets
from vgg_jax.data import listing as listings
from vgg_jax.data.colors import IMAGENET_STATISTICS, ColorStatistics
from vgg_jax.data.disk import SKIPPED, need_space
from vgg_jax.data.prepared import Prepared, image_digests
from vgg_jax.data.records import Records
from vgg_jax.data.splits import SHARED_OUT, check_splits, open_split, split_names
from vgg_jax.data.statistics import (
    SplitStatistics,
    file_name,
    from_moments,
    load_statistics,
    save_statistics,
    split_statistics,
)
from vgg_jax.data.tfds_sets import shell_flag
from vgg_jax.recipe import DATA_DIR, Recipe
from vgg_jax.runtime.console import print_line
from vgg_jax.runtime.exceptions import UserError, first_line, printable
from vgg_jax.runtime.files import write_json


class Dataset(NamedTuple):
    """An opened data set."""

    name: str
    train: Records
    validation: Records
    class_names: list[str]
    statistics: ColorStatistics
    image_digests: dict[str, str]  # of a folder's splits (`prepared.image_digests`); {} of other data sets
    warnings: tuple[str, ...] = ()  # sentences, of what is rarely meant

    def description(self) -> dict[str, Any]:
        """Returns the content of a workdir's `dataset.json`."""
        return {
            "name": self.name,
            "class_names": self.class_names,
            "train_images": len(self.train),
            "validation_images": len(self.validation),
            **{key: value.tolist() for key, value in self.statistics._asdict().items()},
            **({"image_digests": self.image_digests} if self.image_digests else {}),
        }


class Expected(NamedTuple):
    """Expectations of a data set: they are checked before it is used."""

    splits: Mapping[str, str] = MappingProxyType({})  # expressions that will be opened, by the key they come from
    num_classes: int = 0  # of all images of these splits; 0: any number, and images without a label


NOTHING = Expected()


def values_of_data(recipe: Recipe) -> dict[str, Any]:
    """Returns the values that a configuration leaves to its data, {"model.num_classes": 10}.

    That is the number of classes where it is 0. Of a folder without a split `validation` it is also the split that
    takes this name's place, val, valid or test.

    Raises:
      UserError: as `open_dataset`, data of a single class, or both val and valid.
    """
    own, values = recipe.data, dict[str, Any]()
    if own.name == "folder":
        listing = listings.list_folder(_real_path(own.root))
        names, splits = listing.class_names(), [split for split in _VALIDATION if split in listing.splits]
        if own.val_split == _VALIDATION[0] not in splits and splits:
            if {"val", "valid"} <= set(splits):
                raise UserError(
                    f"config.data.root: {own.root} has val and valid, and either could be the validation split; say "
                    "which: --config.data.val_split=val."
                )
            values["data.val_split"] = splits[0]
    elif recipe.model.num_classes:
        return {}
    else:
        names = prepared_data(own.name, expanded(own.dir)).class_names
    if not recipe.model.num_classes:
        if len(names) < 2:
            raise UserError(f"{_ONE_CLASS.format(name=own.name)}.")
        values["model.num_classes"] = len(names)
    return values


# Names of the split that a run validates on, the usual one first.
_VALIDATION = ("validation", "val", "valid", "test")
_ONE_CLASS = "{name} has but one class; images must lie in <class>/ or <split>/<class>/, of two classes or more"


def open_dataset(recipe: Recipe) -> Dataset:
    """Opens the configured data set, preparing it first where that needs nothing but what the configuration says.

    The built-in set and a folder are prepared on first use; ImageNet and other TFDS sets must have been prepared as
    ArrayRecord. The training split's colour statistics are computed once and stored next to the prepared data
    (ImageNet's are constants).

    Raises:
      UserError: an unknown set or split, one that is not prepared, a bad folder, an empty split, another number of
        classes than the configuration's, or a directory that cannot be written.
    """
    splits = {"config.data.train_split": recipe.data.train_split, "config.data.val_split": recipe.data.val_split}
    own, expected = recipe.data, Expected(splits, recipe.model.num_classes)
    data = prepared_data(own.name, expanded(own.dir), own.root, exif=own.exif, expected=expected)
    train, validation = (open_split(data, split, key) for key, split in splits.items())
    _check_num_classes(recipe.model.num_classes, recipe.data.name, len(data.class_names))
    statistics = statistics_of(data, recipe.data.train_split, train)
    digests = {}
    if data.name.startswith(f"{folder.NAME}/"):
        used = {name for split in splits.values() for name in split_names(split)}
        digests = image_digests(data, [split for split in data.splits if used & {split, "all"}])
    warnings = _warnings(recipe, train, validation, _absent(data.class_names, statistics.class_images))
    return Dataset(data.name, train, validation, data.class_names, statistics.colors, digests, warnings)


def _absent(class_names: list[str], class_images: list[int]) -> list[str]:
    """Returns the classes that have no image."""
    return [name for name, count in zip(class_names, class_images, strict=False) if not count]


def _warnings(recipe: Recipe, train: Records, validation: Records, absent: list[str]) -> tuple[str, ...]:
    """Says what is rarely meant: images that are trained on and validated on, or twice in an epoch; less than a batch.

    Args:
      recipe: of the run.
      train: its training images.
      validation: its validation images.
      absent: classes without training images.
    """
    sentences = []
    if absent:
        sentences.append(
            f"no training image in {'1 class' if len(absent) == 1 else f'{len(absent):,} classes'}, as {absent[0]!r} "
            f"(config.data.train_split={recipe.data.train_split}), so it cannot be learnt; take a larger part of the "
            "images."
        )
    if common := validation.in_common(train):
        sentences.append(
            f"{common:,} of the {len(validation):,} validation images are training images too (config.data.train_split="
            f"{recipe.data.train_split}, config.data.val_split={recipe.data.val_split}), so the error says less than "
            f"it seems to; where there is but one split, {SHARED_OUT} share it out."
        )
    if (twice := train.in_common(train) - len(train)) > 0:
        sentences.append(
            f"config.data.train_split={recipe.data.train_split} takes {twice // 2:,} images more than once in an epoch."
        )
    if recipe.batch_size > len(train):
        sentences.append(
            f"config.batch_size is {recipe.batch_size}, more than the {len(train):,} training images, so every batch "
            "has some of them several times; a smaller one is usually meant."
        )
    return tuple(sentences)


def expanded(directory: str) -> epath.Path:
    """Returns the directory of prepared data with ~ replaced; TFDS_DATA_DIR takes the default's place.

    Raises:
      UserError: no name of a directory, a bucket whose Python package is missing, or an address of something else.
    """
    if not directory.strip() or re.search("[\0\ud800-\udfff]", directory):
        raise UserError(
            f"config.data.dir is {directory!r}, which is not a directory's name in UTF-8; name another one."
        )
    if directory == DATA_DIR:
        directory = os.environ.get("TFDS_DATA_DIR") or directory
    if "://" not in directory:
        return epath.Path(Path(directory).expanduser())
    try:
        path = epath.Path(directory)
        path.exists()
    except ImportError as error:
        raise UserError(f"{directory} is in a bucket, for which a package is missing: {error}.") from error
    # Of whatever stands behind the kind of address.
    except Exception as error:
        raise UserError(
            f"{directory} is neither a directory nor a bucket that can be read: {first_line(error)} Give a directory, "
            "or gs://BUCKET/DIR (--config.data.dir)."
        ) from error
    return path


def prepared_data(
    name: str,
    data_dir: epath.Path,
    root: str = "",
    skip_bad: bool = False,
    exif: bool = False,
    expected: Expected = NOTHING,
) -> Prepared:
    """Returns a prepared data set; prepares it first if need be.

    Args:
      name: `builtin`, `folder`, or the name of a TFDS data set.
      data_dir: where prepared data lies.
      root: for `folder`: a directory laid out <split>/<class>/<image> or <class>/<image>.
      skip_bad: for `folder`: leave files out that are not valid images, and record which, rather than stop.
      exif: for `folder`: turn images as their EXIF orientation says.
      expected: checked before anything is prepared.

    Raises:
      UserError: as `open_dataset`.
    """
    if exif and name != "folder":
        raise UserError(f"config.data.exif is for folders of images, and config.data.name is {name!r}; leave it out.")
    if name == "builtin":
        check_splits(expected.splits, list(builtin.COUNTS), "the built-in set")
        _check_num_classes(expected.num_classes, name, len(builtin.CLASS_NAMES))
        return prepared.read(data_dir / builtin.NAME) or builtin.prepare(data_dir)
    if name == "folder":
        return _prepared_folder(_real_path(root), data_dir, skip_bad, exif, expected)
    return tfds_sets.find(name, data_dir)


def _check_num_classes(num_classes: int, name: str, count: int) -> None:
    if num_classes not in (0, count):
        has = f"{name} has {count} classes; say --config.model.num_classes={count}"
        has = has if count > 1 else _ONE_CLASS.format(name=name)
        raise UserError(f"config.model.num_classes is {num_classes}, but {has}.")


def statistics_of(data: Prepared, split: str, records: Records) -> SplitStatistics:
    """Returns the statistics of a split: ImageNet's customary mean and colour vectors, or computed once and cached."""
    if data.name.startswith("imagenet2012/"):
        return SplitStatistics(IMAGENET_STATISTICS, [])
    path = data.directory / file_name(split)
    if path.exists():
        # Changed, or of version 0.4, which wrote no digest: computed again, to the same bits.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return load_statistics(path)
    statistics = split_statistics(records, len(data.class_names))
    save_statistics(path, statistics)
    return statistics


def _real_path(root: str) -> Path:
    try:
        if root:
            return Path(os.path.realpath(Path(root).expanduser()))
    # A byte of 0, or what no file system can store.
    except ValueError:
        pass
    raise UserError(f"config.data.root is {root!r}, which is not a directory's name; name one: --config.data.root=DIR.")


def _prepared_folder(root: Path, data_dir: epath.Path, skip_bad: bool, exif: bool, expected: Expected) -> Prepared:
    listing, (splits, num_classes) = listings.list_folder(root), expected
    for key, split in splits.items():
        if flat := [name for name in split_names(split) if name in listing.flat]:
            raise UserError(
                f"{key} is {split!r}, and {root / flat[0]} holds {listing.flat[flat[0]]:,} images and no directory of "
                f"a class; put each image into {root / flat[0]}/<class>/, or name another split."
            )
        if any(not listing.splits.get(name, True) for name in split_names(split)):
            raise UserError(
                f"{key} is {split!r}, but every class of {root} has one image, so none is left to validate with; add "
                f"images, or validate on the training images: --{key}=train."
            )
    check_splits(splits, list(listing.splits), f"the folder {root}")
    _check_num_classes(num_classes, "folder", len(listing.class_names()))
    if num_classes:
        listings.check_classes(root, listing, {name for split in splits.values() for name in split_names(split)})
    if there := prepared.read(data_dir / folder.full_name(root, listing, exif)):
        return there
    if not listing.has_splits:
        print_line(listings.shared_out_line(root, listing))
    if listing.left_out:
        print_line(listings.left_out_line(root, listing.left_out))
    sizes = folder.sizes(listing)
    need_space(data_dir, sum(sizes), "--config.data.dir=DIR")
    bad, sound = folder.inspect(root, listing)
    if bad and not skip_bad:
        raise UserError(
            f"{len(bad)} of {len(sizes)} files are not valid images; repair or remove them and start again, or "
            f"leave them out with: vgg-jax prepare folder {shell_flag('data_root', root)} "
            f"{shell_flag('data_dir', data_dir)} --skip_bad{' --exif' * exif}. Nothing was prepared.\n  "
            + "\n  ".join(f"{printable(str(root / name))}: {reason}" for name, reason in bad.items())
        )
    for sentence in folder.warnings(sound, exif):
        print_line(f"WARNING: {sentence}")
    made = folder.prepare(root, listing, data_dir, bad, exif)
    for split, classes in listing.splits.items():
        of_class = {
            kind: [sound[path].moments for file in files if (path := folder.path_below(root, file)) in sound]
            for kind, files in classes.items()
        }
        if of_split := list(itertools.chain.from_iterable(of_class.values())):
            class_images = [len(of_class.get(kind, ())) for kind in made.class_names]
            statistics = SplitStatistics(from_moments(of_split), class_images)
            save_statistics(made.directory / file_name(split), statistics)
    if bad:
        write_json(Path(made.directory) / SKIPPED, bad)
    return made
