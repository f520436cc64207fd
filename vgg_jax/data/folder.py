"""A folder of images, <root>/<split>/<class>/<image>: listed, checked and packed."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from vgg_jax.data import prepared
from vgg_jax.data.decode import check, decode
from vgg_jax.data.image_kinds import DecodeError, is_named_like_an_image, read_file
from vgg_jax.data.orientation import orientation, read_image
from vgg_jax.data.parallel import parallel_map
from vgg_jax.data.records import Record
from vgg_jax.data.rgb import has_16_bits
from vgg_jax.data.statistics import moments
from vgg_jax.runtime.console import with_progress
from vgg_jax.runtime.exceptions import UserError, plain_name, printable

NAME = "vgg_jax_folder"  # the first part of the name of every folder's prepared data
NO_CLASS = -1  # label of images of a class that `train` lacks
_DIM = 16  # of 255: 1/16 of white
_OF_THE_KERNEL = ("proc", "sys")
_NAMED = 5  # of what is left out, at most, in its line


class Listing(NamedTuple):
    """The contents of a folder, everything sorted by name."""

    splits: dict[str, dict[str, list[os.DirEntry[str]]]]  # split -> class -> files
    left_out: list[Path]  # files outside every class, dangling links, and directories that are not splits
    flat: dict[str, int]  # directories among these with images and without classes -> number of images

    def class_names(self) -> list[str]:
        """Returns the classes of `train`; where there is no such split, of all."""
        splits = [self.splits["train"]] if "train" in self.splits else self.splits.values()
        return sorted({name for classes in splits for name in classes})


def list_folder(root: Path) -> Listing:
    """Lists a folder; names that start with a dot are passed over, and files in a class's own directories are of that
    class.

    A directory without a file that is named like an image (annotations/xml), or whose name TFDS cannot take, is not a
    split.

    Raises:
      UserError: no split, no class, a class without an image, or a directory that cannot be listed.
    """
    if not root.is_dir():
        raise UserError(f"config.data.root is {str(root)!r}, and there is no such directory.")
    # Which lead to everything, in circles.
    if root.parts[1:2] and root.parts[1] in _OF_THE_KERNEL:
        raise UserError(f"config.data.root is {str(root)!r}, which the kernel makes up; name a directory on a disk.")
    try:
        return _listing(root)
    except OSError as error:
        raise UserError(
            f"config.data.root: {printable(str(error.filename))} cannot be listed: {error.strerror}; mend that, or "
            "name another directory."
        ) from error


def _listing(root: Path) -> Listing:
    layout = f"{root} should be laid out as <split>/<class>/<image>"
    splits: dict[str, dict[str, list[os.DirEntry[str]]]] = {}
    flat: dict[str, int] = {}
    entries = _visible(root)
    left_out = [entry for entry in entries if not _is(entry.is_dir)]
    for split in entries:
        if not _is(split.is_dir):
            continue
        if not re.fullmatch(r"[\w-]+", split.name, re.ASCII) or split.name == "all":
            left_out.append(split)
            continue
        classes, loose = {}, []
        for entry in _visible(split):
            if _is(entry.is_dir):
                inside, kind = list(_entries_below(entry)), plain_name(entry.name)
                if kind in classes:
                    raise UserError(
                        f"config.data.root: {Path(split)} has two directories of the class {kind!r}, whose names "
                        "differ in their Unicode form; put their images together, or rename one."
                    )
                classes[kind] = [file for file in inside if _is(file.is_file)]
                loose += [file for file in inside if not _is(file.is_file)]
            else:
                loose.append(entry)
        files = [file for files_of_class in classes.values() for file in files_of_class]
        if not classes and (images := [entry for entry in loose if is_named_like_an_image(Path(entry.name))]):
            flat[split.name] = len(images)
        if not classes or (files and not any(_may_be_a_picture(Path(file.name)) for file in files)):
            left_out.append(split)
            continue
        splits[split.name] = classes
        left_out += loose
    if not splits:
        seen = ", but is empty"
        if left_out:
            listed = _named(root, [Path(entry) for entry in left_out])
            seen = f", and what is there is no split with classes: {listed}"
        raise UserError(f"config.data.root: {layout}{seen}.")
    for name, classes in splits.items():
        if empty := [kind for kind, files_of_class in classes.items() if not files_of_class]:
            raise UserError(
                f"config.data.root: no image in {', '.join(str(root / name / kind) for kind in empty)}; "
                "put some there, or remove the empty class."
            )
    return Listing(splits, [Path(entry) for entry in left_out], flat)


def files_below(directory: Path) -> Iterator[Path]:
    """Yields all files below a directory, by name, but those that start with a dot; a link back to a directory above is
    not followed."""
    return map(Path, _entries_below(directory))


def _entries_below(directory: os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
    """Yields `files_below` as the system lists them, which for 100,000 files takes a fifth of the time."""

    def walk(directory: os.PathLike[str], above: set[str]) -> Iterator[os.DirEntry[str]]:
        for entry in _visible(directory):
            if not _is(entry.is_dir):
                yield entry
            elif (real := os.path.realpath(entry)) not in above:
                yield from walk(entry, above | {real})

    yield from walk(directory, {os.path.realpath(directory)})


def _visible(directory: os.PathLike[str]) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is(kind: Callable[[], bool]) -> bool:
    """Returns whether an entry is of a kind; a link in a circle, or to below a file, is of none."""
    try:
        return kind()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return False
        raise


def _may_be_a_picture(path: Path) -> bool:
    return path.suffix == "" or is_named_like_an_image(path)


def left_out_line(root: Path, left_out: Sequence[Path]) -> str:
    """Counts and names what lies in a folder and is no image of a class, in one line."""
    count = "1 file or directory" if len(left_out) == 1 else f"{len(left_out):,} files and directories"
    return f"{count} in {root} left out: {_named(root, left_out)}"


def _named(root: Path, paths: Sequence[Path]) -> str:
    names = [f"{path.relative_to(root)}{'' if path.exists() else ' (a dangling link)'}" for path in paths[:_NAMED]]
    return printable(", ".join(names + (["..."] if len(paths) > _NAMED else [])))


def check_classes(root: Path, listing: Listing, splits: Collection[str]) -> None:
    """Raises UserError where one of these splits has a class that `train` lacks, so that its images have no label."""
    known = listing.class_names()
    for split in splits:
        if strange := sorted(set(listing.splits.get(split, ())) - set(known)):
            raise UserError(
                f"config.data.root: {root / split} has classes that {root / 'train'} lacks: {', '.join(strange)}."
            )


def sizes(listing: Listing) -> list[int]:
    """Bytes of every file of a folder."""
    return [file.stat().st_size for file in _files(listing)]


class Inspected(NamedTuple):
    """A sound image of a folder."""

    moments: np.ndarray  # of `statistics.moments`
    is_dim: bool  # 16 bits a channel, and nothing brighter than 1/16 of white
    is_turned: bool  # has an EXIF orientation


def inspect(root: Path, listing: Listing) -> tuple[dict[str, str], dict[str, Inspected]]:
    """Decodes every image of a folder, once.

    Returns:
      path below the root -> the fault, for every file that is not a sound image; likewise the sound ones.
    """
    files = _files(listing)
    inspected = zip(files, with_progress(parallel_map(_inspect, files), len(files), "checking"), strict=True)
    bad, sound = dict[str, str](), dict[str, Inspected]()
    for file, result in inspected:
        if isinstance(result, str):
            bad[path_below(root, file)] = result
        else:
            sound[path_below(root, file)] = result
    return bad, sound


def _inspect(file: os.DirEntry[str]) -> str | Inspected:
    try:
        encoded = read_file(Path(file))
        checked = check(encoded)
        pixels = decode(encoded) if checked is None else checked
    except (DecodeError, OSError) as error:
        return printable(str(error))
    is_dim = bool(pixels.max() <= _DIM) and has_16_bits(encoded)
    return Inspected(moments(pixels), is_dim, orientation(encoded) > 1)


def warnings(inspected: Mapping[str, Inspected], exif: bool) -> list[str]:
    """Returns a sentence for each thing that sound images of a folder have, and that is rarely meant."""
    sentences = []
    if dim := [path for path, image in inspected.items() if image.is_dim]:
        sentences.append(
            f"{len(dim):,} of {len(inspected):,} images have 16 bits and nothing brighter than 1/16 of white, as "
            f"{dim[0]}: they are nearly black; multiply their values to the full range if they hold fewer bits."
        )
    turned = [path for path, image in inspected.items() if image.is_turned]
    if turned and not exif:
        sentences.append(
            f"{len(turned):,} of {len(inspected):,} images have an EXIF orientation, as {turned[0]}, which is ignored; "
            "apply it with --config.data.exif=True (--exif of other commands)."
        )
    return sentences


def path_below(root: Path, file: os.DirEntry[str]) -> str:
    """Returns a file's path below the root of its folder."""
    return file.path[len(str(root)) :].lstrip("/")


def _files(listing: Listing) -> list[os.DirEntry[str]]:
    return [file for classes in listing.splits.values() for files in classes.values() for file in files]


def listing_digest(root: Path, listing: Listing) -> str:
    """Returns ten hexadecimal digits that change with any file's name, size or time of change.

    A start compares these, and reads no image: where they are the same, what was packed is used. A workdir's run is
    compared by the bytes that were packed (`prepared.image_digests`).
    """
    digest = hashlib.sha256()
    for file in _files(listing):
        # As it is now, while an entry's own is kept from its first time.
        status = os.stat(file)
        name = os.fsencode(path_below(root, file))
        digest.update(name + f"\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:10]


def full_name(root: Path, listing: Listing, exif: bool = False) -> str:
    """Returns the name of the prepared data; the same listing always maps to the same name."""
    return f"{NAME}/{printable(root.name)}-{listing_digest(root, listing)}{'-exif' * exif}/1.0.0"


def prepare(
    root: Path, listing: Listing, data_dir: epath.Path, skip: Collection[str] = (), exif: bool = False
) -> prepared.Prepared:
    """Packs a listed folder; bytes are stored as they are, labels follow sorted class names (NO_CLASS, see there).

    Args:
      root: of the folder.
      listing: of it.
      data_dir: where prepared data lies.
      skip: paths below the root that are left out.
      exif: turn images as their EXIF orientation says; those become PNGs.

    Raises:
      UserError: two images of a class whose names become one.
    """
    labels = {name: label for label, name in enumerate(listing.class_names())}
    splits = {
        split: [
            _entry(Path(file), root / split, labels.get(kind, NO_CLASS), exif)
            for kind, files in classes.items()
            for file in files
            if path_below(root, file) not in skip
        ]
        for split, classes in listing.splits.items()
    }
    for split, entries in splits.items():
        for one, other in itertools.pairwise(sorted(entry.name for entry in entries)):
            if one == other:
                raise UserError(
                    f"config.data.root: {root / split} has two images {one!r}, whose names differ in their Unicode "
                    "form; rename one."
                )
    name = full_name(root, listing, exif)
    return prepared.pack(data_dir / name, prepared.Description(name, f"Images of {root.name}.", list(labels)), splits)


def _entry(file: Path, split: Path, label: int, exif: bool) -> prepared.Entry:
    name = plain_name(str(file.relative_to(split)))

    def record() -> Record:
        return {"image": read_image(file, exif), "label": label, "file_name": name.encode()}

    return prepared.Entry(name, file.stat().st_size, record)
