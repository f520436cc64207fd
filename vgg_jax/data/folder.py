"""A folder of pictures, <root>/<split>/<class>/<picture>, as a TFDS builder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from vgg_jax.data.decode import DecodeError, check
from vgg_jax.data.parallel import parallel_map, progress
from vgg_jax.data.records import UncompressedWriter
from vgg_jax.errors import UserError

Listing = dict[str, dict[str, list[Path]]]  # split -> class -> pictures


def list_folder(root: Path) -> Listing:
    """What lies in a folder, everything sorted by name; names that start with a dot are passed over.

    Raises:
      UserError: no split, no class, a class without a picture, or a class of one split that `train` lacks.
    """
    if not root.is_dir():
        raise UserError(f"config.data.root is {str(root)!r}, and there is no such directory.")
    layout = f"{root} should be laid out as <split>/<class>/<picture>"
    listing = {
        split.name: {kind.name: [f for f in _visible(kind) if f.is_file()] for kind in _visible(split) if kind.is_dir()}
        for split in _visible(root)
        if split.is_dir()
    }
    if not listing:
        raise UserError(f"config.data.root: {layout}, but has no directory in it.")
    for split, classes in listing.items():
        if not classes:
            raise UserError(f"config.data.root: {layout}, but {root / split} has no directory, so no class.")
        if empty := [name for name, files in classes.items() if not files]:
            raise UserError(
                f"config.data.root: no picture in {', '.join(str(root / split / name) for name in empty)}; "
                "put some there, or remove the empty class."
            )
    if "train" in listing:
        for split, classes in listing.items():
            if strange := sorted(set(classes) - set(listing["train"])):
                raise UserError(
                    f"config.data.root: {root / split} has classes that {root / 'train'} lacks: {', '.join(strange)}."
                )
    return listing


def sizes(listing: Listing) -> list[int]:
    """Bytes of every file of a folder."""
    return [file.stat().st_size for file in _files(listing)]


def faults(root: Path, listing: Listing) -> dict[str, str]:
    """Decodes every picture of a folder: path below the root -> what is wrong, for every file that is no sound picture."""
    files = _files(listing)

    def fault(file: Path) -> tuple[str, str] | None:
        try:
            check(file.read_bytes())
        except (DecodeError, OSError) as error:
            return str(file.relative_to(root)), str(error)
        return None

    checked = progress(parallel_map(fault, files), len(files), "checking")
    return dict(found for found in checked if found)


def _files(listing: Listing) -> list[Path]:
    return [file for classes in listing.values() for files in classes.values() for file in files]


def listing_digest(root: Path, listing: Listing) -> str:
    """Ten hexadecimal digits that change with any file's name, size or time of change."""
    digest = hashlib.sha256()
    for classes in listing.values():
        for files in classes.values():
            for file in files:
                status = file.stat()
                digest.update(f"{file.relative_to(root)}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:10]


class VggJaxFolder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of a listed folder; bytes are stored as they are, labels follow sorted class names."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def __init__(self, *, root: Path, listing: Listing, skip: Collection[str] = (), **options):
        # The name is that of the whole listing, with what is skipped: who knows the folder finds what was prepared.
        self._root, self._listing, self._skip = root, listing, skip
        name = f"{root.name}-{listing_digest(root, listing)}"
        super().__init__(config=tfds.core.BuilderConfig(name=name), **options)

    def _info(self) -> tfds.core.DatasetInfo:
        classes = sorted({name for classes in self._listing.values() for name in classes})
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Pictures of {self._root.name}.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=classes),
                    "file_name": tfds.features.Text(),
                }
            ),
        )

    def _example_writer(self) -> UncompressedWriter:
        return UncompressedWriter()

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self._listing}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for label, files in self._listing[split].items():
            for file in files:
                if str(file.relative_to(self._root)) in self._skip:
                    continue
                name = f"{label}/{file.name}"
                yield name, {"image": file.read_bytes(), "label": label, "file_name": name}


def _visible(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
