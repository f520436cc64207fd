"""The networks of the paper (Paper Table 1) as one module."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from vgg_jax.models.description import CONFIGURATIONS, STRIDE, Layer, endpoint_names
from vgg_jax.models.initializers import PRESETS
from vgg_jax.models.layers import FullyConnected, local_response_norm, max_pool_2x2


class VGG(nn.Module):
    """A VGG network, fully convolutional from the start (Paper §2.1, §3.2).

    Takes images of the crop's size or larger. Larger ones give a class score map, which is averaged over space.

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
      crop: height and width of training images, pixels; fc6 is as large as the last map of one.
    """

    configuration: str = "D"
    num_classes: int = 1000
    width_multiplier: float = 1.0
    fc_width: int = 4096
    dropout_rate: float = 0.5
    init_preset: str = "glorot"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    crop: int = 224

    def __call__(
        self,
        images_BxHxWx3: jax.Array,
        train: bool = False,
        sizes_Bx2: jax.Array | None = None,
        endpoints: Sequence[str] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes class scores.

        Args:
          images_BxHxWx3: RGB on the scale 0 to 255 with the training set's mean RGB subtracted, at least as large as
            the crop.
          train: dropout on; needs an rng named "dropout".
          sizes_Bx2: int, true (height, width) of images that are padded at the bottom and the right to a common
            size; the logits are those of the unpadded images. Every size is at least the crop.
          endpoints: names of layers whose activations are returned too, see `endpoint_names`.

        Returns:
          logits [B, K] in float32, the class scores averaged over space; and {name: map} of the endpoints, maps
          [B, h, w, C] in `dtype`, `score_map` [B, h, w, K] in float32.

        Raises:
          ValueError: an unknown configuration or endpoint, or images smaller than the crop.
        """
        score_map, sizes, recorded = self._layers(images_BxHxWx3, train, sizes_Bx2, endpoints)
        if sizes is None:
            return score_map.mean((1, 2)), recorded
        return _mask(score_map, sizes).sum((1, 2)) / sizes.prod(-1, keepdims=True), recorded

    def activations(self, images_BxHxWx3: jax.Array, endpoints: Sequence[str]) -> dict[str, jax.Array]:
        """Returns the endpoints alone, as `__call__` does, and computes no layer after the last of them.

        The images may be smaller than the crop where no FC layer is among the endpoints.
        """
        names = endpoint_names(self.configuration)
        last = max(endpoints, key=names.index)
        return self._layers(images_BxHxWx3, False, None, endpoints, last)[2]

    @nn.compact
    def _layers(
        self,
        images_BxHxWx3: jax.Array,
        train: bool,
        sizes_Bx2: jax.Array | None,
        endpoints: Sequence[str],
        last: str = "score_map",
    ) -> tuple[jax.Array, jax.Array | None, dict[str, jax.Array]]:
        """Returns the map after the endpoint `last`, the true sizes in it, and the endpoints up to it."""
        if self.configuration not in CONFIGURATIONS:
            raise ValueError(f"no configuration {self.configuration!r}; there are {', '.join(CONFIGURATIONS)}")
        if unknown := set(endpoints) - set(endpoint_names(self.configuration)):
            raise ValueError(
                f"configuration {self.configuration} has no endpoint {', '.join(sorted(unknown))}; it has "
                f"{', '.join(endpoint_names(self.configuration))}"
            )
        sizes, recorded = sizes_Bx2, {}

        def record(name: str, x: jax.Array) -> None:
            if name in endpoints:
                recorded[name] = _mask(x, sizes)

        x = images_BxHxWx3.astype(self.dtype)
        record("images", x)
        for layer in CONFIGURATIONS[self.configuration]:
            if last in recorded:
                break
            if layer.kind == "conv":
                # Outside an image's true size is zero, as the padding of an unpadded image is. Layers that see one
                # place at a time need no mask, and neither does pooling, which drops an odd last row.
                x = self._convolution(layer, x.shape[-1])(_mask(x, sizes) if layer.kernel > 1 else x)
            elif layer.kind == "lrn":
                x = local_response_norm(x)
            elif layer.kind == "relu":
                x = nn.relu(x)
            elif layer.kind == "pool":
                x = max_pool_2x2(x)
                sizes = None if sizes is None else sizes // layer.stride
            elif layer.kind == "dropout":
                x = nn.Dropout(self.dropout_rate, deterministic=not train, name=layer.name)(x)
            else:
                kernel = self.crop // STRIDE if layer.name == "fc6" else 1
                x = self._fully_connected(layer, kernel)(x)
                sizes = None if sizes is None else sizes - kernel + 1
            record(layer.name, x)
        else:
            x = x.astype(jnp.float32)
            record("score_map", x)
        return x, sizes, recorded

    def _convolution(self, layer: Layer, inputs: int) -> nn.Conv:
        """Returns a convolution of stride 1 that keeps height and width (Paper §2.1)."""
        size, channels = layer.kernel, layer.scaled_channels(self.width_multiplier)
        kernel_init, bias_init = PRESETS[self.init_preset](size**2 * inputs, size**2 * channels)
        return nn.Conv(
            channels,
            (size, size),
            padding="SAME",
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            name=layer.name,
        )

    def _fully_connected(self, layer: Layer, kernel: int) -> FullyConnected:
        return FullyConnected(
            self.num_classes if layer.name == "fc8" else self.fc_width,
            (kernel, kernel),
            init_preset=self.init_preset,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=layer.name,
        )


def _mask(x_BxHxWxC: jax.Array, sizes_Bx2: jax.Array | None) -> jax.Array:
    """Returns maps that are zero outside each image's true size; unchanged where the sizes are None."""
    if sizes_Bx2 is None:
        return x_BxHxWxC
    rows = jnp.arange(x_BxHxWxC.shape[1]) < sizes_Bx2[:, :1]
    columns = jnp.arange(x_BxHxWxC.shape[2]) < sizes_Bx2[:, 1:]
    return x_BxHxWxC * (rows[:, :, None] & columns[:, None, :])[..., None].astype(x_BxHxWxC.dtype)
