"""A network with its parameters and everything that computing its layers takes, as one pytree."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

import flax.struct
import jax
import jax.numpy as jnp

from vgg_jax.models import Network, NetworkSpec
from vgg_jax.runtime.exceptions import plain_name
from vgg_jax.weights import hub
from vgg_jax.weights.file import Weights, folded_params, load_weights, make_model
from vgg_jax.weights.imagenet_classes import titles


# Two models are equal where they are the same object, since arrays cannot be compared in a truth value.
@flax.struct.dataclass(eq=False)
class Backbone:
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
        def replace(self, **changes: Any) -> Self: ...

    def __repr__(self) -> str:
        """Says in one line the network, its crop and classes, and where the parameters come from."""
        classes = f"{self.num_classes:,} classes" if self.num_classes else "no classifier"
        return f"{type(self).__name__}({self.spec.title}, crop {self.crop}, {classes}, {self.source or 'no source'})"


def load_backbone(source: str | os.PathLike, dtype: str = "float32") -> Backbone:
    """Loads a backbone from a weights file or by the name of published weights.

    Args:
      source: see `weights.hub.load`.
      dtype: of the computation, float32 or bfloat16.

    Raises:
      UserError: no weights there, or damaged ones.
    """
    path, weights = hub.load(source)
    return from_weights(weights or load_weights(path), dtype)


def from_weights(weights: Weights, dtype: str = "float32") -> Backbone:
    """Returns the model of weights that are in memory."""
    class_names, class_titles = names_and_titles(weights)
    return Backbone(
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
