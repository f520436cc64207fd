"""`vgg-jax transfer --weights=FILE --data_root=DIR [flags]`: how good features are for other data (Paper, Appendix B).

    vgg-jax transfer --weights=vgg16.safetensors --data_root=101_ObjectCategories --scales=256,384,512
    vgg-jax transfer --weights=D.safetensors,E.safetensors --data_root=VOC2007 --protocol=voc --scales=256,384,512
    vgg-jax transfer --weights=trunk.safetensors --data_root=DIR --layers=relu3_3,relu4_3,relu5_3

A descriptor is a layer's activations, computed densely over the whole image and its mirror image, averaged over space,
of length 1. Linear support vector machines tell classes apart; the network is not trained. DIR is a folder
<class>/<image> or <split>/<class>/<image>, whose splits are put together, a VOC development kit, or tfds:NAME.
Descriptors are kept: after Ctrl-C the same command continues, and other settings of the classifiers take seconds.
"""

from __future__ import annotations

from vgg_jax.commands import cli

flags = cli.Flags()
_WEIGHTS = flags.DEFINE_list(
    "weights",
    [],
    "Files of weights (vgg-jax convert), or names of published ones; the descriptors of several are stacked.",
)
_DATA_ROOT = flags.DEFINE_string(
    "data_root", "", "The folder of images, the VOC kit's VOC2007 or VOC2012, or tfds:NAME for a prepared set of TFDS."
)
flags.DEFINE_enum(
    "protocol",
    "caltech",
    ["caltech", "voc"],
    "caltech: mean class recall over random splits; voc: mean average precision of the kit's own split, scales "
    "averaged.",
)
flags.DEFINE_list(
    "layers",
    [],
    "Layers to take descriptors from; a fifth of the training images chooses one. Default: relu7, of a trunk its last "
    "ReLU.",
)
_SCALES = flags.DEFINE_list("scales", ["256"], "Shorter sides Q in pixels; stacked for caltech, averaged for voc.")
flags.DEFINE_integer("train_images", 30, "Training images of each class, for caltech.", lower_bound=2)
flags.DEFINE_integer("test_images", 50, "Test images of each class, at most, for caltech.", lower_bound=1)
flags.DEFINE_integer("splits", 3, "Number of random splits, for caltech.", lower_bound=1)
flags.DEFINE_string("train_list", "trainval", "The kit's list to train on, for voc.")
flags.DEFINE_string("test_list", "test", "The kit's list to test on, for voc; VOC2012 publishes val.")
flags.DEFINE_enum(
    "classifier",
    "svm",
    ["svm", "logistic"],
    "svm: scikit-learn's linear support vector machines, as the paper; logistic: logistic regression by optax on JAX's "
    "device, for many images.",
)
flags.DEFINE_string("data_dir", "~/tensorflow_datasets", "Directory of a prepared TFDS set (config.data.dir).")
flags.DEFINE_bool("exif", False, "Of a folder or a kit: turn images as their EXIF orientation says.")
flags.DEFINE_integer("seed", 0, "Seed of the splits, and of the fifth by which C is chosen.", lower_bound=0)
flags.DEFINE_string("output", "transfer", "A directory for descriptors and results.json.")
flags.DEFINE_integer(
    "batch_size",
    64,
    "Images of Q x Q pixels at once, over all devices; it bounds memory and changes no result.",
    lower_bound=1,
)
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of the network's computation.")


def main(arguments: list[str]) -> None:
    if arguments or not _WEIGHTS.value or not _DATA_ROOT.value:
        cli.fail("say which features and which images: --weights=FILE --data_root=DIR; --help lists the flags.")
    scales = sorted({int(word) if word.strip().isdecimal() else 0 for word in _SCALES.value}) or [0]
    if scales[0] < 16 or scales[-1] > 4096:
        words = ",".join(_SCALES.value)
        cli.fail(f"--scales={words}: give whole numbers from 16 to 4096 with commas between, as 256,384,512.")
    cli.use_huge_pages()
    from vgg_jax.transfer.study import TransferRequest, study

    with cli.devices():
        study(flags.request(TransferRequest, scales=tuple(scales)))
