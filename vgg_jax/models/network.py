"""The Flax module that computes a network from its layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, constant, zeros

from vgg_jax.models.description import Kind, Layer, Layers, endpoint_names, needed, with_inputs
from vgg_jax.models.initializers import PRESETS
from vgg_jax.models.layers import BatchNorm, Convolution, FullyConnected, local_response_norm, max_pool, max_pool_2x2


class Network(nn.Module):
    """A network, fully convolutional from the start (Paper §2.1, §3.2).

    Takes images of the crop's size or larger. Larger ones give a class score map, which is averaged over space.

    Parameters, one nested dict: of convolutions and FC layers {"kernel" [h, w, C, F], "bias" [F]}, in a VGG conv1_1 ...
    conv5_4, fc6 [h, w, C, F], fc7 [1, 1, F, F], fc8 [1, 1, F, K]; of batch normalisation {"scale" [C], "bias" [C]}, and
    in the collection "batch_stats" {"mean" [C], "var" [C]}.

    Attributes:
      layers: of `models.describe`.
      num_classes: K.
      width_multiplier: factor on the channels of all convolutions; at least 1 channel stays.
      fc_width: F, features of the hidden FC layers.
      dropout_rate: of the dropout layers that have none of their own, when training.
      init_preset: a key of `initializers.PRESETS`.
      dtype: of the computation; logits are float32.
      param_dtype: of the parameters.
      crop: height and width of training images, pixels.
      frozen: names of normalisation layers that keep their running averages, and use them in training too.
    """

    layers: Layers
    num_classes: int = 1000
    width_multiplier: float = 1.0
    fc_width: int = 4096
    dropout_rate: float = 0.5
    init_preset: str = "glorot"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    crop: int = 224
    frozen: tuple[str, ...] = ()

    def __call__(
        self,
        images_BxHxWx3: jax.Array,
        train: bool = False,
        sizes_Bx2: jax.Array | None = None,
        endpoints: Sequence[str] = (),
        offsets: dict[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes class scores.

        Args:
          images_BxHxWx3: RGB on the scale 0 to 255 with the training set's mean RGB subtracted, at least as large as
            the crop.
          train: dropout on, which needs an rng named "dropout"; batch normalisation by this batch's statistics, which
            update the running averages: "batch_stats" must be mutable.
          sizes_Bx2: int, true (height, width) of images that are padded at the bottom and the right to a common
            size; the logits equal the unpadded images'. Every size is at least the crop. Not for training.
          endpoints: names of layers whose activations are returned too, see `description.endpoint_names`.
          offsets: {endpoint: map} that are added to activations; their gradients are the gradients with respect to the
            activations.

        Returns:
          logits [B, K] in float32, the class scores averaged over space; and {name: map} of the endpoints, maps
          [B, h, w, C] in `dtype`, `score_map` [B, h, w, K] in float32. With global average pooling the score map is
          that of the last layer at every position, whose mean is the logits; without `score_map` among the endpoints
          the mean is taken first. Without a head in place of the logits there are the means [B, C] of the last map.

        Raises:
          ValueError: an unknown endpoint, or images smaller than the crop of a network with FC layers over a map.
        """
        score_map, sizes, recorded = self._layers(images_BxHxWx3, train, sizes_Bx2, endpoints, offsets=offsets or {})
        return _mean(score_map, sizes), recorded

    def activations(
        self, images_BxHxWx3: jax.Array, endpoints: Sequence[str], sizes_Bx2: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Returns the endpoints alone, as `__call__` does, and computes no layer after the last of them.

        The images may be smaller than the crop where no FC layer is among the endpoints.
        """
        last = max(endpoints, key=endpoint_names(self.layers).index)
        return self._layers(images_BxHxWx3, False, sizes_Bx2, endpoints, last)[2]

    @nn.compact
    def _layers(
        self,
        images_BxHxWx3: jax.Array,
        train: bool,
        sizes_Bx2: jax.Array | None,
        endpoints: Sequence[str],
        last: str = "score_map",
        offsets: Mapping[str, jax.Array] = MappingProxyType({}),
    ) -> tuple[jax.Array, jax.Array | None, dict[str, jax.Array]]:
        """Returns the map after the endpoint `last`, the true sizes in it, and the endpoints up to it."""
        if unknown := set(endpoints) - set(endpoint_names(self.layers)):
            raise ValueError(
                f"the network has no endpoint {', '.join(sorted(unknown))}; it has "
                f"{', '.join(endpoint_names(self.layers))}"
            )
        is_dense = "score_map" in endpoints
        # Auxiliary classifiers are computed where they are asked for, and where all parameters are made.
        head = self.layers[-1].name
        results = {head if name == "score_map" else name for name in (*endpoints, last)}
        computed = None if self.is_initializing() else needed(self.layers, results)
        outputs = {"images": (images_BxHxWx3.astype(self.dtype), sizes_Bx2)}
        # Of the others only the last is needed, and memory is, where nothing is compiled.
        needed_later = {name for layer in self.layers for name in layer.inputs} | set(endpoints)
        for layer, inputs in with_inputs(self.layers):
            if last in outputs:
                break
            if computed is not None and layer.name not in computed:
                continue
            (x, sizes), *others = (outputs[name] for name in inputs)
            if layer.kind == "mean":
                if not is_dense:
                    x, sizes = _mean(x, sizes)[:, None, None], None
            else:
                # Outside an image's true size is what an unpadded image is padded with. Layers that see one place at a
                # time need no mask, and neither does pooling that drops a last window which is not whole.
                if layer.sees_neighbors:
                    x = _mask(x, sizes, -jnp.inf if layer.kind == "pool" else 0)
                x = FUNCTIONS[layer.kind](_Inputs(self, layer, [x, *(other for other, _ in others)], train))
                sizes = None if sizes is None else layer.out_length(sizes)
            outputs[layer.name] = x + offsets[layer.name] if layer.name in offsets else x, sizes
            if inputs[0] not in needed_later:
                del outputs[inputs[0]]
        else:
            outputs["score_map"] = x.astype(jnp.float32), sizes
        recorded = {name: _mask(*outputs[name]) for name in endpoints if name in outputs}
        return *outputs[last], recorded

    def initializers(self, layer: Layer, fan_in: int, fan_out: int) -> tuple[Initializer, Initializer]:
        """Returns the initializers of a layer's kernel and bias."""
        kernel_init, bias_init = PRESETS[self.init_preset](fan_in, fan_out)
        is_own = layer.initial_bias and bias_init is zeros
        return kernel_init, constant(layer.initial_bias) if is_own else bias_init


class _Inputs(NamedTuple):
    """Inputs of one layer of a network."""

    network: Network
    layer: Layer
    maps: list[jax.Array]
    train: bool

    @property
    def common(self) -> dict[str, Any]:
        """Returns what every module with parameters is given."""
        return {"dtype": self.network.dtype, "param_dtype": self.network.param_dtype, "name": self.layer.name}


def _convolution(inputs: _Inputs) -> jax.Array:
    network, layer, (x,), _ = inputs
    size, channels, groups = layer.kernel, layer.scaled_channels(network.width_multiplier), layer.groups
    fans = size**2 * x.shape[-1] // groups, size**2 * channels // groups
    settings = (size, layer.stride, layer.padding, groups, layer.has_bias)
    return Convolution(channels, *settings, *network.initializers(layer, *fans), **inputs.common)(x)


def _fully_connected(inputs: _Inputs) -> jax.Array:
    network, layer, (x,), _ = inputs
    if layer.kind == "head":
        features = network.num_classes
    else:
        features = layer.scaled_channels(network.width_multiplier) if layer.channels else network.fc_width
    # The fans are the matrix's: counting the map once more on the output side, as an initializer for convolution
    # kernels would, makes fc6 2.7 times too small.
    fans, kernel_size = (layer.kernel**2 * x.shape[-1], features), (layer.kernel,) * 2
    return FullyConnected(features, kernel_size, *network.initializers(layer, *fans), **inputs.common)(x)


def _batch_norm(inputs: _Inputs) -> jax.Array:
    network, layer, (x,), train = inputs
    return BatchNorm(use_running_average=not train or layer.name in network.frozen, **inputs.common)(x)


def _pool(inputs: _Inputs) -> jax.Array:
    _, layer, (x,), _ = inputs
    if (layer.kernel, layer.stride, layer.padding_after) == (2, 2, 0):
        return max_pool_2x2(x)
    return max_pool(x, layer.kernel, layer.stride, layer.padding, layer.padding_after)


def _mean_pool(inputs: _Inputs) -> jax.Array:
    _, layer, (x,), _ = inputs
    # Windows are summed in float32, as all sums are.
    return nn.avg_pool(x.astype(jnp.float32), (layer.kernel,) * 2, (layer.stride,) * 2).astype(x.dtype)


def _zero_pad(inputs: _Inputs) -> jax.Array:
    network, layer, (x,), _ = inputs
    added = layer.scaled_channels(network.width_multiplier) - x.shape[-1]
    return jnp.pad(x[:, :: layer.stride, :: layer.stride], ((0, 0),) * 3 + ((0, added),))


def _dropout(inputs: _Inputs) -> jax.Array:
    network, layer, (x,), train = inputs
    rate = layer.dropout_rate or network.dropout_rate
    return nn.Dropout(rate, deterministic=not train, name=layer.name)(x)


# "mean" needs the images' true sizes: `Network._layers` computes it.
FUNCTIONS: dict[Kind, Callable[[_Inputs], jax.Array]] = {
    "conv": _convolution,
    "batch_norm": _batch_norm,
    "relu": lambda inputs: nn.relu(inputs.maps[0]),
    "lrn": lambda inputs: local_response_norm(inputs.maps[0]),
    "pool": _pool,
    "mean_pool": _mean_pool,
    "add": lambda inputs: inputs.maps[0] + inputs.maps[1],
    "concat": lambda inputs: jnp.concatenate(inputs.maps, -1),
    "zero_pad": _zero_pad,
    "dropout": _dropout,
    "fc": _fully_connected,
    "head": _fully_connected,
}


@functools.lru_cache(maxsize=16)
def variable_shapes(network: Network) -> Any:
    """Returns a network's variables as jax.ShapeDtypeStruct, whatever its size: neither they nor images take memory."""
    images = jax.ShapeDtypeStruct((1, network.crop, network.crop, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), images)


def _mean(x_BxHxWxC: jax.Array, sizes_Bx2: jax.Array | None) -> jax.Array:
    """Returns the means [B, C] over each image's true size."""
    if sizes_Bx2 is None:
        return x_BxHxWxC.mean((1, 2))
    sums = _mask(x_BxHxWxC.astype(jnp.float32), sizes_Bx2).sum((1, 2))
    return (sums / sizes_Bx2.prod(-1, keepdims=True)).astype(x_BxHxWxC.dtype)


def _mask(x_BxHxWxC: jax.Array, sizes_Bx2: jax.Array | None, outside: float = 0) -> jax.Array:
    """Returns maps that have one value outside each image's true size; unchanged where the sizes are None."""
    if sizes_Bx2 is None:
        return x_BxHxWxC
    rows = jnp.arange(x_BxHxWxC.shape[1]) < sizes_Bx2[:, :1]
    columns = jnp.arange(x_BxHxWxC.shape[2]) < sizes_Bx2[:, 1:]
    inside = (rows[:, :, None] & columns[:, None, :])[..., None]
    return jnp.where(inside, x_BxHxWxC, jnp.asarray(outside, x_BxHxWxC.dtype))
