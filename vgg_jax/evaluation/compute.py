"""Computes the posteriors of a view, picture by picture, on all devices and with bounded memory."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.data.crops import center_crop, rescaled, rescaled_size
from vgg_jax.data.decode import DecodeError, size_of
from vgg_jax.data.records import Records
from vgg_jax.evaluation import buckets, forward
from vgg_jax.evaluation.nets import Net
from vgg_jax.evaluation.views import GRID, View
from vgg_jax.exceptions import UserError
from vgg_jax.models import STRIDE
from vgg_jax.sharding import batch_sharding, host_memory, replicated
from vgg_jax.steps import compile_step

MAX_PIXELS = 2**28  # of a rescaled picture, 768 MiB as bytes; a larger one is refused
_CROP_FRAMES = 4  # frames a scale that crops are cut from: cheap to compile, and padding costs nothing there


class Survey(NamedTuple):
    """What is known of a split before anything is computed."""

    keys: np.ndarray  # [N] str
    labels: np.ndarray  # [N] int64, as the data set numbers classes; negative: none
    sizes: np.ndarray  # [N, 2] int64, (width, height) of the pictures as they are


class Part(NamedTuple):
    """Some pictures' posteriors, and the multiplications it took."""

    indices: np.ndarray  # [n] int64
    posteriors: np.ndarray  # [n, K] float32
    multiplications: int


@dataclasses.dataclass
class Costs:
    """What computing took, over all nets and views."""

    compilations: int = 0
    frames: int = 0  # compilations of the whole net, one a shape
    compile_seconds: float = 0.0
    needed: int = 0  # multiplications that the pictures take without padding
    computed: int = 0  # with padding and empty slots


class _Job(NamedTuple):
    """Pictures that go through the devices together."""

    indices: np.ndarray
    slots: int
    load: Callable[[int], tuple[np.ndarray, ...]]  # index -> what one slot holds
    run: Callable[[list[tuple[np.ndarray, ...]]], jax.Array]  # this process's slots -> posteriors [slots, K]
    multiplications: int
    needed: int


def survey(records: Records, threads: int, progress: Callable[[int], None]) -> Survey:
    """Reads the keys, labels and sizes of all pictures; of the pictures themselves only the headers.

    Raises:
      UserError: a record or a header that cannot be read, by name.
    """

    def one(index: int) -> tuple[str, int, tuple[int, int]]:
        record = records[index]
        return _key(record, index), int(record["label"]), reading(records, index, size_of, record)

    found = []
    with ThreadPoolExecutor(threads) as pool:
        for item in _in_order(pool, one, range(len(records)), 8 * threads):
            found.append(item)
            progress(len(found))
    keys, labels, sizes = zip(*found, strict=True)
    return Survey(np.array(keys), np.array(labels, np.int64), np.array(sizes, np.int64))


class Computer:
    """Computes views of one net; what is compiled for one serves the others.

    Args:
      net: of `nets.load_net`.
      batch_size: images of the crop's size that the net sees at once, over all devices: pictures, mirror images and
        crops all count, larger ones as much as they are larger. It bounds memory. At least one picture a device.
      threads: that decode.
      costs: counts are added to it.

    Raises:
      UserError: a batch that this machine's memory cannot hold.
    """

    def __init__(self, net: Net, batch_size: int, threads: int, costs: Costs):
        needed = batch_size * 3 * net.config.image.crop**2 * 5  # bytes as the host has them, and as floats
        if needed > host_memory():
            raise UserError(
                f"--batch_size={batch_size} takes {needed / 2**30:,.1f} GiB for pictures alone, and this machine has "
                f"{host_memory() / 2**30:,.1f} GiB of memory; give a smaller one."
            )
        self._net, self._batch_size, self._threads = net, batch_size, threads
        self._devices = net.mesh.shape["data"]
        self._compiled: dict[tuple, Callable] = {}
        self._variables = {False: net.variables}
        self._costs = costs

    def refused(self, view: View, sizes_Nx2: np.ndarray) -> np.ndarray:
        """[N] bool: which pictures are too large, rescaled, to be computed at all; sizes as in `Survey`."""
        if view.part == "center_crop":  # of which only the crop is rescaled
            return np.zeros(len(sizes_Nx2), bool)
        return rescaled_sizes(sizes_Nx2, view.scale).prod(-1) > MAX_PIXELS

    def work(self, view: View, sizes_Nx2: np.ndarray, indices: np.ndarray) -> int:
        """Multiplications that `posteriors` will take."""
        batches, long = self.planned(view, rescaled_sizes(sizes_Nx2, view.scale), indices)
        return sum(self._batch_work(view, b) for b in batches) + sum(self._long_work(view, s) for _, s in long)

    def posteriors(self, view: View, records: Records, sizes_Nx2: np.ndarray, indices: np.ndarray) -> Iterator[Part]:
        """Computes pictures, in whatever order is cheapest.

        Args:
          view: what to compute of them.
          records: of the split.
          sizes_Nx2: (width, height) of all pictures of the split.
          indices: [n] int, of the pictures wanted, none of them refused.

        Raises:
          UserError: a picture that cannot be decoded, by name.
        """
        rescaled_Nx2 = rescaled_sizes(sizes_Nx2, view.scale)
        batches, long = self.planned(view, rescaled_Nx2, indices)
        with ThreadPoolExecutor(self._threads) as pool:
            yield from self._run(pool, (self._job(view, records, rescaled_Nx2, batch) for batch in batches), ahead=2)
        with ThreadPoolExecutor(1) as pool:  # long pictures are large: one at a time
            if view.part == "multi_crop":
                jobs = (self._host_cut_job(view, records, index) for index, _ in long)
                yield from self._run(pool, jobs, ahead=0)
            else:
                for index, size in long:
                    yield self._in_strips(view, records, index, size)

    # Planning.

    def planned(
        self, view: View, rescaled_Nx2: np.ndarray, indices: np.ndarray
    ) -> tuple[list[buckets.Batch], list[tuple[int, tuple[int, int]]]]:
        """Batches, and the pictures that are too long for one with their (height, width)."""
        if view.part == "center_crop":
            count, side = self._crop_slots(view), view.crop
            parts = [indices[i : i + count] for i in range(0, len(indices), count)]
            return [buckets.Batch(part, (side, side), count, False) for part in parts], []
        is_long = rescaled_Nx2[indices].max(-1) > self._strip_length(view.scale)
        long = [(int(i), (int(rescaled_Nx2[i, 0]), int(rescaled_Nx2[i, 1]))) for i in indices[is_long]]
        short = indices[~is_long]
        if view.part == "multi_crop":
            return buckets.plan(
                rescaled_Nx2, short, lambda length: length, lambda _: self._crop_slots(view), _CROP_FRAMES
            ), long
        return buckets.plan(
            rescaled_Nx2, short, lambda length: self._cost(view.scale, length), lambda n: self._slots(view, n)
        ), long

    def _slots(self, view: View, length: int) -> int:
        """Pictures of a batch of frames of this length."""
        pixels = view.per_picture() * view.scale * length * self._devices
        return self._devices * max(1, self._batch_size * view.crop**2 // pixels)

    def _crop_slots(self, view: View) -> int:
        return self._devices * max(1, self._batch_size // (view.per_picture() * self._devices))

    def _strip_length(self, scale: int) -> int:
        return buckets.strip_length(self._net.variables["params"], self._net.config.model.configuration, scale)

    def _cost(self, height: int, width: int) -> int:
        return buckets.multiplications(
            self._net.variables["params"], self._net.config.model.configuration, height, width
        )

    def _batch_work(self, view: View, batch: buckets.Batch) -> int:
        shape = batch.frame if view.part == "dense" else (view.crop, view.crop)
        return batch.slots * view.per_picture() * self._cost(*shape)

    def _long_work(self, view: View, size: tuple[int, int]) -> int:
        if view.part == "multi_crop":
            return self._crop_slots(view) * view.per_picture() * self._cost(view.crop, view.crop)
        strip = self._strip_length(view.scale)
        slots = self._slots(view, strip)
        count = 2 * len(
            buckets.strips(self._net.variables["params"], self._net.config.model.configuration, max(size), strip)
        )
        return -(-count // slots) * slots * self._cost(view.scale, strip)

    # Computing.

    def _run(self, pool: ThreadPoolExecutor, jobs: Iterable[_Job], ahead: int) -> Iterator[Part]:
        """Runs jobs in order: pictures of the next ones are decoded, and one result is fetched while another is made."""
        loading: deque[tuple[_Job, list[Future]]] = deque()
        on_devices: tuple[_Job, jax.Array] | None = None
        for job in itertools.chain(jobs, itertools.repeat(None)):
            if job is not None:
                loading.append((job, [pool.submit(job.load, int(i)) for i in job.indices[self._local(job.slots)]]))
                if len(loading) <= ahead:
                    continue
            if not loading:
                break
            ready, slots = loading.popleft()
            try:
                started = ready.run([slot.result() for slot in slots])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                if on_devices is not None:  # computed already: kept, whatever is wrong with the next
                    yield self._part(*on_devices)
                raise
            if on_devices is not None:
                yield self._part(*on_devices)
            on_devices = ready, started
        if on_devices is not None:
            yield self._part(*on_devices)

    def _part(self, job: _Job, posteriors: jax.Array) -> Part:
        self._costs.needed += job.needed
        self._costs.computed += job.multiplications
        return Part(job.indices, np.asarray(posteriors)[: len(job.indices)], job.multiplications)

    def _local(self, slots: int) -> slice:
        """This process's slots of a batch: equal parts, in the order of processes."""
        share = slots // jax.process_count()
        return slice(jax.process_index() * share, (jax.process_index() + 1) * share)

    def _job(self, view: View, records: Records, rescaled_Nx2: np.ndarray, batch: buckets.Batch) -> _Job:
        work = self._batch_work(view, batch)
        if view.part == "center_crop":
            load = _loader(records, lambda encoded: (center_crop(encoded, view.scale, view.crop)[None],))
            run = self._crops_run(view, batch.slots, 1)
            return _Job(batch.indices, batch.slots, load, run, work, len(batch.indices) * self._cost(*batch.frame))

        def framed(encoded: bytes) -> tuple[np.ndarray, ...]:
            picture = rescaled(encoded, view.scale)
            return (picture.swapaxes(0, 1) if batch.on_side else picture,)

        if view.part == "dense":
            run = self._dense_run(batch)
            sizes = (tuple(map(int, rescaled_Nx2[i])) for i in batch.indices)
            needed = view.per_picture() * sum(self._cost(min(size), max(size)) for size in sizes)
        else:
            run = self._cut_run(view, batch)
            needed = len(batch.indices) * view.per_picture() * self._cost(view.crop, view.crop)
        return _Job(batch.indices, batch.slots, _loader(records, framed), run, work, needed)

    def _host_cut_job(self, view: View, records: Records, index: int) -> _Job:
        """A long picture's crops are cut before they go to the devices, for the picture would not fit there."""

        def load(encoded: bytes) -> tuple[np.ndarray, ...]:
            picture, crop = rescaled(encoded, view.scale), view.crop
            rows, columns = (forward.grid_offsets(side, crop) for side in picture.shape[:2])
            return (np.stack([picture[r : r + crop, c : c + crop] for r in rows for c in columns]),)

        slots, each = self._crop_slots(view), view.per_picture() * self._cost(view.crop, view.crop)
        run = self._crops_run(view, slots, GRID**2)
        return _Job(np.array([index]), slots, _loader(records, load), run, slots * each, each)

    def _crops_run(self, view: View, slots: int, crops: int) -> Callable:
        shape = (slots, crops, view.crop, view.crop, 3)

        def run(rows: list[tuple[np.ndarray, ...]]) -> jax.Array:
            local = np.zeros((slots // jax.process_count(), *shape[1:]), np.uint8)
            for slot, (cut,) in zip(local, rows, strict=False):
                slot[:] = cut
            return self._crops(view, shape)(self._net.variables, self._placed(local))

        return run

    def _cut_run(self, view: View, batch: buckets.Batch) -> Any:
        def run(rows: list[tuple[np.ndarray, ...]]) -> jax.Array:
            frames, sizes = self._frames(batch.frame, batch.slots, rows)
            cut = self._compile(
                ("cut", frames.shape, view.crop),
                lambda f, s, o: forward.cut_grid(f, s, o, view.crop),
                frames,
                sizes,
                self._flag(batch.on_side),
                out_shardings=batch_sharding(self._net.mesh),
            )
            crops = cut(frames, sizes, self._flag(batch.on_side))
            return self._crops(view, crops.shape)(self._net.variables, crops)

        return run

    def _dense_run(self, batch: buckets.Batch) -> Any:
        def run(rows: list[tuple[np.ndarray, ...]]) -> jax.Array:
            frames, sizes = self._frames(batch.frame, batch.slots, rows)
            arguments = (self._variables_for(batch.on_side), frames, sizes, self._flag(batch.on_side))
            step = forward.make_dense(self._net.model, self._net.statistics)
            return self._compile(("dense", frames.shape), step, *arguments)(*arguments)

        return run

    def _in_strips(self, view: View, records: Records, index: int, size: tuple[int, int]) -> Part:
        """The dense posteriors of one long picture, exactly, from overlapping strips."""
        on_side = size[0] > size[1]
        picture = reading(records, index, lambda encoded: rescaled(encoded, view.scale))
        length = self._strip_length(view.scale)
        cuts = buckets.strips(self._net.variables["params"], self._net.config.model.configuration, max(size), length)
        todo = [
            (image.swapaxes(0, 1) if on_side else image, cut) for image in (picture, picture[:, ::-1]) for cut in cuts
        ]
        slots, variables = self._slots(view, length), self._variables_for(on_side)
        scores = []
        for begin in range(0, len(todo), slots):
            some = todo[begin : begin + slots][self._local(slots)]
            frames, sizes = self._frames(
                (view.scale, length), slots, [(image[:, cut.start : cut.start + length],) for image, cut in some]
            )
            keep = np.zeros((slots // jax.process_count(), 2), np.int32)
            for row, (_, cut) in zip(keep, some, strict=False):
                row[:] = cut.first, cut.last
            arguments = (variables, frames, sizes, self._placed(keep))
            step = forward.make_strips(self._net.model, self._net.statistics)
            scores.append(np.asarray(self._compile(("strips", frames.shape), step, *arguments)(*arguments)))
        rows, columns = self._net.variables["params"]["fc6"]["kernel"].shape[:2]
        places = (view.scale // STRIDE - rows + 1) * (max(size) // STRIDE - columns + 1)
        sums_2xK = np.concatenate(scores)[: len(todo)].reshape(2, len(cuts), -1).sum(1, dtype=np.float64)
        posteriors = np.asarray(jax.nn.softmax(jnp.asarray(sums_2xK / places, jnp.float32)).mean(0, keepdims=True))
        work = self._long_work(view, size)
        self._costs.needed += 2 * self._cost(view.scale, max(size))
        self._costs.computed += work
        return Part(np.array([index]), posteriors, work)

    # On the devices.

    def _frames(self, frame: tuple[int, int], slots: int, rows: list[tuple[np.ndarray, ...]]) -> Any:
        """Frames [slots, H, W, 3] uint8 with pictures in their top left corners, and their sizes [slots, 2] int32."""
        share = slots // jax.process_count()
        frames = np.zeros((share, *frame, 3), np.uint8)
        sizes = np.full((share, 2), frame, np.int32)  # an empty slot is a black picture
        for i, (picture,) in enumerate(rows):
            height, width = picture.shape[:2]
            frames[i, :height, :width] = picture
            sizes[i] = height, width
        return self._placed(frames), self._placed(sizes)

    def _placed(self, local: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(batch_sharding(self._net.mesh), local)

    def _flag(self, value: bool) -> jax.Array:
        return jax.device_put(np.bool_(value), replicated(self._net.mesh))

    def _variables_for(self, on_side: bool) -> dict:
        if on_side not in self._variables:
            shardings = jax.tree.map(lambda x: x.sharding, self._net.variables)
            self._variables[on_side] = jax.jit(forward.laid_on_side, out_shardings=shardings)(self._net.variables)
        return self._variables[on_side]

    def _crops(self, view: View, shape: tuple[int, ...]) -> Callable:
        step = forward.make_crops(self._net.model, self._net.statistics, view.mirrored)
        crops = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=batch_sharding(self._net.mesh))
        return self._compile(("crops", shape, view.mirrored), step, self._net.variables, crops)

    def _compile(self, key: tuple, step: Callable, *arguments: Any, out_shardings: Any = None) -> Callable:
        """The step, compiled for such arguments at the first call; every process gets the whole result by default."""
        if key not in self._compiled:
            began = time.perf_counter()
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments)
            out_shardings = out_shardings or replicated(self._net.mesh)
            self._compiled[key] = compile_step(step, *shapes, out_shardings=out_shardings)
            self._costs.compilations += 1
            self._costs.frames += key[0] != "cut"
            self._costs.compile_seconds += time.perf_counter() - began
        return self._compiled[key]


def rescaled_sizes(sizes_Nx2: np.ndarray, scale: int) -> np.ndarray:
    """(width, height) as they are -> (height, width) after rescaling, [N, 2] int64."""
    found = [rescaled_size(int(width), int(height), scale)[::-1] for width, height in sizes_Nx2]
    return np.array(found, np.int64).reshape(-1, 2)


def _loader(records: Records, function: Callable[[bytes], tuple[np.ndarray, ...]]) -> Callable:
    return lambda index: reading(records, index, function)


def reading(records: Records, index: int, function: Callable, record: dict[str, Any] | None = None) -> Any:
    """`function` of a picture's bytes; raises UserError, with its name and place, where they cannot be decoded."""
    record = record or records[index]
    try:
        return function(record["image"])
    except DecodeError as error:
        raise UserError(
            f"{_key(record, index)}, {records.place(index)}, cannot be decoded: {error}. Prepare the data again, without "
            "it; what was computed so far is kept."
        ) from error


def _key(record: dict[str, Any], index: int) -> str:
    name = record.get("file_name", str(index))
    return name.decode() if isinstance(name, bytes) else name


def _in_order(pool: ThreadPoolExecutor, function: Callable, items: Iterable, ahead: int) -> Iterator:
    """As pool.map, with at most `ahead` results waiting."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
