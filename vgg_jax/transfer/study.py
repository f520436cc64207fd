"""A study of how good features are for other data: descriptors, classifiers, and the paper's figures."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vgg_jax.evaluation.model import load
from vgg_jax.features.backbone import Backbone
from vgg_jax.models import NetworkSpec
from vgg_jax.models.description import last_features
from vgg_jax.recipe import DATA_DIR
from vgg_jax.runtime.console import print_line
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.files import write_json
from vgg_jax.transfer import classifiers, datasets
from vgg_jax.transfer.classifiers import Candidates, Outcome
from vgg_jax.transfer.datasets import TransferData
from vgg_jax.transfer.descriptors import Images, descriptors, normalized

_TFDS = "tfds:"
# Paper Table 11, by (protocol and data, networks).
TABLE_11 = {
    ("voc", "D"): "VOC-2007 89.3, VOC-2012 89.0",
    ("voc", "E"): "VOC-2007 89.3, VOC-2012 89.0",
    ("voc", "DE"): "VOC-2007 89.7, VOC-2012 89.3",
    ("caltech", "D"): "Caltech-101 91.8 ± 1.0, Caltech-256 85.0 ± 0.2",
    ("caltech", "E"): "Caltech-101 92.3 ± 0.5, Caltech-256 85.1 ± 0.3",
    ("caltech", "DE"): "Caltech-101 92.7 ± 0.5, Caltech-256 86.2 ± 0.3",
}


class TransferRequest(NamedTuple):
    """Networks, data, and the protocol by which their features are tested."""

    weights: tuple[str, ...]  # files, or names of published weights; the descriptors of several are stacked
    data_root: str  # a folder of images, a VOC kit, or tfds:NAME
    protocol: str = "caltech"  # or voc
    layers: tuple[str, ...] = ()  # one is chosen; () for relu7, of a trunk its last ReLU
    scales: tuple[int, ...] = (256,)  # Q, pixels; stacked for caltech, averaged for voc
    train_images: int = 30  # of each class, for caltech
    test_images: int = 50  # of each class, at most, for caltech
    splits: int = 3  # random ones, for caltech
    train_list: str = "trainval"  # for voc
    test_list: str = "test"
    classifier: str = "svm"  # or logistic
    data_dir: str = DATA_DIR  # of a TFDS set
    exif: bool = False  # of a folder or a kit: turn images as their EXIF orientation says
    seed: int = 0  # of the splits, and of the fifth by which C is chosen
    output: str = "transfer"  # a directory for descriptors and results.json
    batch_size: int = 64  # images of Q x Q pixels at once, over all devices
    dtype: str = "float32"  # of the networks' computation


def study(request: TransferRequest) -> list[Outcome]:
    """Computes descriptors, trains and tests classifiers on every split, prints the results and writes results.json.

    Raises:
      UserError: a request that cannot be, or as `vgg_jax.load`, `datasets` and `descriptors.descriptors`.
    """
    fit = {"svm": classifiers.fitted_svm, "logistic": classifiers.fitted_logistic}[request.classifier]
    if request.classifier == "svm":
        classifiers.need_scikit_learn()
    is_voc = request.protocol == "voc"
    _check_data(request, is_voc)
    models = [load(source, request.dtype) for source in request.weights]
    data, splits = _data(request, is_voc)
    print_line(f"{Path(request.data_root).expanduser()}: {len(data.labels):,} images, {len(data.class_names)} classes")
    candidates = _candidates(request, models, data.images, is_averaged=is_voc)
    evaluate = (
        functools.partial(classifiers.multi_label, points=data.recall_points) if is_voc else classifiers.single_label
    )
    outcomes: list[Outcome] = []
    for number, split in enumerate(splits, 1):
        outcome = evaluate(candidates, data.labels, split, request.seed + number, fit)
        measure = f"split {number}: mean class recall"
        measure = f"mean average precision at {data.recall_points or 'all'} recalls" if is_voc else measure
        train, test = split
        print_line(
            f"{measure} {outcome.score:.2%}, {len(train):,} images to train on and {len(test):,} to test, "
            f"{outcome.descriptor}, C = {outcome.c:g}"
        )
        outcomes.append(outcome)
    _report(request, models, data, outcomes)
    return outcomes


def _check_data(request: TransferRequest, is_voc: bool) -> None:
    source = f"--data_root={request.data_root}"
    if request.data_root.startswith(_TFDS) and is_voc:
        raise UserError(f"{source} --protocol=voc: give the kit's directory, whose lists the protocol is of.")
    if request.data_root.startswith(_TFDS) and request.exif:
        raise UserError(f"{source} --exif: EXIF is of folders of images and VOC kits; leave --exif out.")


def _data(request: TransferRequest, is_voc: bool) -> tuple[TransferData, list[classifiers.Split]]:
    """Opens the data, warns of classes that the mean leaves out, and returns the splits too."""
    root = Path(request.data_root).expanduser()
    if is_voc:
        data = datasets.voc(root, request.train_list, request.test_list, request.exif)
        for name, reason in datasets.classes_left_out(data).items():
            print_line(f"WARNING: {name} is left out of the mean: the lists have {reason}")
        return data, [(data.train, data.test)]
    if request.data_root.startswith(_TFDS):
        data = datasets.prepared(request.data_root.removeprefix(_TFDS), request.data_dir)
    else:
        data = datasets.folder(root, request.exif)
    counts = (request.train_images, request.test_images, request.splits, request.seed)
    return data, classifiers.caltech_splits(data.labels, data.class_names, *counts)


def _candidates(request: TransferRequest, models: Sequence[Backbone], images: Images, is_averaged: bool) -> Candidates:
    """Returns the descriptors [N, D] of each layer, of several scales averaged or stacked, of several networks stacked.

    Without layers in the request, the one candidate has the last ReLU of each network before its classifier.
    """
    choices = [(layer,) * len(models) for layer in request.layers]
    choices = choices or [tuple(last_features(model.network.layers) for model in models)]
    directory, parts = Path(request.output).expanduser() / "descriptors", [list[np.ndarray]() for _ in choices]
    for model, layers in zip(models, zip(*choices, strict=True), strict=True):
        by_scale = [
            descriptors(model, layers, images, scale, directory, request.batch_size) for scale in request.scales
        ]
        for part, layer in zip(parts, layers, strict=True):
            of_scales = [normalized(by_layer[layer]) for by_layer in by_scale]
            part += [normalized(np.mean(of_scales, 0))] if is_averaged else of_scales
    names = [" + ".join(dict.fromkeys(choice)) for choice in choices]
    return {name: normalized(np.concatenate(part, 1)) for name, part in zip(names, parts, strict=True)}


def _report(
    request: TransferRequest, models: Sequence[Backbone], data: TransferData, outcomes: Sequence[Outcome]
) -> None:
    """Prints the mean over splits next to the paper's, and writes results.json."""
    scores = np.array([outcome.score for outcome in outcomes])
    spread = f" ± {100 * scores.std(ddof=1):.2f}" if len(scores) > 1 else ""
    scales = ", ".join(map(str, request.scales))
    print_line(f"{' + '.join(request.weights)}, Q = {scales}: {100 * scores.mean():.2f}{spread} %")
    networks = "".join(sorted(map(paper_name, models)))
    if published := TABLE_11.get((request.protocol, networks)):
        print_line(f"Paper Table 11: {published}")
    results: dict[str, Any] = {
        "weights": request.weights,
        "protocol": request.protocol,
        "classifier": request.classifier,
        "data": str(Path(request.data_root).expanduser()),
        **({"recall_points": data.recall_points} if request.protocol == "voc" else {}),
        "scales": request.scales,
        "classes": list(data.class_names),
        # JSON has no NaN: a class that is left out of the mean is null.
        "outcomes": [outcome._asdict() | {"by_class": outcome.by_class.tolist()} for outcome in outcomes],
    }
    output = Path(request.output).expanduser() / "results.json"
    write_json(output, results)
    print_line(f"written: {output}")


def paper_name(model: Backbone) -> str:
    """Returns the configuration of a model that is the paper's whole network; "?" for every other one."""
    network = model.network
    whole = (name for name in "DE" if network.layers == NetworkSpec(name).layers() and network.width_multiplier == 1)
    return next(whole, "?")
