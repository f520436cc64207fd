"""Features of a folder of images, in a NumPy file.

    python examples/extract_features.py --weights=torchvision:vgg16 --folder=photos --output=features.npz

The file has `paths` [N] and `features` [N, C]: a layer's activations on the centre crop, averaged over space.
"""

from pathlib import Path

import jax
import numpy as np

import vgg_jax
from vgg_jax import features
from vgg_jax.commands import cli
from vgg_jax.data.crops import read_rescaled
from vgg_jax.data.image_kinds import is_named_like_an_image
from vgg_jax.models.description import last_features
from vgg_jax.runtime.exceptions import UserError, writing_to

flags = cli.Flags()
_WEIGHTS = flags.DEFINE_string("weights", None, "Weights: a file, a run or a name.", required=True)
_FOLDER = flags.DEFINE_string("folder", None, "Folder of images, with its subfolders.", required=True)
_LAYER = flags.DEFINE_string("layer", "", "Layer, such as relu4_3. Default: the last ReLU before FC layers.")
_OUTPUT = flags.DEFINE_string("output", "features.npz", "NumPy file that is written.")


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--folder=photos")
    paths = sorted(path for path in Path(_FOLDER.value).expanduser().rglob("*") if is_named_like_an_image(path))
    if not paths:
        raise UserError(f"--folder={_FOLDER.value} has no images; give a folder of images.")
    model = vgg_jax.load(_WEIGHTS.value)
    layer = _LAYER.value or last_features(model.network.layers, is_map=True)

    @jax.jit
    def pooled(model, image_HxWx3):
        return features.activations(model, image_HxWx3, (layer,))[layer].mean((0, 1))

    rows = []
    for path in paths:
        image = read_rescaled(path, model.training_scales[0], model.crop)
        rows.append(np.asarray(pooled(model, image.astype(np.float32))))
    with writing_to(_OUTPUT.value, "choose another --output"):
        np.savez(_OUTPUT.value, paths=[str(path) for path in paths], features=np.stack(rows))
    print(f"written: {_OUTPUT.value}, {layer} of {len(rows)} images, {rows[0].size} numbers each")


if __name__ == "__main__":
    cli.run(main, flags)
