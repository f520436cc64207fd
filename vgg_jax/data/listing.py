"""The listing of a folder of images, <root>/<split>/<class>/<image> or <root>/<class>/<image>."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vgg_jax.data.image_kinds import is_named_like_an_image
from vgg_jax.runtime.exceptions import UserError, plain_name, printable

_OF_THE_KERNEL = ("proc", "sys")
_NAMED = 5  # of what is left out, at most, in its line
# Directories that are splits, whatever lies in them.
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_VALIDATION_SHARE = 0.1  # of each class, where the folder has no splits


class Listing(NamedTuple):
    """The contents of a folder, everything sorted by name."""

    splits: dict[str, dict[str, list[os.DirEntry[str]]]]  # split -> class -> files
    left_out: list[Path]  # files outside every class, dangling links, and directories that are not splits
    flat: dict[str, int]  # directories among these with images and without classes -> number of images
    has_splits: bool = True  # whether they are the folder's own, and not chosen by `_shared_out`

    def base(self, root: Path, split: str) -> Path:
        """Returns the directory above the classes of a split."""
        return root / split if self.has_splits else root

    def class_names(self) -> list[str]:
        """Returns the classes of `train`; where there is no such split, of all."""
        splits = [self.splits["train"]] if "train" in self.splits else self.splits.values()
        return sorted({name for classes in splits for name in classes})


def list_folder(root: Path) -> Listing:
    """Lists a folder; names that start with a dot are passed over, and files in a class's own directories are of that
    class.

    A directory without a file that is named like an image (annotations/xml), or whose name TFDS cannot take, is not a
    split. Where the directories hold images and no directories, they are classes, which `_shared_out` parts.

    Raises:
      UserError: no split, no class, a class without an image, or a directory that cannot be listed.
    """
    if not root.is_dir():
        raise UserError(f"config.data.root is {str(root)!r}, and there is no such directory.")
    # Which lead to everything, in circles.
    if root.parts[1:2] and root.parts[1] in _OF_THE_KERNEL:
        raise UserError(f"config.data.root is {str(root)!r}, which the kernel makes up; name a directory on a disk.")
    try:
        return _flat_listing(root) or _listing(root)
    except OSError as error:
        raise UserError(
            f"config.data.root: {printable(str(error.filename))} cannot be listed: {error.strerror}; mend that, or "
            "name another directory."
        ) from error


def _flat_listing(root: Path) -> Listing | None:
    """Returns the listing of a folder <root>/<class>/<image>; None where it is laid out otherwise."""
    classes: dict[str, list[os.DirEntry[str]]] = {}
    left_out: list[os.DirEntry[str]] = []
    for directory in _visible(root):
        if not _is(directory.is_dir):
            left_out.append(directory)
            continue
        entries = _visible(directory)
        if directory.name in _SPLITS or any(_is(entry.is_dir) for entry in entries):
            return None
        if any(is_named_like_an_image(Path(entry.name)) for entry in entries):
            _add_class(classes, directory, [entry for entry in entries if _is(entry.is_file)])
            left_out += [entry for entry in entries if not _is(entry.is_file)]
        else:
            left_out.append(directory)
    if len(classes) < 2:
        return None
    return Listing(_shared_out(classes), [Path(entry) for entry in left_out], {}, has_splits=False)


def _shared_out(classes: Mapping[str, list[os.DirEntry[str]]]) -> dict[str, dict[str, list[os.DirEntry[str]]]]:
    """Parts classes into training and validation images.

    Validation has a tenth of each class, rounded, and at least one image of a class that has two. A digest of the name
    chooses, so that it is a fair sample, and few images change sides where some are added.
    """
    splits: dict[str, dict[str, list[os.DirEntry[str]]]] = {"train": {}, "validation": {}}
    for kind, files in classes.items():
        count = min(max(1, int(_VALIDATION_SHARE * len(files) + 0.5)), len(files) - 1)
        digests = {file.name: hashlib.sha256(os.fsencode(f"{kind}/{file.name}")).digest() for file in files}
        chosen = set(sorted(digests, key=digests.__getitem__)[:count])
        splits["train"][kind] = [file for file in files if file.name not in chosen]
        if chosen:
            splits["validation"][kind] = [file for file in files if file.name in chosen]
    return splits


def shared_out_line(root: Path, listing: Listing) -> str:
    """Says how many images of a folder without splits are for validation."""
    training, validation = (sum(map(len, listing.splits[split].values())) for split in ("train", "validation"))
    return f"{root} has no splits: {validation:,} images, a tenth of each class, validate; {training:,} train"


def _add_class(
    classes: dict[str, list[os.DirEntry[str]]], directory: os.DirEntry[str], files: list[os.DirEntry[str]]
) -> None:
    """Adds a class; raises UserError where one of its name is there."""
    kind = plain_name(directory.name)
    if kind in classes:
        raise UserError(
            f"config.data.root: {Path(directory).parent} has two directories of the class {kind!r}, whose names differ "
            "in their Unicode form; put their images together, or rename one."
        )
    classes[kind] = files


def _listing(root: Path) -> Listing:
    layout = f"{root} should be laid out as <split>/<class>/<image> or <class>/<image>"
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
        classes: dict[str, list[os.DirEntry[str]]] = {}
        loose = []
        for entry in _visible(split):
            if _is(entry.is_dir):
                inside = list(_entries_below(entry))
                _add_class(classes, entry, [file for file in inside if _is(file.is_file)])
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
