"""GoogLeNet with its auxiliary classifiers on ImageNet (Szegedy et al. 2014).

    python -m vgg_jax.main --config=configs/googlenet.py
    vgg-jax evaluate --workdir=runs/googlenet --protocol=square_crop

Published, top-5 error (Tables 2 and 3):

- one network, one crop: 10.07 %
- one network, 144 crops: 7.89 %
- seven networks: 6.67 %

Ours: not trained on ImageNet yet.

Recipe of the paper:

- momentum 0.9, dropout 0.4
- random resized crops of 8 to 100 % of the area
- two auxiliary classifiers, whose losses count 0.3
- learning rate "4 % fewer every 8 epochs"

The paper gives neither the batch, nor other rates, nor its initialisation. Ours:

- batch 256, L2 2e-4, Glorot's initialisation
- learning rate 0.01, times 0.96 every 8 epochs, for 250 epochs
- an exponential average of the parameters in place of Polyak's
"""

from ml_collections import ConfigDict

from vgg_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.configuration = "GoogLeNet"
    config.model.auxiliary = True
    config.model.dropout_rate = 0.4
    config.image.area_min = 0.08
    config.ema_decay = 0.9999
    config.optimizer.l2 = 2e-4
    config.schedule.name = "steps"
    config.schedule.drop_factor = 0.96
    config.schedule.drop_epochs = tuple(range(8, 250, 8))
    config.num_epochs = 250.0
    return config
