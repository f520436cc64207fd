"""The public model: a backbone that also predicts by the test protocol, and loads from weights and runs."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any

import flax.struct
import numpy as np

from vgg_jax.features.backbone import Backbone, from_weights
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights import hub

if TYPE_CHECKING:
    from vgg_jax.evaluation.predictor import Images, Predictor

_DTYPES = ("float32", "bfloat16")


@flax.struct.dataclass(eq=False)
class Model(Backbone):
    """A network with its parameters, classes and preprocessing: a pytree that goes through jit, grad and vmap."""

    # The decorator would make another one.
    __repr__ = Backbone.__repr__

    def predict(
        self, images: Images, protocol: str = "dense", scales: str = "", batch_size: int = 0, exif: bool | None = None
    ) -> np.ndarray:
        """Computes class probabilities by the test protocol (Paper §3.2, §4), as `vgg-jax predict` does.

        The network is compiled once for each shape of images, and the model keeps what is compiled.

        Args:
          images: one image [H, W, 3] or its path, a batch [N, H, W, 3], or a list of arrays or paths of any sizes.
            Arrays are RGB on 0 to 255: uint8, or floats, which are rounded to whole numbers.
          protocol: center_crop, ten_crop, dense, multi_crop, square_crop or dense+multi_crop.
          scales: test scales Q: "single", "multi", numbers with commas between; "" for the protocol's own.
          batch_size: images of the crop's size at once; 0: 64 a device. It changes no result.
          exif: turn files as their EXIF orientation says; None: as the model's run.

        Returns:
          [K] float64 for one image, [N, K] for several.

        Raises:
          UserError: a trunk, an image that cannot be read, or an option that cannot be.
        """
        return self._predictor.probabilities(images, protocol, scales, batch_size, exif)

    @functools.cached_property
    def _predictor(self) -> Predictor:
        # Imported here: activations need neither data nor configuration.
        from vgg_jax.evaluation.predictor import Predictor

        return Predictor(self)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the fields for pickle and copy, without what `predict` has compiled."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def load(source: str | os.PathLike, dtype: str = "") -> Model:
    """Loads a model.

    Args:
      source: a weights file of `vgg-jax convert`, a run's workdir, which stands for its best checkpoint, one of its
        `checkpoints/<step>`, or the name of published weights, as torchvision:vgg16. A path wins over a name.
      dtype: of the computation, float32 or bfloat16; "" for a run's own, float32 for weights.

    Raises:
      UserError: nothing to read there, something damaged, or another dtype.
    """
    if dtype not in ("", *_DTYPES):
        raise UserError(f"the dtype is {dtype!r}; it must be one of {', '.join(_DTYPES)}.")
    path, weights = hub.load(source)
    if weights:
        return _model(from_weights(weights, dtype or "float32"))
    # Imported here: checkpoints take Orbax and a configuration, which weights do not need.
    from vgg_jax.evaluation.trained_model import backbone_of_run

    return _model(backbone_of_run(path, dtype))


def _model(backbone: Backbone) -> Model:
    return Model(**{field.name: getattr(backbone, field.name) for field in dataclasses.fields(backbone)})
