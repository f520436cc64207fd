"""The tars of image-net.org: their names, sizes, checksums, counts and classes."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vgg_jax.runtime.console import with_progress
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights.imagenet_classes import titles

NAME = "imagenet2012"


class Tar(NamedTuple):
    """One tar of image-net.org, and what becomes of it."""

    tar: str
    num_bytes: int | None  # None: not checked
    md5: str
    images: int
    shards: int  # as many as TFDS makes
    required: bool = True


class Edition(NamedTuple):
    """Contents of the tars of a year's challenge."""

    splits: dict[str, Tar]
    classes: Sequence[str]  # WNIDs, sorted: their places are the labels
    validation_classes: Sequence[str]  # the WNID of every validation image, in the order of their names


def _validation_labels() -> list[str]:
    """Returns the WNIDs in a file that TFDS carries, found without importing TFDS, which takes seconds."""
    package = importlib.util.find_spec("tensorflow_datasets")
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent / "datasets" / NAME / "validation_labels.txt").read_text().split()


ILSVRC2012 = Edition(
    splits={
        "train": Tar("ILSVRC2012_img_train.tar", 147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e", 1_281_167, 1024),
        "validation": Tar("ILSVRC2012_img_val.tar", 6_744_924_160, "29b22e2961454d5413ddabcf34fc5622", 50_000, 64),
        "test": Tar(
            "ILSVRC2012_img_test_v10102019.tar", None, "e1b8681fff3d63731c599df9b4b6fc02", 100_000, 128, required=False
        ),
    },
    classes=list(titles()),
    validation_classes=_validation_labels(),
)


def find_tars(directory: Path, edition: Edition) -> dict[str, Path]:
    """Returns the tar of every split; raises UserError that names each missing or unexpected one."""
    if not directory.is_dir():
        raise UserError(f"--tars={directory}: there is no such directory.")
    tars, faults = {}, []
    for split, expected in edition.splits.items():
        path = directory / expected.tar
        if not path.is_file():
            if expected.required:
                faults.append(_why_missing(directory, expected))
            continue
        tars[split] = path
        size = path.stat().st_size
        if expected.num_bytes is not None and size != expected.num_bytes:
            faults.append(
                f"{path} has {size:,} bytes, and image-net.org's has {expected.num_bytes:,}: "
                + (
                    "it is cut short; continue with its download."
                    if size < expected.num_bytes
                    else "it is another file."
                )
            )
    if faults:
        raise UserError("the tars are not all as they should be:\n  " + "\n  ".join(faults))
    return tars


def _why_missing(directory: Path, expected: Tar) -> str:
    entries = sorted(directory.iterdir())
    same_size = [e.name for e in entries if e.is_file() and e.stat().st_size == expected.num_bytes]
    if same_size:
        return f"{expected.tar} is missing in {directory}; {same_size[0]} has its size: if it is that file, rename it."
    unpacked = [e.name for e in entries if e.name.startswith(("n0", "n1", "ILSVRC2012_val_"))]
    if unpacked:
        return (
            f"{expected.tar} is missing in {directory}, where {len(unpacked)} entries like {unpacked[0]} lie: it seems "
            "to have been unpacked. The tar itself is wanted (images laid out <split>/<class>/<image> can be prepared "
            "with: vgg-jax prepare folder --data_root=DIR)."
        )
    others = [e.name for e in entries if ".tar" in e.name]
    there = f"; there are {', '.join(others)}, perhaps of another year" if others else ""
    return f"{expected.tar} is missing in {directory}{there}. It comes from image-net.org, after registration."


def check_md5(paths: dict[str, Path], edition: Edition) -> None:
    size = 1 << 24
    for split, path in paths.items():
        digest = hashlib.md5(usedforsecurity=False)
        with open(path, "rb") as file:
            parts = -(-path.stat().st_size // size)
            for _ in with_progress(range(parts), parts, f"MD5 of {path.name}", unit="x 16 MiB"):
                digest.update(file.read(size))
        if digest.hexdigest() != edition.splits[split].md5:
            raise UserError(
                f"{path} has the MD5 sum {digest.hexdigest()}, and image-net.org's has {edition.splits[split].md5}; "
                "download it again."
            )
