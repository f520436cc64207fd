"""A small network on your own images: 50 to 50,000 of 2 to 200 classes, on two CPU cores.

    vgg-jax train --config=small --config.data.root=/path/to/folder
    vgg-jax train --config=small:112 --config.data.root=/path/to/folder

The folder is arranged as <class>/<image> or <split>/<class>/<image>. After the colon stands the crop
in pixels: 64 (the default), 112, 224 or another multiple of 16. S is 256/224 of it.

Ours: top-1 error 32.7 % (mean of seeds 0, 1, 2: 33.4, 32.2, 32.6), where guessing gives 80 %.

- data: the first 54 training images of each of the first five classes of the Imagenette subset,
  and their 500 validation images
- time: 2 to 4 minutes on two shared CPU cores

Recipe:

- network: A, a quarter as wide, with batch normalisation and global average pooling
- batch 32, momentum 0.9, L2 5e-4, He's initialisation
- learning rate 0.05 after two epochs of warm-up, lowered to 0 by a cosine over 30 epochs
- an epoch has at least 20 steps, so 50 images are trained on for 600 steps
- random resized crops of 25 to 100 % of the area, flipped, shifted in colour
"""

from ml_collections import ConfigDict

from vgg_jax.config import default_config, scaled_length
from vgg_jax.runtime.exceptions import UserError


def get_config(crop: str = "64") -> ConfigDict:
    config = default_config()
    if not crop.isdecimal() or int(crop) < 32 or int(crop) % 16:
        raise UserError(
            f"configs/small.py does not know the argument {crop!r}: write the crop in pixels, a multiple of 16, as "
            "small:112 does."
        )
    config.model.configuration = "A"
    config.model.batch_norm = True
    config.model.head = "gap"
    config.model.num_classes = 0  # as many as the folder has
    config.model.width_multiplier = 0.25
    config.model.init = "he"
    config.image.crop = int(crop)
    config.image.scale_min = config.image.scale_max = scaled_length(256, int(crop))
    config.image.area_min = 0.25
    config.data.name = "folder"
    config.data.threads = 4
    config.batch_size = 32
    config.num_epochs = 30.0
    config.min_epoch_steps = 20
    config.log_every_steps = 20
    config.checkpoint_every_steps = 0
    config.optimizer.learning_rate = 0.05
    config.plateau.min_steps = 200  # of the schedule `plateau`, in place of the cosine
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 2.0
    return config
