"""Fine-tuning a trained network on your own images: a new head, and learning rates by layer.

    python -m vgg_jax.main --config=configs/finetune.py --config.init_from=vgg16.safetensors \\
      --config.data.root=/path/to/folder

`init_from` is a run's workdir, one of its checkpoints, a weights file, or the name of published
weights (`torchvision:vgg16`). Network, width, crop and S are taken from there, except for those that
are given. All layers are copied, except a head of other classes. The folder is arranged as
<split>/<class>/<image>.

The first two blocks frozen, the others slow:

    --config.optimizer.lr_factors='conv1_*=0,conv2_*=0,conv*=0.1,classifier=10'

FC layers only, as in Paper §4.4:

    --config.optimizer.lr_factors='conv*=0'

Only convolutions copied, into another network, which is the argument (D-BN, vgg16_bn, resnet50):

    --config=configs/finetune.py:D-GAP --config.init_layers='conv*'

A normalisation layer has its convolution's rate, unless a pattern matches its name ('bn*=1').
Freezing includes its statistics. The start prints the frozen, slow and free layers.

Ours: top-1 error 73.1 % on the Caltech-101 subset (30 training images per class) after 20 epochs.

- start: net A, an eighth as wide, trained on the Imagenette subset at crop 64
- machine: two shared CPU cores
"""

import dataclasses

from ml_collections import ConfigDict

from vgg_jax.config import default_config
from vgg_jax.models import NetworkSpec


def get_config(argument: str | None = None) -> ConfigDict:
    config = default_config()
    config.start_required = True
    config.init_network = argument is None
    network = NetworkSpec.parse(argument or "D")
    config.model.update(dataclasses.asdict(network))
    config.model.num_classes = 0  # as many as the folder has
    config.image.crop = network.paper_crop
    if config.image.crop < 224:  # CIFAR's networks see whole images
        config.image.scale_min = config.image.scale_max = config.image.crop
    config.data.name = "folder"
    config.batch_size = 32  # your own folders are small
    config.num_epochs = 20.0
    config.checkpoint_every_steps = 0
    config.log_every_steps = 20
    config.optimizer.learning_rate = 1e-3  # the rate of the paper's later stages (Paper §3.1)
    config.optimizer.lr_factors = "classifier=10"  # only the new head starts at random
    config.plateau.patience = 2
    config.plateau.min_improvement = 0.002
    config.plateau.max_drops = 2
    config.plateau.min_steps = 200  # an epoch of a small folder has few steps
    return config
