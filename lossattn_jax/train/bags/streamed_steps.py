"""The compiled programs of networks for bags that are read one by one, as `programs` has them for others.

A call is one step: its bags come with it, the same for all M models. What devices share, models, bags or
instances, `Program.spread` says. Of a device's models `Program.group` are computed together.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossattn_jax import devices
from lossattn_jax.kernels import random_words
from lossattn_jax.models.backbones import BAG_BACKBONES
from lossattn_jax.models.bag_networks import BagLayers, BagNetwork, BagPooling, part_of
from lossattn_jax.train import update as update_lib
from lossattn_jax.train.bags.device_bags import standardise
from lossattn_jax.train.bags.gradients import StepBags, with_decay
from lossattn_jax.train.bags.spread import Spread
from lossattn_jax.train.bags.states import Models, State
from lossattn_jax.train.bags.steps import Program, Steps
from lossattn_jax.train.update import ModelState


@dataclasses.dataclass(frozen=True)
class StreamedTraining:
    """The programs of a training; arguments have a leading axis of devices.

    Attributes:
      start: (models, x, mask) to states.
      update: (models, (states, in a row), visible, batch, clock) to states and `[M]` int32 updates that were
        skipped in a row, and `[M]` bool, whether this one was.
      average: (states, epoch) to states with the parameters of an epoch's end in their average.
      keep: (models, states, logits, labels, epoch) to states with the parameters that models keep.
      results: see `steps.Steps.results`.
    """

    start: devices.BriefProgram
    update: Callable[..., Any]
    average: Callable[..., Any]
    keep: Callable[..., Any]
    results: Callable[..., Any]


@functools.lru_cache(maxsize=8)
def training(program: Program) -> StreamedTraining:
    """The programs that train networks; `program.tops` is not looked at."""
    steps = Steps(program)

    def start(models: Models, x: jax.Array, mask: jax.Array) -> State:
        return jax.vmap(lambda model: steps.fresh_state(model, x, mask))(models)

    def keep(models: Models, states: State, logits: Any, labels: Any, epoch: Any) -> State:
        return steps.keep_epochs(models, states, logits, labels, epoch)

    return StreamedTraining(
        start=devices.BriefProgram(start),
        update=devices.pmap(functools.partial(_update, steps), donate=(1,)),
        average=devices.pmap(steps.average_epochs, donate=(0,)),
        keep=devices.pmap(keep, donate=(1,)),
        results=devices.pmap(steps.results),
    )


def computes_in_pieces(network: BagNetwork, spread: Spread) -> bool:
    """Whether bags go through a network's layers in pieces: on CPUs, where that is quicker.

    Of bags whose instances are split over devices, each device's part is one piece.
    """
    whole_bags = spread.instance_axis is None
    can_be = whole_bags and BAG_BACKBONES.find(network.backbone).first_layer is not None
    return can_be and network.dtype == jnp.float32 and jax.default_backend() == "cpu"


def draw_noise(
    network: BagNetwork,
    seed: jax.Array,
    epoch: jax.Array,
    rows: jax.Array,
    length: int,
    longest: jax.Array | None = None,
) -> jax.Array:
    """`[b, length, units]` uint8: what the dropout of a step's bags goes by.

    It follows from the model's seed, the epoch and the bag alone, whatever the bag is padded to.

    Args:
      network: of the model.
      seed: uint32 scalar.
      epoch: int32 scalar, from 0.
      rows: `[b]` int32, positions of the bags in the data set.
      length: that bags are padded to.
      longest: int32 scalar, instances of the longest of them, behind which there may be zeros; None: all are
        drawn.
    """
    units = sum(network.widths)
    key = jax.random.fold_in(jax.random.key(seed), epoch)

    def of_bag(row: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, jnp.maximum(row, 0))
        if longest is None:
            words = jax.random.bits(own, (length, -(-units // 4)), jnp.uint32)
        else:
            words = random_words.draw_rows(own, (length, -(-units // 4)), longest)
        several = jax.lax.bitcast_convert_type(words, jnp.uint8)
        return several.reshape(length, -1)[:, :units]

    return jax.vmap(of_bag)(rows)


def _update(
    steps: Steps,
    models: Models,
    carry: tuple[State, jax.Array],
    visible: jax.Array,
    batch: Any,
    clock: Any,
) -> Any:
    """An update of each model that sees one of the step's bags.

    Args:
      steps: of the training.
      models: of one device; so are the following, see `spread`.
      carry: their states, and `[M]` int32, how many updates were skipped in a row before.
      visible: `[M, b]` bool, the bags that each model is trained on.
      batch: x, mask, labels and rows, as `bag_stream.StepBags` has them.
      clock: epoch, from 0, and step, from the start of the training; int32 scalars.
    """
    x, mask, labels, rows = batch
    epoch, number = clock
    settings, spread = steps.settings, steps.program.spread

    def of_one(arguments: Any) -> Any:
        model, (state, in_a_row), visible = arguments

        def compute() -> Any:
            in_pieces = computes_in_pieces(steps.network, spread)
            longest = jnp.max(jnp.sum(mask, axis=1, dtype=jnp.int32)) if in_pieces else None
            length = spread.whole_length(x.shape[1])
            noise = draw_noise(steps.network, model.seed, epoch, rows, length, longest)
            noise = spread.own_instances(noise)
            target = jnp.zeros(0, jnp.float32)
            stored = x if in_pieces else x.astype(jnp.float32)
            bags = StepBags(stored, mask, labels, visible, noise, target)
            of_bags = steps.gradients(
                model, state.params, bags, epoch, guard_loss=True, in_pieces=in_pieces
            )
            decayed = with_decay(model, state.params, of_bags.gradients)
            values = (of_bags.loss, update_lib.gradient_norm(decayed))
            applied = update_lib.is_applied(values, in_a_row, settings.max_skipped)
            after = update_lib.apply_update(
                steps.optimizer(model),
                of_bags.gradients,
                ModelState(state.params, state.opt_state),
                number,
                applied,
            )
            changed = dataclasses.replace(state, params=after.params, opt_state=after.opt_state)
            return (changed, update_lib.count_skipped(applied, in_a_row)), ~applied

        nothing = jnp.zeros((), bool)
        return jax.lax.cond(
            spread.any_visible(visible), compute, lambda: ((state, in_a_row), nothing)
        )

    several = steps.program.group if steps.program.group > 1 else None
    return jax.lax.map(of_one, (models, carry, visible), batch_size=several)


@functools.lru_cache(maxsize=8)
def whole_bag(network: BagNetwork, group: int) -> Callable[..., Any]:
    """The program that predicts for a bag as a whole: ((params, mean, inverse scale), predicts, x, mask).

    Returns:
      Of x `[1, length, features...]`, for each model: logits `[K]`, attention `[length]` and instance logits
      `[length, K]`; zeros where `predicts` `[M]` is False.
    """

    def predict(models: Any, predicts: jax.Array, x: jax.Array, mask: jax.Array) -> Any:
        def of_one(model: Any) -> Any:
            params, mean, inverse_scale = model
            own = standardise(x.astype(jnp.float32), mean, inverse_scale)
            out: Any = network.apply({"params": params}, own, mask)
            return out.logits[0], out.attention[0], out.patch_logits[0]

        return _map_where(of_one, predicts, models, group)

    return devices.pmap(predict)


@functools.lru_cache(maxsize=8)
def bag_layers(network: BagNetwork, group: int) -> Callable[..., Any]:
    """The program of a piece of a bag: ((params, mean, inverse scale), predicts, x).

    Returns:
      Of x `[1, length, features...]`, for each model the layers that are pooled, `[length, width]`.
    """
    layers = part_of(network, BagLayers)

    def compute(models: Any, predicts: jax.Array, x: jax.Array) -> Any:
        def of_one(model: Any) -> Any:
            params, mean, inverse_scale = model
            own = standardise(x.astype(jnp.float32), mean, inverse_scale)
            of_bag: Any = layers.apply({"params": params}, own)
            return [layer[0] for layer in of_bag]

        return _map_where(of_one, predicts, models, group)

    return devices.pmap(compute)


@functools.lru_cache(maxsize=8)
def bag_pooling(network: BagNetwork, spread: Spread) -> Callable[..., Any]:
    """The program that predicts of all instances' layers: (params, predicts, layers, mask), as `whole_bag`.

    The layers are `[N, width]` of each model, the mask is `[N]`; of the instances that a device has, where
    these are split.
    """
    pooling = part_of(spread.network(network), BagPooling)

    def predict(params: Any, predicts: jax.Array, layers: Any, mask: jax.Array) -> Any:
        def of_one(model: Any) -> Any:
            params, layers = model
            out: Any = pooling.apply(
                {"params": params}, [layer[None] for layer in layers], mask[None]
            )
            return out.logits[0], out.attention[0], out.patch_logits[0]

        return _map_where(of_one, predicts, (params, layers), 1)

    return devices.pmap(predict)


def _map_where(function: Callable[[Any], Any], where: jax.Array, models: Any, group: int) -> Any:
    """Applies `function` to each model where `where` `[M]` says so; elsewhere it gives zeros.

    Several models are computed together, and then all of them, only where `group` is above 1.
    """

    def of_one(arguments: Any) -> Any:
        here, model = arguments
        shapes = jax.eval_shape(function, model)
        zeros = functools.partial(
            jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes
        )
        return jax.lax.cond(here, lambda: function(model), zeros)

    return jax.lax.map(of_one, (where, models), batch_size=group if group > 1 else None)


def forget() -> None:
    """Lets go of the compiled programs, see `programs.forget`."""
    for programs in (training, whole_bag, bag_layers, bag_pooling):
        programs.cache_clear()
