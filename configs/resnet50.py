"""ResNet-50, or after a colon 18, 34, 50, 101 or 152, as its paper trains it on ImageNet (He et al. 2015, §3.4).

Published: top-1/top-5 error with 10 crops 27.88 (18), 24.52/7.46 (34), 22.85/6.71 (50), 21.75/6.05 (101), 21.43/5.71 % (152; Tables
2 and 3); dense at five scales 20.74/5.25 (50), 19.87/4.60 (101), 19.38/4.49 % (152; Table 4). VGG-16, 10 crops: 28.07/9.33 %.
Ours: not trained on ImageNet yet.
Recipe: batch 256, momentum 0.9, L2 1e-4, He's initialisation, learning rate 0.1 divided by 10 at each of three plateaus, at most
600,000 iterations (120 epochs); S uniform in [256, 480], one random crop of 224, flipped and shifted in colour; no dropout. The
stride of a bottleneck is in its 3x3 convolution, as in torchvision's files; the paper's is --config.model.bottleneck_stride=1x1.

    python -m vgg_jax.main --config=configs/resnet50.py
    python -m vgg_jax.main --config=configs/resnet50.py:18
"""

from ml_collections import ConfigDict

from vgg_jax.config import default_config


def get_config(depth: str = "50") -> ConfigDict:
    config = default_config()
    config.model.configuration = f"ResNet-{depth}"
    config.model.init = "he"
    config.image.scale_min, config.image.scale_max = 256, 480
    config.optimizer.learning_rate = 0.1
    config.optimizer.l2 = 1e-4
    config.num_epochs = 120.0
    return config
