"""Class probabilities of images in memory or in files, by the test protocol: `model.Model.predict`."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from numpy.typing import ArrayLike

from vgg_jax.data.decode import check, size_of
from vgg_jax.data.image_kinds import DecodeError
from vgg_jax.data.orientation import orientation, read_image
from vgg_jax.data.parallel import parallel_map
from vgg_jax.evaluation import results
from vgg_jax.evaluation.passes import PROTOCOLS, EvalPass, eval_passes
from vgg_jax.evaluation.plan import devices_of, plan_pass, rescaled_sizes, skipped_images
from vgg_jax.evaluation.run import CompiledSteps, EvalStats, batch_size_for, run_jobs
from vgg_jax.evaluation.trained_model import trained_model_of
from vgg_jax.features.backbone import Backbone
from vgg_jax.runtime.exceptions import UserError, printable

Image: TypeAlias = ArrayLike | os.PathLike | str
Images: TypeAlias = Image | Sequence[Image]
_MOST_PROGRAMS = 64  # that a model keeps, each of one step and shape


class Predictor:
    """A model's compiled programs for predictions, and its variables on the devices.

    Args:
      model: with a classifier.

    Raises:
      UserError: a trunk.
    """

    def __init__(self, model: Backbone) -> None:
        self._trained = trained_model_of(model)
        self._compiled = CompiledSteps(self._trained, EvalStats())
        self._lock = threading.Lock()

    def probabilities(
        self, images: Images, protocol: str, scales: str, batch_size: int, exif: bool | None
    ) -> np.ndarray:
        """Returns [K] float64 for one image, [N, K] for several; see `model.Model.predict`."""
        trained = self._trained
        passes = eval_passes(trained.recipe, protocol, scales)
        listed, is_one = _as_list(images)
        records: Any = _Images(listed, trained.recipe.data.exif if exif is None else exif)
        sizes_Nx2 = _sizes(records, max(passes, key=lambda eval_pass: eval_pass.scale))
        batch_size = batch_size_for(trained, batch_size)
        with self._lock:
            probs = {eval_pass: self._pass_probs(eval_pass, records, sizes_Nx2, batch_size) for eval_pass in passes}
        by_method = [[probs[one] for one in passes if one.method == method] for method in PROTOCOLS[protocol]]
        probs_NxK = results.average(results.average(of_method) for of_method in by_method)
        if not (finite := np.isfinite(probs_NxK).all(1)).all():
            raise UserError(f"the model's scores of {records.name(int(finite.argmin()))} are not finite.")
        return probs_NxK[0] if is_one else probs_NxK

    def _pass_probs(self, eval_pass: EvalPass, records: Any, sizes_Nx2: np.ndarray, batch_size: int) -> np.ndarray:
        """Returns the probabilities of one pass, [N, K] float32."""
        if self._compiled.num_programs > _MOST_PROGRAMS:
            self._compiled = CompiledSteps(self._trained, EvalStats())
        indices, devices = np.arange(len(records)), devices_of(self._trained.mesh)
        jobs = plan_pass(eval_pass, self._compiled.network, sizes_Nx2, indices, batch_size, devices)
        threads = min(self._trained.recipe.data.threads, len(records))
        probs_NxK = np.zeros((len(records), self._trained.model.num_classes), np.float32)
        for chunk in run_jobs(self._compiled, eval_pass, jobs, records, threads, EvalStats()):
            probs_NxK[chunk.indices] = chunk.probs_nxK
        return probs_NxK


class _Images(Sequence):
    """Images as `data.records.Records` gives them: encoded, by number."""

    def __init__(self, images: Sequence[Image], exif: bool) -> None:
        self._images, self._exif = images, exif

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        return {"image": self.encoded(index), "label": -1, "file_name": self.name(index)}

    def describe(self, index: int) -> str:
        """Returns which image it is, for messages."""
        return f"image {index + 1} of {len(self)}"

    def name(self, index: int) -> str:
        """Returns an image's path, or its number where it is an array."""
        image = self._images[index]
        return printable(str(image)) if isinstance(image, str | os.PathLike) else f"image {index}"

    def encoded(self, index: int) -> bytes:
        """Returns an image's file, turned upright if so asked, or the bytes of a PPM file of an array's pixels.

        Raises:
          UserError: the file cannot be read, or an array that is not an image.
        """
        image = self._images[index]
        if not isinstance(image, str | os.PathLike):
            pixels = _pixels(image, self.name(index))
            return b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
        try:
            return read_image(Path(image).expanduser(), self._exif)
        except (OSError, DecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{self.name(index)} cannot be read: {reason}; leave it out.") from error

    def checked_size(self, index: int) -> tuple[int, int]:
        """Returns an image's (width, height); warns of an orientation that is ignored.

        Raises:
          UserError: as `encoded`, or bytes that are not a sound image.
        """
        image, encoded = self._images[index], self.encoded(index)
        try:
            if isinstance(image, str | os.PathLike):
                check(encoded)
            size = size_of(encoded)
        except DecodeError as error:
            raise UserError(f"{self.name(index)} cannot be read: {error}; leave it out.") from error
        if orientation(encoded) > 1:
            warnings.warn(
                f"{self.name(index)} has an EXIF orientation, which is ignored; apply it with exif=True.", stacklevel=2
            )
        return size


def _as_list(images: Images) -> tuple[Sequence[Image], bool]:
    """Returns the images as a list, and whether there is one that stands alone."""
    if isinstance(images, str | os.PathLike):
        return [images], True
    if isinstance(images, np.ndarray | jax.Array):
        array = np.asarray(images)
        if array.ndim not in (3, 4):
            raise UserError(
                f"images of shape {list(array.shape)}: give one image [height, width, 3], a batch, or a list."
            )
        return ([array], True) if array.ndim == 3 else (list(array), False)
    if not isinstance(images, Iterable):
        raise UserError(f"images of type {type(images).__name__}: give arrays or paths, one or a list.")
    listed = list(images)
    if not listed:
        raise UserError("there are no images; give one at least.")
    return listed, False


def _pixels(image: ArrayLike, name: str) -> np.ndarray:
    """Returns the pixels of an array [H, W, 3] as uint8, floats rounded to the nearest.

    Raises:
      UserError: another shape, or values beyond 0 to 255.
    """
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size:
        raise UserError(f"{name} has the shape {list(array.shape)}; it must be [height, width, 3], RGB.")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise UserError(f"{name} is of dtype {array.dtype}; it must be of numbers, RGB on 0 to 255.")
    low, high = float(array.min()), float(array.max())
    if not 0 <= low <= high <= 255:
        raise UserError(f"{name} has values from {low:.3g} to {high:.3g}; they must be RGB on 0 to 255.")
    if array.dtype.kind not in "iu" and 0 < high <= 1:
        warnings.warn(f"{name} has values up to {high:.3g}, and images are RGB on 0 to 255: scale it.", stacklevel=2)
    return np.rint(array.astype(np.float32)).astype(np.uint8)


def _sizes(records: _Images, largest: EvalPass) -> np.ndarray:
    """Returns (width, height) of all images, [N, 2] int64; raises UserError at one that is too large."""
    sizes: Iterator[tuple[int, int]] = parallel_map(records.checked_size, range(len(records)))
    sizes_Nx2 = np.array(list(sizes), np.int64).reshape(-1, 2)
    if (skipped := skipped_images(largest, sizes_Nx2)).any():
        index = int(skipped.argmax())
        width, height = rescaled_sizes(sizes_Nx2, largest.scale)[index][::-1]
        raise UserError(
            f"{records.name(index)} has {width} x {height} pixels at Q = {largest.scale}, too many; leave it out."
        )
    return sizes_Nx2
