"""The compiled programs of `lossattn_jax.train.bags.training`: what runs on the devices.

Each device takes its models group by group; see `lossattn_jax.train.bags.steps`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossattn_jax import devices
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags.device_bags import Data, cut_bags, standardise, write
from lossattn_jax.train.bags.states import where
from lossattn_jax.train.bags.steps import Program, Steps


@dataclasses.dataclass(frozen=True)
class Training:
    """The programs of a training.

    Arguments and results have leading axes of devices and models.

    Attributes:
      start: (models, data) to states.
      block: (models, states, data, steps) to states, `[epochs, bags, K]` logits, and whether all of it was
        finite.
      checked_block: (models, states, in_a_row, data, steps) and the results of `block` to states, logits and
        `[epochs, steps]` bool: of models that were not finite, without the updates that were not, and which
        these are; see `Steps.checked_epochs`.
      results: states to the last, best and kept parameters and the best epoch; see `Steps.results`.
    """

    start: Callable[..., Any]
    block: Callable[..., Any]
    checked_block: Callable[..., Any]
    results: Callable[..., Any]


@functools.lru_cache(maxsize=8)
def training(program: Program) -> Training:
    """Makes the programs that train networks."""
    steps, group = Steps(program), program.group

    def checked_block(
        models: Any, states: Any, in_a_row: Any, data: Data, epochs: Any, *block: Any
    ) -> Any:
        def of_group(arguments: Any) -> Any:
            models, states, in_a_row, (*block_results, finite) = arguments
            nothing = jnp.zeros((group, *epochs["order"].shape[:2]), bool)

            def compute() -> Any:
                *again, skips = steps.checked_epochs(models, states, in_a_row, data, epochs)
                # To the bit what they are without the others.
                return *where(finite, block_results, again), skips & ~finite[:, None, None]

            return jax.lax.cond(jnp.all(finite), lambda: (*block_results, nothing), compute)

        return _by_groups(of_group, group, (models, states, in_a_row, block))

    return Training(
        start=devices.pmap(lambda m, d: _by_groups(lambda m: steps.start(m, d), group, m)),
        block=devices.pmap(
            lambda m, s, d, e: _by_groups(lambda a: steps.epochs(a[0], a[1], d, e), group, (m, s))
        ),
        checked_block=devices.pmap(checked_block),
        results=devices.pmap(steps.results),
    )


@functools.lru_cache(maxsize=8)
def prediction(network: BagNetwork, tops: tuple[int, ...], group: int) -> Callable[..., Any]:
    """Makes the program that predicts.

    It takes ((params, mean, inverse scale, predict_mask), data).

    Returns:
      Logits `[bags, K]`, attention `[N + longest]` and instance logits `[N + longest, K]` of each model,
      zeros for bags that it is not to predict.
    """

    def of_group(models: Any, data: Data) -> Any:
        params, mean, inverse_scale, predict_mask = models
        size = data.instances.shape[0]
        start = (jnp.zeros((group, size)), jnp.zeros((group, size, network.num_classes)))

        def bag(instances: Any, row: jax.Array) -> Any:
            def predict(instances, length):
                x, mask = cut_bags(data, row[None], length)
                out = jax.vmap(
                    lambda p, m, s: network.apply({"params": p}, standardise(x, m, s), mask),
                    axis_size=group,
                )(params, mean, inverse_scale)
                place = data.offsets[row]
                attention = write(instances[0], out.attention[:, 0], mask[0], place)
                logits = write(instances[1], out.patch_logits[:, 0], mask[0], place)
                return (attention, logits), out.logits[:, 0]

            branches = [functools.partial(predict, length=length) for length in tops]
            return jax.lax.cond(
                jnp.any(predict_mask[:, row]),
                lambda i: jax.lax.switch(data.bucket[row], branches, i),
                lambda i: (i, jnp.zeros((group, network.num_classes))),
                instances,
            )

        instances, logits = jax.lax.scan(bag, start, jnp.arange(predict_mask.shape[1]))
        return logits.swapaxes(0, 1), *instances

    return devices.pmap(lambda m, d: _by_groups(lambda m: of_group(m, d), group, m))


def forget() -> None:
    """Frees the compiled programs.

    Each holds memory mappings, of which Linux gives a process some 65,000: after about fifty trainings
    in one process nothing could be compiled any more.
    """
    training.cache_clear()
    prediction.cache_clear()
    jax.clear_caches()


def _by_groups(function: Callable[..., Any], group: int, models: Any) -> Any:
    """Applies `function` to groups of models, one after the other."""
    groups = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), models)
    result = jax.lax.map(function, groups)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), result)
