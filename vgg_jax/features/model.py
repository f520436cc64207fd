"""The public model: parameters and everything that using them takes, as one pytree."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.models import Network, NetworkSpec
from vgg_jax.runtime.exceptions import UserError, plain_name
from vgg_jax.weights import hub
from vgg_jax.weights.file import Weights, folded_params, make_model
from vgg_jax.weights.imagenet_classes import titles

if TYPE_CHECKING:
    from vgg_jax.evaluation.predictor import Images, Predictor

_DTYPES = ("float32", "bfloat16")


@flax.struct.dataclass
class Model:
    """A network with its parameters, classes and preprocessing: a pytree that goes through jit, grad and vmap.

    Attributes:
      params: {layer: {"kernel", "bias"}}, for RGB on 0 to 255 minus `mean_rgb`.
      mean_rgb: [3] float32.
      network: the Flax module that takes them.
      spec: the network's options.
      model_state: statistics of batch normalisation, where it has any.
      class_names: in the order of the classes; () for a trunk.
      class_titles: what a person calls the classes.
      training_scales: S, pixels, from and to.
      eval_scale: Q of a centre crop, pixels; 0: S, or the middle of the range.
      exif: whether files are turned as their EXIF orientation says.
      source: where the parameters come from, for a person.
    """

    params: dict
    mean_rgb: jax.Array
    network: Network = flax.struct.field(pytree_node=False)
    spec: NetworkSpec = flax.struct.field(pytree_node=False)
    model_state: dict = flax.struct.field(default_factory=dict)
    class_names: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
    class_titles: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
    training_scales: tuple[int, int] = flax.struct.field(pytree_node=False, default=(0, 0))
    eval_scale: int = flax.struct.field(pytree_node=False, default=0)
    exif: bool = flax.struct.field(pytree_node=False, default=False)
    source: str = flax.struct.field(pytree_node=False, default="")

    @property
    def crop(self) -> int:
        """Returns height and width of the training crop in pixels."""
        return self.network.crop

    @property
    def num_classes(self) -> int:
        """Returns the classes of the head; 0 for a trunk, which has none."""
        return self.network.num_classes if self.network.layers[-1].kind == "head" else 0

    @property
    def variables(self) -> dict[str, Any]:
        """Returns the first argument of `network.apply`."""
        return {"params": self.params, **self.model_state}

    if TYPE_CHECKING:
        # flax.struct adds it.
        def replace(self, **changes: Any) -> Model: ...

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
        # Imported here: a backbone needs neither data nor configuration.
        from vgg_jax.evaluation.predictor import Predictor

        return Predictor(self)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the fields for pickle and copy, without what `predict` has compiled."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __repr__(self) -> str:
        """Says in one line the network, its crop and classes, and where the parameters come from."""
        classes = f"{self.num_classes:,} classes" if self.num_classes else "no classifier"
        return f"Model({self.spec.title}, crop {self.crop}, {classes}, {self.source or 'no source'})"


def load(source: str | os.PathLike, dtype: str = "") -> Model:
    """Loads a model.

    Args:
      source: a weights file of `vgg-jax convert`, a run's workdir, which stands for its best checkpoint, one of its
        checkpoints/<step>, or the name of published weights, as torchvision:vgg16. A path wins over a name.
      dtype: of the computation, float32 or bfloat16; "" for a run's own, float32 for weights.

    Raises:
      UserError: nothing to read there, something damaged, or another dtype.
    """
    if dtype not in ("", *_DTYPES):
        raise UserError(f"the dtype is {dtype!r}; it must be one of {', '.join(_DTYPES)}.")
    path, weights = hub.load(source)
    if weights:
        return from_weights(weights, dtype or "float32")
    # Imported here: checkpoints take Orbax and a configuration, which weights do not need.
    from vgg_jax.evaluation.trained_model import model_of_run

    return model_of_run(path, dtype)


def from_weights(weights: Weights, dtype: str = "float32") -> Model:
    """Returns the model of weights that are in memory."""
    class_names, class_titles = names_and_titles(weights)
    return Model(
        params=jax.tree.map(jnp.asarray, folded_params(weights)),
        mean_rgb=jnp.asarray(weights.preprocessing.mean_rgb()),
        network=make_model(weights, dtype),
        spec=weights.network,
        model_state=jax.tree.map(jnp.asarray, weights.model_state),
        class_names=tuple(class_names),
        class_titles=tuple(class_titles),
        training_scales=weights.training_scales,
        source=weights.source,
    )


def names_and_titles(weights: Weights) -> tuple[list[str], list[str]]:
    """Returns the names of the classes, numbered where they are not known, and what a person calls them."""
    names = [plain_name(name) for name in weights.class_names or ()]
    names = names or [f"class {i}" for i in range(weights.num_classes)]
    return names, weights.class_titles or [titles().get(name, name) for name in names]
