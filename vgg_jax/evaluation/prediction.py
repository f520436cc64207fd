"""Runs the test protocol on image files; unreadable ones are reported and skipped."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vgg_jax.data.crops import rescaled_size
from vgg_jax.data.decode import check, size_of
from vgg_jax.data.image_files import ImageFiles, list_images
from vgg_jax.data.image_kinds import DecodeError
from vgg_jax.data.orientation import orientation, read_image
from vgg_jax.evaluation import heatmaps, results
from vgg_jax.evaluation.passes import PROTOCOLS, EvalPass, eval_passes
from vgg_jax.evaluation.plan import devices_of, plan_pass, skipped_images
from vgg_jax.evaluation.run import Chunk, CompiledSteps, EvalStats, batch_size_for, run_jobs
from vgg_jax.evaluation.trained_model import TrainedModel, load_trained
from vgg_jax.runtime.console import Console, print_error
from vgg_jax.runtime.exceptions import printable, writing_to
from vgg_jax.runtime.files import output_file, write_atomically, write_json

_OTHER_MAPS = "choose another --maps"
_SECONDS_BETWEEN_WRITES = 5.0  # of the JSON file


class PredictRequest(NamedTuple):
    """Images, a model, and how it is tested on them."""

    images: tuple[str, ...] = ()  # files, folders, patterns, see `image_files.list_images`
    source: str = ""  # the model, see `trained_model.load_trained`
    protocol: str = "dense"  # a key of `passes.PROTOCOLS`
    scales: str = ""  # see `passes.test_scales`; "" for the protocol's own
    batch_size: int = 0  # see `run.batch_size_for`
    dtype: str = ""  # of the computation; "" as trained
    exif: bool | None = None  # turn images as their EXIF orientation says; None: as the run
    maps: str = ""  # a directory for score maps, see `heatmaps.draw`; "" draws none
    # Draw Grad-CAM next to the maps, and write both as arrays, NAME.npz: classes [n], score_map and grad_cam [h, w, n].
    grad_cam: bool = False
    json: str = ""  # a file for the predictions, written every few seconds; "" writes none


class Prediction(NamedTuple):
    """The likeliest classes of an image."""

    path: Path
    classes: np.ndarray  # [n] int64, the likeliest first, five or all
    probabilities: np.ndarray  # [n] float64
    map: str  # the file of its score maps; "" where none is drawn


class Failure(NamedTuple):
    """An image that was left out."""

    path: Path
    reason: str


_Result = tuple[int, Prediction | Failure]  # of the image of this number


def predict_files(request: PredictRequest) -> tuple[list[Prediction], list[Failure]]:
    """Predicts the images of a request, and prints each as soon as it is done.

    Returns:
      Predictions and failures, each in the order of the images.

    Raises:
      UserError: an argument that stands for no image, or as `load_trained` and `predict`. What was predicted before is
        written.
    """
    paths = list_images(request.images, print_error)
    trained = load_trained(request.source, request.dtype)
    console, file = Console(), _PredictionsFile(request, trained, paths)

    def done(prediction: Prediction) -> None:
        classes = file.add(prediction)
        lines = [f"  {entry['probability']:6.1%}  {entry['title']}" for entry in classes]
        console.print("\n".join([printable(str(prediction.path)), *lines]))

    try:
        predictions, failures = predict(trained, paths, request, console, done)
    except BaseException:
        file.write(())
        raise
    file.write(failures)
    return predictions, failures


class _PredictionsFile:
    """The JSON of a request, if it names one, with the predictions so far."""

    def __init__(self, request: PredictRequest, trained: TrainedModel, paths: Sequence[Path]) -> None:
        self._request, self._trained = request, trained
        self._order = {str(path): i for i, path in enumerate(paths)}
        self._path = output_file(request.json, "--json") if request.json else None
        self._entries: list[dict[str, Any]] = []
        self._written_at = -math.inf

    def add(self, prediction: Prediction) -> list[dict[str, Any]]:
        """Adds a prediction, and returns its classes as they are in the file: class, title, probability."""
        names, titles = self._trained.class_names, self._trained.class_titles
        classes = [
            {"class": names[i], "title": titles[i], "probability": float(p)}
            for i, p in zip(prediction.classes, prediction.probabilities, strict=True)
        ]
        map_file = {"map": prediction.map} if prediction.map else {}
        self._entries.append({"image": str(prediction.path), "classes": classes, **map_file})
        if time.monotonic() - self._written_at > _SECONDS_BETWEEN_WRITES:
            self.write(())
            self._written_at = time.monotonic()
        return classes

    def write(self, failures: Sequence[Failure]) -> None:
        """Writes the predictions so far."""
        if self._path is None or not (self._entries or failures):
            return
        content = {
            "model": str(self._trained.checkpoint),
            "params_sha256": self._trained.digest,
            "protocol": self._request.protocol,
            "scales": self._request.scales,
            "exif": applies_exif(self._request, self._trained),
            "predictions": sorted(self._entries, key=lambda entry: self._order[entry["image"]]),
            "failures": [{"image": str(failure.path), "reason": failure.reason} for failure in failures],
        }
        write_json(self._path, content)


def applies_exif(request: PredictRequest, trained: TrainedModel) -> bool:
    """Returns whether images are turned as their EXIF orientation says."""
    return trained.recipe.data.exif if request.exif is None else request.exif


def predict(
    trained: TrainedModel,
    paths: Sequence[Path],
    request: PredictRequest,
    console: Console | None = None,
    done: Callable[[Prediction], None] = lambda prediction: None,
) -> tuple[list[Prediction], list[Failure]]:
    """Runs the test protocol (Paper §3.2, §4) on images.

    Args:
      trained: of `load_trained`.
      paths: of the images.
      request: the protocol and the score maps; its images, model and files are not read.
      console: shows progress.
      done: is called with each prediction once it is made, in the cheapest order; with maps, once the next is computed.

    Returns:
      Predictions and failures, each in the order of the images.

    Raises:
      UserError: scales that cannot be, or a directory that cannot be written.
    """
    console = console or Console(quiet=True)
    passes = eval_passes(trained.recipe, request.protocol, request.scales)
    largest = max(passes, key=lambda eval_pass: eval_pass.scale)
    maps = _ScoreMaps(trained, request, largest.scale) if request.maps else None
    exif, predictions = applies_exif(request, trained), dict[int, Prediction]()
    readable, sizes, failures = _check_images(paths, largest, exif, console)
    if not readable:
        return [], failures
    records: Any = ImageFiles(readable, exif)

    def finished(i: int, probs_K: np.ndarray) -> _Result:
        if not np.isfinite(probs_K).all():
            return i, Failure(readable[i], "the model's scores of it are not finite")
        drawn = maps.draw(records, i, readable[i].stem, probs_K) if maps else ""
        (likeliest,) = results.top5_classes(probs_K[None])
        return i, Prediction(readable[i], likeliest, probs_K[likeliest], drawn)

    drawing: deque[Future[_Result]] = deque()

    def collect(at_most: int) -> None:
        for i, result in _completed(drawing, at_most):
            if isinstance(result, Failure):
                failures.append(result)
            else:
                predictions[i] = result
                done(result)

    probs = _probs(_streams(trained, request, passes, records, sizes), request.protocol, len(records), console)
    # Maps are made in a thread, while the images that follow are computed.
    with ThreadPoolExecutor(1) as pool, contextlib.closing(probs):
        try:
            for item in probs:
                drawing.append(pool.submit(finished, *item))
                collect(2 if maps else 0)
        # What is computed is shown, whatever is wrong with the next.
        finally:
            collect(0)
    return [predictions[i] for i in sorted(predictions)], failures


def _completed(drawing: deque[Future[_Result]], at_most: int) -> Iterator[_Result]:
    """Takes what is done from the left, and waits until `at_most` remain."""
    while drawing and (drawing[0].done() or len(drawing) > at_most):
        # Ctrl-C may come while it is waited for.
        result = drawing[0].result()
        drawing.popleft()
        yield result


class _ScoreMaps:
    """Draws class score maps into a directory.

    Args:
      trained: the model.
      request: names the directory, which is made, and says whether Grad-CAM is drawn too.
      scale: Q of the images; the maps are of the image at this scale alone and not mirrored.
    """

    def __init__(self, trained: TrainedModel, request: PredictRequest, scale: int) -> None:
        self._trained, self._scale, self._with_cams = trained, scale, request.grad_cam
        self._directory = Path(request.maps).expanduser()
        with writing_to(request.maps, _OTHER_MAPS):
            self._directory.mkdir(parents=True, exist_ok=True)
        self._variables = heatmaps.on_one_device(trained)

    def draw(self, records: Any, i: int, name: str, probs_K: np.ndarray) -> str:
        """Draws the maps of image i with its probabilities; returns the file, "" if the image is too large."""
        image = heatmaps.image_for_map(records, i, self._scale)
        if image is None:
            return ""
        trained = self._trained
        scores, _ = heatmaps.score_map(trained, self._variables, image)
        classes = heatmaps.classes_to_draw(probs_K, label=-1)
        cams = heatmaps.class_cams(trained, self._variables, image, classes) if self._with_cams else None
        maps = heatmaps.class_maps(scores, probs_K, classes, trained.class_titles, cams)
        picture = heatmaps.draw(image, maps, trained.model.layers)
        path = self._directory / f"{i:03d}-{name}.png"
        with write_atomically(path, _OTHER_MAPS) as unfinished:
            picture.save(unfinished, "PNG")
        if cams is not None:
            numbers = [index for _, index in classes]
            with write_atomically(path.with_suffix(".npz"), _OTHER_MAPS) as unfinished, open(unfinished, "wb") as file:
                np.savez(file, classes=np.array(numbers), score_map=scores[..., numbers], grad_cam=cams)
        return str(path)


def _check_images(
    paths: Sequence[Path], largest: EvalPass, exif: bool, console: Console
) -> tuple[list[Path], np.ndarray, list[Failure]]:
    """Returns the readable images, their (width, height) [n, 2], and the reasons against the others."""
    turned: list[Path] = []

    def size_or_reason(path: Path) -> tuple[int, int] | str:
        try:
            encoded = read_image(path, exif)
            check(encoded)
            if orientation(encoded) > 1:
                turned.append(path)
            size = size_of(encoded)
        except OSError as error:
            return error.strerror or str(error)
        except DecodeError as error:
            return str(error)
        if skipped_images(largest, np.array([size])).any():
            width, height = rescaled_size(*size, largest.scale)
            return f"{width} x {height} pixels at Q = {largest.scale}, too many"
        return size

    with ThreadPoolExecutor() as pool:
        checked = list(zip(paths, pool.map(size_or_reason, paths), strict=True))
    if turned:
        console.print(
            f"WARNING: {len(turned):,} of {len(paths):,} images have an EXIF orientation, as "
            f"{printable(str(min(turned)))}, which is ignored; apply it with --exif."
        )
    failures = [Failure(path, size) for path, size in checked if isinstance(size, str)]
    readable = [(path, size) for path, size in checked if not isinstance(size, str)]
    return [path for path, _ in readable], np.array([size for _, size in readable], np.int64).reshape(-1, 2), failures


def _probs(
    streams: Iterable[tuple[EvalPass, Iterator[Chunk]]], protocol: str, num_images: int, console: Console
) -> Generator[tuple[int, np.ndarray], None, None]:
    """Yields (number of an image, [K] float64: the mean over methods of the means over scales), each once it is
    complete.

    All passes advance together, a batch of each in turn. The order of images is much the same in all of them.
    """
    waiting = deque(streams)
    passes = [eval_pass for eval_pass, _ in waiting]
    by_image: dict[int, dict[EvalPass, np.ndarray]] = {i: {} for i in range(num_images)}
    console.start(0, num_images)
    count = 0
    try:
        while waiting:
            eval_pass, stream = waiting.popleft()
            chunk = next(stream, None)
            if chunk is None:
                continue
            waiting.append((eval_pass, stream))
            for i, probs_K in zip(chunk.indices.tolist(), chunk.probs_nxK, strict=True):
                by_image[i][eval_pass] = probs_K
                if len(by_image[i]) < len(passes):
                    continue
                of_image, count = by_image.pop(i), count + 1
                console.progress(count, "images")
                by_method = [
                    [of_image[one] for one in passes if one.method == method] for method in PROTOCOLS[protocol]
                ]
                yield i, results.average(results.average(of_method) for of_method in by_method)
    finally:
        console.close()


def _streams(
    trained: TrainedModel, request: PredictRequest, passes: Sequence[EvalPass], records: Any, sizes: np.ndarray
) -> Iterator[tuple[EvalPass, Iterator[Chunk]]]:
    """Yields each pass with its probabilities."""
    compiled, indices = CompiledSteps(trained, EvalStats()), np.arange(len(records))
    batch_size, devices = batch_size_for(trained, request.batch_size), devices_of(trained.mesh)
    for eval_pass in passes:
        jobs = plan_pass(eval_pass, compiled.network, sizes, indices, batch_size, devices)
        yield eval_pass, run_jobs(compiled, eval_pass, jobs, records, trained.recipe.data.threads, EvalStats())
