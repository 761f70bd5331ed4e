"""The steps of training networks for bags, as traced functions of explicit state.

Everything here works on one group of G models at a time, whose arrays have a leading axis of G. The
bag of a step is the same for all of them, so that the length it is padded to is one decision for the
group and not computed for every length.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from lossattn_jax import losses
from lossattn_jax.mil.device_bags import Data, cut, cut_values, standardised, write
from lossattn_jax.mil.networks import BagNetwork
from lossattn_jax.mil.objective import bag_loss
from lossattn_jax.mil.outputs import BagOutputs
from lossattn_jax.mil.settings import Settings
from lossattn_jax.train.schedules import loss_weight_schedule


@flax.struct.dataclass
class Models:
    """What does not change while models train; every leaf with a leading axis of models.

    Attributes:
      seed: `[]` uint32.
      learning_rate, weight_decay, patch_weight, consistency_weight: `[]` float32.
      mean, inverse_scale: `[features...]` float32, or ones in their place, for standardisation.
      train, held, scored: `[bags]` bool; see `training.Plan`.
      keep_epoch: `[]` int32, from 0; -1: none.
    """

    seed: Any
    learning_rate: Any
    weight_decay: Any
    patch_weight: Any
    consistency_weight: Any
    mean: Any
    inverse_scale: Any
    train: Any
    held: Any
    scored: Any
    keep_epoch: Any


@flax.struct.dataclass
class State:
    """What changes while models train; every leaf with a leading axis of models. None: not in use.

    Attributes:
      params: of the network.
      moments: Adam's state.
      average: mean of the parameters over the last epochs.
      ensemble: `[N + longest]` float32, the attention's average over the epochs before this one.
      attention: `[N + longest]` float32, at each bag's last visit.
      best: parameters of the best epoch so far.
      best_accuracy, best_loss: `[]` float32 of the scored bags there.
      best_epoch: `[]` int32.
      kept: parameters of the epoch that was to be kept.
    """

    params: Any
    moments: Any
    average: Any = None
    ensemble: Any = None
    attention: Any = None
    best: Any = None
    best_accuracy: Any = None
    best_loss: Any = None
    best_epoch: Any = None
    kept: Any = None


class Steps:
    """A training's steps for one group of models."""

    def __init__(self, network, settings, tops, group, select, keep, consistency):
        self.network: BagNetwork = network
        self.settings: Settings = settings
        self.tops: tuple[int, ...] = tops
        self.group: int = group
        self.select: bool = select
        self.keep: bool = keep
        self.consistency: bool = consistency

    def start(self, models: Models, data: Data) -> State:
        def one(model: Models) -> State:
            x, mask = cut(data, jnp.zeros(1, jnp.int32), self.tops[0])
            params = self.network.init(jax.random.key(model.seed), x, mask)["params"]
            per_instance = jnp.zeros(len(data.instances)) if self.consistency else None
            return State(
                params=params,
                moments=_adam(model).init(params),
                average=params if self.settings.average_epochs else None,
                ensemble=per_instance,
                attention=per_instance,
                best=params if self.select else None,
                best_accuracy=jnp.float32(-1) if self.select else None,
                best_loss=jnp.float32(jnp.inf) if self.select else None,
                best_epoch=jnp.int32(0) if self.select else None,
                kept=params if self.keep else None,
            )

        return jax.vmap(one)(models)

    def epochs(self, models: Models, state: State, data: Data, steps: Any) -> Any:
        """Some epochs; returns the state and logits `[G, epochs, bags, K]`."""
        state, logits = jax.lax.scan(lambda s, e: self._epoch(models, s, data, e), state, steps)
        return state, logits.swapaxes(0, 1)

    def chosen(self, state: State) -> Any:
        last = state.average if self.settings.average_epochs else state.params
        return last, state.best, state.kept, state.best_epoch

    def _epoch(self, models: Models, state: State, data: Data, steps: Any) -> Any:
        epoch, order = steps["epoch"], steps["order"]
        noise = jax.vmap(lambda model: self._noise(model, data, epoch))(models)

        def step(state, rows):
            seen = models.train[:, jnp.maximum(rows, 0)] & (rows >= 0)[None]
            update = functools.partial(self._update, models, data, epoch, noise, rows, seen)
            return jax.lax.cond(jnp.any(seen), update, lambda s: s, state), None

        state, _ = jax.lax.scan(step, state, order)
        state = self._end_epoch(state, epoch)
        params = state.average if self.settings.average_epochs else state.params
        logits = jax.lax.cond(
            steps["predict"],
            lambda: self._predict(models, params, data),
            lambda: jnp.zeros((len(data.labels), self.group, self.network.num_classes)),
        ).swapaxes(0, 1)
        if self.select:
            state = self._keep_best(models, state, params, logits, data.labels, epoch)
        if self.keep:
            kept = _where(models.keep_epoch == epoch, params, state.kept)
            state = dataclasses.replace(state, kept=kept)
        return state, logits

    def _noise(self, model: Models, data: Data, epoch: jax.Array) -> jax.Array:
        """`[N + longest, units]` uint8: what an epoch's dropout of every instance goes by.

        Drawn at once, since each draw costs a CPU about as much as a small matrix product.
        """
        key = jax.random.fold_in(jax.random.key(model.seed), epoch)
        units = sum(self.network.widths)
        words = jax.random.bits(key, (data.instances.shape[0], -(-units // 4)), jnp.uint32)
        several = jax.lax.bitcast_convert_type(words, jnp.uint8)
        return several.reshape(len(words), -1)[:, :units]

    def _update(self, models, data, epoch, noise, rows, seen, state: State) -> State:
        rows = jnp.maximum(rows, 0)

        def gradients(length: int) -> Any:
            x, mask = cut(data, rows, length)
            if self.consistency:
                targets = jax.vmap(lambda e: cut_values(e, data, rows, length))(state.ensemble)
            else:
                targets = jnp.zeros((self.group, 0))
            bytes_ = jax.vmap(lambda n: cut_values(n, data, rows, length))(noise)
            of_one = functools.partial(self._gradients, data.labels[rows], epoch, x, mask)
            found, attention = jax.vmap(of_one)(models, state.params, seen, bytes_, targets)
            remembered = state.attention
            if self.consistency:
                for place, row in enumerate(rows):
                    here = mask[place][None] & seen[:, place, None]
                    remembered = write(remembered, attention[:, place], here, data.offsets[row])
            return found, remembered

        branches = [functools.partial(gradients, length) for length in self.tops]
        found, attention = jax.lax.switch(data.bucket[rows[0]], branches)

        def apply(model, params, moments, found, active):
            updates, after = _adam(model).update(found, moments, params)
            moved = optax.apply_updates(params, updates)
            if self.group == 1:
                return moved, after
            keep = functools.partial(jnp.where, active)
            return jax.tree.map(keep, (moved, after), (params, moments))

        params, moments = jax.vmap(apply)(
            models, state.params, state.moments, found, jnp.any(seen, axis=1)
        )
        return dataclasses.replace(state, params=params, moments=moments, attention=attention)

    def _gradients(self, labels, epoch, x, mask, model: Models, params, seen, noise, target):
        settings = self.settings
        patch_weight = loss_weight_schedule(epoch, model.patch_weight, settings.patch_ramp_epochs)

        def loss(params):
            out: BagOutputs = self.network.apply(
                {"params": params},
                standardised(x, model.mean, model.inverse_scale),
                mask,
                train=True,
                noise=noise,
            )
            per_bag = bag_loss(
                out,
                labels,
                mask,
                patch_weight if self.network.method == "loss_attention" else None,
                settings.patch_reduction,
            )
            if self.consistency:
                weight = loss_weight_schedule(
                    epoch, model.consistency_weight, settings.consistency_ramp_epochs
                )
                # The average of the epochs before, corrected for its start at 0.
                corrected = target / jnp.maximum(1 - settings.consistency_decay**epoch, 1e-6)
                size = jnp.maximum(jnp.sum(mask, axis=-1), 1)
                distance = losses.consistency_loss(out.attention, jnp.where(mask, corrected, 0.0))
                per_bag += jnp.where(epoch > 0, weight, 0) * distance * mask.shape[1] / size
            count = jnp.maximum(jnp.sum(seen), 1)
            return jnp.sum(jnp.where(seen, per_bag, 0.0)) / count, out.attention

        return jax.grad(loss, has_aux=True)(params)

    def _end_epoch(self, state: State, epoch: jax.Array) -> State:
        if self.consistency:
            decay = self.settings.consistency_decay
            mixed = decay * state.ensemble + (1 - decay) * state.attention
            state = dataclasses.replace(state, ensemble=mixed)
        if self.settings.average_epochs:
            count = epoch - (self.settings.epochs - self.settings.average_epochs) + 1
            share = 1 / jnp.maximum(count, 1).astype(jnp.float32)
            average = jax.tree.map(lambda a, p: a + (p - a) * share, state.average, state.params)
            state = dataclasses.replace(state, average=average)
        return state

    def _predict(self, models: Models, params: Any, data: Data) -> jax.Array:
        """`[bags, G, K]`, zeros for bags that no model of the group is to predict."""

        def bag(_, row):
            def forward(length):
                x, mask = cut(data, row[None], length)

                def of_one(params, model):
                    own = standardised(x, model.mean, model.inverse_scale)
                    return self.network.apply({"params": params}, own, mask).logits[0]

                return jax.vmap(of_one)(params, models)

            branches = [functools.partial(forward, length) for length in self.tops]
            asked = jnp.any(models.held[:, row])
            nothing = jnp.zeros((self.group, self.network.num_classes))
            said = jax.lax.cond(
                asked, lambda: jax.lax.switch(data.bucket[row], branches), lambda: nothing
            )
            return None, said

        return jax.lax.scan(bag, None, jnp.arange(len(data.labels)))[1]

    def _keep_best(self, models, state: State, params, logits, labels, epoch) -> State:
        """The higher accuracy on the scored bags is better, and of equal ones the lower loss."""
        scored = models.scored.astype(jnp.float32)
        count = jnp.maximum(jnp.sum(scored, axis=1), 1.0)
        right = (jnp.argmax(logits, axis=-1) == labels[None]).astype(jnp.float32)
        accuracy = jnp.sum(right * scored, axis=1) / count
        everywhere = jnp.broadcast_to(labels[None], logits.shape[:2])
        loss = jnp.sum(losses.cross_entropy(logits, everywhere) * scored, axis=1) / count
        equal = accuracy == state.best_accuracy
        better = (accuracy > state.best_accuracy) | (equal & (loss < state.best_loss))

        keep = functools.partial(_where, better)
        return dataclasses.replace(
            state,
            best=keep(params, state.best),
            best_accuracy=keep(accuracy, state.best_accuracy),
            best_loss=keep(loss, state.best_loss),
            best_epoch=keep(jnp.broadcast_to(epoch, better.shape), state.best_epoch),
        )


def _adam(model: Models) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(model.weight_decay), optax.adam(model.learning_rate)
    )


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    """For each model `[G]` the one or the other of two trees whose leaves have a leading axis of G."""

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(-1, *(1 for _ in new.shape[1:])), new, old)

    return jax.tree.map(choose, new, old)
