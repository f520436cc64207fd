"""`vgg-jax prepare imagenet2012 --tars=DIR`: makes a data set ready for training, and finds its bad images.

    vgg-jax prepare imagenet2012 --tars=DIR --data_dir=DIR    from the tars of image-net.org
    vgg-jax prepare folder --data_root=DIR --data_dir=DIR     <split>/<class>/<image>
    vgg-jax prepare cifar10 --data_root=FILE                  an official archive, or extracted
    vgg-jax prepare builtin --data_dir=DIR                    the images that the package draws
    vgg-jax prepare NAME --data_dir=DIR                       a TFDS set: how to prepare it, or its statistics

Resumable: rerun the same command. Partial output is never used.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from vgg_jax.commands import cli

flags = cli.Flags()
_DATA_DIR = flags.DEFINE_string("data_dir", "~/tensorflow_datasets", "Where prepared data goes (config.data.dir).")
_TARS = flags.DEFINE_string(
    "tars", "", "For imagenet2012: the directory with ILSVRC2012_img_train.tar and ..._val.tar."
)
_ROOT = flags.DEFINE_string(
    "data_root",
    "",
    "For folder: a directory laid out <split>/<class>/<image> (config.data.root). For cifar10: the archive, or the "
    "directory that it unpacks to.",
)
flags.DEFINE_alias("root", "data_root")  # its name until version 0.4
_MD5 = flags.DEFINE_bool("md5", False, "For imagenet2012: check the MD5 sums of the tars before anything else.")
_SKIP_BAD = flags.DEFINE_bool(
    "skip_bad",
    False,
    "Leave bad images out and list them in skipped.json next to the prepared data, rather than stop.",
)
_EXIF = flags.DEFINE_bool("exif", False, "For folder: turn images as their EXIF orientation says (config.data.exif).")
_TRAIN_SPLIT = flags.DEFINE_string(
    "train_split", "train", "The split whose mean RGB and colour vectors are computed (config.data.train_split)."
)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        cli.fail(
            "say what to prepare, one thing: imagenet2012, folder, cifar10, builtin or the name of a TFDS set, as in: "
            "vgg-jax prepare imagenet2012 --tars=DIR"
        )
    name = arguments[0]
    for flag, value, owners in (
        ("tars", _TARS.value, ("imagenet2012",)),
        ("data_root", _ROOT.value, ("folder", "cifar10")),
        ("exif", _EXIF.value, ("folder",)),
    ):
        if value and name not in owners:
            cli.fail(f"--{flag} goes with `{'` and `'.join(owners)}`, not with `{name}`.")
    if name == "folder" and not _ROOT.value:
        cli.fail("say which folder: --data_root=DIR, laid out <split>/<class>/<image>.")
    from vgg_jax.data import cifar, imagenet, imagenet_tars, sources  # here, so that --help answers at once
    from vgg_jax.data.disk import SKIPPED
    from vgg_jax.data.prepared import on_disk

    if name == imagenet_tars.NAME and _TARS.value:
        on_disk(_DATA_DIR.value)  # before a package for buckets is asked for
    data_dir = sources.expanded(_DATA_DIR.value)
    if name == imagenet_tars.NAME and _TARS.value:
        data = imagenet.prepare(Path(_TARS.value).expanduser(), on_disk(data_dir), _MD5.value, _SKIP_BAD.value)
    elif name == cifar.NAME and _ROOT.value:
        data = cifar.prepare(Path(_ROOT.value).expanduser(), on_disk(data_dir))
    else:
        data = sources.prepared_data(name, data_dir, _ROOT.value, _SKIP_BAD.value, exif=_EXIF.value)
    counts = ", ".join(f"{split} {count:,}" for split, count in data.counts().items())
    print(f"{data.name} is prepared in {data.directory}: {counts} images")
    skipped = Path(data.directory) / SKIPPED
    if skipped.exists():
        print(f"{len(json.loads(skipped.read_text()))} bad images were left out; they are listed in {skipped}")
    splits, train_split = list(data.splits), _TRAIN_SPLIT.value
    if train_split == "train" and "train" not in splits:
        train_split = next((split for split in splits if split.startswith("train")), "train")
    if train_split in splits or train_split != "train":
        records = sources.open_split(data, train_split, "train_split")
        colors = sources.statistics_of(data, train_split, records).colors
        print(f"mean RGB {', '.join(f'{value:.2f}' for value in colors.mean_rgb)}")
    values = {"data.name": name, "data.dir": data_dir, "data.root": _ROOT.value if name == "folder" else ""}
    values["data.exif"] = _EXIF.value or ""
    values["model.num_classes"] = len(data.class_names)
    others = [split for split in splits if split != train_split]
    if splits == ["train"]:
        values |= {"data.train_split": "train[:90%]", "data.val_split": "train[90%:]"}
    else:
        values["data.train_split"] = train_split if train_split != "train" else ""
        if "validation" not in splits:
            known = (split for split in ("val", "valid", "test") if split in others)
            values["data.val_split"] = next(known, others[-1] if others else splits[-1])
    command = ["python", "-m", "vgg_jax.main", "--config=vgg11"]
    command += [f"--config.{key}={value}" for key, value in values.items() if value != ""]
    print(f"train on it with: {shlex.join(command)}")


if __name__ == "__main__":
    cli.run(main, flags, key_flags=cli.DATA_FLAGS | {"data.name": "NAME"})
