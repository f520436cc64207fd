"""Records -> batches on the devices. The batch at step t is a pure function of (seed, t).

Grain's MapDataset gives that: shuffling by index with another order every epoch, a random stream for every index. So
nothing about the data needs saving, a restart goes on at the very next image, and any number of processes sees the
same global batches: process p of P reads the p-th P-th of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain
import grain.experimental
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vgg_jax.config import eval_scale
from vgg_jax.data.crops import center_crop, random_crop
from vgg_jax.data.decode import DecodeError
from vgg_jax.errors import UserError
from vgg_jax.sharding import batch_sharding

Record = dict[str, Any]
_ENDLESS_EPOCHS = 1_000_000


def train_examples(config: ConfigDict, records: Sequence[Record]) -> grain.MapDataset:
    """Training examples without end: image [crop, crop, 3] uint8 RGB, label int32.

    Example i is image i mod N of a new order of all N images in every epoch, i div N, so batches run across the edges
    of epochs and nothing is dropped (PAPER.md §5.12). Crop and scale are drawn from a stream of their own for every i.
    """
    image = config.image

    def crop(record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return _example(record, random_crop, rng, image.scale_min, image.scale_max, image.crop)

    # As good as endless; Grain's own endless length overflows when it is batched.
    return grain.MapDataset.source(records).seed(config.seed).shuffle().repeat(_ENDLESS_EPOCHS).random_map(crop)


def eval_examples(config: ConfigDict, records: Sequence[Record]) -> grain.MapDataset:
    """Validation examples, padded to whole batches: as training's, central crops at Q, with mask, False for padding."""
    crop = config.image.crop
    padding = {"image": np.zeros((crop, crop, 3), np.uint8), "label": np.int32(0), "mask": np.False_}

    def at(index: int) -> Record:
        if index >= len(records):
            return padding
        return {**_example(records[index], center_crop, eval_scale(config), crop), "mask": np.True_}

    return grain.MapDataset.range(-(-len(records) // config.batch_size) * config.batch_size).map(at)


def batches(config: ConfigDict, examples: grain.MapDataset, mesh: Mesh, start: int = 0) -> grain.DatasetIterator:
    """Global batches from batch number `start` on, sharded over the mesh's data axis, on the devices ahead of need.

    Memory on the host is bounded: at most `data.threads` batches of this process are decoded or being decoded, and
    two more are on their way to the devices or there.

    Raises:
      UserError: while iterating, a record that cannot be decoded, by name.
    """
    sharding = batch_sharding(mesh)
    local = local_batches(config, examples, jax.process_index(), jax.process_count())[start:]
    options = grain.ReadOptions(num_threads=config.data.threads, prefetch_buffer_size=config.data.threads)
    placed = local.to_iter_dataset(options).map(
        lambda batch: jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
    )
    return iter(grain.experimental.ThreadPrefetchIterDataset(placed, prefetch_buffer_size=2))


def local_batches(config: ConfigDict, examples: grain.MapDataset, process: int, processes: int) -> grain.MapDataset:
    """The part of every global batch that one process reads: the `process`-th of `processes` equal parts, in order."""
    return examples.batch(config.batch_size // processes)[process::processes]


def _example(record: Record, cut, *args) -> dict[str, np.ndarray]:
    try:
        return {"image": cut(record["image"], *args), "label": np.int32(record["label"])}
    except DecodeError as error:
        name = record.get("file_name", b"(no name)")
        name = name.decode() if isinstance(name, bytes) else name
        raise UserError(
            f"the picture {name} in the prepared data cannot be decoded: {error}. Prepare the data anew."
        ) from error
