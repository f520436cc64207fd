"""The networks of the paper (Paper Table 1) as one module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgg_jax.models.description import CONFIGURATIONS, endpoint_names
from vgg_jax.models.initializers import PRESETS
from vgg_jax.models.layers import FullyConnected, local_response_norm, max_pool_2x2


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
        for layer in CONFIGURATIONS[self.configuration]:
            if layer.kind == "fc":
                break
            if layer.kind == "conv":
                channels = layer.scaled_channels(self.width_multiplier)
                x = keep(layer.name, self._convolution(layer.name, layer.kernel, x.shape[-1], channels)(x), False)
            elif layer.kind == "lrn":
                x = keep(layer.name, local_response_norm(x), False)
            elif layer.kind == "relu":
                x = keep(layer.name, nn.relu(x))
            else:
                x = max_pool_2x2(x)
                sizes = None if sizes is None else sizes // layer.stride
                x = keep(layer.name, x)
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

    def _convolution(self, name: str, size: int, inputs: int, channels: int) -> nn.Conv:
        """Returns a convolution of stride 1 that keeps height and width (Paper §2.1)."""
        kernel_init, bias_init = PRESETS[self.init_preset](size**2 * inputs, size**2 * channels)
        return nn.Conv(
            channels,
            (size, size),
            padding="SAME",
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            name=name,
        )


def _inside(sizes_Bx2: jax.Array, height: int, width: int) -> jax.Array:
    """[B, height, width], True within each image's true size."""
    rows = jnp.arange(height) < sizes_Bx2[:, :1]
    columns = jnp.arange(width) < sizes_Bx2[:, 1:]
    return rows[:, :, None] & columns[:, None, :]
