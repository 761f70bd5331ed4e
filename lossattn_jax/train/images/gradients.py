"""Loss and gradients of one update, averaged over devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lossattn_jax import data, devices
from lossattn_jax.attention import ensemble as ensemble_lib
from lossattn_jax.attention import losses
from lossattn_jax.attention.ensemble import Ensemble
from lossattn_jax.checkpoint import runs
from lossattn_jax.config import images as config_lib
from lossattn_jax.config.options import ImageOptions, LossOptions
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import metrics
from lossattn_jax.kernels import ordering
from lossattn_jax.kernels.convolution import RESULT_NAME
from lossattn_jax.models import ImageNetwork
from lossattn_jax.registry import lookup
from lossattn_jax.train.schedules import loss_weight_schedule
from lossattn_jax.train.state import TrainState

Batch = dict[str, jax.Array]

_DROPOUT = 2  # folded into the step's key; augmentation folds 0 and 1
_FLIPS = 0x464C4950  # folded into the run's key, apart from the numbers of its steps


def _draw_flips(seed: int, indices: jax.Array, epoch: jax.Array) -> bool:
    """Leaves it to `data.augment` to draw which images are mirrored."""
    del seed, indices, epoch
    return True


def _alternate_flips(seed: int, indices: jax.Array, epoch: jax.Array) -> jax.Array:
    return data.alternate_flips(jax.random.fold_in(jax.random.key(seed), _FLIPS), indices, epoch)


FLIP_ORDERS: dict[str, Callable[[int, jax.Array, jax.Array], bool | jax.Array]] = {
    "random": _draw_flips,
    "alternate": _alternate_flips,
}


class BatchGradients(NamedTuple):
    """Loss, gradients and attention of a batch.

    `b` are this device's examples.

    Attributes:
      loss: float32 scalar, mean over the examples of all devices.
      gradients: of it, as the parameters.
      batch_stats: running statistics after the batch, averaged over the devices.
      ensemble: as it is at the update's start, or None.
      attention: `[b, P]`.
      per_example: `[b]` float32 by name, what is told of each example; "loss" is one of them.
    """

    loss: jax.Array
    gradients: Any
    batch_stats: Any
    ensemble: Ensemble | None
    attention: jax.Array
    per_example: dict[str, jax.Array]


def make_gradients(
    model: ImageNetwork, spec: data.DatasetSpec, options: ImageOptions, steps_per_epoch: int
) -> Callable[[TrainState, Batch], BatchGradients]:
    """Makes the function from state and batch to `BatchGradients`.

    To be called inside `devices.pmap`.

    The batch holds this device's `image` uint8 `[b, H, W, C]` as stored, `label` int32 `[b]` or multi-hot
    uint8 `[b, K]`, and `index` int32 `[b]`. See `step.make_train_step` for the arguments, and for what is
    said of randomness and of a batch in parts.
    """
    seed = options.seed
    crop_padding, crop_area = options.data.crop_padding, options.data.crop_area
    flip = spec.flip if options.data.flip is None else options.data.flip
    choose_flips = lookup("config.data.flip_order", options.data.flip_order, FLIP_ORDERS)
    loss_options = options.loss
    kind = runs.loss_kind(model, spec, loss_options.name)
    patch_weight = patch_weight_schedule(options.loss, options.model.pooling, model, spec)
    consistent = loss_options.uses_consistency
    shares_statistics = options.model.shares_statistics
    parts = options.train.accumulate
    forward = make_forward(model, options.train.remat)

    def augment(key: jax.Array, images: jax.Array, flips: bool | jax.Array) -> jax.Array:
        if spec.is_network_input:
            return data.network_input(images, spec, model.dtype)
        return data.augment(
            key,
            images,
            positions=devices.global_positions(images.shape[0]),
            spec_flip=flips,
            pad=crop_padding,
            size=spec.image_shape[:2],
            area=crop_area,
            mean=spec.mean,
            std=spec.std,
            dtype=model.dtype,
        )

    def find(state: TrainState, batch: Batch) -> BatchGradients:
        labels = batch["label"]
        epoch = state.step // steps_per_epoch
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        flips = flip and choose_flips(seed, batch["index"], epoch)
        images = augment(key, batch["image"], flips)
        dropout = jax.random.fold_in(key, _DROPOUT)
        if not shares_statistics:  # else the network itself draws by the places in the global batch
            dropout = jax.random.fold_in(dropout, jax.lax.axis_index(devices.AXIS))
        examples = {"image": images, "label": labels}
        ensemble: Any = state.ensemble
        if consistent:
            decay = loss_options.consistency_decay
            ensemble = ensemble_lib.begin_step(
                ensemble, state.step, steps_per_epoch, decay, state.skipped
            )
            target, has_target = ensemble_lib.targets(ensemble, batch["index"], decay)
            examples |= {"target": target, "known": has_target}
            pull = loss_weight_schedule(
                epoch, loss_options.consistency_weight, loss_options.consistency_ramp_epochs
            )

        def loss_fn(params: Any, batch_stats: Any, part: Batch, key: jax.Array) -> Any:
            outputs, variables = forward(params, batch_stats, part["image"], key)
            terms = losses.loss_attention_loss(
                outputs.logits,
                outputs.patch_logits,
                outputs.attention,
                part["label"],
                patch_weight(epoch),
                loss_options.label_smoothing,
                kind=kind,
            )
            per_example = {
                "loss": terms.total,
                "image_loss": terms.image,
                "patch_loss": terms.patch,
            }
            if consistent:
                distance = losses.consistency_loss(outputs.attention, part["target"])
                per_example["consistency_loss"] = part["known"] * distance
                per_example["loss"] = terms.total + pull * per_example["consistency_loss"]
            loss = jnp.mean(per_example["loss"])
            per_example["accuracy"] = metrics.hits(outputs.logits, part["label"])
            per_example["attention_entropy"] = metrics.attention_entropy(outputs.attention)
            return loss, (variables.get("batch_stats", {}), outputs.attention, per_example)

        grad_fn = jax.grad(loss_fn, has_aux=True)
        if parts == 1:
            gradients, aux = grad_fn(state.params, state.batch_stats, examples, dropout)
            batch_stats, attention, per_example = aux
        else:
            gradients, batch_stats, attention, per_example = _accumulate(
                grad_fn, state, examples, dropout, parts
            )
        # With local batch normalisation this averages the running statistics of the devices.
        loss, gradients, batch_stats = jax.lax.pmean(
            (jnp.mean(per_example["loss"]), gradients, batch_stats), devices.AXIS
        )
        return BatchGradients(loss, gradients, batch_stats, ensemble, attention, per_example)

    return find


def make_forward(model: ImageNetwork, remat: bool) -> Callable[..., tuple[Any, Any]]:
    """The network as it is trained.

    Args:
      model: the network.
      remat: whether the backward pass is to have normalisations and the like computed again.

    Returns:
      A function of parameters, running statistics, images and the key of dropout, that returns the outputs
      and the collections after it. It is to be differentiated where `devices.AXIS` is, if the model shares
      statistics over it.
    """

    def forward(params: Any, batch_stats: Any, images: jax.Array, key: jax.Array) -> Any:
        return model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )

    return jax.checkpoint(forward, policy=_keeps) if remat else forward


def _accumulate(
    grad_fn: Callable[..., Any], state: TrainState, examples: Batch, key: jax.Array, parts: int
) -> tuple[Any, Any, jax.Array, Batch]:
    """Sums gradients over parts of a batch.

    Returns gradients, statistics, attention and metrics of each example.
    """
    count = len(examples["label"])
    if count % parts:
        raise UserError(
            f"config.train.accumulate is {parts}, but must divide the images of a device, {count}"
        )

    def split(array: jax.Array) -> jax.Array:
        # Every so manyth example, so that a part is the same on any number of devices.
        return array.reshape(count // parts, parts, *array.shape[1:]).swapaxes(0, 1)

    def whole(array: jax.Array) -> jax.Array:
        return array.swapaxes(0, 1).reshape(count, *array.shape[2:])

    def one(carry: tuple[Any, Any], part: tuple[jax.Array, Batch]) -> tuple[Any, Any]:
        total, batch_stats = carry
        number, some = part
        inputs = (
            state.params,
            batch_stats,
            ordering.after(total, some),
            jax.random.fold_in(key, number),
        )
        gradients, (batch_stats, attention, per_example) = grad_fn(*inputs)
        return (jax.tree.map(jnp.add, total, gradients), batch_stats), (attention, per_example)

    zero = jax.tree.map(jnp.zeros_like, state.params)
    numbered_parts = (jnp.arange(parts), jax.tree.map(split, examples))
    start = (zero, state.batch_stats)
    (total, batch_stats), results = jax.lax.scan(
        one, start, numbered_parts, unroll=devices.unroll_length(parts)
    )
    attention, per_example = jax.tree.map(whole, results)
    return jax.tree.map(lambda leaf: leaf / parts, total), batch_stats, attention, per_example


# Results kept for the backward pass with `config.train.remat`: those that are costly to recompute.
_keeps = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names(RESULT_NAME),
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
)


def patch_weight_schedule(
    options: LossOptions, pooling: str, model: ImageNetwork, spec: data.DatasetSpec
) -> Callable[[jax.Array | int], jax.Array]:
    """Makes lambda by epoch, as a factor of the sum.

    Over patches; 0 without a patch loss.
    """
    weight = options.patch_weight if config_lib.uses_patch_loss(options, pooling) else 0.0
    weight = losses.reduced_weight(
        options.patch_reduction, weight, lambda: model.patch_grid(spec.image_shape).patches
    )
    ramp_epochs = options.patch_ramp_epochs
    return lambda epoch: loss_weight_schedule(epoch, weight, ramp_epochs)
