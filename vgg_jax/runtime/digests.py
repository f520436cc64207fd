"""Checksums and digests of arrays, and their names in a tree."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.runtime.sharding import replicate


def checksum(array: Any, xp: Any = jnp) -> Any:
    """Computes a checksum of an array's bits, a uint32 scalar.

    Every element is mixed with its index, one to one, and the results are added up modulo 2^32. So a change of one
    element always changes the sum, any other damage does but once in 2^32, and parts can be added up where they lie.

    Args:
      array: of 2 or 4 bytes an element, as NumPy or JAX has it.
      xp: `jax.numpy`, or `numpy` to compute on the host.
    """
    array = xp.atleast_1d(xp.asarray(array))
    if xp is np and array.ndim > 1:  # part by part, as an FC layer's index alone is as large as its kernel
        size = math.prod(array.shape[1:])
        return np.uint32(sum(int(_sum_of_bits(part, np, i * size)) for i, part in enumerate(array)) % 2**32)
    return _sum_of_bits(array, xp, 0)


def _sum_of_bits(array: Any, xp: Any, first: int) -> Any:
    index = xp.full(array.shape, first % 2**32, xp.uint32)
    for axis, size in enumerate(array.shape):
        along_axis = xp.arange(size, dtype=xp.uint32) * xp.uint32(math.prod(array.shape[axis + 1 :]) % 2**32)
        index = index + along_axis.reshape([-1 if axis == other else 1 for other in range(array.ndim)])
    bits = array.view(xp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(xp.uint32)
    # Steps of MurmurHash3's finalizer (Appleby 2011).
    bits = (bits ^ (index * xp.uint32(0x9E3779B1))) * xp.uint32(0x85EBCA6B)
    return xp.sum((bits ^ (bits >> 13)) * xp.uint32(0xC2B2AE35), dtype=xp.uint32)


def leaf_names(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a tree by name, as {"params/fc6/kernel": ...}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def params_sha256(params: dict, model_state: dict | None = None) -> str:
    """Returns a digest over names, shapes, dtypes and bytes of all arrays, in the order of their names.

    Where they are split over several processes, all of these call it.
    """
    digest = hashlib.sha256()
    for tree in (params, model_state or {}):
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        for path, leaf in sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0])):
            array = np.asarray(replicate(leaf))
            digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
