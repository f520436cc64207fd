"""The paper's test protocol, from a request to a table (Paper §3.2, §4): read top to bottom."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vgg_jax.data.sources import Expected, expanded, prepared_data
from vgg_jax.data.splits import open_split
from vgg_jax.evaluation import heatmaps, measures, results
from vgg_jax.evaluation.cache import Probs
from vgg_jax.evaluation.passes import PROTOCOLS, EvalPass, eval_passes
from vgg_jax.evaluation.run import EvalStats
from vgg_jax.evaluation.split import UNLABELLED, Split, evaluation_dir, split_probs
from vgg_jax.evaluation.trained_model import TrainedModel, load_trained
from vgg_jax.recipe import scale_text
from vgg_jax.runtime.console import Console, duration
from vgg_jax.runtime.distributed import is_primary, primary_first
from vgg_jax.runtime.exceptions import UserError, writing_to
from vgg_jax.runtime.files import write_atomically, write_json, write_text
from vgg_jax.runtime.provenance import environment


class Request(NamedTuple):
    """A request to evaluate; "" and 0 leave a value to the models' own configuration."""

    workdirs: tuple[str, ...]
    protocol: str = "dense"
    scales: str = ""  # see `passes.test_scales`
    split: str = ""
    data_name: str = ""
    data_dir: str = ""
    data_root: str = ""
    exif: bool | None = None  # of a folder: turn images as their EXIF orientation says; None: as the run
    batch_size: int = 0  # see `run.batch_size_for`
    dtype: str = ""
    averages: bool = True  # see `checkpoints.load_variables`
    maps: str = ""  # a directory for score maps; "" draws none
    num_maps: int = 8
    class_numbers: str = ""  # a file, see `results.class_numbers`
    output: str = ""  # a file for the results; "" next to the cached probabilities
    directory: str = ""  # of cached probabilities and results; "" see `output_workdir`
    # Files, see `weights.file`, or names, see `weights.hub`; they come after the workdirs.
    weights: tuple[str, ...] = ()


def evaluate(request: Request, quiet: bool = False, table_format: str = "plain") -> dict[str, Any]:
    """Evaluates one model or several fused; cached probabilities are not computed again.

    Args:
      request: what to evaluate, and how.
      quiet: print nothing.
      table_format: of the printed table, see `text_tables`.

    Returns:
      The content of the results file: the rows of the table and everything needed to repeat them.

    Raises:
      UserError: anything that only the user can put right. What was computed before is cached.
    """
    began = time.monotonic()
    console = Console(quiet or not is_primary())
    subject = _subject(request, console)
    models, split, output = subject.models, subject.split, subject.output
    console.print(_models_text(models, subject.passes, split))

    # Probabilities of every pass, from the cache or computed.
    stats, probs = EvalStats(), []
    for number, (trained, its_passes) in enumerate(zip(models, subject.passes, strict=True), start=1):
        prefix = f"model {number} of {len(models)}, " if len(models) > 1 else ""
        probs.append(split_probs(trained, its_passes, split, request.batch_size, stats, prefix))
    seconds = time.monotonic() - began

    # Means over scales, methods and models.
    first = next(iter(probs[0].values()))
    skipped = np.any([cached.skipped for of_model in probs for cached in of_model.values()], 0)
    finite = np.all([np.isfinite(cached.probs).all(-1) for of_model in probs for cached in of_model.values()], 0)
    summary: dict[str, Any] = {
        "rows": [],
        "skipped": [str(key) for key in first.keys[skipped]],
        "not_finite": [str(key) for key in first.keys[~finite]],
        "request": request._asdict(),
        "data": {"name": split.data, "split": split.name, "images": len(first.keys)},
        "models": [_model_record(*pair) for pair in zip(models, subject.passes, strict=True)],
        "computing": {**vars(stats), "seconds": round(seconds, 1), "from_cache": stats.computed == 0},
        **environment(),
    }
    _warn(console, "images are too large once rescaled and count as wrong", summary["skipped"], len(first.keys))
    _warn(console, "images have scores that are not finite and count as wrong", summary["not_finite"], len(first.keys))
    if (first.labels < 0).all():
        summary["submission"] = _submit(request, subject, probs, first.keys)
    else:
        rows = results.rows(models, subject.passes, probs, skipped, request.protocol, split)
        summary["rows"] = [row._asdict() | {"paper": row.paper and row.paper._asdict()} for row in rows]
        summary |= _class_records(models[0].class_names, _fused(request, probs), first.labels, skipped | ~finite)
        table = results.table(rows, table_format)
        console.print(table if table_format == "plain" else f"\n{table}\n")
    if request.maps:
        summary["maps"] = _draw_maps(request, models[0], max(p.scale for p in subject.passes[0]), split, first)
    if is_primary():
        write_json(output, summary)
    console.print(f"everything needed to repeat this: {output} ({duration(time.monotonic() - began)})")
    return summary


class Subject(NamedTuple):
    """Models, passes and images of an evaluation, and where its results go."""

    models: list[TrainedModel]
    passes: list[list[EvalPass]]  # of each model
    split: Split
    class_numbers: np.ndarray  # see `results.class_numbers`
    output: Path


def _subject(request: Request, console: Console) -> Subject:
    """Opens models and images, and makes the directories of results; UserError if they do not go together."""
    models = [load_trained(source, request.dtype, request.averages) for source in (*request.workdirs, *request.weights)]
    for trained in models[1:]:
        _check_same_classes(models[0], trained)
    passes = [eval_passes(trained.recipe, request.protocol, request.scales) for trained in models]
    numbers = _class_numbers(request, models[0])
    split = primary_first(lambda: open_evaluated(request, models[0], console))
    models = [output_workdir(trained, split, request.directory) for trained in models]
    output = _output(request, models, split)
    if output.is_dir():
        raise UserError(f"--json={output} is a directory; name a file in it.")
    directories = {"--json or --output": output.parent}
    if request.maps:
        directories["--maps"] = Path(request.maps).expanduser()
    for flag, directory in directories.items():
        with writing_to(directory, f"choose another {flag}"):
            directory.mkdir(parents=True, exist_ok=True)
    return Subject(models, passes, split, numbers, output)


def open_evaluated(request: Request, trained: TrainedModel, console: Console) -> Split:
    """Opens the split: the run's validation split, or what was requested.

    Raises:
      UserError: there is none, or it has classes that the model does not know.
    """
    own = trained.recipe.data
    name, root = own.name, own.root
    if request.data_name or request.data_root:
        name = request.data_name or "folder"
        root = request.data_root or (own.root if name == own.name else "")
    if name == "folder" and not (root and Path(root).expanduser().is_dir()):
        raise UserError(
            f"there is no folder of images {root!r}; give one, laid out <split>/<class>/<image>, with "
            "--config.data.root=DIR."
        )
    split_name = request.split or own.val_split
    exif = own.exif and name == "folder" if request.exif is None else request.exif
    data_dir = expanded(request.data_dir or own.dir)
    data = prepared_data(name, data_dir, root, exif=exif, expected=Expected({"split": split_name}))
    records = open_split(data, split_name, "split")
    class_names = data.class_names
    unknown = sorted(set(class_names) - set(trained.class_names))
    if unknown and class_names != [UNLABELLED]:
        source, names = trained.workdir, ""
        if trained.checkpoint.is_file():  # weights from elsewhere may lack the names of their classes
            source = trained.checkpoint
            names = ", or name its classes with: vgg-jax convert ... --class_names=FILE"
        raise UserError(
            f"{data.name} has {len(unknown)} classes that the model in {source} does not know, among them "
            f"{unknown[0]!r}; evaluate it on images of the {len(trained.class_names)} classes it was trained on "
            f"(config.data.name, config.data.root, config.data.dir){names}."
        )
    return Split(data.name, split_name, records, class_names, console)


def output_workdir(trained: TrainedModel, split: Split, directory: str) -> TrainedModel:
    """Returns the model with the workdir of its evaluations: below `directory`, or the run's.

    Of a run that one may only read they go below the current directory, which is said.
    """
    cache = evaluation_dir(trained, split)
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    if not directory and os.access(existing, os.W_OK | os.X_OK):
        return trained
    workdir = workdir_below(trained, directory)
    if not directory:
        sentence = f"{existing} cannot be written: probabilities and results go to {workdir} (or to --output=DIR)"
        split.console.print(sentence)
    return trained._replace(workdir=workdir)


def workdir_below(trained: TrainedModel, directory: str) -> Path:
    """Returns the workdir of a model's evaluations below a directory; other models have others."""
    return Path(directory).expanduser() / f"{trained.workdir.absolute().name}-{trained.digest[:8]}"


def _check_same_classes(first: TrainedModel, other: TrainedModel) -> None:
    if first.class_names == other.class_names:
        return
    only = sorted(set(first.class_names) ^ set(other.class_names))
    if not only:
        raise UserError(
            f"the models in {first.workdir} and {other.workdir} have their classes in different orders and cannot be "
            "fused; name the classes of one again, in the other's order."
        )
    raise UserError(
        f"the models in {first.workdir} and {other.workdir} were trained on different classes "
        f"({len(first.class_names)} and {len(other.class_names)}; {only[0]!r} is in one of them only) and cannot be "
        "fused; give runs on the same data."
    )


def _models_text(models: list[TrainedModel], passes: list[list[EvalPass]], split: Split) -> str:
    lines = [f"{split.data}, split {split.name}: {len(split.records):,} images"]
    for trained, its_passes in zip(models, passes, strict=True):
        scales: dict[str, list[str]] = {}
        for eval_pass in its_passes:
            scales.setdefault(eval_pass.method, []).append(str(eval_pass.scale))
        methods = "; ".join(f"{method} at Q = {', '.join(values)}" for method, values in scales.items())
        model, image = trained.recipe.model, trained.recipe.image
        lines.append(
            f"{model.network.title}, S {scale_text(image.scale_min, image.scale_max)}, crop {image.crop}, "
            f"{model.dtype.name}, {trained.checkpoint}: {methods}"
        )
    return "\n".join(lines)


def _warn(console: Console, sentence: str, keys: list[str], total: int) -> None:
    if keys:
        more = ", ..." if len(keys) > 10 else ""
        console.print(f"WARNING: {len(keys)} of {total} {sentence}: {', '.join(keys[:10])}{more}")


def _model_record(trained: TrainedModel, its_passes: Sequence[EvalPass]) -> dict[str, Any]:
    return {
        "checkpoint": str(trained.checkpoint),
        "params_sha256": trained.digest,
        "configuration": trained.recipe.model.network.name,
        "S": [trained.recipe.image.scale_min, trained.recipe.image.scale_max],
        "dtype": trained.recipe.model.dtype.name,
        "passes": [eval_pass._asdict() for eval_pass in its_passes],
    }


def _output(request: Request, models: list[TrainedModel], split: Split) -> Path:
    if request.output:
        return Path(request.output).expanduser()
    scales = re.sub(r"\W+", "_", request.scales) if request.scales else "default"
    dtype = "" if models[0].recipe.model.dtype == "float32" else f"-{models[0].recipe.model.dtype.name}"
    fusion = ""
    if len(models) > 1:
        checkpoints = " ".join(sorted(str(trained.checkpoint) for trained in models))
        fusion = f"-fusion-{hashlib.sha256(checkpoints.encode()).hexdigest()[:8]}"
    return evaluation_dir(models[0], split) / f"results-{request.protocol}{dtype}-{scales}{fusion}.json"


def _class_numbers(request: Request, trained: TrainedModel) -> np.ndarray:
    listing = ""
    if request.class_numbers:
        try:
            listing = Path(request.class_numbers).expanduser().read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UserError(f"--class_numbers={request.class_numbers} cannot be read: {error}.") from error
    return results.class_numbers(trained.class_names, listing, request.class_numbers)


def _fused(request: Request, probs: list[dict[EvalPass, Probs]]) -> np.ndarray:
    """Returns the mean over everything that was requested, as in the last row of the table: [N, K]."""
    return results.average(results.over_methods(of_model, PROTOCOLS[request.protocol]) for of_model in probs)


def _class_records(
    class_names: Sequence[str], probs_NxK: np.ndarray, labels_N: np.ndarray, without_N: np.ndarray
) -> dict[str, Any]:
    """Returns precision, recall and F1 of each class, and their means; images of `without_N` have no prediction."""
    predicted_N = np.where(without_N, -1, results.top5_classes(probs_NxK)[:, 0])
    classes = measures.class_measures(labels_N, predicted_N, len(class_names))
    return {
        "classes": [{"name": name, **one._asdict()} for name, one in zip(class_names, classes, strict=True)],
        "macro": measures.macro_means(classes)._asdict(),
    }


def _submit(request: Request, subject: Subject, probs: list[dict[EvalPass, Probs]], keys: np.ndarray) -> dict[str, str]:
    """Writes predictions for a split without labels, in the challenge's format."""
    fused, path = _fused(request, probs), subject.output.with_suffix(".submission.txt")
    if is_primary():
        write_text(path, results.submission(fused, keys, subject.class_numbers), "choose another --json")
    meaning = (
        f"numbers as in {request.class_numbers}"
        if request.class_numbers
        else "number n is the n-th class by sorted name. ILSVRC's development kit numbers classes otherwise: give its "
        "order with --class_numbers=FILE"
    )
    subject.split.console.print(
        f"no labels, so no errors; five class numbers an image, in the order of file names: {path} ({meaning})"
    )
    return {"file": str(path), "class_numbers": meaning}


def _draw_maps(request: Request, trained: TrainedModel, scale: int, split: Split, first: Probs) -> list[str]:
    """Draws score maps of images spread evenly over the split."""
    directory = Path(request.maps).expanduser()
    variables = heatmaps.on_one_device(trained)
    drawn = []
    for index in heatmaps.spread(len(first.keys), request.num_maps):
        image = heatmaps.image_for_map(split.records, index, scale)
        if image is None:
            split.console.print(f"no score map of {first.keys[index]}: it is too long to look at")
            continue
        scores, probs_K = heatmaps.score_map(trained, variables, image)
        classes = heatmaps.classes_to_draw(probs_K, int(first.labels[index]))
        stem = re.sub(r"[^\w.=-]+", "_", str(first.keys[index]).rsplit(".", 1)[0])
        path = directory / f"{index:06d}-{stem}.png"
        maps = heatmaps.class_maps(scores, probs_K, classes, trained.class_titles)
        picture = heatmaps.draw(image, maps, trained.model.layers)
        with write_atomically(path, "choose another --maps") as unfinished:
            picture.save(unfinished, "PNG")
        drawn.append(str(path))
    split.console.print(f"{len(drawn)} score maps at Q = {scale} in {directory}")
    return drawn
