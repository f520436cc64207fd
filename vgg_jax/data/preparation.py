"""Makes a data set ready for training, and says how to train on it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vgg_jax.data import cifar, imagenet, imagenet_tars, sources
from vgg_jax.data.disk import SKIPPED
from vgg_jax.data.prepared import Prepared, on_disk
from vgg_jax.data.splits import open_split
from vgg_jax.recipe import DATA_DIR
from vgg_jax.runtime.exceptions import UserError

_FOLDER = "folder"
# The data sets that a field of a request is for.
_OWNERS = {
    "tars": (imagenet_tars.NAME,),
    "data_root": (_FOLDER, cifar.NAME),
    "exif": (_FOLDER,),
}


class PrepareRequest(NamedTuple):
    """A data set, and where it comes from."""

    name: str  # imagenet2012, folder, cifar10, builtin or the name of a TFDS set
    data_dir: str = DATA_DIR  # of prepared data
    tars: str = ""  # for imagenet2012: the directory of image-net.org's tars
    data_root: str = ""  # for folder: its directory; for cifar10: the archive, or the directory it unpacks to
    md5: bool = False  # for imagenet2012: check the tars' MD5 sums first
    skip_bad: bool = False  # leave bad images out and list them, rather than stop
    exif: bool = False  # for folder: turn images as their EXIF orientation says
    train_split: str = "train"  # whose statistics are computed


def prepare(request: PrepareRequest, say: Callable[[str], None] = print) -> Prepared:
    """Prepares a data set where that is not done, and computes the training split's statistics.

    Args:
      request: what to prepare.
      say: is called with each line for the user, the last is the command that trains.

    Raises:
      UserError: fields that do not go together, bad images without `skip_bad`, or whatever the data set's module
        refuses.
    """
    for field, owners in _OWNERS.items():
        if getattr(request, field) and request.name not in owners:
            raise UserError(f"--{field} goes with `{'` and `'.join(owners)}`, not with `{request.name}`.")
    if request.name == _FOLDER and not request.data_root:
        raise UserError("say which folder: --data_root=DIR, laid out <class>/<image> or <split>/<class>/<image>.")
    data = _prepared(request)
    counts = ", ".join(f"{split} {count:,}" for split, count in data.counts().items())
    say(f"{data.name} is prepared in {data.directory}: {counts} images")
    skipped = Path(data.directory) / SKIPPED
    if skipped.exists():
        say(f"{len(json.loads(skipped.read_text()))} bad images were left out; they are listed in {skipped}")
    train_split = request.train_split
    if train_split == "train" and "train" not in data.splits:
        train_split = next((split for split in data.splits if split.startswith("train")), "train")
    if train_split in data.splits or train_split != "train":
        records = open_split(data, train_split, "train_split")
        colors = sources.statistics_of(data, train_split, records).colors
        say(f"mean RGB {', '.join(f'{value:.2f}' for value in colors.mean_rgb)}")
    say(f"train on it with: {shlex.join(_training_command(request, data, train_split))}")
    return data


def _prepared(request: PrepareRequest) -> Prepared:
    if request.name == imagenet_tars.NAME and request.tars:
        # Before a package for buckets is asked for.
        on_disk(request.data_dir)
        directory = on_disk(sources.expanded(request.data_dir))
        return imagenet.prepare(Path(request.tars).expanduser(), directory, request.md5, request.skip_bad)
    data_dir = sources.expanded(request.data_dir)
    if request.name == cifar.NAME and request.data_root:
        return cifar.prepare(Path(request.data_root).expanduser(), on_disk(data_dir))
    return sources.prepared_data(request.name, data_dir, request.data_root, request.skip_bad, exif=request.exif)


def _training_command(request: PrepareRequest, data: Prepared, train_split: str) -> list[str]:
    """Returns the command that trains on prepared data, split by split as far as the names of the splits tell."""
    splits = list(data.splits)
    values: dict[str, Any] = {
        "data.name": request.name if request.name != _FOLDER else "",
        "data.dir": sources.expanded(request.data_dir),
        "data.root": request.data_root if request.name == _FOLDER else "",
        "data.exif": request.exif or "",
        "model.num_classes": len(data.class_names) if request.name != _FOLDER else "",
    }
    if splits == ["train"]:
        values |= {"data.train_split": "train[:90%]", "data.val_split": "train[90%:]"}
    else:
        values["data.train_split"] = train_split if train_split != "train" else ""
        if "validation" not in splits:
            others = [split for split in splits if split != train_split]
            known = (split for split in ("val", "valid", "test") if split in others)
            values["data.val_split"] = next(known, others[-1] if others else splits[-1])
    command = ["vgg-jax", "train", f"--config={'small' if request.name == _FOLDER else 'vgg11'}"]
    return command + [f"--config.{key}={value}" for key, value in values.items() if value != ""]
