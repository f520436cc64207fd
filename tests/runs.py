"""Workdirs of runs without training: models with random weights whose probabilities are neither flat nor certain."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from vgg_jax.config import recipe_of
from vgg_jax.data.builtin import CLASS_NAMES, render
from vgg_jax.data.sources import expanded, prepared_data
from vgg_jax.data.splits import open_split
from vgg_jax.training.checkpoints import Checkpoints, Progress
from vgg_jax.training.optimizer import make_optimizer
from vgg_jax.training.state import TrainState, model_shapes
from vgg_jax.training.workdir import claim_workdir

# (width, height): awkward, upright, square, long.
SIZES = [(75, 101), (190, 80), (64, 64), (97, 96), (80, 150), (131, 77), (66, 120), (150, 100), (330, 70), (64, 300)]


def varied_images(root: Path, split: str = "validation", sizes=SIZES) -> Path:
    """A folder of drawn images of these sizes in three classes, <root>/<split>/<class>/<number>.png."""
    for i, size in enumerate(sizes):
        image, label = render(200_000 + 10 * i + i % 3)
        file = root / split / CLASS_NAMES[label] / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.resize(size, Image.Resampling.BICUBIC).save(file)
    return root


def records_of(config, split: str = "validation"):
    """The records of a folder's split."""
    return open_split(prepared_data("folder", expanded(config.data.dir), config.data.root), split, "split")


def random_params(config, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    params = {}
    for name, layer in model_shapes(recipe_of(config))["params"].items():
        kernel = (
            rng.normal(size=layer["kernel"].shape) * (2 / (layer["kernel"].size // layer["kernel"].shape[-1])) ** 0.5
        )
        params[name] = {
            "kernel": jnp.asarray(kernel * (0.05 if name == "fc8" else 1), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=layer["bias"].shape), jnp.float32),
        }
    return params


def make_run(workdir: Path, config, seed: int = 0, class_names=CLASS_NAMES[:3], state=None) -> Path:
    """Leaves in `workdir` what training leaves that evaluation reads: one checkpoint at step 7, by default of a VGG."""
    description = {
        "name": "drawn",
        "class_names": list(class_names),
        "mean_rgb": [120.0, 110.0, 100.0],
        "color_vectors": np.eye(3).tolist(),
    }
    claim_workdir(workdir, recipe_of(config), description)
    if state is None:
        params = random_params(config, seed)
        state = TrainState(jnp.int32(7), params, {}, make_optimizer(recipe_of(config)).init(params))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(7, state, Progress(best_step=7, best_top1_error=0.5))
    checkpoints.wait()
    checkpoints.close()
    return workdir
