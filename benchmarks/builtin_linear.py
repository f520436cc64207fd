"""How far a linear model gets on the built-in images: centre crops of quickstart's size, ridge regression on one-hot
labels in closed form, the best of many penalties (chosen on the validation split itself, in the model's favour).

    python -m benchmarks.builtin_linear
"""

import numpy as np

from configs.quickstart import get_config
from vgg_jax.config import recipe_of
from vgg_jax.data.crops import center_crop
from vgg_jax.data.sources import open_dataset


def arrays(config, records):
    crops = [
        center_crop(records[i]["image"], recipe_of(config).image.eval_scale, config.image.crop)
        for i in range(len(records))
    ]
    return np.stack(crops).reshape(len(crops), -1) / 127.5 - 1, np.array(
        [records[i]["label"] for i in range(len(records))]
    )


def main():
    config = get_config()
    dataset = open_dataset(recipe_of(config))
    x, y = arrays(config, dataset.train)
    x_val, y_val = arrays(config, dataset.validation)
    mean = x.mean(0)
    x, x_val = x - mean, x_val - mean
    targets = np.eye(len(dataset.class_names))[y]
    values, vectors = np.linalg.eigh(x @ x.T)
    for penalty in 10.0 ** np.arange(0, 8):
        weights = vectors @ ((vectors.T @ targets) / (values.clip(0) + penalty)[:, None])
        errors = [np.mean((v @ x.T @ weights).argmax(1) != labels) for v, labels in ((x, y), (x_val, y_val))]
        print(f"penalty {penalty:9.0e}: top-1 error {errors[0]:.1%} on training, {errors[1]:.1%} on validation images")


if __name__ == "__main__":
    main()
