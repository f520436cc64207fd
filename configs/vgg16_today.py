"""Configuration D by a recipe of today.

    python -m vgg_jax.main --config=configs/vgg16_today.py

Published: nothing by this recipe.
Ours: not trained on ImageNet yet.

Recipe:

- network: batch normalisation and global average pooling
- batch 256, momentum 0.9, L2 5e-5, He's initialisation
- learning rate 0.1 after five epochs of warm-up, lowered to 0 by a cosine over 100 epochs
- random resized crops of 8 to 100 % of the area, flipped
- labels smoothed by 0.1, mixup 0.2 and CutMix 1 in turns
- an exponential average of the parameters, 0.9998 per step, is evaluated and saved
"""

from ml_collections import ConfigDict

from vgg_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.configuration = "D"
    config.model.batch_norm = True
    config.model.head = "gap"
    config.model.init = "he"
    config.image.area_min = 0.08
    config.augment.color_std = 0.0
    config.augment.mixup = 0.2
    config.augment.cutmix = 1.0
    config.label_smoothing = 0.1
    config.ema_decay = 0.9998
    config.optimizer.learning_rate = 0.1
    config.optimizer.l2 = 5e-5
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 5.0
    config.num_epochs = 100.0
    return config
