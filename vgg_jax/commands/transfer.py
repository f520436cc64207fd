"""`vgg-jax transfer --weights=FILE --data_root=DIR`: how good features are for other data (Paper, Appendix B).

    vgg-jax transfer --weights=vgg16.safetensors --data_root=101_ObjectCategories --scales=256,384,512
    vgg-jax transfer --weights=D.safetensors,E.safetensors --data_root=VOCdevkit/VOC2007 --protocol=voc --scales=256,384,512
    vgg-jax transfer --weights=trunk.safetensors --data_root=DIR --layers=relu3_3,relu4_3,relu5_3

A descriptor is a layer's activations, computed densely over the whole image and its mirror image, averaged over space, of length 1.
Linear support vector machines tell classes apart; the network stays as it is. DIR is a folder <class>/<image> or
<split>/<class>/<image>, whose splits are put together, a VOC development kit, or tfds:NAME. Descriptors are kept: the same command goes on
after Ctrl-C, and other settings of the classifiers take seconds.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_jax.commands import cli

if TYPE_CHECKING:
    import numpy as np

flags = cli.Flags()
_WEIGHTS = flags.DEFINE_list(
    "weights", [], "Files of weights (vgg-jax convert), or names of published ones; the descriptors of several "
    "are stacked."
)  # fmt: skip
_DATA_ROOT = flags.DEFINE_string(
    "data_root", "", "The folder of images, the VOC kit's VOC2007 or VOC2012, or tfds:NAME for a prepared set of TFDS."
)  # fmt: skip
_PROTOCOL = flags.DEFINE_enum(
    "protocol", "caltech", ["caltech", "voc"], "caltech: mean class recall over random splits; voc: mean average precision "
    "of the kit's own split, scales averaged."
)  # fmt: skip
_LAYERS = flags.DEFINE_list(
    "layers", [], "Of which one is chosen by a fifth of the training images. Default: relu7, of a trunk its last ReLU."
)  # fmt: skip
_SCALES = flags.DEFINE_list("scales", ["256"], "Shorter sides Q in pixels; stacked for caltech, averaged for voc.")
_TRAIN_IMAGES = flags.DEFINE_integer("train_images", 30, "Of each class, for caltech.", lower_bound=2)
_TEST_IMAGES = flags.DEFINE_integer("test_images", 50, "Of each class, at most, for caltech.", lower_bound=1)
_SPLITS = flags.DEFINE_integer("splits", 3, "Random splits, for caltech.", lower_bound=1)
_TRAIN_LIST = flags.DEFINE_string("train_list", "trainval", "The kit's list to train on, for voc.")
_TEST_LIST = flags.DEFINE_string("test_list", "test", "The kit's list to test on, for voc; VOC2012 publishes val.")
_CLASSIFIER = flags.DEFINE_enum(
    "classifier", "svm", ["svm", "logistic"], "svm: scikit-learn's linear support vector machines, as the paper; logistic: "
    "logistic regression by optax on JAX's device, for many images."
)  # fmt: skip
_DATA_DIR = flags.DEFINE_string("data_dir", "~/tensorflow_datasets", "Where a TFDS set lies (config.data.dir).")
_EXIF = flags.DEFINE_bool(
    "exif", False, "Of a folder or a kit: turn images as their EXIF orientation says, which is ignored otherwise."
)  # fmt: skip
_SEED = flags.DEFINE_integer("seed", 0, "Of the splits, and of the fifth by which C is chosen.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", "transfer", "A directory for descriptors and results.json.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Images of Q x Q pixels at once, over all devices; it bounds memory and changes no result.",
    lower_bound=1,
)  # fmt: skip
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the network's computation.")

# Paper Table 11, by (protocol and data, networks).
TABLE_11 = {
    ("voc", "D"): "VOC-2007 89.3, VOC-2012 89.0",
    ("voc", "E"): "VOC-2007 89.3, VOC-2012 89.0",
    ("voc", "DE"): "VOC-2007 89.7, VOC-2012 89.3",
    ("caltech", "D"): "Caltech-101 91.8 ± 1.0, Caltech-256 85.0 ± 0.2",
    ("caltech", "E"): "Caltech-101 92.3 ± 0.5, Caltech-256 85.1 ± 0.3",
    ("caltech", "DE"): "Caltech-101 92.7 ± 0.5, Caltech-256 86.2 ± 0.3",
}


def main(arguments: list[str]) -> None:
    if arguments or not _WEIGHTS.value or not _DATA_ROOT.value:
        cli.fail("say which features and which images: --weights=FILE --data_root=DIR; --help lists the flags.")
    scales = _whole_numbers(_SCALES.value)
    from vgg_jax import features  # after --help and mistakes have been answered
    from vgg_jax.models.description import last_features
    from vgg_jax.runtime.compilation import check_devices, keep_compiled, warn_of_unseen_gpu
    from vgg_jax.transfer import datasets, linear_probe, linear_svm

    fit = {"svm": linear_svm.fitted_svm, "logistic": linear_probe.fit}[_CLASSIFIER.value]
    if _CLASSIFIER.value == "svm":
        linear_svm.need_scikit_learn()
    tfds_name = _DATA_ROOT.value.removeprefix("tfds:") if _DATA_ROOT.value.startswith("tfds:") else ""
    if tfds_name and _PROTOCOL.value == "voc":
        cli.fail(
            f"--data_root={_DATA_ROOT.value} --protocol=voc: give the kit's directory, whose lists the protocol is of."
        )
    if tfds_name and _EXIF.value:
        cli.fail(f"--data_root={_DATA_ROOT.value} --exif: EXIF is of folders of images and VOC kits; leave --exif out.")
    root, is_voc = Path(_DATA_ROOT.value).expanduser(), _PROTOCOL.value == "voc"
    check_devices()
    keep_compiled()
    warn_of_unseen_gpu()
    backbones = [features.load(source, _DTYPE.value) for source in _WEIGHTS.value]
    # Of each candidate the layer of every network.
    choices = [(layer,) * len(backbones) for layer in _LAYERS.value]
    choices = choices or [tuple(last_features(backbone.model.layers) for backbone in backbones)]
    if is_voc:
        data = datasets.voc(root, _TRAIN_LIST.value, _TEST_LIST.value, _EXIF.value)
        splits = [(data.train, data.test)]
        for name, reason in datasets.classes_left_out(data).items():
            print(f"WARNING: {name} is left out of the mean: the lists have {reason}", flush=True)
    else:
        data = datasets.prepared(tfds_name, _DATA_DIR.value) if tfds_name else datasets.folder(root, _EXIF.value)
        counts = (_TRAIN_IMAGES.value, _TEST_IMAGES.value, _SPLITS.value, _SEED.value)
        splits = linear_svm.caltech_splits(data.labels, data.class_names, *counts)
    print(f"{root}: {len(data.labels):,} images, {len(data.class_names)} classes", flush=True)
    candidates = {
        " + ".join(dict.fromkeys(choice)): _descriptors(backbones, choices, number, scales, data.images, is_voc)
        for number, choice in enumerate(choices)
    }
    evaluate = (
        functools.partial(linear_svm.multi_label, points=data.recall_points) if is_voc else linear_svm.single_label
    )
    outcomes = []
    for number, (train, test) in enumerate(splits, 1):
        outcomes.append(evaluate(candidates, data.labels, train, test, _SEED.value + number, fit))
        last = outcomes[-1]
        what = f"mean average precision at {data.recall_points or 'all'} recalls"
        what = what if is_voc else f"split {number}: mean class recall"
        print(
            f"{what} {last.score:.2%}, {len(train):,} images to train on and {len(test):,} to test, {last.descriptor}, "
            f"C = {last.c:g}",
            flush=True,
        )
    _report(outcomes, backbones, scales, root, data)


def _report(outcomes: list[Any], backbones: list[Any], scales: list[int], root: Path, data: Any) -> None:
    """Prints the mean over splits next to the paper's, and writes results.json."""
    import numpy as np

    from vgg_jax.runtime.files import write_json

    scores = np.array([outcome.score for outcome in outcomes])
    spread = f" ± {100 * scores.std(ddof=1):.2f}" if len(scores) > 1 else ""
    print(f"{' + '.join(_WEIGHTS.value)}, Q = {', '.join(map(str, scales))}: {100 * scores.mean():.2f}{spread} %")
    networks = "".join(sorted(map(paper_name, backbones)))
    if published := TABLE_11.get((_PROTOCOL.value, networks)):
        print(f"Paper Table 11: {published}")
    results = {
        "weights": _WEIGHTS.value,
        "protocol": _PROTOCOL.value,
        "classifier": _CLASSIFIER.value,
        "data": str(root),
        **({"recall_points": data.recall_points} if _PROTOCOL.value == "voc" else {}),
        "scales": scales,
        "classes": list(data.class_names),
        # JSON has no NaN: a class that is left out of the mean is null.
        "outcomes": [
            outcome._asdict() | {"by_class": [None if np.isnan(score) else float(score) for score in outcome.by_class]}
            for outcome in outcomes
        ],
    }
    output = Path(_OUTPUT.value).expanduser() / "results.json"
    write_json(output, results)
    print(f"written: {output}")


def paper_name(backbone: Any) -> str:
    """Returns the configuration of a backbone that is the paper's whole network; "?" for every other one."""
    from vgg_jax.models import describe

    network = backbone.model
    whole = (name for name in "DE" if network.layers == describe(name) and network.width_multiplier == 1)
    return next(whole, "?")


def _descriptors(
    backbones: list[Any], choices: list[tuple[str, ...]], number: int, scales: list[int], images: Any, is_averaged: bool
) -> np.ndarray:
    """Returns the descriptors of a choice, computing those of all of them: of several scales averaged or stacked, of several networks stacked, of length 1."""
    import numpy as np

    from vgg_jax.transfer.descriptors import descriptors, normalized

    parts, directory = [], Path(_OUTPUT.value).expanduser() / "descriptors"
    for backbone, layers in zip(backbones, zip(*choices, strict=True), strict=True):
        of_scales = [
            normalized(descriptors(backbone, layers, images, scale, directory, _BATCH_SIZE.value)[layers[number]])
            for scale in scales
        ]
        parts += [normalized(np.mean(of_scales, 0))] if is_averaged else of_scales
    return normalized(np.concatenate(parts, 1))


def _whole_numbers(words: list[str]) -> list[int]:
    try:
        numbers = sorted({int(word) for word in words})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 16 or numbers[-1] > 4096:
        cli.fail(f"--scales={','.join(words)}: give whole numbers from 16 to 4096 with commas between, as 256,384,512.")
    return numbers


if __name__ == "__main__":
    key_flags = {"data.dir": "--data_dir", "data.name=": "--data_root=tfds:", "data.name": "--data_root"}
    cli.run(main, flags, key_flags=key_flags)
