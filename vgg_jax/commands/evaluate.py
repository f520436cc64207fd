"""`vgg-jax evaluate --workdir=RUN`: the paper's test protocol on a trained model, or on several fused."""

from __future__ import annotations

from vgg_jax.commands import cli

flags = cli.Flags()
_WORKDIR = flags.DEFINE_multi_string(
    "workdir", [], "A run's directory (its best checkpoint is taken), or RUN/checkpoints/STEP. Several, by commas or by "
    "giving the flag again, are fused: the mean of their probabilities, each model at its own scales."
)  # fmt: skip
_WEIGHTS = flags.DEFINE_multi_string(
    "weights", [], "A file of weights (vgg-jax convert) or the name of published ones (torchvision:vgg16, "
    "hf://timm/vgg16.tv_in1k) in place of a run; several as for --workdir. Its test "
    "data is ImageNet's validation split unless --data_name, --data_root, --data_dir or --split say otherwise."
)  # fmt: skip
_PROTOCOL = flags.DEFINE_enum(
    "protocol", "dense", ["center_crop", "ten_crop", "dense", "multi_crop", "square_crop", "dense+multi_crop"], "What is averaged: one crop; corners and centre; the "
    "class score map of the whole image (Paper 3.2); 5 x 5 crops (Paper 4.3); the 144 crops of GoogLeNet; the map and 5 x 5 crops. All but center_crop also over the "
    "mirror image."
)  # fmt: skip
_SCALES = flags.DEFINE_string(
    "scales", "", "Test scales Q, the shorter side in pixels: `single` (Q = S; the middle, for jitter), `multi` (S - 32, "
    "S, S + 32 at crop 224; the ends and the middle, for jitter), or numbers: 256,384,512. Default: multi for "
    "multi_crop and square_crop, else single."
)  # fmt: skip
_SPLIT = flags.DEFINE_string("split", "", "The split to evaluate on. Default: the run's validation split.")
_DATA_NAME = flags.DEFINE_string("data_name", "", "Another data set: builtin, folder, or a TFDS name.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Where prepared data lies, if not where it lay for the run.")
_DATA_ROOT = flags.DEFINE_string("data_root", "", "Another folder of images, <split>/<class>/<image>.")
_EXIF = flags.DEFINE_bool(
    "exif", None, "Of a folder: turn images as their EXIF orientation says. Default: config.data.exif of the run."
)  # fmt: skip
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 0, "Images of the crop's size that the model sees at once, over all devices; larger ones count for as "
    "much as they are larger. It bounds memory and changes no result. Default: 64 a device.", lower_bound=0
)  # fmt: skip
_DTYPE = flags.DEFINE_enum(
    "dtype", "", ["", "float32", "bfloat16"], "Of the computation. Default: as the run was trained."
)
_AVERAGES = flags.DEFINE_bool(
    "averages", True, "Take the averages of a run with config.ema_decay; --noaverages: its parameters as updated last."
)
_MAPS = flags.DEFINE_string("maps", "", "A directory for images of class score maps laid over photographs (PNG).")
_NUM_MAPS = flags.DEFINE_integer("num_maps", 8, "How many of them.", lower_bound=1)
_CLASS_NUMBERS = flags.DEFINE_string(
    "class_numbers", "", "For a split without labels: a file that names the challenge's classes, one a line, in the order "
    "of its numbers. Default: numbers by sorted class name."
)  # fmt: skip
_JSON = flags.DEFINE_string(
    "json", "", "File for the results. Default: RUN/evaluation/CHECKPOINT/DATA-SPLIT/results-....json."
)
_OUTPUT = flags.DEFINE_string(
    "output", "", "Directory for cached probabilities and results. Default: the run's, or, where that cannot be written, "
    "RUN-... in the current directory."
)  # fmt: skip
_joined = cli.process_flags(flags)


def main(arguments: list[str]) -> None:
    if arguments:
        cli.fail(f"{arguments[0]!r} is not a flag; flags begin with two dashes, as --workdir=runs/vgg16.")
    workdirs, weights = (
        tuple(part for value in flag.value for part in value.split(",") if part) for flag in (_WORKDIR, _WEIGHTS)
    )
    if not workdirs and not weights:
        cli.fail("say what to evaluate: --workdir=runs/quickstart, for example; --help lists the flags.")
    joined = _joined()
    from vgg_jax.evaluation.protocol import Request, evaluate  # here, so that --help answers at once
    from vgg_jax.runtime import distributed
    from vgg_jax.runtime.compilation import check_devices, keep_compiled, warn_of_unseen_gpu
    from vgg_jax.runtime.provenance import code_version

    request = Request(
        workdirs=workdirs,
        protocol=_PROTOCOL.value,
        scales=_SCALES.value,
        split=_SPLIT.value,
        data_name=_DATA_NAME.value,
        data_dir=_DATA_DIR.value,
        data_root=_DATA_ROOT.value,
        exif=_EXIF.value,
        batch_size=_BATCH_SIZE.value,
        dtype=_DTYPE.value,
        averages=_AVERAGES.value,
        maps=_MAPS.value,
        num_maps=_NUM_MAPS.value,
        class_numbers=_CLASS_NUMBERS.value,
        output=_JSON.value,
        directory=_OUTPUT.value,
        weights=weights,
    )
    keep_compiled()
    with joined:
        check_devices()
        warn_of_unseen_gpu()
        distributed.check_same({"the code": code_version(), **request._asdict()})
        evaluate(request)


if __name__ == "__main__":
    cli.run(main, flags, key_flags=cli.DATA_FLAGS)
