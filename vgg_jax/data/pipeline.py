"""Records -> batches on the devices. The batch at step t is a pure function of (seed, t).

Every epoch has its own order, drawn from the seed and the epoch's number, and every example its own random stream. So
nothing about the data needs saving, and a restart continues at the very next image. Any number of processes sees the
same global batches: each reads the rows of every batch that its devices hold. Grain decodes them ahead of need.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import grain
import grain.experimental
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding

from vgg_jax.data.crops import center_crop, random_crop, random_resized_crop
from vgg_jax.data.decode import is_cut_short
from vgg_jax.data.image_kinds import DecodeError
from vgg_jax.data.records import Records
from vgg_jax.data.trivial_augment import trivial_augment
from vgg_jax.recipe import Recipe
from vgg_jax.runtime.exceptions import UserError, printable
from vgg_jax.runtime.sharding import batch_sharding, local_rows

Example = dict[str, Any]
_SHARED_BATCHES = 3  # of each decoding process that lie in shared memory: made, waiting, being taken
_ENDLESS_EPOCHS = 1_000_000  # as good as endless, and its examples can still be counted


class Examples:
    """Numbered examples: each can be made anywhere, at any time, and is always the same.

    Args:
      count: how many there are.
      make: makes those of some numbers, in order; it is called once for every batch, which costs less than once for
        every example.
    """

    def __init__(self, count: int, make: Callable[[Sequence[int]], Iterator[Example]]):
        self._count = count
        self.make = make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Example:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return next(self.make(range(number, number + 1)))


def train_examples(recipe: Recipe, records: Records) -> Examples:
    """Returns training examples without end: image [crop, crop, 3] uint8 RGB, label int32.

    Epoch e = i // N has its own permutation of the N images; example i is its element i % N. Batches may span epochs,
    and nothing is dropped. Crop and scale are drawn from a random stream of each i.
    """
    seed, image = recipe.seed, recipe.image
    draw: Callable[..., np.ndarray]
    sizes: tuple[Any, ...]
    if image.area_min:
        draw, sizes = random_resized_crop, (image.area_min, image.crop)
    else:
        draw, sizes = random_crop, (image.scale_min, image.scale_max, image.crop, image.padding)
    count, is_trivial = len(records), recipe.augment.trivial

    def cut(encoded: bytes, rng: np.random.Generator) -> np.ndarray:
        crop = draw(encoded, rng, *sizes)
        return trivial_augment(crop, rng) if is_trivial else crop

    def make(numbers: Sequence[int]) -> Iterator[Example]:
        bits = np.random.Philox(seed)
        rng, state = np.random.Generator(bits), bits.state
        for number in numbers:
            epoch, position = divmod(number, count)
            # Philox computes its numbers from a counter of 256 bits; here i is the uppermost 64.
            state["state"]["counter"][3] = number
            bits.state = state
            yield _example(records, int(_order(seed, epoch, count)[position]), cut, rng)

    return Examples(count * _ENDLESS_EPOCHS, make)


# A batch may lie in two epochs.
@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the order of all images in an epoch; 10 MB for ImageNet."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def eval_examples(recipe: Recipe, records: Records) -> Examples:
    """Returns validation examples, padded to whole batches: central crops at Q, with mask, False for padding."""
    scale, crop = recipe.image.eval_scale, recipe.image.crop
    padding = {"image": np.zeros((crop, crop, 3), np.uint8), "label": np.int32(0), "mask": np.False_}

    def make(numbers: Sequence[int]) -> Iterator[Example]:
        for index in numbers:
            if index < len(records):
                yield {**_example(records, index, center_crop, scale, crop), "mask": np.True_}
            else:
                yield padding

    return Examples(-(-len(records) // recipe.batch_size) * recipe.batch_size, make)


def batches(recipe: Recipe, examples: Examples, mesh: Mesh, start: int = 0) -> grain.DatasetIterator:
    """Yields global batches from number `start` on, sharded over the mesh's data axis, placed on the devices ahead.

    `data.threads` threads, or as many in each of `data.processes` processes, decode one batch of this process at a time
    each. The batches are the same.

    Memory on the host is bounded: at most `data.threads` batches of this process (with processes: of each of them, and
    two more of each on their way) are decoded or being decoded, and two are on their way to the devices or there.

    Raises:
      UserError: while iterating, a record that cannot be read or decoded, by name and place.
    """
    data = recipe.data
    sharding, rows = batch_sharding(mesh), local_rows(mesh, recipe.batch_size)
    local = local_batches(recipe, examples, rows)[start:]
    decoded = local.to_iter_dataset(grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.threads))
    if data.processes:
        _need_shared_memory(data.processes, len(rows) * (3 * recipe.image.crop**2 + 8))
        if not flags.FLAGS.is_parsed():
            # Grain reads absl flags here, which a notebook or a test has not parsed.
            flags.FLAGS.mark_as_parsed()
        _start_quiet_resource_tracker()
        decoded = decoded.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=data.processes, per_worker_buffer_size=1), _end_with_parent
        )
    on_devices = decoded.map(lambda batch: jax.tree.map(lambda x: placed(x, rows, recipe.batch_size, sharding), batch))
    iterator = iter(grain.experimental.ThreadPrefetchIterDataset(on_devices, prefetch_buffer_size=2))
    # Ctrl-C in a terminal reaches every process. The decoding processes inherit this mask, so that they survive it
    # until the checkpoint is saved.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        iterator.start_prefetch()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return iterator


def _start_quiet_resource_tracker() -> None:
    """Starts Python's resource tracker, which frees the last batches' shared memory at the end, and need not say so."""
    quiet = "ignore:resource_tracker"
    # A process takes its filters of warnings from here.
    sys.warnoptions.append(quiet)
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(quiet)


def _need_shared_memory(processes: int, batch_bytes: int) -> None:
    """Raises UserError if shared memory cannot hold the batches of the decoding processes: a SIGBUS later."""
    needed, directory = processes * _SHARED_BATCHES * batch_bytes, Path("/dev/shm")
    if directory.is_dir() and (free := shutil.disk_usage(directory).free) < needed:
        raise UserError(
            f"config.data.processes={processes} hand their batches over in {directory}, which has {free / 2**20:,.0f} "
            f"MiB free, and {needed / 2**20:,.0f} MiB are needed; give the container more (docker run --shm-size=8g, "
            "on Kubernetes an emptyDir of medium Memory there), or say --config.data.processes=0."
        )


def placed(local: np.ndarray, rows: np.ndarray, batch_size: int, sharding: NamedSharding) -> jax.Array:
    """Returns the global array of `batch_size` rows, of which this process has `local`, numbered `rows`."""

    def of_device(index: Any) -> np.ndarray:
        # A device's rows follow one another, in the batch and in this process's part of it.
        start, stop, _ = index[0].indices(batch_size)
        first = np.searchsorted(rows, start)
        return local[first : first + stop - start]

    return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, of_device)


def _end_with_parent(*_: Any) -> None:
    """Ends a decoding process when the one that began it is gone, however that was killed."""

    def wait() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def local_batches(recipe: Recipe, examples: Examples, rows: np.ndarray) -> grain.MapDataset:
    """Yields the part of every global batch that one process reads: these rows, in this order."""
    whole = recipe.batch_size

    def batch(number: int) -> Example:
        return _stacked(examples.make((number * whole + rows).tolist()), len(rows))

    return grain.MapDataset.range(len(examples) // whole).map(batch)


def _stacked(examples: Iterable[Example], size: int) -> Example:
    """Stacks the next `size` examples, every array with a new first axis.

    Grain's own batching would hold all of them and then stack them. Here each is copied while it lies in the cache, and
    into aligned memory that a CPU device takes over without a copy.
    """
    batch: Example = {}
    for row, example in enumerate(examples):
        for key, value in example.items():
            if row == 0:
                batch[key] = _aligned((size, *np.shape(value)), np.asarray(value).dtype)
            batch[key][row] = value
    return batch


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns uninitialised memory that begins at a multiple of 64 bytes, as XLA's CPU devices need it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _example(records: Records, index: int, cut: Callable, *args: Any) -> Example:
    record = records[index]
    try:
        if is_cut_short(record["image"]):
            records.cut_short.warn(f"{_name(record)}, {records.describe(index)}")
        return {"image": cut(record["image"], *args), "label": np.int32(record["label"])}
    except DecodeError as error:
        raise UserError(
            f"{_name(record)}, {records.describe(index)}, cannot be decoded: {error}. "
            "Prepare the data again, with `vgg-jax prepare` where it can, which finds all such images."
        ) from error


def _name(record: dict[str, Any]) -> str:
    name = record.get("file_name", b"an image without a name")
    return printable(name.decode(errors="surrogateescape") if isinstance(name, bytes) else name)
