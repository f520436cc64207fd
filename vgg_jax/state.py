"""The train state: everything that a run carries from step to step, and that a checkpoint holds."""

from __future__ import annotations

import copy
import hashlib
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vgg_jax.models import VGG
from vgg_jax.sharding import RULES, bytes_a_device, make_mesh, tree_shardings, whole


@flax.struct.dataclass
class TrainState:
    """Parameters, optimizer state (momentum, plateau) and the number of updates made, an int32 scalar.

    There is no random key: randomness is keyed by (seed, step).
    """

    step: jax.Array
    params: dict
    opt_state: dict


def make_model(config: ConfigDict) -> VGG:
    """The network that a configuration describes."""
    return VGG(
        configuration=config.model.configuration,
        num_classes=config.model.num_classes,
        width_multiplier=config.model.width_multiplier,
        fc_width=config.model.fc_width,
        dropout_rate=config.model.dropout_rate,
        init_preset=config.model.init,
        dtype=jnp.dtype(config.model.dtype),
        param_dtype=jnp.dtype(config.model.param_dtype),
    )


def init_key(seed: int) -> jax.Array:
    """The key that initialisation draws from."""
    return jax.random.split(jax.random.key(seed))[0]


def step_key(seed: int, step: jax.typing.ArrayLike) -> jax.Array:
    """The key that everything random on the device draws from at a step."""
    return jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], step)


def state_shapes(config: ConfigDict, model: VGG, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The train state as jax.ShapeDtypeStruct, each with the sharding that the configuration's table gives it."""
    shapes = jax.eval_shape(lambda: _init(config, model, optimizer))
    shardings = tree_shardings(shapes, mesh, config.sharding)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def state_bytes_by_sharding(
    config: ConfigDict, model: VGG, optimizer: optax.GradientTransformation
) -> list[tuple[str, int, int]]:
    """(key of sharding.RULES, devices along `model`, bytes of the state that one device holds) for every choice.

    FC layers are split over the configuration's `model_parallel`, or, where that is 1, over two devices.
    """
    found = []
    for rules in RULES:
        choice = copy.deepcopy(config)
        choice.sharding, parallel = rules, 1
        if rules == "fc_model_parallel":
            two = math.gcd(2, config.model.fc_width, jax.device_count())
            parallel = config.model_parallel if config.model_parallel > 1 else two
        found.append((rules, parallel, bytes_a_device(state_shapes(choice, model, optimizer, make_mesh(parallel)))))
    return found


def init_state(
    config: ConfigDict, model: VGG, optimizer: optax.GradientTransformation, shapes: TrainState
) -> TrainState:
    """A new state, born sharded: no device ever holds more than its part."""
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    return jax.jit(lambda: _init(config, model, optimizer), out_shardings=shardings)()


def _init(config: ConfigDict, model: VGG, optimizer: optax.GradientTransformation) -> TrainState:
    crop = config.image.crop
    params = model.init(init_key(config.seed), jnp.zeros((1, crop, crop, 3)))["params"]
    return TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params))


def params_sha256(params: dict) -> str:
    """A digest over names, shapes, dtypes and bytes of all parameters, in the order of their names.

    Where they are split over several processes, all of these call it.
    """
    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    for path, leaf in sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0])):
        array = np.asarray(whole(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
