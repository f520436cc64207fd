"""GoogLeNet with its auxiliary classifiers on ImageNet (Szegedy et al. 2014).

Published: top-5 error of one network with one crop 10.07 %, with 144 crops 7.89 %; of seven networks 6.67 % (Tables 2 and 3).
Ours: not trained on ImageNet yet.
Recipe: momentum 0.9, dropout 0.4, random resized crops of 8 to 100 % of the area, two auxiliary classifiers whose losses count 0.3. The
paper says neither batch nor rates beyond "4 % fewer every 8 epochs"; ours: batch 256, L2 2e-4, learning rate 0.01 times 0.96 every 8
epochs, for 250 epochs. The start is Glorot's: the paper does not say its own. An exponential average of the parameters takes the place
of Polyak's.

    python -m vgg_jax.main --config=configs/googlenet.py
    vgg-jax evaluate --workdir=runs/googlenet --protocol=square_crop
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
    config.schedule.drop_epochs = ",".join(str(epoch) for epoch in range(8, 250, 8))
    config.num_epochs = 250.0
    return config
