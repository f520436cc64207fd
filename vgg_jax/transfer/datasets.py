"""Images and labels of other data sets: a folder of classes, and the PASCAL VOC development kit (Paper, Appendix B)."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vgg_jax.data import sources
from vgg_jax.data.image_files import ImageFiles
from vgg_jax.data.image_kinds import is_named_like_an_image
from vgg_jax.data.listing import files_below
from vgg_jax.data.parallel import parallel_map
from vgg_jax.data.splits import open_split
from vgg_jax.evaluation.split import UNLABELLED
from vgg_jax.runtime.exceptions import UserError, plain_name, quoted
from vgg_jax.transfer.descriptors import Images

_LABELS = {"1": 1, "+1": 1, "0": 0, "-1": -1}


class TransferData(NamedTuple):
    """Images and what is on them."""

    images: Images
    labels: np.ndarray  # [N] int, or of several labels an image [N, K]: 1 there, -1 not there, 0 hard to say
    class_names: list[str]
    # Indices, if the data set has its own split.
    train: np.ndarray = np.zeros(0, int)
    test: np.ndarray = np.zeros(0, int)
    recall_points: int = 0  # equidistant recalls of VOC's precision: 11 until 2009; 0: all recalls


def image_files(paths: Sequence[Path], exif: bool = False) -> Images:
    """Returns images that lie in files of their own, turned as their EXIF orientation says where `exif` is set."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(os.fsencode(path) + f"\t{status.st_size}\t{status.st_mtime_ns}{' exif' * exif}\n".encode())
    return Images(ImageFiles(paths, exif), digest.digest())


def prepared(name: str, data_dir: str) -> TransferData:
    """Opens a data set of TFDS by its name, as training does, and puts its splits together.

    Raises:
      UserError: a folder, an unknown set, one that is not prepared, or fewer than two classes with images.
    """
    if name == "folder":
        raise UserError("--data_root=tfds:folder is no data set of TFDS; give the folder itself, --data_root=DIR.")
    data = sources.prepared_data(name, sources.expanded(data_dir))
    records = open_split(data, "all", "--data_root")

    def label_and_digest(i: int) -> tuple[int, bytes]:
        record = records[i]
        return record["label"], hashlib.sha256(record["image"]).digest()

    labels, digests = zip(*parallel_map(label_and_digest, range(len(records))), strict=True)
    images = Images(records, hashlib.sha256(b"".join(digests)).digest())
    if len(set(labels)) < 2:
        raise UserError(f"--data_root={name} has images of fewer than two classes; name another data set.")
    return TransferData(images, np.array(labels), data.class_names)


def folder(root: Path, exif: bool = False) -> TransferData:
    """Lists <root>/<class>/<image>, or <root>/<split>/<class>/<image>, whose splits are put together but for unlabelled
    ones.

    Raises:
      UserError: no such directory, or fewer than two classes with images.
    """
    if not root.is_dir():
        raise UserError(f"--data_root={root}: there is no such directory.")
    classes = _directories(root)
    if classes and all(_directories(entry) for entry in classes):
        splits = [_directories(split) for split in classes]
        classes = [kind for kinds in splits if [kind.name for kind in kinds] != [UNLABELLED] for kind in kinds]
    names = sorted({plain_name(entry.name) for entry in classes})
    paths, labels = [], []
    for entry in classes:
        files = [file for file in files_below(entry) if file.is_file() and is_named_like_an_image(file)]
        paths += files
        labels += [names.index(plain_name(entry.name))] * len(files)
    if len(set(labels)) < 2:
        raise UserError(f"--data_root={root} has images of fewer than two classes; lay it out as <class>/<image>.")
    return TransferData(image_files(paths, exif), np.array(labels), names)


def voc(root: Path, train_list: str, test_list: str, exif: bool = False) -> TransferData:
    """Reads VOC2007 or VOC2012: JPEGImages/<name>.jpg, and ImageSets/Main/<class>_<list>.txt with lines "name 1", -1 or
    0.

    Raises:
      UserError: lists that are not there, that share images, that name other images than the set's list
        (ImageSets/Main/<list>.txt), an image twice or a missing one, or that are damaged.
    """
    lists = root / "ImageSets" / "Main"
    suffix = f"_{train_list}.txt"
    names = sorted(path.name.removesuffix(suffix) for path in lists.glob(f"*{suffix}"))
    if not names:
        raise UserError(
            f"--data_root={root} has no ImageSets/Main/<class>{suffix}, as VOC2007 and VOC2012 in a development kit "
            "have."
        )
    training, test = (_labels(lists, names, listing) for listing in (train_list, test_list))
    if shared := training.keys() & test.keys():
        raise UserError(
            f"--train_list={train_list} and --test_list={test_list} share {len(shared):,} images; name lists that "
            "share none."
        )
    images = [*training, *test]
    paths = [root / "JPEGImages" / f"{image}.jpg" for image in images]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(
            f"{len(missing)} of {len(paths)} images of the lists are missing, the first {missing[0]}; unpack the kit's "
            "images as well."
        )
    rows = np.array([*training.values(), *test.values()])
    is_of_2007 = "_" not in images[0]  # 000012; later years are part of a name, 2008_000002
    indices = np.arange(len(paths))
    train_indices, test_indices = indices[: len(training)], indices[len(training) :]
    return TransferData(image_files(paths, exif), rows, names, train_indices, test_indices, 11 if is_of_2007 else 0)


def classes_left_out(data: TransferData) -> dict[str, str]:
    """Returns the classes that a kit's lists cannot score: {class: what is missing}.

    Raises:
      UserError: these are all classes.
    """
    left_out: dict[str, str] = {}
    for name, training, test in zip(data.class_names, data.labels[data.train].T, data.labels[data.test].T, strict=True):
        for label, labels, image in (
            (1, training, "with it to train on"),
            (-1, training, "without it to train on"),
            (1, test, "with it to test"),
        ):
            if label not in labels:
                left_out.setdefault(name, f"no image {image}")
    if len(left_out) == len(data.class_names):
        raise UserError(
            "no class of the kit's lists can be scored "
            f"({', '.join(f'{name}: {reason}' for name, reason in list(left_out.items())[:3])}); name other lists."
        )
    return left_out


def _labels(lists: Path, class_names: list[str], listing: str) -> dict[str, np.ndarray]:
    """Returns the labels [K] of each image of a list, in the order of the set's list, or of the first class's."""
    paths = [lists / f"{kind}_{listing}.txt" for kind in class_names]
    columns = [dict(_rows(path, has_labels=True)) for path in paths]
    whole, images = lists / f"{listing}.txt", list(columns[0])
    if whole.is_file():
        images = [image for (image,) in _rows(whole, has_labels=False)]
    for path, column in zip(paths, columns, strict=True):
        if different := sorted(column.keys() ^ set(images)):
            raise UserError(
                f"{path} and {whole if whole.is_file() else paths[0].name} differ in {len(different):,} images, the "
                f"first {different[0]}; unpack the kit's lists again."
            )
    return {image: np.array([column[image] for column in columns], np.int8) for image in images}


def _rows(path: Path, has_labels: bool) -> list[Any]:
    """Returns [name, label] of each line of a list of a class, [name] of each line of a set's list.

    Raises:
      UserError: it cannot be read, has other lines, an image twice, or a name that cannot be of a file in JPEGImages.
    """
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        rows = [[image, *(_LABELS[label] for label in labels)] for image, *labels in lines]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name another list.") from error
    except (ValueError, KeyError):
        rows = []
    if not rows or {len(row) for row in rows} != {1 + has_labels}:
        form = "a name and 1, 0 or -1" if has_labels else "a name"
        raise UserError(f"{path} is no list of VOC, with {form} in each line; unpack the kit's lists again.")
    names = [str(row[0]) for row in rows]
    if unsound := [name for name in names if len(name) > 200 or name != os.path.basename(name) or "\0" in name]:
        raise UserError(
            f"{path} names {quoted(unsound[0])}, which is not an image of JPEGImages; unpack the kit's lists again."
        )
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"{path} has {twice} in two lines; each image has one label: remove one of them.")
    return rows


def _directories(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
