"""Updates: augmentation, forward pass, both losses, gradients averaged over the devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from lossattn_jax import config as config_lib
from lossattn_jax import data, devices, losses, metrics, runs
from lossattn_jax.errors import UserError
from lossattn_jax.models import ImageNetwork
from lossattn_jax.models.convolution import KEPT
from lossattn_jax.train import ensemble as ensemble_lib
from lossattn_jax.train.schedules import loss_weight_schedule
from lossattn_jax.train.state import TrainState

Metrics = dict[str, metrics.Mean]
Batch = dict[str, jax.Array]

_DROPOUT = 2  # folded into the step's key; augmentation folds 0 and 1


def zero_metrics(config: ConfigDict) -> Metrics:
    """Metrics of no step, to merge into."""
    names = ["loss", "image_loss", "patch_loss", "accuracy", "attention_entropy", "grad_norm"]
    if config_lib.uses_consistency(config):
        names.append("consistency_loss")
    zero = jnp.zeros((), jnp.float32)
    return {name: metrics.Mean(zero, zero) for name in names}


def make_train_step(
    model: ImageNetwork,
    optimizer: optax.GradientTransformation,
    spec: data.DatasetSpec,
    config: ConfigDict,
    steps_per_epoch: int,
) -> Callable[..., tuple[TrainState, Metrics, Metrics]]:
    """The pmapped function that makes k updates, one after the other.

    It takes a replicated state, replicated metrics and the k batches from `devices.shard_steps` (`image`
    uint8 `[devices, k, b, H, W, C]`, `label` int32 `[devices, k, b]` or multi-hot uint8
    `[devices, k, b, K]`, and `index` int32 `[devices, k, b]`), k being 1 or more. It returns the state after
    the last update, the metrics to go on with, and the metrics' history, `[devices, k]`: item i holds the
    metrics given with those of the updates up to the i-th merged in. After an update at which
    `config.log.every_steps` divides the number of updates done, the metrics start from nothing again.
    State and metrics are donated.

    Where the training set is on the devices, the batches hold `index` alone, and a fourth argument has the
    replicated `image` `[devices, N, H, W, C]` and `label` `[devices, N]` or `[devices, N, K]` of all of it.

    All randomness comes from `fold_in(key(seed), step)` and an example's place in the global batch, so that
    an update is the same on any number of devices.

    With `config.train.accumulate` the batch goes through the network in so many parts, one after the other,
    whose gradients are averaged; batch normalisation then sees a part at a time. With `config.train.remat`
    only what convolutions and matrix products give is kept for the backward pass; normalisations and the
    like are computed again.

    Args:
      model: the network, its batch normalisation sharing statistics over `devices.AXIS` or not.
      optimizer: from `make_optimizer`.
      spec: of the data set.
      config: the run's config.
      steps_per_epoch: updates in an epoch.
    """
    seed = config.seed
    crop_padding = config.data.crop_padding
    flip = spec.flip if config.data.flip is None else config.data.flip
    loss_options = config.loss.copy_and_resolve_references()
    kind = runs.loss_kind(model, spec)
    patch_weight = patch_weight_schedule(config, model, spec)
    consistent = config_lib.uses_consistency(config)
    shared = config_lib.shares_statistics(config)
    parts = config.train.accumulate
    log_every = config.log.every_steps

    def forward(params: Any, batch_stats: Any, images: jax.Array, key: jax.Array) -> Any:
        return model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )

    if config.train.remat:
        forward = jax.checkpoint(forward, policy=_keeps)

    def update(state: TrainState, totals: Metrics, batch: Batch) -> tuple[TrainState, Metrics]:
        labels = batch["label"]
        epoch = state.step // steps_per_epoch
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        images = data.augment(
            key,
            batch["image"],
            positions=devices.global_positions(labels.shape[0]),
            spec_flip=flip,
            pad=crop_padding,
            mean=spec.mean,
            std=spec.std,
            dtype=model.dtype,
        )
        dropout = jax.random.fold_in(key, _DROPOUT)
        if not shared:  # else the network itself draws by the places in the global batch
            dropout = jax.random.fold_in(dropout, jax.lax.axis_index(devices.AXIS))
        ensemble: Any = state.ensemble
        if consistent:
            decay = loss_options.consistency_decay
            ensemble = ensemble_lib.begin_step(ensemble, state.step, steps_per_epoch, decay)
            target, known = ensemble_lib.targets(ensemble, batch["index"], decay)
            pull = loss_weight_schedule(
                epoch, loss_options.consistency_weight, loss_options.consistency_ramp_epochs
            )

        examples = {"image": images, "label": labels}
        if consistent:
            examples |= {"target": target, "known": known}

        def loss_fn(params: Any, batch_stats: Any, part: Batch, key: jax.Array) -> Any:
            outputs, updated = forward(params, batch_stats, part["image"], key)
            terms = losses.loss_attention_loss(
                outputs.logits,
                outputs.patch_logits,
                outputs.attention,
                part["label"],
                patch_weight(epoch),
                loss_options.label_smoothing,
                kind,
            )
            seen = {"loss": terms.total, "image_loss": terms.image, "patch_loss": terms.patch}
            if consistent:
                moved = losses.consistency_loss(outputs.attention, part["target"])
                seen["consistency_loss"] = part["known"] * moved
                seen["loss"] = terms.total + pull * seen["consistency_loss"]
            loss = jnp.mean(seen["loss"])
            seen["accuracy"] = metrics.hits(outputs.logits, part["label"])
            seen["attention_entropy"] = metrics.attention_entropy(outputs.attention)
            return loss, (updated.get("batch_stats", {}), outputs.attention, seen)

        grad_fn = jax.grad(loss_fn, has_aux=True)
        if parts == 1:
            gradients, aux = grad_fn(state.params, state.batch_stats, examples, dropout)
            batch_stats, attention, seen = aux
        else:
            gradients, batch_stats, attention, seen = _accumulated(
                grad_fn, state, examples, dropout, parts
            )
        # With local batch normalisation this averages the running statistics of the devices.
        gradients, batch_stats = jax.lax.pmean((gradients, batch_stats), devices.AXIS)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        if consistent:
            ensemble = ensemble_lib.record(ensemble, batch["index"], attention)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            ensemble=ensemble,
        )
        seen["grad_norm"] = optax.tree.norm(gradients)[None]
        means = {name: metrics.mean_of(values) for name, values in seen.items()}
        return new_state, metrics.merge(totals, jax.lax.psum(means, devices.AXIS))

    def train_steps(
        state: TrainState, totals: Metrics, batches: Batch, examples: Batch | None = None
    ) -> tuple[TrainState, Metrics, Metrics]:
        def one(carry: tuple[TrainState, Metrics], batch: Batch) -> Any:
            if examples is not None:
                batch = batch | {name: array[batch["index"]] for name, array in examples.items()}
            state, told = update(*carry, batch)
            ends = state.step % log_every == 0
            return (state, jax.tree.map(lambda total: jnp.where(ends, 0.0, total), told)), told

        steps = len(batches["index"])
        if steps == 1:
            alone = jax.tree.map(lambda array: array[0], batches)
            carry, told = one((state, totals), alone)
            return *carry, jax.tree.map(lambda total: total[None], told)
        unroll = devices.unrolled(steps)
        carry, history = jax.lax.scan(one, (state, totals), batches, unroll=unroll)
        return *carry, history

    return devices.pmap(train_steps, donate=(0, 1))


def _accumulated(
    grad_fn: Callable[..., Any], state: TrainState, examples: Batch, key: jax.Array, parts: int
) -> tuple[Any, Any, jax.Array, Batch]:
    """Gradients, statistics, attention and what is seen of each example, of a batch in parts."""
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
        inputs = (state.params, batch_stats, some, jax.random.fold_in(key, number))
        gradients, (batch_stats, attention, seen) = grad_fn(*inputs)
        return (jax.tree.map(jnp.add, total, gradients), batch_stats), (attention, seen)

    zero = jax.tree.map(jnp.zeros_like, state.params)
    numbered = (jnp.arange(parts), jax.tree.map(split, examples))
    start = (zero, state.batch_stats)
    (total, batch_stats), told = jax.lax.scan(one, start, numbered, unroll=devices.unrolled(parts))
    attention, seen = jax.tree.map(whole, told)
    return jax.tree.map(lambda leaf: leaf / parts, total), batch_stats, attention, seen


# What is kept for the backward pass with `config.train.remat`: the results that are costly to have again.
_keeps = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names(KEPT),
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
)


def patch_weight_schedule(
    config: ConfigDict, model: ImageNetwork, spec: data.DatasetSpec
) -> Callable[[jax.Array | int], jax.Array]:
    """lambda by epoch, as a factor of the sum over patches; 0 without a patch loss."""
    weight = config.loss.patch_weight if config_lib.uses_patch_loss(config) else 0.0
    if weight and config.loss.patch_reduction == "mean":
        weight /= model.patch_grid(spec.image_shape).patches
    ramp_epochs = config.loss.patch_ramp_epochs
    return lambda epoch: loss_weight_schedule(epoch, weight, ramp_epochs)
