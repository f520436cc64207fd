"""Images and labels of other data sets: a folder of classes, and the PASCAL VOC development kit (Paper, Appendix B)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vgg_jax.data import sources
from vgg_jax.data.folder import files_below, is_named_like_a_picture
from vgg_jax.data.parallel import parallel_map
from vgg_jax.evaluation.descriptors import Images
from vgg_jax.evaluation.predict_files import ImageFiles
from vgg_jax.evaluation.split import UNLABELLED
from vgg_jax.exceptions import UserError


class TransferData(NamedTuple):
    """Images and what is on them."""

    images: Images
    labels: np.ndarray  # [N] int, or of several labels an image [N, K]: 1 there, -1 not there, 0 hard to say
    class_names: list[str]
    train: np.ndarray  # indices, where the data set has a split of its own
    test: np.ndarray
    recall_points: int = 0  # equidistant recalls of VOC's precision: 11 until 2009; 0: all recalls


def image_files(paths: Sequence[Path]) -> Images:
    """Returns images that lie in files of their own."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(os.fsencode(path) + f"\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
    return Images(ImageFiles(paths), digest.digest())


def prepared(name: str, data_dir: str) -> TransferData:
    """Opens a data set of TFDS by its name, as training does, and puts its splits together.

    Raises:
      UserError: a folder, an unknown set, one that is not prepared, or fewer than two classes with images.
    """
    if name == "folder":
        raise UserError("--data_root=tfds:folder is no data set of TFDS; give the folder itself, --data_root=DIR.")
    data = sources.prepared_data(name, sources.expanded(data_dir))
    records = sources.open_split(data, "all", "--data_root")

    def label_and_digest(i: int) -> tuple[int, bytes]:
        record = records[i]
        return record["label"], hashlib.sha256(record["image"]).digest()

    labels, digests = zip(*parallel_map(label_and_digest, range(len(records))), strict=True)
    images = Images(records, hashlib.sha256(b"".join(digests)).digest())
    if len(set(labels)) < 2:
        raise UserError(f"--data_root={name} has images of fewer than two classes; name another data set.")
    return TransferData(images, np.array(labels), data.class_names, np.zeros(0, int), np.zeros(0, int))


def folder(root: Path) -> TransferData:
    """Lists <root>/<class>/<image>, or <root>/<split>/<class>/<image>, whose splits are put together but for unlabelled ones.

    Raises:
      UserError: no such directory, or fewer than two classes with images.
    """
    if not root.is_dir():
        raise UserError(f"--data_root={root}: there is no such directory.")
    classes = _directories(root)
    if classes and all(_directories(entry) for entry in classes):
        splits = [_directories(split) for split in classes]
        classes = [kind for kinds in splits if [kind.name for kind in kinds] != [UNLABELLED] for kind in kinds]
    names = sorted({entry.name for entry in classes})
    paths, labels = [], []
    for entry in classes:
        files = [file for file in files_below(entry) if file.is_file() and is_named_like_a_picture(file)]
        paths += files
        labels += [names.index(entry.name)] * len(files)
    if len(set(labels)) < 2:
        raise UserError(f"--data_root={root} has images of fewer than two classes; lay it out as <class>/<image>.")
    return TransferData(image_files(paths), np.array(labels), names, np.zeros(0, int), np.zeros(0, int))


def voc(root: Path, train_list: str, test_list: str) -> TransferData:
    """Reads VOC2007 or VOC2012: JPEGImages/<name>.jpg, and ImageSets/Main/<class>_<list>.txt with lines "name 1", -1 or 0.

    Raises:
      UserError: lists that are not there, that share images, that name missing images, or that are damaged.
    """
    lists = root / "ImageSets" / "Main"
    suffix = f"_{train_list}.txt"
    names = sorted(path.name.removesuffix(suffix) for path in lists.glob(f"*{suffix}"))
    if not names:
        raise UserError(
            f"--data_root={root} has no ImageSets/Main/<class>{suffix}, as VOC2007 and VOC2012 in a development kit have."
        )
    training, test = (_labels(lists, names, listing) for listing in (train_list, test_list))
    if shared := training.keys() & test.keys():
        raise UserError(
            f"--train_list={train_list} and --test_list={test_list} share {len(shared):,} images; name lists that share none."
        )
    images = [*training, *test]
    paths = [root / "JPEGImages" / f"{image}.jpg" for image in images]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(
            f"{len(missing)} of {len(paths)} images of the lists are missing, the first {missing[0]}; unpack the kit's images "
            "as well."
        )
    rows = np.array([*training.values(), *test.values()])
    is_of_2007 = "_" not in images[0]  # 000012; later years are part of a name, 2008_000002
    indices = np.arange(len(paths))
    train_indices, test_indices = indices[: len(training)], indices[len(training) :]
    return TransferData(image_files(paths), rows, names, train_indices, test_indices, 11 if is_of_2007 else 0)


def _labels(lists: Path, class_names: list[str], listing: str) -> dict[str, np.ndarray]:
    """Returns the labels [K] of each image of a list."""
    labels: dict[str, np.ndarray] = {}
    for k, kind in enumerate(class_names):
        for image, label in _lines(lists / f"{kind}_{listing}.txt"):
            labels.setdefault(image, np.full(len(class_names), -1, np.int8))[k] = label
    return labels


def _lines(path: Path) -> list[tuple[str, int]]:
    try:
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
        found = [(image, int(label)) for image, label in rows]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name another list.") from error
    except ValueError as error:
        raise UserError(f"{path} is no list of VOC, with a name and 1, 0 or -1 in each line.") from error
    if not found or {label for _, label in found} - {-1, 0, 1}:
        raise UserError(f"{path} is no list of VOC, with a name and 1, 0 or -1 in each line.")
    return found


def _directories(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
