"""Layers that flax lacks in this form: pooling, batch normalisation, LRN, convolutions, FC layers over a map.

Maps are [batch, height, width, channels]; B, H, W, C and K (classes) are used for sizes in names below.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer, ones, zeros


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
    return _largest([windows_BxHx2xWx2xC[:, :, i, :, j] for i in (0, 1) for j in (0, 1)])


def _largest(parts: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns the largest values, element by element, and which part each is of, uint8; the first of equal ones."""
    first, *others = parts
    largest, winner = first, jnp.zeros(first.shape, jnp.uint8)
    for position, other in enumerate(others, 1):
        stays = (largest >= other) | jnp.isnan(largest)
        largest, winner = jnp.where(stays, largest, other), jnp.where(stays, winner, jnp.uint8(position))
    return largest, winner


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def max_pool(x_BxHxWxC: jax.Array, kernel: int, stride: int, before: int = 0, after: int = 0) -> jax.Array:
    """Pools maxima of windows that may overlap; as in `max_pool_2x2` the gradient selects, without select-and-scatter.

    Args:
      x_BxHxWxC: [B, H, W, C], any float dtype.
      kernel, stride: of the windows.
      before, after: rows and columns of padding at the top and left, and at the bottom and right, which never win.

    Returns:
      [B, h, w, C] of whole windows, the same dtype.
    """
    return _largest(_strided(x_BxHxWxC, kernel, stride, before, after, -jnp.inf))[0]


@max_pool.defjvp
def _max_pool_jvp(
    kernel: int, stride: int, before: int, after: int, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    y, winner = _largest(_strided(primals[0], kernel, stride, before, after, -jnp.inf))
    parts = enumerate(_strided(tangents[0], kernel, stride, before, after, 0))
    return y, sum(jnp.where(winner == position, part, 0) for position, part in parts)  # type: ignore[return-value]


def _strided(x_BxHxWxC: jax.Array, kernel: int, stride: int, before: int, after: int, fill: float) -> list[jax.Array]:
    """Returns each position of the windows as an array [B, h, w, C], in row-major order."""
    padded = jnp.pad(x_BxHxWxC, ((0, 0), (before, after), (before, after), (0, 0)), constant_values=fill)
    height, width = ((side - kernel) // stride * stride + 1 for side in padded.shape[1:3])
    return [padded[:, i : i + height : stride, j : j + width : stride] for i in range(kernel) for j in range(kernel)]


class BatchNorm(nn.Module):
    """Batch normalisation over batch and space (Ioffe & Szegedy 2015), as flax's, with sums that are fast on CPUs.

    Parameters: scale [C], bias [C]; in "batch_stats": mean [C], var [C], float32, where new = 0.9 old + 0.1 batch.

    Attributes:
      use_running_average: in place of the statistics of the whole global batch.
      dtype: of the result; statistics are float32.
      param_dtype: of the parameters.
    """

    use_running_average: bool
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        shape = x_BxHxWxC.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", ones, shape, self.param_dtype).astype(jnp.float32)
        bias = self.param("bias", zeros, shape, self.param_dtype).astype(jnp.float32)
        if self.use_running_average:
            factor = lax.rsqrt(var.value + _EPSILON) * scale
            return ((x_BxHxWxC - mean.value) * factor + bias).astype(self.dtype)
        y, of_batch = _normalized(x_BxHxWxC, scale, bias)
        if not self.is_initializing():
            mean.value, var.value = (
                _MOMENTUM * old.value + (1 - _MOMENTUM) * new for old, new in zip((mean, var), of_batch, strict=True)
            )
        return y.astype(self.dtype)


_EPSILON, _MOMENTUM = 1e-5, 0.9


@jax.custom_vjp
def _normalized(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Returns x normalised by its own statistics, float32, and these, (mean, variance), which have no gradient."""
    return _normalized_fwd(x, scale, bias)[0]


def _normalized_fwd(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[Any, Any]:
    x32, count = x.astype(jnp.float32), x.size // x.shape[-1]
    # E[x^2] - E[x]^2 loses its digits where the mean is many deviations from 0. Values near 0 keep them, so the mean of
    # one row of every image, which all devices share, is subtracted first.
    shift = x32[:, x.shape[1] // 2].mean((0, 1))
    shifted = x32 - shift
    shifted_mean = _sum_over_places(shifted) / count
    var = jnp.maximum(0, _sum_over_places(jnp.square(shifted)) / count - jnp.square(shifted_mean))
    mean, inverse = shift + shifted_mean, lax.rsqrt(var + _EPSILON)
    return ((x32 - mean) * (inverse * scale) + bias, (mean, var)), (x, mean, inverse, scale)


def _normalized_bwd(residuals: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    (x, mean, inverse, scale), (dy, _) = residuals, cotangents
    normalized, count = (x.astype(jnp.float32) - mean) * inverse, x.size // x.shape[-1]
    dbias, dscale = _sum_over_places(dy), _sum_over_places(dy * normalized)
    dx = (inverse * scale) * (dy - dbias / count - normalized * (dscale / count))
    return dx.astype(x.dtype), dscale, dbias


_normalized.defvjp(_normalized_fwd, _normalized_bwd)


def _sum_over_places(x_BxHxWxC: jax.Array) -> jax.Array:
    """Returns the sums [C] over batch and space.

    XLA's CPU backend makes vector instructions of a sum over rows only where the rows are long.
    """

    def by_long_rows(x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        return x.reshape(b * h, w * c).sum(0).reshape(w, c).sum(0)

    return lax.platform_dependent(x_BxHxWxC, cpu=by_long_rows, default=lambda x: x.sum((0, 1, 2)))


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


class Convolution(nn.Module):
    """A convolution, as flax's but for the gradient of its bias, which is summed in float32 where the rest is bfloat16.

    Takes [B, H, W, C] and returns [B, h, w, features] in `dtype`, h = (H + 2 padding - size) // stride + 1.

    Parameters: kernel [size, size, C / groups, features]; bias [features], where it has one.

    Attributes:
      features: output channels.
      size, stride, padding: of the kernel's rows and columns alike; padding with zeros on every side.
      groups: of channels that do not see each other.
      use_bias: whether it has a bias.
      kernel_init, bias_init, dtype, param_dtype: as in `FullyConnected`.
    """

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = zeros
    bias_init: Initializer = zeros
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x_BxHxWxC.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype).astype(self.dtype)
        y = _convolved(x_BxHxWxC.astype(self.dtype), kernel, self.stride, self.padding, self.groups)
        if not self.use_bias:
            return y
        return _add_bias(y, self.param("bias", self.bias_init, (self.features,), self.param_dtype))


_NHWC = ("NHWC", "HWIO", "NHWC")


def _convolved(x_BxHxWxC: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> jax.Array:
    """Returns the convolution [B, h, w, F] of maps with a kernel [size, size, C / groups, F]."""

    def as_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        sides = ((padding, padding),) * 2
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), sides, dimension_numbers=_NHWC, feature_group_count=groups
        )

    def as_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        patches = jnp.concatenate(_strided(x, kernel.shape[0], stride, padding, padding, 0), -1)
        product = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
        return product.reshape(*patches.shape[:-1], -1)

    # XLA's CPU backend takes the smaller map for the kernel, and then computes 16 to 100 times slower.
    if groups == 1 and max(x_BxHxWxC.shape[1:3]) < kernel.shape[0]:
        return lax.platform_dependent(x_BxHxWxC, kernel, cpu=as_product, default=as_convolution)
    return as_convolution(x_BxHxWxC, kernel)


def _add_bias(x_BxHxWxF: jax.Array, bias_F: jax.Array) -> jax.Array:
    """Adds a bias at every position, in x's dtype; its gradient is summed in float32.

    In bfloat16 a sum over a batch's positions loses most of its terms: a number much smaller than the sum so far no
    longer changes it.
    """
    # The gradient of a broadcast is a sum, in the dtype that is broadcast.
    return x_BxHxWxF + jnp.broadcast_to(bias_F.astype(jnp.float32), x_BxHxWxF.shape).astype(x_BxHxWxF.dtype)


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
        x = x_BxHxWxC.astype(self.dtype)
        if (h, w) == shape[:2]:
            x = _product(x, kernel).reshape(b, 1, 1, self.features)
        else:
            x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=_NHWC)
        return _add_bias(x, self.param("bias", self.bias_init, (self.features,), self.param_dtype))


@jax.custom_jvp
def _product(x_BxHxWxC: jax.Array, kernel_HxWxCxF: jax.Array) -> jax.Array:
    """Returns [B, F]: a map of the kernel's own size, times the kernel."""
    *shape, features = kernel_HxWxCxF.shape
    size = math.prod(shape)
    return x_BxHxWxC.reshape(x_BxHxWxC.shape[0], size) @ kernel_HxWxCxF.reshape(size, features)


@_product.defjvp
def _product_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, Any]:
    # On TPUs the gradient is made row by row of the kernel. Devices then reduce it in parts that fit a TPU's vector
    # memory, alongside other layers' work; fc6's in one piece, 200 MB, could not be. Elsewhere rows cost copies.
    def by_rows(x: jax.Array, kernel: jax.Array, dx: jax.Array, dkernel: jax.Array) -> jax.Array:
        parts = zip(*(_rows(array, axis) for array, axis in ((x, 1), (kernel, 0), (dx, 1), (dkernel, 0))), strict=True)
        return sum(whole(*row) for row in parts)  # type: ignore[return-value]

    def whole(x: jax.Array, kernel: jax.Array, dx: jax.Array, dkernel: jax.Array) -> jax.Array:
        return _product(dx, kernel) + _product(x, dkernel)

    return _product(*primals), lax.platform_dependent(*primals, *tangents, tpu=by_rows, default=whole)


def _rows(array: jax.Array, axis: int) -> list[jax.Array]:
    return list(lax.split(array, [1] * array.shape[axis], axis))
