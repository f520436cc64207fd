"""ResNet-50, or after a colon 18, 34, 50, 101 or 152, on ImageNet (He et al. 2015, §3.4).

    python -m vgg_jax.main --config=configs/resnet50.py
    python -m vgg_jax.main --config=configs/resnet50.py:18

Published, top-1/top-5 error in % (Tables 2 and 3, dense Table 4):

| network | 10 crops | dense at five scales |
| --- | --- | --- |
| ResNet-18 | 27.88 | |
| ResNet-34 | 24.52/7.46 | |
| ResNet-50 | 22.85/6.71 | 20.74/5.25 |
| ResNet-101 | 21.75/6.05 | 19.87/4.60 |
| ResNet-152 | 21.43/5.71 | 19.38/4.49 |
| VGG-16 | 28.07/9.33 | |

Ours: not trained on ImageNet yet.

Recipe:

- batch 256, momentum 0.9, L2 1e-4, He's initialisation, without dropout
- learning rate 0.1, divided by 10 at each of three plateaus
- at most 600,000 iterations (120 epochs)
- S uniform in [256, 480], one random crop of 224, flipped and shifted in colour

The stride of a bottleneck is in its 3x3 convolution, as in torchvision's files. For the paper's
form: --config.model.bottleneck_stride=1x1.
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
