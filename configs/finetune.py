"""Fine-tuning a trained VGG on images of one's own: a new head, and rates by layer.

    python -m vgg_jax.main --config=configs/finetune.py:D --config.init_from=vgg16.safetensors \\
      --config.data.root=/path/to/folder --config.model.num_classes=5

The argument is the network of the model that `init_from` names (D, D-BN-GAP, vgg16_bn, resnet50): a run's workdir, one of its checkpoints, or a weights
file. Its layers are taken over but for a head of other classes. The folder is laid out <split>/<class>/<image>.

    --config.optimizer.lr_factors='conv1_*=0,conv2_*=0,conv*=0.1,classifier=10'   # the first two blocks frozen, the others slow
    --config.optimizer.lr_factors='conv*=0'       # FC layers alone, as in Paper §4.4
    --config.init_layers='conv*'                                           # only convolutions are taken over
    --config.image.crop=64 --config.image.scale_min=73 --config.image.scale_max=73   # a model of another crop

A normalisation layer is frozen or slowed with its convolution, statistics included, unless a pattern matches its own name
('bn*=1'). The start prints which layers are frozen, slow and free.

Ours: top-1 error 73.1 % on the Caltech-101 subset (30 training images a class) after 20 epochs, from a net A of an eighth of
the width that was trained on the Imagenette subset at crop 64; two shared CPU cores.
"""

import dataclasses

from ml_collections import ConfigDict

from vgg_jax.config import default_config
from vgg_jax.models import NetworkSpec


def get_config(argument: str | None = None) -> ConfigDict:
    config = default_config()
    config.start_required = True
    network = NetworkSpec.parse(argument or "D")
    config.model.update(dataclasses.asdict(network))
    config.image.crop = network.paper_crop
    if config.image.crop < 224:  # CIFAR's networks see whole images
        config.image.scale_min = config.image.scale_max = config.image.crop
    config.data.name = "folder"
    config.batch_size = 32  # folders of one's own are small
    config.num_epochs = 20.0
    config.checkpoint_every_steps = 0
    config.log_every_steps = 20
    config.optimizer.learning_rate = 1e-3  # that of the paper's later stages (Paper §3.1)
    config.optimizer.lr_factors = "classifier=10"  # the new head starts at random, all else does not
    config.plateau.patience = 2
    config.plateau.min_improvement = 0.002
    config.plateau.max_drops = 2
    return config
