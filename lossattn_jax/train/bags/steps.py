"""The steps of training networks for bags, as traced functions of explicit state.

Everything here works on one group of G models at a time, whose arrays have a leading axis of G. The
bag of a step is the same for all of them, so that the length it is padded to is one decision for the
group and not computed for every length.

On CPUs an update is so short that to look at all of its gradient first, and to choose between the states
before and after it, would show. So `epochs` makes all updates and says in the end whether they were finite:
what is not finite stays in Adam's moments. Where they were not, `epochs_again` makes the same epochs with a
look at each update.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lossattn_jax.attention import losses
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags.device_bags import Data, cut, cut_values, standardised, write
from lossattn_jax.train.bags.gradients import Gradients, decayed
from lossattn_jax.train.bags.settings import Settings
from lossattn_jax.train.bags.states import Models, State, where

# Of the sum of Adam's second moments at an epoch's end. A norm that overflowed has left 1e-3 of its square,
# 3e35 or more, of which each update since has taken a thousandth: 3e4 updates later this is still there.
_SUSPICIOUS = 1e20


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
        self.gradients = Gradients(network, settings, consistency)

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
        """Some epochs, with every update made.

        Returns:
          The state, logits `[G, epochs, bags, K]`, and `[G]` bool: False where the loss or the norm of a
          gradient may not have been finite, so that the rest is to be made again.
        """

        def epoch(carry: Any, steps: Any) -> Any:
            state, fine = carry
            (state, total), _ = self._updates(
                models, (state, jnp.zeros(self.group)), data, steps, looks=False
            )
            fine &= jnp.isfinite(total) & (_squares(state.moments) < _SUSPICIOUS)
            state, logits = self._end_epoch(models, state, data, steps)
            return (state, fine), logits

        start = (state, jnp.ones(self.group, bool))
        (state, fine), logits = jax.lax.scan(epoch, start, steps)
        return state, logits.swapaxes(0, 1), fine

    def epochs_again(self, models: Models, state: State, row: Any, data: Data, steps: Any) -> Any:
        """The same epochs, without the updates whose loss or norm of the gradient is not finite.

        Such an update leaves parameters, moments and the average of the bags' attention as they were. After
        `Settings.max_skipped` in a row a model makes no more.

        Args:
          models: the group.
          state: before the epochs.
          row: `[G]` int32, how many updates were skipped in a row before.
          data: the bags.
          steps: of the epochs.

        Returns:
          The state, logits as of `epochs`, and `[G, epochs, steps]` bool, the updates that were skipped.
        """

        def epoch(carry: Any, steps: Any) -> Any:
            (state, row), skipped = self._updates(models, carry, data, steps, looks=True)
            state, logits = self._end_epoch(models, state, data, steps)
            return (state, row), (logits, skipped)

        (state, _), (logits, skipped) = jax.lax.scan(epoch, (state, row), steps)
        return state, logits.swapaxes(0, 1), jnp.moveaxis(skipped, 2, 0)

    def chosen(self, state: State) -> Any:
        last = state.average if self.settings.average_epochs else state.params
        return last, state.best, state.kept, state.best_epoch

    def _updates(self, models: Models, carry: Any, data: Data, steps: Any, looks: bool) -> Any:
        """An epoch's updates of (state, what `_update` tells), and `[steps, G]` what it says of each."""
        epoch = steps["epoch"]
        noise = jax.vmap(lambda model: self.noise(model, data, epoch))(models)

        def step(carry, rows):
            seen = models.train[:, jnp.maximum(rows, 0)] & (rows >= 0)[None]
            update = functools.partial(self._update, models, data, epoch, noise, rows, seen, looks)
            nothing = jnp.zeros(self.group, bool) if looks else None
            return jax.lax.cond(jnp.any(seen), update, lambda c: (c, nothing), carry)

        return jax.lax.scan(step, carry, steps["order"])

    def noise(self, model: Models, data: Data, epoch: jax.Array) -> jax.Array:
        """`[N + longest, units]` uint8: what an epoch's dropout of every instance goes by.

        Drawn at once, since each draw costs a CPU about as much as a small matrix product.
        """
        key = jax.random.fold_in(jax.random.key(model.seed), epoch)
        units = sum(self.network.widths)
        words = jax.random.bits(key, (data.instances.shape[0], -(-units // 4)), jnp.uint32)
        several = jax.lax.bitcast_convert_type(words, jnp.uint8)
        return several.reshape(len(words), -1)[:, :units]

    def _update(self, models, data, epoch, noise, rows, seen, looks, carry):
        """An update of (state, sum of the losses), or with `looks` of (state, skipped in a row)."""
        state, told = carry
        rows = jnp.maximum(rows, 0)
        active = jnp.any(seen, axis=1)

        def gradients(length: int) -> Any:
            x, mask = cut(data, rows, length)
            if self.consistency:
                targets = jax.vmap(lambda e: cut_values(e, data, rows, length))(state.ensemble)
            else:
                targets = jnp.zeros((self.group, 0))
            bytes_ = jax.vmap(lambda n: cut_values(n, data, rows, length))(noise)
            of_one = functools.partial(self.gradients, data.labels[rows], epoch, x, mask, looks)
            (values, (attention, _)), found = jax.vmap(of_one)(
                models, state.params, seen, bytes_, targets
            )
            made = None
            if looks:
                norms = jax.vmap(lambda *of: optax.tree.norm(decayed(*of)))(
                    models, state.params, found
                )
                finite = jnp.isfinite(values) & jnp.isfinite(norms)
                made = active & finite & (told < self.settings.max_skipped)
            remembered = state.attention
            if self.consistency:
                if made is not None:
                    # What leaves the corrected average as it is.
                    attention = where(made, attention, self.gradients.known(targets, epoch, mask))
                for place, row in enumerate(rows):
                    here = mask[place][None] & seen[:, place, None]
                    remembered = write(remembered, attention[:, place], here, data.offsets[row])
            return values, found, remembered, made

        branches = [functools.partial(gradients, length) for length in self.tops]
        values, found, attention, made = jax.lax.switch(data.bucket[rows[0]], branches)

        def apply(model, params, moments, found, made):
            updates, after = _adam(model).update(found, moments, params)
            moved = optax.apply_updates(params, updates)
            if self.group == 1 and not looks:
                return moved, after
            keep = functools.partial(jnp.where, made)
            return jax.tree.map(keep, (moved, after), (params, moments))

        params, moments = jax.vmap(apply)(
            models, state.params, state.moments, found, made if looks else active
        )
        state = dataclasses.replace(state, params=params, moments=moments, attention=attention)
        if not looks:
            return (state, told + values), None
        skipped = active & ~made
        told = jnp.where(active, jnp.where(made, 0, told + 1), told)
        return (state, told), skipped

    def _end_epoch(self, models: Models, state: State, data: Data, steps: Any) -> Any:
        """The state at an epoch's end, and logits `[G, bags, K]` of the held bags."""
        epoch = steps["epoch"]
        if self.consistency:
            decay = self.settings.consistency_decay
            mixed = decay * state.ensemble + (1 - decay) * state.attention
            state = dataclasses.replace(state, ensemble=mixed)
        if self.settings.average_epochs:
            count = epoch - (self.settings.epochs - self.settings.average_epochs) + 1
            share = 1 / jnp.maximum(count, 1).astype(jnp.float32)
            average = jax.tree.map(lambda a, p: a + (p - a) * share, state.average, state.params)
            state = dataclasses.replace(state, average=average)
        params = state.average if self.settings.average_epochs else state.params
        logits = jax.lax.cond(
            steps["predict"],
            lambda: self._predict(models, params, data),
            lambda: jnp.zeros((len(data.labels), self.group, self.network.num_classes)),
        ).swapaxes(0, 1)
        if self.select:
            state = self._keep_best(models, state, params, logits, data.labels, epoch)
        if self.keep:
            kept = where(models.keep_epoch == epoch, params, state.kept)
            state = dataclasses.replace(state, kept=kept)
        return state, logits

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
        """The higher accuracy on the scored bags is better, and of equal ones the lower loss.

        A bag whose logits are not finite counts as wrong, and a loss that is not finite as the highest.
        """
        scored = models.scored.astype(jnp.float32)
        count = jnp.maximum(jnp.sum(scored, axis=1), 1.0)
        right = (jnp.argmax(logits, axis=-1) == labels[None]) & jnp.isfinite(logits).all(axis=-1)
        accuracy = jnp.sum(right.astype(jnp.float32) * scored, axis=1) / count
        everywhere = jnp.broadcast_to(labels[None], logits.shape[:2])
        loss = jnp.sum(losses.cross_entropy(logits, everywhere) * scored, axis=1) / count
        loss = jnp.where(jnp.isfinite(loss), loss, jnp.inf)
        equal = accuracy == state.best_accuracy
        better = (accuracy > state.best_accuracy) | (equal & (loss < state.best_loss))

        keep = functools.partial(where, better)
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


def _squares(moments: Any) -> jax.Array:
    """`[G]` sum of Adam's second moments; not finite once a gradient's square was not."""
    leaves = jax.tree.leaves(optax.tree.get(moments, "nu"))
    return sum((jnp.sum(leaf.reshape(len(leaf), -1), axis=1) for leaf in leaves), jnp.float32(0))
