"""Runs the test protocol on image files; unreadable ones are reported and skipped."""

from __future__ import annotations

import contextlib
import glob
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vgg_jax.data.crops import rescaled_size
from vgg_jax.data.decode import SUFFIXES, DecodeError, check, size_of
from vgg_jax.data.folder import files_below, is_named_like_a_picture, left_out_line
from vgg_jax.data.orientation import orientation, read_image
from vgg_jax.evaluation import heatmaps, results
from vgg_jax.evaluation.passes import PROTOCOLS, EvalPass, eval_passes
from vgg_jax.evaluation.plan import compilation_macs_of, plan_pass, skipped_images
from vgg_jax.evaluation.run import Chunk, CompiledSteps, EvalStats, batch_size_for, run_jobs
from vgg_jax.evaluation.trained_model import TrainedModel
from vgg_jax.runtime.console import Console
from vgg_jax.runtime.exceptions import UserError, printable, writing_to
from vgg_jax.runtime.files import write_atomically

_OTHER_MAPS = "choose another --maps"


class Prediction(NamedTuple):
    """The likeliest classes of an image."""

    path: Path
    classes: np.ndarray  # [n] int64, the likeliest first, five or all
    probabilities: np.ndarray  # [n] float64
    map: str  # the file of its score maps; "" for none


class Failure(NamedTuple):
    """An image that was left out."""

    path: Path
    reason: str


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
            return {
                "image": read_image(self._paths[index], self._exif),
                "label": -1,
                "file_name": str(self._paths[index]),
            }
        except (OSError, DecodeError) as error:
            raise UserError(
                f"{self._paths[index]} can no longer be read: {error}; leave it out, or bring it back."
            ) from error

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
        path = Path(os.path.expanduser(argument))  # which leaves a name as ~backup.jpg as it is
        if path.is_dir():
            files = list(files_below(path))
            matches = [file for file in files if is_named_like_a_picture(file) and file.is_file()]
            known = set(matches)
            if others := [file for file in files if file not in known]:
                warn(left_out_line(path, others))
            if not matches:
                raise UserError(f"{argument}: there is no image in this folder ({', '.join(SUFFIXES)}).")
        elif path.exists() or not glob.has_magic(argument):
            matches = [path]  # also where it is missing: reported with the others that cannot be read
        else:
            matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
            if not matches:
                raise UserError(f"{argument}: no file matches this pattern.")
        images += matches
    return list(dict.fromkeys(images))


def predict(
    trained: TrainedModel,
    paths: Sequence[Path],
    protocol: str,
    scales: str = "",
    batch_size: int = 0,
    maps: str = "",
    grad_cam: bool = False,
    exif: bool = False,
    console: Console | None = None,
    done: Callable[[Prediction], None] = lambda prediction: None,
) -> tuple[list[Prediction], list[Failure]]:
    """Runs the test protocol (Paper §3.2, §4) on images.

    Args:
      trained: of `load_trained`.
      paths: of the images.
      protocol: a key of `passes.PROTOCOLS`.
      scales: see `passes.test_scales`; "" for the protocol's own.
      batch_size: images of the crop's size at once, over all devices; 0 for 64 a device, or as many as there are.
      maps: a directory for score maps, see `heatmaps.draw`; "" draws none.
      grad_cam: draw Grad-CAM next to them, and write both as arrays, NAME.npz: classes [n], score_map and grad_cam [h, w, n].
      exif: turn images as their EXIF orientation says; else a line counts those that have one.
      console: shows progress.
      done: is called with each prediction as soon as it is made, in whatever order is cheapest; with maps, once the next is computed.

    Returns:
      Predictions and failures, each in the order of the images.

    Raises:
      UserError: scales that cannot be, or a directory that cannot be written.
    """
    console = console or Console(quiet=True)
    passes = eval_passes(trained.config, protocol, scales)
    directory = Path(maps).expanduser()
    if maps:
        with writing_to(maps, _OTHER_MAPS):
            directory.mkdir(parents=True, exist_ok=True)
    largest = max(passes, key=lambda eval_pass: eval_pass.scale)
    readable, sizes, failures = _check_images(paths, largest, exif, console)
    if not readable:
        return [], failures
    records: Any = ImageFiles(readable, exif)
    variables = heatmaps.on_one_device(trained) if maps else {}

    def finished(item: tuple[int, np.ndarray]) -> tuple[int, Prediction | Failure]:
        i, probs_K = item
        if not np.isfinite(probs_K).all():
            return i, Failure(readable[i], "the model's scores of it are not finite")
        drawn = ""
        if maps and (image := heatmaps.image_for_map(records, i, largest.scale)) is not None:
            # The maps are of the image at one scale, not mirrored; the probabilities next to them are the predicted ones.
            scores, _ = heatmaps.score_map(trained, variables, image)
            classes = heatmaps.classes_to_draw(probs_K, label=-1)
            cams = heatmaps.grad_cam(trained, variables, image, classes) if grad_cam else None
            picture = heatmaps.draw(image, scores, probs_K, classes, trained.class_titles, trained.model.layers, cams)
            drawn = str(directory / f"{i:03d}-{readable[i].stem}.png")
            with write_atomically(Path(drawn), _OTHER_MAPS) as unfinished:
                picture.save(unfinished, "PNG")
            if cams is not None:
                numbers = [index for _, index in classes]
                with (
                    write_atomically(Path(drawn).with_suffix(".npz"), _OTHER_MAPS) as unfinished,
                    open(unfinished, "wb") as file,
                ):
                    np.savez(file, classes=np.array(numbers), score_map=scores[..., numbers], grad_cam=cams)
        (likeliest,) = results.top5_classes(probs_K[None])
        return i, Prediction(readable[i], likeliest, probs_K[likeliest], drawn)

    predictions: dict[int, Prediction] = {}
    drawing: deque[Future[tuple[int, Prediction | Failure]]] = deque()

    def collect(at_most: int) -> None:
        while drawing and (drawing[0].done() or len(drawing) > at_most):
            i, result = drawing[0].result()  # Ctrl-C may come while it is waited for
            drawing.popleft()
            if isinstance(result, Failure):
                failures.append(result)
            else:
                predictions[i] = result
                done(result)

    probs = _probs(trained, passes, protocol, records, sizes, batch_size, console)
    # Maps are made in a thread, while the images that follow are computed.
    with ThreadPoolExecutor(1) as pool, contextlib.closing(probs):
        try:
            for item in probs:
                drawing.append(pool.submit(finished, item))
                collect(2 if maps else 0)
        finally:  # what is computed is shown, whatever is wrong with the next
            collect(0)
    return [predictions[i] for i in sorted(predictions)], failures


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
            f"WARNING: {len(turned):,} of {len(paths):,} images have an EXIF orientation, as {printable(str(min(turned)))}, "
            "which is ignored; apply it with --exif."
        )
    failures = [Failure(path, size) for path, size in checked if isinstance(size, str)]
    readable = [(path, size) for path, size in checked if not isinstance(size, str)]
    return [path for path, _ in readable], np.array([size for _, size in readable], np.int64).reshape(-1, 2), failures


def _probs(
    trained: TrainedModel,
    passes: Sequence[EvalPass],
    protocol: str,
    records: Any,
    sizes: np.ndarray,
    batch_size: int,
    console: Console,
) -> Generator[tuple[int, np.ndarray], None, None]:
    """Yields (number of an image, [K] float64: the mean over methods of the means over scales), each once it is complete.

    All passes advance together, a batch of each in turn. The order of images is much the same in all of them.
    """
    compiled = CompiledSteps(trained, EvalStats())
    streams = deque(
        (eval_pass, _pass_probs(trained, compiled, eval_pass, records, sizes, batch_size)) for eval_pass in passes
    )
    by_image: dict[int, dict[EvalPass, np.ndarray]] = {i: {} for i in range(len(records))}
    console.start(0, len(records))
    count = 0
    try:
        while streams:
            eval_pass, stream = streams.popleft()
            chunk = next(stream, None)
            if chunk is None:
                continue
            streams.append((eval_pass, stream))
            for i, probs_K in zip(chunk.indices.tolist(), chunk.probs_nxK, strict=True):
                by_image[i][eval_pass] = probs_K
                if len(by_image[i]) < len(passes):
                    continue
                of_image, count = by_image.pop(i), count + 1
                console.progress(count, "images")
                methods = [[of_image[one] for one in passes if one.method == method] for method in PROTOCOLS[protocol]]
                yield i, results.average(results.average(of_method) for of_method in methods)
    finally:
        console.close()


def _pass_probs(
    trained: TrainedModel,
    compiled: CompiledSteps,
    eval_pass: EvalPass,
    records: Any,
    sizes: np.ndarray,
    batch_size: int,
) -> Iterator[Chunk]:
    mesh, indices = trained.mesh, np.arange(len(records))
    batch_size = batch_size_for(trained, batch_size)
    jobs = plan_pass(
        eval_pass, compiled.network, sizes, indices, batch_size, mesh.shape["data"], compilation_macs_of(mesh)
    )
    return run_jobs(compiled, eval_pass, jobs, records, trained.config.data.threads, EvalStats())
