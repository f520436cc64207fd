"""The layers of a VGG that flax does not have in the form needed: pooling, LRN, convolutions with named fans.

Maps are [batch, height, width, channels]; B, H, W, C and K (classes) are used for sizes in names below.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vgg_jax.models.initializers import PRESETS


def _maximum_with_one_winner(a: jax.Array, b: jax.Array) -> jax.Array:
    # As jnp.maximum, NaN included, but the gradient goes to one side: `a` where both are equal. jnp.maximum halves it.
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def max_pool_2x2(x_BxHxWxC: jax.Array) -> jax.Array:
    """2x2 max pooling with stride 2; an odd last row or column is left out, as in flax and torch (PAPER.md §5.6).

    The windows do not overlap, so this is a reshape and three maxima, and the gradient is a select in place of
    select-and-scatter: faster on every backend, and available under --xla_gpu_deterministic_ops. Of equal largest
    values the first in row-major order takes the whole gradient, as in nn.max_pool.

    Args:
      x_BxHxWxC: [B, H, W, C], any float dtype, H and W at least 2.

    Returns:
      [B, H // 2, W // 2, C], the same dtype.
    """
    b, h, w, c = x_BxHxWxC.shape
    x = x_BxHxWxC[:, : h - h % 2, : w - w % 2].reshape(b, h // 2, 2, w // 2, 2, c)
    top = _maximum_with_one_winner(x[:, :, 0, :, 0], x[:, :, 0, :, 1])
    bottom = _maximum_with_one_winner(x[:, :, 1, :, 0], x[:, :, 1, :, 1])
    return _maximum_with_one_winner(top, bottom)


def local_response_norm(
    x_BxHxWxC: jax.Array, k: float = 2.0, n: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Krizhevsky's local response normalisation across channels (Paper §2.3, Krizhevsky et al. 2012 §3.3).

    y[c] = x[c] / (k + alpha * sum of x[j]^2 for |j - c| <= n // 2) ** beta, the window cut at the ends. The sum is a
    plain sum; Caffe and torch divide alpha by n, so their alpha is 5e-4 for the same function.

    Args:
      x_BxHxWxC: [B, H, W, C], any float dtype; squares are summed in float32.

    Returns:
      [B, H, W, C], the same dtype.
    """
    squares = jnp.square(x_BxHxWxC.astype(jnp.float32))
    sums = lax.reduce_window(squares, 0.0, lax.add, (1, 1, 1, n), (1, 1, 1, 1), "SAME")
    return (x_BxHxWxC * (k + alpha * sums) ** -beta).astype(x_BxHxWxC.dtype)


class Convolution(nn.Module):
    """A convolution of stride 1 with zero padding that keeps height and width (Paper §2.1).

    Parameters: kernel [size, size, C, channels], bias [channels].

    Attributes:
      channels: output channels.
      size: odd kernel size.
      init_preset: a key of `initializers.PRESETS`.
      dtype: of the computation and of the result.
      param_dtype: of the parameters.
    """

    channels: int
    size: int = 3
    init_preset: str = "glorot"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        inputs, area = x_BxHxWxC.shape[-1], self.size**2
        kernel_init, bias_init = PRESETS[self.init_preset](area * inputs, area * self.channels)
        kernel = self.param("kernel", kernel_init, (self.size, self.size, inputs, self.channels), self.param_dtype)
        bias = self.param("bias", bias_init, (self.channels,), self.param_dtype)
        x = _convolve(x_BxHxWxC.astype(self.dtype), kernel.astype(self.dtype), padding="SAME")
        return x + bias.astype(self.dtype)


class FullyConnected(nn.Module):
    """A fully connected layer over a whole map, kept as a convolution kernel (Paper §3.2).

    On a map of the kernel's own size it is a matrix product with a [B, 1, 1, features] result; on a larger map it is
    the same layer at every place, [B, H - h + 1, W - w + 1, features]. `init` makes the kernel as large as the map it
    is given, or 1x1 with `size=1`; afterwards the parameters say how large it is.

    Parameters: kernel [h, w, C, features], bias [features].

    Attributes:
      features: output features.
      size: kernel height and width; None takes the size of the map given to `init`.
      init_preset, dtype, param_dtype: as in `Convolution`.
    """

    features: int
    size: int | None = None
    init_preset: str = "glorot"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        b, h, w, c = x_BxHxWxC.shape
        shape = (self.size or h, self.size or w, c, self.features)
        if self.has_variable("params", "kernel"):
            shape = self.get_variable("params", "kernel").shape[:2] + shape[2:]
        if h < shape[0] or w < shape[1]:
            raise ValueError(
                f"{self.name} spans a map of {shape[0]}x{shape[1]}, but these images give one of {h}x{w}: "
                "they are smaller than the crop this net was made for."
            )
        # The fans are the matrix's: counting the map once more on the output side, as an initializer for convolution
        # kernels would, makes fc6 2.7 times too small (PAPER.md §5.1).
        kernel_init, bias_init = PRESETS[self.init_preset](shape[0] * shape[1] * c, self.features)
        kernel = self.param("kernel", kernel_init, shape, self.param_dtype).astype(self.dtype)
        bias = self.param("bias", bias_init, (self.features,), self.param_dtype).astype(self.dtype)
        x = x_BxHxWxC.astype(self.dtype)
        if (h, w) == shape[:2]:
            x = (x.reshape(b, -1) @ kernel.reshape(-1, self.features)).reshape(b, 1, 1, self.features)
        else:
            x = _convolve(x, kernel, padding="VALID")
        return x + bias


def _convolve(x_BxHxWxC: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    return lax.conv_general_dilated(x_BxHxWxC, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
