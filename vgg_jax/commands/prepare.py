"""`vgg-jax prepare NAME [flags]`: makes a data set ready for training, and finds its bad images.

    vgg-jax prepare imagenet2012 --tars=DIR --data_dir=DIR    from the tars of image-net.org
    vgg-jax prepare folder --data_root=DIR --data_dir=DIR     [<split>/]<class>/<image>
    vgg-jax prepare cifar10 --data_root=FILE                  an official archive, or extracted
    vgg-jax prepare builtin --data_dir=DIR                    the images that the package draws
    vgg-jax prepare NAME --data_dir=DIR                       a TFDS set: how to prepare it, or its statistics

Resumable: rerun the same command. Partial output is never used.
"""

from __future__ import annotations

from vgg_jax.commands import cli

flags = cli.Flags()
flags.DEFINE_string("data_dir", "~/tensorflow_datasets", "Directory for the prepared data (config.data.dir).")
flags.DEFINE_string("tars", "", "For imagenet2012: the directory with ILSVRC2012_img_train.tar and ..._val.tar.")
flags.DEFINE_string(
    "data_root",
    "",
    "For folder: a directory laid out [<split>/]<class>/<image> (config.data.root). For cifar10: the archive, or the "
    "directory that it unpacks to.",
)
# Its name until version 0.4.
flags.DEFINE_alias("root", "data_root")
flags.DEFINE_bool("md5", False, "For imagenet2012: check the MD5 sums of the tars before anything else.")
flags.DEFINE_bool(
    "skip_bad",
    False,
    "Leave bad images out and list them in skipped.json next to the prepared data, rather than stop.",
)
flags.DEFINE_bool("exif", False, "For folder: turn images as their EXIF orientation says (config.data.exif).")
flags.DEFINE_string(
    "train_split", "train", "The split whose mean RGB and colour vectors are computed (config.data.train_split)."
)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        cli.fail(
            "say what to prepare, one thing: imagenet2012, folder, cifar10, builtin or the name of a TFDS set, as in: "
            "vgg-jax prepare imagenet2012 --tars=DIR"
        )
    from vgg_jax.data.preparation import PrepareRequest, prepare

    prepare(flags.request(PrepareRequest, name=arguments[0]))
