"""A folder of images: checked and packed."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from vgg_jax.data import prepared
from vgg_jax.data.decode import check, decode
from vgg_jax.data.image_kinds import DecodeError, read_file
from vgg_jax.data.listing import Listing
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
            _entry(Path(file), listing.base(root, split), labels.get(kind, NO_CLASS), exif)
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
