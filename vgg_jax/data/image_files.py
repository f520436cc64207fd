"""Images in files that somebody names: files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vgg_jax.data.image_kinds import SUFFIXES, DecodeError, is_named_like_an_image
from vgg_jax.data.listing import files_below, left_out_line
from vgg_jax.data.orientation import read_image
from vgg_jax.runtime.exceptions import UserError


class ImageFiles(Sequence):
    """Images as `data.records.Records` gives them: encoded, by number.

    Args:
      paths: of the images.
      exif: turn them as their EXIF orientation says.
    """

    def __init__(self, paths: Sequence[Path], exif: bool = False):
        self._paths, self._exif = paths, exif

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        try:
            image = read_image(self._paths[index], self._exif)
        except (OSError, DecodeError) as error:
            raise UserError(
                f"{self._paths[index]} can no longer be read: {error}; leave it out, or bring it back."
            ) from error
        return {"image": image, "label": -1, "file_name": str(self._paths[index])}

    def describe(self, index: int) -> str:
        """Returns which image it is, for messages."""
        return f"image {index + 1} of {len(self)}"


def list_images(arguments: Sequence[str], warn: Callable[[str], None] = print) -> list[Path]:
    """Lists files, all images in folders and below them (by their suffix), and matches of patterns, in the order given.

    Args:
      arguments: files, folders, patterns.
      warn: is called with a line that counts and names the other files of a folder.

    Raises:
      UserError: an argument that stands for no image.
    """
    images: list[Path] = []
    for argument in arguments:
        # This leaves a name as ~backup.jpg as it is.
        path = Path(os.path.expanduser(argument))
        if path.is_dir():
            files = list(files_below(path))
            matches = [file for file in files if is_named_like_an_image(file) and file.is_file()]
            known = set(matches)
            if others := [file for file in files if file not in known]:
                warn(left_out_line(path, others))
            if not matches:
                raise UserError(f"{argument}: there is no image in this folder ({', '.join(SUFFIXES)}).")
        elif path.exists() or not glob.has_magic(argument):
            # Also where it is missing: reported with the others that cannot be read.
            matches = [path]
        else:
            matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
            if not matches:
                raise UserError(f"{argument}: no file matches this pattern.")
        images += matches
    return list(dict.fromkeys(images))
