"""Runs a plan: decodes ahead, sends batches through the devices, fetches one result while the next is computed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vgg_jax.data.colors import ColorStatistics
from vgg_jax.data.crops import center_crop, rescaled, square_crops
from vgg_jax.data.image_kinds import DecodeError
from vgg_jax.data.parallel import parallel_map
from vgg_jax.data.records import Records
from vgg_jax.evaluation import dense_steps
from vgg_jax.evaluation.passes import GRID_CELLS, EvalPass
from vgg_jax.evaluation.plan import Bucket, Job, geometry_of, tiles
from vgg_jax.evaluation.trained_model import TrainedModel
from vgg_jax.models import Network
from vgg_jax.runtime.compilation import compile_step
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.sharding import batch_sharding, replicated
from vgg_jax.training.memory import host_memory

DEFAULT_BATCH = 64  # images of the crop's size, a device


class ModelOnDevices(Protocol):
    """The model that a pass computes with, such as a `TrainedModel`."""

    @property
    def model(self) -> Network: ...
    @property
    def variables(self) -> dict: ...
    @property
    def statistics(self) -> ColorStatistics: ...
    @property
    def mesh(self) -> Mesh: ...


class Chunk(NamedTuple):
    """Probabilities, or descriptors, of some images, and the multiply-adds it took."""

    indices: np.ndarray  # [n] int64
    probs_nxK: np.ndarray  # float32
    macs: int


@dataclasses.dataclass
class EvalStats:
    """Cost of an evaluation, over all models and passes."""

    compilations: int = 0
    shapes: int = 0  # compilations of the whole network, one a shape
    compile_seconds: float = 0.0
    needed: int = 0  # multiply-adds for the images without padding
    computed: int = 0  # with padding and empty slots


class CompiledSteps:
    """The compiled functions of one model: what is compiled for one pass serves the others.

    One thread compiles, in the order of requests, which is the same in every process.

    Args:
      trained: the model.
      stats: is added to.
      dense: computes dense jobs, as `steps.make_dense` and `steps.make_descriptors` make it; None: the former's.
    """

    def __init__(self, trained: ModelOnDevices, stats: EvalStats, dense: Callable | None = None):
        self.trained, self.network = trained, geometry_of(trained.model.layers, trained.variables["params"])
        self._dense = dense or dense_steps.make_dense(trained.model, trained.statistics)
        self._stats, self._compiled = stats, dict[Any, Future[Callable]]()
        self._compiler = ThreadPoolExecutor(1, "compiler")
        self._variables = {False: trained.variables}

    @property
    def num_programs(self) -> int:
        """Returns the number of compiled functions, each of one step and shape."""
        return len(self._compiled)

    def variables(self, transposed: bool) -> dict:
        """Returns the model's variables, with transposed kernels if need be."""
        if transposed not in self._variables:
            shardings = jax.tree.map(lambda x: x.sharding, self.trained.variables)
            transpose = jax.jit(dense_steps.transpose_kernels, out_shardings=shardings)
            self._variables[transposed] = transpose(self.trained.variables)
        return self._variables[transposed]

    def call(self, name: str, step: Callable, *arguments: Any, out_shardings: Any = None) -> jax.Array:
        """Calls a step, compiled at the first call with such shapes; every process gets the whole result by default.

        Args:
          name: of the step, with whatever else it depends on.
          step: the function.
          arguments: arrays.
          out_shardings: of the result.
        """
        began = time.perf_counter()
        compiled = self.compile(name, step, *arguments, out_shardings=out_shardings).result()
        self._stats.compile_seconds += time.perf_counter() - began
        return compiled(*arguments)

    def compile(self, name: str, step: Callable, *arguments: Any, out_shardings: Any = None) -> Future[Callable]:
        """Starts to compile a step for arguments (arrays or jax.ShapeDtypeStruct) of new shapes."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments)
        key = name, *(leaf.shape for leaf in jax.tree.leaves(shapes))
        if key not in self._compiled:
            out_shardings = out_shardings or replicated(self.trained.mesh)
            self._compiled[key] = self._compiler.submit(compile_step, step, *shapes, out_shardings=out_shardings)
            self._stats.compilations += 1
            self._stats.shapes += not name.startswith("cut")
        return self._compiled[key]

    def compile_dense(self, shape: tuple[int, int], batch_size: int) -> None:
        """Starts to compile dense evaluation in buckets of a shape."""
        batch, all_devices = batch_sharding(self.trained.mesh), replicated(self.trained.mesh)
        self.compile(
            "dense",
            self._dense,
            self.trained.variables,
            jax.ShapeDtypeStruct((batch_size, *shape, 3), np.uint8, sharding=batch),
            jax.ShapeDtypeStruct((batch_size, 2), np.int32, sharding=batch),
            jax.ShapeDtypeStruct((), np.bool_, sharding=all_devices),
        )

    def dense(self, bucket: Bucket, images: list[np.ndarray]) -> jax.Array:
        """Starts to compute the images of a bucket, seen whole: [batch_size, K]."""
        variables = self.variables(bucket.transposed)
        return self.call("dense", self._dense, variables, *_padded(self, bucket, images), self.flag(bucket.transposed))

    def cancel(self) -> None:
        """Leaves alone what nobody has begun to compile."""
        self._compiled = {key: future for key, future in self._compiled.items() if not future.cancel()}

    def put(self, local: np.ndarray) -> jax.Array:
        """Returns an array, split over the devices by its first axis, of which this process has its share."""
        return jax.make_array_from_process_local_data(batch_sharding(self.trained.mesh), local)

    def flag(self, value: bool) -> jax.Array:
        """Returns a scalar that every device holds."""
        return jax.device_put(np.bool_(value), replicated(self.trained.mesh))


def batch_size_for(trained: TrainedModel, requested: int) -> int:
    """Returns the images of the crop's size that the model sees at once, over all devices; 0 requests the default.

    Raises:
      UserError: a batch that this machine's memory cannot hold.
    """
    batch_size = requested or DEFAULT_BATCH * trained.mesh.shape["data"]
    needed = batch_size * 3 * trained.recipe.image.crop**2 * 5  # bytes as the host has them, and as floats
    if needed > host_memory():
        raise UserError(
            f"--batch_size={batch_size} takes {needed / 2**30:,.1f} GiB for images alone, and this machine has "
            f"{host_memory() / 2**30:,.1f} GiB of memory; give a smaller one."
        )
    return batch_size


def run_jobs(
    compiled: CompiledSteps, eval_pass: EvalPass, jobs: Sequence[Job], records: Records, threads: int, stats: EvalStats
) -> Iterator[Chunk]:
    """Computes probabilities, job after job.

    Args:
      compiled: of the model.
      eval_pass: that the jobs are of.
      jobs: of `plan.plan_pass`.
      records: of the split.
      threads: that decode.
      stats: is added to.

    Raises:
      UserError: an image that cannot be decoded, by name.
    """
    batched = [job for job in jobs if not job.is_long]
    try:
        # While the first images are decoded, and the first shapes computed.
        for job in batched:
            if job.kind == "dense":
                compiled.compile_dense(job.bucket.shape, job.bucket.batch_size)
        yield from _run(compiled, eval_pass, batched, records, threads, stats)
        # Long images are large: one at a time.
        yield from _run(compiled, eval_pass, [job for job in jobs if job.is_long], records, 1, stats)
    finally:
        compiled.cancel()


def _run(
    compiled: CompiledSteps, eval_pass: EvalPass, jobs: Sequence[Job], records: Records, threads: int, stats: EvalStats
) -> Iterator[Chunk]:
    def load(item: tuple[Job, int]) -> np.ndarray:
        return decoded(records, item[1], lambda encoded: _prepared(eval_pass, item[0], encoded))

    def fetch(job: Job, probs_BxK: jax.Array) -> Chunk:
        stats.needed, stats.computed = stats.needed + job.needed, stats.computed + job.macs
        return Chunk(job.bucket.indices, np.asarray(probs_BxK)[: len(job.bucket.indices)], job.macs)

    # The tiles of one image are spread over the processes, so that all of them need it.
    mine = [
        job.bucket.indices if job.kind == "tiles" else job.bucket.indices[rows_of_process(job.bucket.batch_size)]
        for job in jobs
    ]
    items = ((job, int(i)) for job, indices in zip(jobs, mine, strict=True) for i in indices)
    ahead = max((1 if job.is_long else 2 * len(job.bucket.indices) for job in jobs), default=1)
    images = parallel_map(load, items, threads, ahead)
    running: tuple[Job, jax.Array] | None = None
    for job, indices in zip(jobs, mine, strict=True):
        try:
            started = _START[job.kind](compiled, eval_pass, job.bucket, [next(images) for _ in indices])
        except BaseException:
            # Computed already, so it is cached whatever is wrong with the next.
            if running is not None:
                yield fetch(*running)
            raise
        if running is not None:
            yield fetch(*running)
        running = job, started
    if running is not None:
        yield fetch(*running)


def rows_of_process(batch_size: int) -> slice:
    """Returns this process's rows of a batch: equal shares, in the order of processes."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def decoded(records: Records, index: int, function: Callable, record: dict[str, Any] | None = None) -> Any:
    """Returns `function` of an image's bytes; raises UserError with its name if they cannot be decoded."""
    record = record or records[index]
    try:
        return function(record["image"])
    except DecodeError as error:
        raise UserError(
            f"{key_of(record, index)}, {records.describe(index)}, cannot be decoded: {error}; leave it out (prepared "
            "data: prepare it again without it). What was computed so far is kept."
        ) from error


def key_of(record: dict[str, Any], index: int) -> str:
    """Returns the name of an image's file, or its number where there is none."""
    name = record.get("file_name", str(index))
    return name.decode() if isinstance(name, bytes) else name


def _prepared(eval_pass: EvalPass, job: Job, encoded: bytes) -> np.ndarray:
    """Returns what one row of a job's batch holds: crops [n, c, c, 3], or an image [H, W, 3]; uint8."""
    crop = eval_pass.crop
    if job.kind == "center_crop":
        return center_crop(encoded, eval_pass.scale, crop)[None]
    if job.kind == "square_crop":
        return square_crops(encoded, eval_pass.scale, crop)
    image = rescaled(encoded, eval_pass.scale)
    # A long image would not fit the devices, but its crops do.
    if job.kind == "host_grid":
        rows, columns = (dense_steps.grid_offsets(side, crop) for side in image.shape[:2])
        corners = ((rows[r], columns[c]) for r, c in GRID_CELLS[eval_pass.method])
        return np.stack([image[top : top + crop, left : left + crop] for top, left in corners])
    # Tiles are cut from the image and from its mirror image before they are transposed.
    return image.swapaxes(0, 1) if job.bucket.transposed and job.kind != "tiles" else image


def _run_crops(compiled: CompiledSteps, eval_pass: EvalPass, bucket: Bucket, images: list[np.ndarray]) -> jax.Array:
    local = np.zeros((bucket.batch_size // jax.process_count(), eval_pass.crops(), *bucket.shape, 3), np.uint8)
    for row, crops in zip(local, images, strict=False):
        row[:] = crops
    return _crops(compiled, eval_pass, compiled.put(local))


def _crops(compiled: CompiledSteps, eval_pass: EvalPass, crops: jax.Array) -> jax.Array:
    step = dense_steps.make_crops(compiled.trained.model, compiled.trained.statistics, eval_pass.mirrored)
    return compiled.call(f"crops, mirrored {eval_pass.mirrored}", step, compiled.trained.variables, crops)


def _run_grid(compiled: CompiledSteps, eval_pass: EvalPass, bucket: Bucket, images: list[np.ndarray]) -> jax.Array:
    arguments = (*_padded(compiled, bucket, images), compiled.flag(bucket.transposed))
    crops = compiled.call(
        f"cut {eval_pass.method} {eval_pass.crop}",
        lambda images, sizes, transposed: dense_steps.cut_grid(
            images, sizes, transposed, eval_pass.crop, GRID_CELLS[eval_pass.method]
        ),
        *arguments,
        out_shardings=batch_sharding(compiled.trained.mesh),
    )
    return _crops(compiled, eval_pass, crops)


def _run_dense(compiled: CompiledSteps, eval_pass: EvalPass, bucket: Bucket, images: list[np.ndarray]) -> jax.Array:
    del eval_pass
    return compiled.dense(bucket, images)


def _run_tiles(compiled: CompiledSteps, eval_pass: EvalPass, bucket: Bucket, images: list[np.ndarray]) -> jax.Array:
    """Returns the dense probabilities [1, K] of one long image, exactly, from overlapping tiles."""
    del eval_pass
    (image,), (scale, strip), count = images, bucket.shape, bucket.batch_size
    length = max(image.shape[:2])
    cuts = tiles(compiled.network, length, strip)
    upright = [image, image[:, ::-1]]
    pair = [view.swapaxes(0, 1) if bucket.transposed else view for view in upright]
    pieces = [(view[:, cut.start : cut.start + strip], (cut.first, cut.last)) for view in pair for cut in cuts]
    step = dense_steps.make_tiles(compiled.trained.model, compiled.trained.statistics)
    scores = []
    for begin in range(0, len(pieces), count):
        mine = pieces[begin : begin + count][rows_of_process(count)]
        keep = np.zeros((count // jax.process_count(), 2), np.int32)
        for row, (_, keep_columns) in zip(keep, mine, strict=False):
            row[:] = keep_columns
        padded = _padded(compiled, bucket, [piece for piece, _ in mine])
        variables = compiled.variables(bucket.transposed)
        scores.append(np.asarray(compiled.call("tiles", step, variables, *padded, compiled.put(keep))))
    cells = compiled.network.cells(scale) * compiled.network.cells(length)
    sums_2xK = np.concatenate(scores)[: len(pieces)].reshape(2, len(cuts), -1).sum(1, dtype=np.float64)
    return jax.nn.softmax(jnp.asarray(sums_2xK / cells, jnp.float32)).mean(0, keepdims=True)


# How a job's images become probabilities [batch_size, K].
_START: dict[str, Callable[[CompiledSteps, EvalPass, Bucket, list[np.ndarray]], jax.Array]] = {
    "center_crop": _run_crops,
    "square_crop": _run_crops,
    "dense": _run_dense,
    "grid": _run_grid,
    "host_grid": _run_crops,
    "tiles": _run_tiles,
}


def _padded(compiled: CompiledSteps, bucket: Bucket, images: list[np.ndarray]) -> tuple[jax.Array, jax.Array]:
    """Returns images [B, H, W, 3] uint8, each in its bucket's top left corner, and their sizes [B, 2] int32."""
    share = bucket.batch_size // jax.process_count()
    padded = np.zeros((share, *bucket.shape, 3), np.uint8)
    sizes = np.full((share, 2), bucket.shape, np.int32)  # an empty slot is a black image
    for i, image in enumerate(images):
        height, width = image.shape[:2]
        padded[i, :height, :width] = image
        sizes[i] = height, width
    return compiled.put(padded), compiled.put(sizes)
