"""One update: augmentation, forward pass, both losses, gradients averaged over the devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from lossattn_jax import config as config_lib
from lossattn_jax import data, devices, losses, metrics
from lossattn_jax.models import PatchNetwork
from lossattn_jax.train.schedules import patch_weight_schedule
from lossattn_jax.train.state import TrainState

TRAIN_METRICS = ("loss", "image_loss", "patch_loss", "accuracy", "attention_entropy", "grad_norm")

Metrics = dict[str, metrics.Mean]
Batch = dict[str, jax.Array]


def zero_metrics() -> Metrics:
    """Metrics of no step, to merge into."""
    zero = jnp.zeros((), jnp.float32)
    return {name: metrics.Mean(zero, zero) for name in TRAIN_METRICS}


def make_train_step(
    model: PatchNetwork,
    optimizer: optax.GradientTransformation,
    spec: data.DatasetSpec,
    config: ConfigDict,
    steps_per_epoch: int,
) -> Callable[[TrainState, Metrics, Batch], tuple[TrainState, Metrics]]:
    """The pmapped update step.

    The step takes a replicated state, replicated metrics and a sharded batch (`image` uint8
    `[devices, b, H, W, C]`, `label` int32 `[devices, b]`), and returns the next state and the metrics
    with this step's merged in. State and metrics are donated. All randomness comes from
    `fold_in(key(seed), step)` and an example's place in the global batch, so that the step does the same
    on any number of devices.

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
    label_smoothing = config.loss.label_smoothing
    patch_weight = config.loss.patch_weight if config_lib.uses_patch_loss(config) else 0.0
    ramp_epochs = config.loss.patch_ramp_epochs

    def train_step(state: TrainState, totals: Metrics, batch: Batch) -> tuple[TrainState, Metrics]:
        labels = batch["label"]
        images = data.augment(
            jax.random.fold_in(jax.random.key(seed), state.step),
            batch["image"],
            positions=devices.global_positions(labels.shape[0]),
            spec_flip=flip,
            pad=crop_padding,
            mean=spec.mean,
            std=spec.std,
            dtype=model.dtype,
        )
        weight = patch_weight_schedule(state.step // steps_per_epoch, patch_weight, ramp_epochs)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            outputs, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            terms = losses.loss_attention_loss(
                outputs.logits,
                outputs.patch_logits,
                outputs.attention,
                labels,
                weight,
                label_smoothing,
            )
            return jnp.mean(terms.total), (outputs, terms, updated["batch_stats"])

        grad_fn = jax.grad(loss_fn, has_aux=True)
        gradients, (outputs, terms, batch_stats) = grad_fn(state.params)
        # With local batch normalisation this averages the running statistics of the devices.
        gradients, batch_stats = jax.lax.pmean((gradients, batch_stats), devices.AXIS)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        correct = (jnp.argmax(outputs.logits, axis=-1) == labels).astype(jnp.float32)
        seen = {
            "loss": metrics.mean_of(terms.total),
            "image_loss": metrics.mean_of(terms.image),
            "patch_loss": metrics.mean_of(terms.patch),
            "accuracy": metrics.mean_of(correct),
            "attention_entropy": metrics.mean_of(metrics.attention_entropy(outputs.attention)),
            "grad_norm": metrics.mean_of(optax.tree.norm(gradients)[None]),
        }
        return new_state, metrics.merge(totals, jax.lax.psum(seen, devices.AXIS))

    return devices.pmap(train_step, donate=(0, 1))
