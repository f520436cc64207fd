"""A small net A on the built-in images: every step of an ImageNet run, in minutes on a laptop.

python -m vgg_jax.main --config=configs/quickstart.py
"""

from ml_collections import ConfigDict

from vgg_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.configuration = "A"
    config.model.num_classes = 10
    config.model.width_multiplier = 0.25
    config.model.fc_width = 256
    config.model.dropout_rate = 0.1  # half of only 256 features would be too few to learn from in minutes
    config.image.crop = 48
    config.image.scale_min = 55  # 256/224 of the crop
    config.image.scale_max = 55
    config.batch_size = 32
    config.optimizer.learning_rate = 5e-3  # at 1e-2 so small a batch may fall back to guessing in the first epochs
    config.num_epochs = 14.0
    config.log_every_steps = 25
    config.checkpoint_every_steps = 0
    config.plateau.patience = 2
    config.plateau.min_improvement = 0.02
    config.data.name = "builtin"
    config.data.threads = 4
    return config
