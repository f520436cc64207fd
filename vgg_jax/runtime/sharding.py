"""The mesh, and one table: which parameter lies how on it.

The mesh has two axes. Batches are split over `data`; `model` splits FC layers where a rule says so. Training code
names neither devices nor their number: it gives arrays these shardings, and the compiler does the communication.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vgg_jax.runtime.exceptions import UserError

# name -> ((pattern of a parameter's path, axes of its dimensions), ...); the first that matches counts, none:
# replicated. Momentum has its parameter's path with a prefix, so it lies where its parameter lies.
RULES: dict[str, tuple[tuple[str, PartitionSpec], ...]] = {
    "replicated": (),
    # ZeRO-3/FSDP: every kernel split over the devices that share the batch; the head by inputs, as K often does not
    # divide. What they do not divide stays whole: the first convolutions on a large slice, which are small.
    "fsdp": (
        (r"fc8?/kernel$", PartitionSpec(None, None, "data", None)),
        (r"/kernel$", PartitionSpec(None, None, None, "data")),
    ),
    # "One weird trick" (Krizhevsky 2014): convolutions are data-parallel, FC layers split by features.
    "fc_model_parallel": (
        (r"fc[67]/kernel$", PartitionSpec(None, None, None, "model")),
        (r"fc[67]/bias$", PartitionSpec("model")),
        (r"fc8/kernel$", PartitionSpec(None, None, "model", None)),
    ),
}


def make_mesh(model_parallel: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh ("data", "model") over all devices, or those given; `model_parallel` divides their number."""
    devices = devices or jax.devices()
    shape = (len(devices) // model_parallel, model_parallel)
    # jax.make_mesh splits an axis of a slice on v5e alone, and finds no `model` of 2 on a v6e:4x4.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose first dimension counts images."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def gather_for_compute(params: Any, rules: str, mesh: Mesh) -> Any:
    """All-gathers FSDP-sharded parameters for the forward and backward pass.

    Left to itself the compiler sends parts of the maps around in place of kernels, in loops
    (benchmarks/compile_check.md).
    """
    if rules != "fsdp":
        return params
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, replicated(mesh)), params)


def shard_images(images: jax.Array, mesh: Mesh) -> jax.Array:
    """Images [B, ...] split over `model` too, so that no two devices convolve the same ones; as they are where the
    number of devices does not divide B."""
    if mesh.shape["model"] == 1 or len(images) % mesh.size:
        return images
    return jax.lax.with_sharding_constraint(images, NamedSharding(mesh, PartitionSpec(("data", "model"))))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a global batch that this process's devices hold, ascending.

    Processes may share rows: those along the `model` axis see the same images.
    """
    indices: Any = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for (rows,) in indices]))


def replicate(array: Any) -> Any:
    """Replicates an array, so that each process can read all of it; all processes call this alike."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return array
    sharding: Any = array.sharding
    return jax.jit(lambda x: x, out_shardings=replicated(sharding.mesh))(array)


def bytes_a_device(tree: Any) -> int:
    """Bytes that one device holds of a tree of arrays or of jax.ShapeDtypeStruct with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def tree_shardings(tree: Any, mesh: Mesh, rules: str) -> Any:
    """Returns a NamedSharding for each array of a tree of parameters, or of a train state.

    Args:
      tree: arrays or jax.ShapeDtypeStruct.
      mesh: of `make_mesh`.
      rules: a key of RULES.

    Raises:
      UserError: a dimension that its mesh axis does not divide, where that cannot be left whole.
    """

    def of(path: Any, leaf: Any) -> NamedSharding:
        name = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        spec = next((spec for pattern, spec in RULES[rules] if re.search(pattern, name)), PartitionSpec())
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                if rules == "fsdp":
                    return replicated(mesh)
                raise UserError(
                    f"config.sharding={rules} splits {name} {list(leaf.shape)} over {mesh.shape[axis]} devices, which "
                    f"do not divide {size}; use another width or number of devices, or --config.sharding=replicated."
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(of, tree)
