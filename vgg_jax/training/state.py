"""The train state: everything that a run carries from step to step, and that a checkpoint holds."""

from __future__ import annotations

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vgg_jax.models import Network
from vgg_jax.recipe import Recipe
from vgg_jax.runtime.sharding import RULES, bytes_a_device, make_mesh, tree_shardings
from vgg_jax.training.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """Everything that an update reads and writes; randomness is keyed by (seed, step), so there is no random key."""

    step: jax.Array  # updates made, an int32 scalar
    params: dict
    model_state: dict  # what the forward pass updates, by Flax collection; empty for networks without normalisation
    opt_state: dict  # of the optimizer
    averages: dict | None = None  # exponential moving average of the variables; None where `ema_decay` is 0

    @property
    def variables(self) -> dict:
        """Returns the first argument of `model.apply`."""
        return {"params": self.params, **self.model_state}

    def with_variables(self, variables: dict) -> TrainState:
        """Returns the state with other parameters and model state."""
        model_state = {name: tree for name, tree in variables.items() if name != "params"}
        # A step is given the memory of the whole state, so the average is a copy.
        averages = None if self.averages is None else jax.tree.map(jnp.copy, variables)
        return dataclasses.replace(self, params=variables["params"], model_state=model_state, averages=averages)


def make_model(recipe: Recipe) -> Network:
    """Returns the network that a configuration describes."""
    layers, factors = recipe.layers, dict(recipe.optimizer.lr_factors)
    return Network(
        layers=layers,
        num_classes=recipe.model.num_classes,
        width_multiplier=recipe.model.width_multiplier,
        fc_width=recipe.model.fc_width,
        dropout_rate=recipe.model.dropout_rate,
        init_preset=recipe.model.init,
        dtype=recipe.model.dtype,
        param_dtype=recipe.model.param_dtype,
        crop=recipe.image.crop,
        frozen=tuple(x.name for x in layers if x.is_norm and not factors[x.name]),
    )


def init_key(seed: int) -> jax.Array:
    """Returns the key that initialisation draws from."""
    return jax.random.split(jax.random.key(seed))[0]


def step_key(seed: int, step: jax.typing.ArrayLike) -> jax.Array:
    """Returns the key of all randomness on the device at a step."""
    return jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], step)


def state_shapes(recipe: Recipe, mesh: Mesh) -> TrainState:
    """Returns the train state as jax.ShapeDtypeStruct, with the shardings of the configuration's table."""
    shapes = jax.eval_shape(lambda: _init(recipe))
    shardings = tree_shardings(shapes, mesh, recipe.sharding)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def state_bytes_by_sharding(recipe: Recipe) -> list[tuple[str, int, int]]:
    """Returns (key of sharding.RULES, devices along `model`, bytes of the state on one device) for every choice.

    FC layers are split over the configuration's `model_parallel`, or, where that is 1, over two devices.
    """
    sizes = []
    for rules in RULES:
        choice, parallel = dataclasses.replace(recipe, sharding=rules), 1
        if rules == "fc_model_parallel":
            two = math.gcd(2, recipe.model.fc_width, jax.device_count())
            parallel = recipe.model_parallel if recipe.model_parallel > 1 else two
        sizes.append((rules, parallel, bytes_a_device(state_shapes(choice, make_mesh(parallel)))))
    return sizes


def init_state(recipe: Recipe, shapes: TrainState) -> TrainState:
    """Initialises the state directly in its sharded layout.

    The CPU's code is optimised little: that saves most of the time to compile it, and with more, jaxlib 0.12 draws
    numbers that depend on the sharding in their last digit.
    """
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    devices = next(iter(jax.tree.leaves(shardings))).device_set
    options = {"xla_backend_optimization_level": 1} if next(iter(devices)).platform == "cpu" else None
    return jax.jit(lambda: _init(recipe), out_shardings=shardings, compiler_options=options)()


def model_shapes(recipe: Recipe) -> dict:
    """Returns the variables of a configuration's model as jax.ShapeDtypeStruct."""
    return jax.eval_shape(lambda: _init_variables(recipe))


def _init_variables(recipe: Recipe) -> dict:
    crop = recipe.image.crop
    return dict(make_model(recipe).init(init_key(recipe.seed), jnp.zeros((1, crop, crop, 3))))


def _init(recipe: Recipe) -> TrainState:
    model_state = _init_variables(recipe)
    params = model_state.pop("params")
    averages = {"params": params, **model_state} if recipe.ema_decay else None
    return TrainState(jnp.int32(0), params, model_state, make_optimizer(recipe).init(params), averages)
