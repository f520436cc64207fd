"""Layers that flax does not have in the form needed: pooling, LRN, FC layers over a map.

Maps are [batch, height, width, channels]; B, H, W, C and K (classes) are used for sizes in names below.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer, zeros


@jax.custom_jvp
def max_pool_2x2(x_BxHxWxC: jax.Array) -> jax.Array:
    """Pools 2x2 maxima with stride 2; an odd last row or column is left out, as in flax and torch.

    The windows do not overlap, so this is a reshape and three maxima, and the gradient is a select in place of
    select-and-scatter: faster on every backend, and available under --xla_gpu_deterministic_ops. Of equal largest
    values the first in row-major order takes the whole gradient, as in nn.max_pool.

    Args:
      x_BxHxWxC: [B, H, W, C], any float dtype, H and W at least 2.

    Returns:
      [B, H // 2, W // 2, C], the same dtype.
    """
    return _pooled(_windows(x_BxHxWxC))[0]


@max_pool_2x2.defjvp
def _max_pool_2x2_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # Autodiff would build the gradient from four padded arrays; this writes it once, in place.
    windows_BxHx2xWx2xC = _windows(primals[0])
    y, winner_BxHxWxC = _pooled(windows_BxHx2xWx2xC)
    position = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    wins = winner_BxHxWxC[:, :, None, :, None] == position
    return y, jnp.where(wins, _windows(tangents[0]), 0).sum(axis=(2, 4))


def _windows(x_BxHxWxC: jax.Array) -> jax.Array:
    b, h, w, c = x_BxHxWxC.shape
    return x_BxHxWxC[:, : h - h % 2, : w - w % 2].reshape(b, h // 2, 2, w // 2, 2, c)


def _pooled(windows_BxHx2xWx2xC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the windows' maxima and the position of each in its window, 0 to 3."""
    first, *others = (windows_BxHx2xWx2xC[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
    largest, winner = first, jnp.zeros(first.shape, jnp.uint8)
    for position, other in enumerate(others, 1):
        stays = (largest >= other) | jnp.isnan(largest)
        largest, winner = jnp.where(stays, largest, other), jnp.where(stays, winner, jnp.uint8(position))
    return largest, winner


def local_response_norm(
    x_BxHxWxC: jax.Array, k: float = 2.0, n: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Applies Krizhevsky's local response normalisation across channels (Paper §2.3, Krizhevsky et al. 2012 §3.3).

    y[c] = x[c] / (k + alpha * sum of x[j]^2 for |j - c| <= n // 2) ** beta; windows are truncated at the channel edges.
    The sum is a plain sum; Caffe and torch divide alpha by n, so their alpha is 5e-4 for the same function.

    Args:
      x_BxHxWxC: [B, H, W, C], any float dtype; squares are summed in float32.

    Returns:
      [B, H, W, C], the same dtype.
    """
    squares = jnp.square(x_BxHxWxC.astype(jnp.float32))
    sums = lax.reduce_window(squares, 0.0, lax.add, (1, 1, 1, n), (1, 1, 1, 1), "SAME")
    return (x_BxHxWxC * (k + alpha * sums) ** -beta).astype(x_BxHxWxC.dtype)


class FullyConnected(nn.Module):
    """A fully connected layer over a whole map, kept as a convolution kernel (Paper §3.2).

    On a map of the kernel's own size it is a matrix product with a [B, 1, 1, features] result; on a larger map it is
    the same layer at every position, [B, H - h + 1, W - w + 1, features].

    Parameters: kernel [h, w, C, features], bias [features].

    Attributes:
      features: output features.
      kernel_size: h, w.
      kernel_init, bias_init: of the parameters.
      dtype: of the computation and of the result.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: tuple[int, int] = (1, 1)
    kernel_init: Initializer = zeros
    bias_init: Initializer = zeros
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        b, h, w, c = x_BxHxWxC.shape
        shape = (*self.kernel_size, c, self.features)
        if h < shape[0] or w < shape[1]:
            raise ValueError(
                f"{self.name} spans a map of {shape[0]}x{shape[1]}, but these images give one of {h}x{w}: "
                "they are smaller than the crop."
            )
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype).astype(self.dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype).astype(self.dtype)
        x = x_BxHxWxC.astype(self.dtype)
        if (h, w) == shape[:2]:
            x = _product(x, kernel).reshape(b, 1, 1, self.features)
        else:
            x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return x + bias


@jax.custom_jvp
def _product(x_BxHxWxC: jax.Array, kernel_HxWxCxF: jax.Array) -> jax.Array:
    """Returns [B, F]: a map of the kernel's own size, times the kernel."""
    return x_BxHxWxC.reshape(x_BxHxWxC.shape[0], -1) @ kernel_HxWxCxF.reshape(-1, kernel_HxWxCxF.shape[-1])


@_product.defjvp
def _product_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, Any]:
    # The gradient is made row by row of the kernel: between devices it is then reduced in parts that fit a TPU's vector
    # memory, alongside other layers' work; fc6's in one piece, 200 MB, could not be.
    (x, kernel), (dx, dkernel) = primals, tangents
    rows = zip(*(_rows(array, axis) for array, axis in ((x, 1), (kernel, 0), (dx, 1), (dkernel, 0))), strict=True)
    return _product(x, kernel), sum(_product(dx_i, k_i) + _product(x_i, dk_i) for x_i, k_i, dx_i, dk_i in rows)


def _rows(array: jax.Array, axis: int) -> list[jax.Array]:
    return list(lax.split(array, [1] * array.shape[axis], axis))
