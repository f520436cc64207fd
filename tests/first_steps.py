"""The first training steps of a configuration, on random images."""

import jax
import numpy as np

from vgg_jax.config import recipe_of
from vgg_jax.data.colors import ColorStatistics
from vgg_jax.runtime.sharding import batch_sharding, make_mesh, replicated
from vgg_jax.training.state import init_state, state_shapes
from vgg_jax.training.steps import compile_train_step

STATISTICS = ColorStatistics(np.full(3, 127.0, np.float32), np.eye(3, dtype=np.float32) * 40)


def one_batch(size, crop, classes=3, seed=0):
    rng = np.random.RandomState(seed)
    return {
        "image": rng.randint(0, 256, (size, crop, crop, 3)).astype(np.uint8),
        "label": rng.randint(0, classes, size).astype(np.int32),
    }


def some_steps(config, count, devices=1, with_state=False):
    """Losses of the first steps, on random images."""
    mesh = make_mesh(config.model_parallel, jax.devices()[:devices])
    shapes = state_shapes(recipe_of(config), mesh)
    batch = [
        jax.device_put(
            one_batch(config.batch_size, config.image.crop, config.model.num_classes, i), batch_sharding(mesh)
        )
        for i in range(count)
    ]
    step = compile_train_step(recipe_of(config), STATISTICS, mesh, shapes)
    lr = jax.device_put(np.float32(config.optimizer.learning_rate), replicated(mesh))
    state, losses = init_state(recipe_of(config), shapes), []
    for i in range(count):
        state, metrics = step(state, batch[i], lr)
        losses.append(float(metrics["loss"]))
    return (losses, state) if with_state else losses
