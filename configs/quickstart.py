"""A small net A on the built-in pictures: the whole path of an ImageNet run in a few minutes on a laptop.

    python -m vgg_jax.main --config=configs/quickstart.py
"""

from vgg_jax.config import default_config


def get_config():
    config = default_config()
    config.model.configuration = "A"
    config.model.num_classes = 10
    config.model.width_multiplier = 0.25
    config.model.fc_width = 256
    config.image.crop = 64
    config.image.scale_min = 73
    config.image.scale_max = 73
    config.batch_size = 64
    config.num_epochs = 10.0
    config.log_every_steps = 20
    config.checkpoint_every_steps = 0
    config.plateau.patience = 1
    config.plateau.min_improvement = 0.01
    config.data.name = "builtin"
    config.data.threads = 4
    return config
