"""Training steps of networks for bags, as traced functions of explicit state.

Everything here works on one group of G models at a time, whose arrays have a leading axis of G. The
bag of a step is the same for all of them, so that the length it is padded to is one decision for the
group and not computed for every length.

On CPUs an update is so short that to look at all of its gradient first, and to choose between the states
before and after it, would show. So `epochs` applies all updates and says in the end whether they were finite:
what is not finite stays in the optimiser's state or in a sum. Where they were not, `checked_epochs` computes
the same epochs again and decides for each update whether it is applied.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossattn_jax.attention import losses
from lossattn_jax.config.options import OptimizerOptions
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train import update as update_lib
from lossattn_jax.train.bags.device_bags import Data, cut_bags, cut_values, standardise, write
from lossattn_jax.train.bags.gradients import Gradients, StepBags, with_decay
from lossattn_jax.train.bags.settings import Settings
from lossattn_jax.train.bags.spread import MODELS, Spread
from lossattn_jax.train.bags.states import Models, State, where
from lossattn_jax.train.optimizer import OPTIMIZERS, changes_betas, make_optimizer
from lossattn_jax.train.schedules import Length, learning_rate_schedule
from lossattn_jax.train.update import ModelState

# Of the sum of Adam's second moments at an epoch's end. A norm that overflowed has left 1e-3 of its square,
# 3e35 or more, of which each update since has taken a thousandth: 3e4 updates later this is still there.
_SUSPICIOUS = 1e20


@dataclasses.dataclass(frozen=True)
class Program:
    """What a training's compiled programs depend on, besides the data.

    Attributes:
      network: of all models.
      settings: of all models, but for what `Models` holds.
      tops: rising lengths of the buckets.
      group: models that are computed together.
      steps_per_epoch: steps that all models share.
      selects: whether the best epoch by `Models.selection` is found.
      keeps: whether the parameters of an epoch of a plan's choice are kept.
      consistency: whether attention is kept near its average over the epochs.
      spread: what devices share.
    """

    network: BagNetwork
    settings: Settings
    tops: tuple[int, ...]
    group: int
    steps_per_epoch: int
    selects: bool
    keeps: bool
    consistency: bool
    spread: Spread = MODELS


class _Visit(NamedTuple):
    """A step of an epoch, for all models of a group.

    Attributes:
      epoch: int32 scalar, from 0.
      step: int32 scalar, the steps of all epochs before it.
      rows: `[b]` int32, its bags, those of all devices; -1 for none.
      visible: `[G, b]` bool, those that each model is trained on.
      noise: `[G, N + longest, units]` uint8 of the epoch's dropout.
    """

    epoch: jax.Array
    step: jax.Array
    rows: jax.Array
    visible: jax.Array
    noise: jax.Array


class Steps:
    """Steps of a training, for one group of models."""

    def __init__(self, program: Program):
        """Stores what the programs depend on."""
        self.program = program
        self.network, self.settings = program.network, program.settings
        self.gradients = Gradients(
            program.network, program.settings, program.consistency, program.spread
        )

    def start(self, models: Models, data: Data) -> State:
        """The state of fresh models."""
        x, mask = cut_bags(data, jnp.zeros(1, jnp.int32), self.program.tops[0])
        per_instance = jnp.zeros(len(data.instances)) if self.program.consistency else None
        return jax.vmap(lambda model: self.fresh_state(model, x, mask, per_instance))(models)

    def fresh_state(
        self, model: Models, x: jax.Array, mask: jax.Array, per_instance: jax.Array | None = None
    ) -> State:
        """The state of one fresh model.

        Args:
          model: without the leading axis.
          x: `[1, length, features...]`, some bag, of which only the shape matters.
          mask: `[1, length]` bool.
          per_instance: zeros for what the state has of each instance; None: nothing.
        """
        program = self.program
        params = self.network.init(jax.random.key(model.seed), x, mask)["params"]
        return State(
            params=params,
            opt_state=self.optimizer(model).init(params),
            average=params if self.settings.average_epochs else None,
            ensemble=per_instance,
            attention=per_instance,
            best=params if program.selects else None,
            best_accuracy=jnp.float32(-1) if program.selects else None,
            best_loss=jnp.float32(jnp.inf) if program.selects else None,
            best_epoch=jnp.int32(0) if program.selects else None,
            at_keep_epoch=params if program.keeps else None,
        )

    def epochs(self, models: Models, state: State, data: Data, steps: Any) -> Any:
        """Runs some epochs, and applies every update.

        Returns:
          The state, logits `[G, epochs, bags, K]`, and `[G]` bool: False where the loss or the norm of a
          gradient may not have been finite, so that `checked_epochs` has to compute the epochs again.
        """

        def epoch(carry: Any, steps: Any) -> Any:
            state, finite = carry
            zero = jnp.zeros(self.program.group)
            (state, total), _ = self._updates(
                models, (state, zero), data, steps, skip_nonfinite=False
            )
            finite &= jnp.isfinite(total)
            if self._keeps_squares:
                finite &= _squares(state.opt_state) < _SUSPICIOUS
            state, logits = self._end_epoch(models, state, data, steps)
            return (state, finite), logits

        start = (state, jnp.ones(self.program.group, bool))
        (state, finite), logits = jax.lax.scan(epoch, start, steps)
        return state, logits.swapaxes(0, 1), finite

    def checked_epochs(
        self, models: Models, state: State, in_a_row: Any, data: Data, steps: Any
    ) -> Any:
        """Runs the same epochs, and skips non-finite updates.

        An update is non-finite where its loss or the norm of its gradient is.

        Such an update leaves parameters, the optimiser's state and the average of the bags' attention as
        they were. After `Settings.max_skipped` in a row a model applies no more.

        Args:
          models: the group.
          state: before the epochs.
          in_a_row: `[G]` int32, how many updates were skipped in a row before.
          data: the bags.
          steps: of the epochs.

        Returns:
          The state, logits as of `epochs`, and `[G, epochs, steps]` bool, the updates that were skipped.
        """

        def epoch(carry: Any, steps: Any) -> Any:
            (state, in_a_row), skips = self._updates(
                models, carry, data, steps, skip_nonfinite=True
            )
            state, logits = self._end_epoch(models, state, data, steps)
            return (state, in_a_row), (logits, skips)

        (state, _), (logits, skips) = jax.lax.scan(epoch, (state, in_a_row), steps)
        return state, logits.swapaxes(0, 1), jnp.moveaxis(skips, 2, 0)

    def results(self, state: State) -> Any:
        """The last, best and kept parameters and the best epoch, from 0; None as of `State`."""
        return self.predicting_params(state), state.best, state.at_keep_epoch, state.best_epoch

    def _updates(
        self, models: Models, carry: Any, data: Data, steps: Any, *, skip_nonfinite: bool
    ) -> Any:
        """Runs an epoch's updates; returns the carry and `[steps, G]` skips."""
        epoch, order = steps["epoch"], steps["order"]
        noise = jax.vmap(lambda model: self.noise(model, data, epoch))(models)

        def step(carry: Any, place: Any) -> Any:
            rows, number = place
            visible = models.train[:, jnp.maximum(rows, 0)] & (rows >= 0)[None]
            visit = _Visit(epoch, number, rows, visible, noise)
            update = functools.partial(
                self._update, models, data, visit, skip_nonfinite=skip_nonfinite
            )
            nothing = jnp.zeros(self.program.group, bool) if skip_nonfinite else None
            return jax.lax.cond(jnp.any(visible), update, lambda c: (c, nothing), carry)

        numbers = epoch * self.program.steps_per_epoch + jnp.arange(len(order), dtype=jnp.int32)
        return jax.lax.scan(step, carry, (order, numbers))

    def noise(self, model: Models, data: Data, epoch: jax.Array) -> jax.Array:
        """Draws an epoch's dropout of all instances, `[N + longest, units]` uint8.

        Drawn at once, since each draw costs a CPU about as much as a small matrix product.
        """
        key = jax.random.fold_in(jax.random.key(model.seed), epoch)
        units = sum(self.network.widths)
        words = jax.random.bits(key, (data.instances.shape[0], -(-units // 4)), jnp.uint32)
        several = jax.lax.bitcast_convert_type(words, jnp.uint8)
        return several.reshape(len(words), -1)[:, :units]

    def _update(
        self, models: Models, data: Data, visit: _Visit, carry: Any, *, skip_nonfinite: bool
    ) -> Any:
        """Runs one update of a group.

        The carry is (state, sum of the losses), with `skip_nonfinite` (state, skipped in a row).

        Returns:
          The carry, and `[G]` bool, which models skipped it; None if not `skip_nonfinite`.
        """
        state, tally = carry
        visit = visit._replace(rows=jnp.maximum(visit.rows, 0))
        active = jnp.any(visit.visible, axis=1)
        branches = [
            functools.partial(self._gradients, models, data, visit, carry, length, skip_nonfinite)
            for length in self.program.tops
        ]
        bucket = data.bucket[visit.rows[0]]
        values, gradients, attention, applies = jax.lax.switch(bucket, branches)

        def apply(model: Models, gradients: Any, before: ModelState, applies: Any) -> ModelState:
            if self.program.group == 1 and not skip_nonfinite:  # of one model some bag is visible
                applies = None
            optimizer = self.optimizer(model)
            return update_lib.apply_update(optimizer, gradients, before, visit.step, applies)

        before = ModelState(state.params, state.opt_state)
        after = jax.vmap(apply)(models, gradients, before, applies if skip_nonfinite else active)
        state = dataclasses.replace(
            state, params=after.params, opt_state=after.opt_state, attention=attention
        )
        if not skip_nonfinite:
            return (state, tally + values), None
        in_a_row = jnp.where(active, update_lib.count_skipped(applies, tally), tally)
        return (state, in_a_row), active & ~applies

    def _gradients(
        self,
        models: Models,
        data: Data,
        visit: _Visit,
        carry: Any,
        length: int,
        skip_nonfinite: bool,
    ) -> Any:
        """Computes gradients of a step's bags, padded to a length.

        Returns:
          `[G]` what has to be finite, the gradients, the state's `attention` after the step, and `[G]` bool
          whether the update is applied, or None if not `skip_nonfinite`.
        """
        state, tally = carry
        # The bags, and with them the length, are chosen by all devices alike, which wait for one another.
        rows, visible = self.program.spread.own_bags(visit.rows, visit.visible)
        group = self.program.group
        x, mask = cut_bags(data, rows, length)
        if self.program.consistency:
            target = jax.vmap(lambda e: cut_values(e, data, rows, length))(state.ensemble)
        else:
            target = jnp.zeros((group, 0))
        noise = jax.vmap(lambda n: cut_values(n, data, rows, length))(visit.noise)
        labels = data.labels[rows]

        def of_one(model: Models, params: Any, visible: Any, noise: Any, target: Any) -> Any:
            bags = StepBags(x, mask, labels, visible, noise, target)
            return self.gradients(model, params, bags, visit.epoch, guard_loss=skip_nonfinite)

        of_bags = jax.vmap(of_one)(models, state.params, visible, noise, target)
        values, applies = of_bags.loss, None
        if skip_nonfinite or not self._keeps_squares:
            total_gradients = jax.vmap(with_decay)(models, state.params, of_bags.gradients)
            norms = jax.vmap(update_lib.gradient_norm)(total_gradients)
            if skip_nonfinite:
                applies = jnp.any(visit.visible, axis=1) & jax.vmap(
                    lambda *of: update_lib.is_applied(of[:2], of[2], self.settings.max_skipped)
                )(values, norms, tally)
            else:
                values += norms
        new_attention = state.attention
        if self.program.consistency:
            attention = of_bags.attention
            if applies is not None:
                # A skipped bag gets its average as attention, which leaves the corrected average unchanged.
                before = self.gradients.attention_before(target, visit.epoch, mask)
                attention = where(applies, attention, before)
            for place, row in enumerate(rows):
                here = mask[place][None] & visible[:, place, None]
                new_attention = write(new_attention, attention[:, place], here, data.offsets[row])
        return values, of_bags.gradients, new_attention, applies

    def _end_epoch(self, models: Models, state: State, data: Data, steps: Any) -> Any:
        """Updates averages at an epoch's end; predicts held-out bags `[G, bags, K]`."""
        epoch = steps["epoch"]
        if self.program.consistency:
            decay = self.settings.consistency_decay
            ensemble = decay * state.ensemble + (1 - decay) * state.attention
            state = dataclasses.replace(state, ensemble=ensemble)
        state = self.average_epochs(state, epoch)
        params = self.predicting_params(state)
        logits = jax.lax.cond(
            steps["predict"],
            lambda: self._predict(models, params, data),
            lambda: jnp.zeros((len(data.labels), self.program.group, self.network.num_classes)),
        ).swapaxes(0, 1)
        return self.keep_epochs(models, state, logits, data.labels, epoch), logits

    def average_epochs(self, state: State, epoch: jax.Array) -> State:
        """The state with the parameters of this epoch's end in their average, where there is one."""
        if not self.settings.average_epochs:
            return state
        count = epoch - (self.settings.epochs - self.settings.average_epochs) + 1
        share = 1 / jnp.maximum(count, 1).astype(jnp.float32)
        average = jax.tree.map(lambda a, p: a + (p - a) * share, state.average, state.params)
        return dataclasses.replace(state, average=average)

    def predicting_params(self, state: State) -> Any:
        """The parameters that predict: the average of the last epochs, or those of this one."""
        return state.average if self.settings.average_epochs else state.params

    def keep_epochs(
        self, models: Models, state: State, logits: jax.Array, labels: jax.Array, epoch: jax.Array
    ) -> State:
        """The state with this epoch's parameters where a model keeps them.

        Args:
          models: the group.
          state: at the epoch's end.
          logits: `[G, bags, K]` of the held bags.
          labels: `[bags]` int32.
          epoch: int32 scalar, from 0.
        """
        params = self.predicting_params(state)
        if self.program.selects:
            scores = self._score(models, logits, labels)
            state = _keep_best(state, params, scores, epoch)
        if self.program.keeps:
            own = where(models.keep_epoch == epoch, params, state.at_keep_epoch)
            state = dataclasses.replace(state, at_keep_epoch=own)
        return state

    def _predict(self, models: Models, params: Any, data: Data) -> jax.Array:
        """Predicts `[bags, G, K]`; zeros for bags that no model predicts."""

        def bag(_, row):
            def forward(length):
                x, mask = cut_bags(data, row[None], length)

                def of_one(params, model):
                    own = standardise(x, model.mean, model.inverse_scale)
                    return self.network.apply({"params": params}, own, mask).logits[0]

                return jax.vmap(of_one)(params, models)

            branches = [functools.partial(forward, length) for length in self.program.tops]
            is_tested = jnp.any(models.held_out[:, row]) & self.program.spread.owns_bag(row)
            nothing = jnp.zeros((self.program.group, self.network.num_classes))
            logits = jax.lax.cond(
                is_tested, lambda: jax.lax.switch(data.bucket[row], branches), lambda: nothing
            )
            return None, logits

        of_own = jax.lax.scan(bag, None, jnp.arange(len(data.labels)))[1]
        return self.program.spread.collect(of_own)

    def _score(self, models: Models, logits: jax.Array, labels: jax.Array) -> Any:
        """Computes `[G]` accuracy and loss on the bags of `Models.selection`.

        A bag whose logits are not finite counts as wrong, and a loss that is not finite as the highest.
        """
        share = models.selection.astype(jnp.float32)
        count = jnp.maximum(jnp.sum(share, axis=1), 1.0)
        finite = jnp.isfinite(logits).all(axis=-1)
        if labels.ndim == 2:  # the share of a bag's labels
            everywhere = jnp.broadcast_to(labels[None], logits.shape)
            right = jnp.mean(((logits > 0) == (everywhere > 0)).astype(jnp.float32), axis=-1)
            right = jnp.where(finite, right, 0.0)
            per_bag = losses.sigmoid_cross_entropy(logits, everywhere)
        else:
            everywhere = jnp.broadcast_to(labels[None], logits.shape[:2])
            right = ((jnp.argmax(logits, axis=-1) == everywhere) & finite).astype(jnp.float32)
            per_bag = losses.cross_entropy(logits, everywhere)
        accuracy = jnp.sum(right * share, axis=1) / count
        loss = jnp.sum(per_bag * share, axis=1) / count
        return accuracy, jnp.where(jnp.isfinite(loss), loss, jnp.inf)

    @functools.cached_property
    def _keeps_squares(self) -> bool:
        """Whether the optimiser's state shows an overflow long after it.

        As the default's does.
        """
        options = self.settings.optimizer
        adam = "nu" in OPTIMIZERS.find(options.name).state
        return adam and options.beta2 >= 0.999 and not changes_betas(options)

    def optimizer(self, model: Models) -> optax.GradientTransformation:
        """The optimiser of one model, with its own learning rate and weight decay."""
        options: OptimizerOptions = dataclasses.replace(
            self.settings.optimizer,
            learning_rate=model.learning_rate,
            weight_decay=model.weight_decay,
        )
        length = Length(self.settings.epochs, self.program.steps_per_epoch)
        rate: Any = learning_rate_schedule(options, length)
        constant = options.schedule == "constant" and not options.warmup_epochs
        if constant and options.name in OPTIMIZERS:
            rate = options.learning_rate  # optax takes a float too, and then carries no count
        return make_optimizer(options, rate, length)


def _keep_best(state: State, params: Any, scores: Any, epoch: jax.Array) -> State:
    """Keeps the higher accuracy, and of equal ones the lower loss.

    Args:
      state: with the best epoch so far.
      params: of this epoch.
      scores: `[G]` accuracy and loss.
      epoch: int32 scalar.
    """
    accuracy, loss = scores
    equal = accuracy == state.best_accuracy
    better = (accuracy > state.best_accuracy) | (equal & (loss < state.best_loss))
    choose = functools.partial(where, better)
    return dataclasses.replace(
        state,
        best=choose(params, state.best),
        best_accuracy=choose(accuracy, state.best_accuracy),
        best_loss=choose(loss, state.best_loss),
        best_epoch=choose(jnp.broadcast_to(epoch, better.shape), state.best_epoch),
    )


def _squares(opt_state: Any) -> jax.Array:
    """Sums Adam's second moments, `[G]`.

    The sum is not finite once a gradient's square was not.
    """
    leaves = jax.tree.leaves(optax.tree.get(opt_state, "nu"))
    return sum((jnp.sum(leaf.reshape(len(leaf), -1), axis=1) for leaf in leaves), jnp.float32(0))
