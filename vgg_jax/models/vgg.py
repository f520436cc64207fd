"""The networks of the paper: one table (Paper Table 1) and the one module that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgg_jax.models.layers import Convolution, FullyConnected, local_response_norm, max_pool_2x2


class Configuration(NamedTuple):
    """A column of Paper Table 1: per block, the (output channels, kernel size) of each convolution."""

    blocks: tuple[tuple[tuple[int, int], ...], ...]
    lrn: bool = False  # local response normalisation after the first convolution's ReLU


def _blocks(
    *channels: int, depth: Sequence[int], size: int = 3, closing_1x1: bool = False
) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Blocks of `depth[i]` convolutions each; `closing_1x1` adds a 1x1 convolution to blocks 3, 4 and 5."""
    return tuple(
        ((c, size),) * d + (((c, 1),) if closing_1x1 and i >= 2 else ())
        for i, (c, d) in enumerate(zip(channels, depth, strict=True))
    )


_CHANNELS = (64, 128, 256, 512, 512)

CONFIGURATIONS: dict[str, Configuration] = {
    "A": Configuration(_blocks(*_CHANNELS, depth=(1, 1, 2, 2, 2))),
    "A-LRN": Configuration(_blocks(*_CHANNELS, depth=(1, 1, 2, 2, 2)), lrn=True),
    "B": Configuration(_blocks(*_CHANNELS, depth=(2, 2, 2, 2, 2))),
    "C": Configuration(_blocks(*_CHANNELS, depth=(2, 2, 2, 2, 2), closing_1x1=True)),
    "D": Configuration(_blocks(*_CHANNELS, depth=(2, 2, 3, 3, 3))),
    "E": Configuration(_blocks(*_CHANNELS, depth=(2, 2, 4, 4, 4))),
    # The ablation of §4.1: each pair of B's 3x3 convolutions is one 5x5.
    "B-5x5": Configuration(_blocks(*_CHANNELS, depth=(1, 1, 1, 1, 1), size=5)),
}

# Five poolings halve the image five times.
STRIDE = 32


class VGG(nn.Module):
    """A VGG network, fully convolutional from the start (Paper §2.1, §3.2).

    `init` makes fc6 as large as the last map of the image it is given; `apply` then takes images of that size, the
    crop, or larger. Larger ones give a class score map, which is averaged over space.

    Parameters, one nested dict: conv1_1 ... conv5_4, fc6 [h, w, C, F], fc7 [1, 1, F, F], fc8 [1, 1, F, K], each
    {"kernel", "bias"}.

    Attributes:
      configuration: a key of CONFIGURATIONS.
      num_classes: K.
      width_multiplier: factor on the channels of all convolutions; at least 1 channel stays.
      fc_width: F, features of fc6 and fc7.
      dropout_rate: after the first two FC layers, when training.
      init_preset: a key of `initializers.PRESETS`.
      dtype: of the computation; logits are float32.
      param_dtype: of the parameters.
    """

    configuration: str = "D"
    num_classes: int = 1000
    width_multiplier: float = 1.0
    fc_width: int = 4096
    dropout_rate: float = 0.5
    init_preset: str = "glorot"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        images_BxHxWx3: jax.Array,
        train: bool = False,
        sizes_Bx2: jax.Array | None = None,
        endpoints: Sequence[str] = (),
        logits: bool = True,
    ) -> Any:
        """Class scores of images.

        Args:
          images_BxHxWx3: RGB on the scale 0 to 255 with the training set's mean RGB subtracted, at least as large as
            the crop the parameters were made for.
          train: dropout on; wants an rng named "dropout".
          sizes_Bx2: int, true (height, width) of images that are padded at the bottom and the right to a common
            size; the logits are those of the unpadded images. Every size is at least the crop.
          endpoints: names of layers whose activations are wanted too, see `endpoint_names`.
          logits: False ends with the block of the last endpoint, so that the images may be smaller than the crop if no
            FC layer is among the endpoints.

        Returns:
          logits [B, K] in float32, the class scores averaged over space; with endpoints a pair (logits, {name: map}),
          maps [B, h, w, C] in `dtype`, `score_map` [B, h, w, K] in float32. Without logits {name: map} alone.

        Raises:
          ValueError: an unknown configuration or endpoint, or images smaller than the crop.
        """
        if self.configuration not in CONFIGURATIONS:
            raise ValueError(f"no configuration {self.configuration!r}; there are {', '.join(CONFIGURATIONS)}")
        if unknown := set(endpoints) - set(endpoint_names(self.configuration)):
            raise ValueError(
                f"configuration {self.configuration} has no endpoint {', '.join(sorted(unknown))}; it has "
                f"{', '.join(endpoint_names(self.configuration))}"
            )
        blocks, lrn = CONFIGURATIONS[self.configuration]
        options: dict[str, Any] = {
            "init_preset": self.init_preset,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        found: dict[str, jax.Array] = {}
        sizes = sizes_Bx2

        def keep(name: str, x: jax.Array, seen_by_neighbours: bool = True) -> jax.Array:
            # Whatever lies outside an image's true size is zero when a convolution comes to it, as the padding of an
            # unpadded image is, so the true part never sees that there is more. Where what follows looks at each place
            # alone, or is zero for zero, it may wait: every mask takes time to compile.
            if sizes is not None and (seen_by_neighbours or name in endpoints):
                x = x * _inside(sizes, x.shape[1], x.shape[2])[..., None].astype(x.dtype)
            if name in endpoints:
                found[name] = x
            return x

        x = keep("images", images_BxHxWx3.astype(self.dtype))
        for i, block in enumerate(blocks, start=1):
            for j, (channels, size) in enumerate(block, start=1):
                channels = max(1, round(channels * self.width_multiplier))
                x = keep(f"conv{i}_{j}", Convolution(channels, size, name=f"conv{i}_{j}", **options)(x), False)
                x = keep(f"relu{i}_{j}", nn.relu(x))
                if lrn and (i, j) == (1, 1):
                    x = keep("lrn1_1", local_response_norm(x), False)
            x = max_pool_2x2(x)
            sizes = None if sizes is None else sizes // 2
            x = keep(f"pool{i}", x)
            if not logits and len(found) == len(set(endpoints)):
                return found

        last_map = x.shape[1:3]
        x = FullyConnected(self.fc_width, name="fc6", **options)(x)
        if sizes is not None:  # a kernel of n rows fits at size - n + 1 places
            sizes = sizes - jnp.asarray(last_map) + jnp.asarray(x.shape[1:3])
        x = keep("relu6", nn.relu(keep("fc6", x, False)), False)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout6")(x)
        x = FullyConnected(self.fc_width, size=1, name="fc7", **options)(x)
        x = keep("relu7", nn.relu(keep("fc7", x, False)), False)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout7")(x)
        x = FullyConnected(self.num_classes, size=1, name="fc8", **options)(x)
        score_map = keep("score_map", x.astype(jnp.float32))
        if sizes is None:
            logits_BxK = score_map.mean((1, 2))
        else:
            logits_BxK = score_map.sum((1, 2)) / sizes.prod(-1, keepdims=True)
        if not logits:
            return found
        return (logits_BxK, found) if endpoints else logits_BxK


def _inside(sizes_Bx2: jax.Array, height: int, width: int) -> jax.Array:
    """[B, height, width], True within each image's true size."""
    rows = jnp.arange(height) < sizes_Bx2[:, :1]
    columns = jnp.arange(width) < sizes_Bx2[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def endpoint_names(configuration: str) -> list[str]:
    """The names `VGG.__call__` takes as endpoints, in the order of computation: conv1_1, relu1_1, ..., score_map."""
    blocks, lrn = CONFIGURATIONS[configuration]
    names = ["images"]
    for i, block in enumerate(blocks, start=1):
        for j in range(1, len(block) + 1):
            names += [f"conv{i}_{j}", f"relu{i}_{j}"] + (["lrn1_1"] if lrn and (i, j) == (1, 1) else [])
        names.append(f"pool{i}")
    return [*names, "fc6", "relu6", "fc7", "relu7", "score_map"]


def layer_names(configuration: str) -> list[str]:
    """The layers that have parameters, in the order of computation: conv1_1, ..., fc6, fc7, fc8."""
    return [name for name in endpoint_names(configuration) if name.startswith(("conv", "fc"))] + ["fc8"]
