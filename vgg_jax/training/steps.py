"""The two pure functions that everything else drives, train_step and eval_step, and their compilation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vgg_jax.data.colors import ColorStatistics
from vgg_jax.models import Layers, Network
from vgg_jax.models.description import auxiliary_heads
from vgg_jax.recipe import Recipe
from vgg_jax.runtime.compilation import compile_step
from vgg_jax.runtime.sharding import batch_sharding, gather_for_compute, replicated, shard_images
from vgg_jax.training.augment import augment, mix, normalize
from vgg_jax.training.optimizer import make_optimizer
from vgg_jax.training.state import TrainState, make_model, step_key

Batch = dict[str, jax.Array]

# Of fewer parameters the norms cost less than compiling a second step.
_FEW_PARAMS = 10_000_000

AUXILIARY_WEIGHT = 0.3  # of the loss of each auxiliary classifier (Szegedy et al. 2014, §5)


@flax.struct.dataclass
class EvalMetrics:
    """Sums over images and their number, so that adding up batches or devices is exact."""

    sums: dict[str, jax.Array]  # float32: loss, top1_error, top5_error
    count: jax.Array  # int32

    def merge(self, other: EvalMetrics) -> EvalMetrics:
        """Returns the metrics of the images of both."""
        return jax.tree.map(jnp.add, self, other)

    def compute(self) -> dict[str, jax.Array]:
        """Returns the means over the images, NaN for none."""
        return {name: total / self.count for name, total in self.sums.items()}


def make_train_step(
    recipe: Recipe,
    statistics: ColorStatistics,
    mesh: Mesh,
    class_weights: np.ndarray | None = None,
    with_norms: bool = True,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the function from a state, a batch and the learning rate to the next state and the batch's metrics.

    Learning rate: a float32 scalar. Batch: image [B, crop, crop, 3] uint8 RGB, label [B] int32. Metrics, float32
    scalars: loss (mean cross-entropy, nats, without the L2 term and auxiliary classifiers), top1_error and top5_error
    (fractions, of the augmented batch, whose images keep their own labels where they are mixed), lr (of this update),
    and with `with_norms` the norms of `_norm_metrics`.

    With `accumulation_steps` > 1 the batch is computed in that many microbatches, one after another. The update is the
    same but for dropout's draws, rounding, and batch normalisation, whose statistics are each microbatch's. The step
    runs on the devices of `mesh`.
    """
    model, optimizer = make_model(recipe), make_optimizer(recipe)
    shares = recipe.augment.mixup, recipe.augment.cutmix
    mixes = shares if any(shares) or recipe.label_smoothing else ()
    loss_fn = _make_loss_fn(recipe, model, mesh, class_weights)
    microbatched_grad = _microbatched(jax.value_and_grad(loss_fn, has_aux=True), recipe.accumulation_steps)

    def train_step(state: TrainState, batch: Batch, lr: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        augment_key, dropout_key, mix_key = jax.random.split(step_key(recipe.seed, state.step), 3)
        images = augment(augment_key, batch["image"], statistics, recipe.augment.flip, recipe.augment.color_std)
        labels = batch["label"]
        if mixes:
            images, labels = mix(mix_key, images, labels, recipe.model.num_classes, *mixes)
        (loss, logits_BxK, model_state), grads = microbatched_grad(state, images, labels, dropout_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, learning_rate=lr)
        params = optax.apply_updates(state.params, updates)
        averages = state.averages
        if averages is not None:
            # At first the average is of few steps, or the random start would stay in it for long.
            decay = jnp.minimum(recipe.ema_decay, (1 + state.step) / (10 + state.step))
            variables = {"params": params, **model_state}
            averages = optax.incremental_update(variables, averages, 1 - decay)
        metrics = {
            "loss": loss,
            **{name: wrong_B.mean() for name, wrong_B in topk_errors(logits_BxK, batch["label"]).items()},
            "lr": lr,
        }
        if with_norms:
            metrics |= _norm_metrics(state.params, updates, grads, model.layers)
        return TrainState(state.step + 1, params, model_state, opt_state, averages), metrics

    return train_step


def _make_loss_fn(
    recipe: Recipe, model: Network, mesh: Mesh, class_weights: np.ndarray | None
) -> Callable[[dict, dict, jax.Array, jax.Array, jax.Array], Any]:
    """Returns the function from params, model state, images, labels and a key to the loss and its outputs.

    It returns (the loss with auxiliary classifiers, (the loss without them, logits, the new model state)).
    """
    factors, auxiliary = dict(recipe.optimizer.lr_factors), auxiliary_heads(model.layers)
    mean_loss = functools.partial(_mean_loss, class_weights=class_weights, label_smoothing=recipe.label_smoothing)

    def loss_fn(params: dict, model_state: dict, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        # Frozen layers have no gradient, so nothing computes it.
        params = {
            layer: leaves if factors[layer] else jax.lax.stop_gradient(leaves) for layer, leaves in params.items()
        }
        params, images = gather_for_compute(params, recipe.sharding, mesh), shard_images(images, mesh)
        variables = {"params": params, **model_state}
        (logits_BxK, others), updated = model.apply(
            variables, images, train=True, rngs={"dropout": key}, mutable=list(model_state), endpoints=auxiliary
        )
        loss = mean_loss(logits_BxK, labels)
        auxiliary_losses = [mean_loss(others[name].astype(jnp.float32).mean((1, 2)), labels) for name in auxiliary]
        return loss + AUXILIARY_WEIGHT * sum(auxiliary_losses), (loss, logits_BxK, dict(updated))

    return loss_fn


def _mean_loss(
    logits_BxK: jax.Array, labels: jax.Array, class_weights: np.ndarray | None, label_smoothing: float
) -> jax.Array:
    """Returns the mean cross-entropy, nats, for labels [B] int32 or the shares [B, K] of `augment.mix`."""
    if labels.ndim == 2:  # each share with the weight and the smoothing of its class
        targets_BxK = labels if class_weights is None else labels * class_weights
        smoothed, s = targets_BxK.mean(-1, keepdims=True), label_smoothing
        return optax.softmax_cross_entropy(logits_BxK, (1 - s) * targets_BxK + s * smoothed).mean()
    losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxK, labels)
    weights_B = 1.0 if class_weights is None else jnp.asarray(class_weights)[labels]
    return (weights_B * losses_B).mean()


def _microbatched(grad_fn: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Returns `grad_fn` of a state, images, labels and a key, computed in microbatches one after another, averaged."""

    def microbatched_grad(state: TrainState, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        if count == 1:
            (_, outputs), grads = grad_fn(state.params, state.model_state, images, labels, key)
            return outputs, grads

        def accumulate(carry: Any, microbatch: Any) -> Any:
            total, model_state = carry
            i, x, y = microbatch
            (_, (loss, logits, model_state)), grads = grad_fn(
                state.params, model_state, x, y, jax.random.fold_in(key, i)
            )
            return (jax.tree.map(lambda t, v: t + v / count, total, (loss, grads)), model_state), logits

        # Microbatch i takes images i, i + count, ...: every device keeps the images it holds.
        split = jax.tree.map(lambda a: a.reshape(-1, count, *a.shape[1:]).swapaxes(0, 1), (images, labels))
        # Sums are float32: in bfloat16 a microbatch's share would soon be too small to change them.
        zero = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), (0.0, state.params))
        ((loss, grads), model_state), logits = jax.lax.scan(
            accumulate, (zero, state.model_state), (jnp.arange(count), *split)
        )
        grads = jax.tree.map(lambda total, x: total.astype(x.dtype), grads, state.params)
        return (loss, logits.swapaxes(0, 1).reshape(images.shape[0], -1), model_state), grads

    return microbatched_grad


def _norm_metrics(params: dict, updates: dict, grads: dict, layers: Layers) -> dict[str, jax.Array]:
    """Returns gradient_norm/<block> and update_ratio/<block> for the kernels of each block, float32 scalars.

    The gradient is the loss's alone. A ratio is the norm of the update over the norm of the kernels before it. Both
    read all parameters and gradients once more, up to a fifth of a step on a CPU.
    """
    before, moved = kernel_norms(params, layers), kernel_norms(updates, layers)
    metrics = {f"gradient_norm/{block}": norm for block, norm in kernel_norms(grads, layers).items()}
    return metrics | {f"update_ratio/{block}": moved[block] / jnp.maximum(before[block], 1e-30) for block in before}


def kernel_norms(params: dict, layers: Layers) -> dict[str, jax.Array]:
    """Returns the norm of all kernels of each block, float32 scalars.

    The blocks are block1 ... block5, which hold the convolutions, then each FC layer.
    """
    blocks: dict[str, list[jax.Array]] = {}
    for layer in layers:
        if layer.has_kernel:
            block = layer.name if layer.is_fully_connected else f"block{layer.block}"
            blocks.setdefault(block, []).append(params[layer.name]["kernel"].astype(jnp.float32))
    return {block: optax.tree.norm(kernels) for block, kernels in blocks.items()}


def make_eval_step(model: Network, statistics: ColorStatistics) -> Callable[[dict, Batch], EvalMetrics]:
    """Returns the function from a model's variables and a batch to `EvalMetrics` over the images whose mask is true.

    Batch: image [B, H, W, 3] uint8 RGB, label [B] int32, mask [B] bool.
    """

    def eval_step(variables: dict, batch: Batch) -> EvalMetrics:
        logits_BxK, _ = model.apply(variables, normalize(batch["image"], statistics))
        losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BxK, batch["label"])
        of_images = {"loss": losses_B, **topk_errors(logits_BxK, batch["label"])}
        mask_B = batch["mask"]
        sums = {name: jnp.where(mask_B, value_B, 0).sum() for name, value_B in of_images.items()}
        return EvalMetrics(sums, mask_B.sum(dtype=jnp.int32))

    return eval_step


def topk_errors(logits_BxK: jax.Array, labels_B: jax.Array) -> dict[str, jax.Array]:
    """Returns top1_error and top5_error, [B] float32: 1 where the label is not among the 1 or 5 highest scores, else 0.

    Of equal scores the lower class number ranks higher. With fewer than 5 classes top-5 is over all of them. Scores
    that are not all finite rank nothing: both errors are 1.
    """
    _, best_Bx5 = jax.lax.top_k(logits_BxK, min(5, logits_BxK.shape[-1]))
    hit_Bx5 = (best_Bx5 == labels_B[:, None]) & jnp.isfinite(logits_BxK).all(-1, keepdims=True)
    return {
        "top1_error": 1.0 - hit_Bx5[:, 0].astype(jnp.float32),
        "top5_error": 1.0 - hit_Bx5.any(-1).astype(jnp.float32),
    }


def batch_shapes(recipe: Recipe, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of `make_train_step`, split over the mesh."""
    b, crop, split = recipe.batch_size, recipe.image.crop, batch_sharding(mesh)
    return {
        "image": jax.ShapeDtypeStruct((b, crop, crop, 3), jnp.uint8, sharding=split),
        "label": jax.ShapeDtypeStruct((b,), jnp.int32, sharding=split),
    }


def compile_train_step(
    recipe: Recipe,
    statistics: ColorStatistics,
    mesh: Mesh,
    shapes: TrainState,
    class_weights: np.ndarray | None = None,
    with_norms: bool = True,
) -> jax.stages.Compiled:
    """Compiles `make_train_step` for a state of these shapes (`state.state_shapes`), whose memory it reuses."""
    return compile_step(
        make_train_step(recipe, statistics, mesh, class_weights, with_norms),
        shapes,
        batch_shapes(recipe, mesh),
        jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh)),
        donate=True,
        out_shardings=(jax.tree.map(lambda x: x.sharding, shapes), replicated(mesh)),
    )


class Steps(NamedTuple):
    """The compiled steps of training."""

    train: jax.stages.Compiled
    train_with_norms: jax.stages.Compiled  # where its metrics are logged
    evaluate: jax.stages.Compiled  # of `make_eval_step`, for batches of the training's size, crop and sharding


def compile_steps(
    recipe: Recipe,
    statistics: ColorStatistics,
    mesh: Mesh,
    shapes: TrainState,
    class_weights: np.ndarray | None = None,
) -> Steps:
    """Compiles all steps at the same time, for a state of these shapes; with few parameters `train` has norms too."""
    eval_step = make_eval_step(make_model(recipe), statistics)

    def sharded_eval_step(variables: dict, batch: Batch) -> EvalMetrics:
        batch = {**batch, "image": shard_images(batch["image"], mesh)}
        return eval_step(gather_for_compute(variables, recipe.sharding, mesh), batch)

    mask = jax.ShapeDtypeStruct((recipe.batch_size,), jnp.bool_, sharding=batch_sharding(mesh))
    batch = {**batch_shapes(recipe, mesh), "mask": mask}
    train_step = functools.partial(compile_train_step, recipe, statistics, mesh, shapes, class_weights)
    is_one = recipe.log_every_steps == 1 or sum(x.size for x in jax.tree.leaves(shapes.params)) < _FEW_PARAMS
    with ThreadPoolExecutor() as threads:
        with_norms = threads.submit(train_step, with_norms=True)
        futures = (
            with_norms if is_one else threads.submit(train_step, with_norms=False),
            with_norms,
            threads.submit(compile_step, sharded_eval_step, shapes.variables, batch, out_shardings=replicated(mesh)),
        )
        return Steps(*(future.result() for future in futures))
