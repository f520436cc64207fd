"""Fine-tuning in Python: a new head on the last map, the body at a lower rate.

python examples/finetune.py --weights=torchvision:vgg16 --folder=photos
"""

from pathlib import Path

import jax
import numpy as np
import optax

import vgg_jax
from vgg_jax.commands import cli
from vgg_jax.data.crops import read_rescaled
from vgg_jax.data.image_kinds import is_named_like_an_image
from vgg_jax.models.description import last_features

flags = cli.Flags()
_WEIGHTS = flags.DEFINE_string("weights", None, "Weights: a file, a run or a name.", required=True)
_FOLDER = flags.DEFINE_string("folder", None, "Folder <class>/<image>; each fifth validates.", required=True)
_STEPS = flags.DEFINE_integer("steps", 200, "Number of updates.", lower_bound=1)
_BODY_RATE = flags.DEFINE_float("body_rate", 1e-5, "Adam's learning rate of the body; 0 freezes it.", lower_bound=0)


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--folder=photos")
    model = vgg_jax.load(_WEIGHTS.value)
    layer = last_features(model.network.layers, is_map=True)
    files = sorted(filter(is_named_like_an_image, Path(_FOLDER.value).expanduser().glob("*/*")))
    classes, labels = np.unique([file.parent.name for file in files], return_inverse=True)
    validates = np.array([sum(labels[:i] == label) % 5 == 4 for i, label in enumerate(labels)], bool)
    if len(classes) < 2 or not validates.any():
        raise vgg_jax.UserError(f"--folder={_FOLDER.value} needs two classes, one with five images; add images.")
    images = np.stack([read_rescaled(file, model.training_scales[0], model.crop) for file in files])

    def loss(params, x, y):
        body = model.replace(params=params["body"])
        map_BxHxWxC = vgg_jax.features.activations(body, x.astype(np.float32), (layer,))[layer]
        logits = jax.nn.standardize(map_BxHxWxC.mean((1, 2))) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

    @jax.jit
    def update(params, state, x, y):
        updates, state = optimizer.update(jax.grad(loss, has_aux=True)(params, x, y)[0], state)
        return optax.apply_updates(params, updates), state

    optimizers = {"body": optax.adam(_BODY_RATE.value), "head": optax.adam(0.01)}
    optimizer = optax.multi_transform(optimizers, {"body": "body", "head": "head"})
    first = vgg_jax.features.activations(model, images[0].astype(np.float32), (layer,))[layer]
    params = {"body": model.params, "head": np.zeros((first.shape[-1], len(classes)))}
    state, rng = optimizer.init(params), np.random.default_rng(0)
    for _ in range(_STEPS.value):
        batch = rng.choice(np.flatnonzero(~validates), 32)
        params, state = update(params, state, images[batch], labels[batch])
    wrong = loss(params, images[validates], labels[validates])[1].argmax(1) != labels[validates]
    print(f"validation error {wrong.mean():.1%} of {wrong.size} images, guessing {1 - 1 / len(classes):.1%}")


if __name__ == "__main__":
    cli.run(main, flags)
