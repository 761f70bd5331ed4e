"""LeNet's convolutions over bags: this package's against XLA's.

    python -m benchmarks.small_convolutions --out=small_convolutions.json

A step is the gradient of LeNet's features for one bag of random images, as a training's scan has it.
"""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn

from benchmarks import flag_values, machine
from lossattn_jax import devices
from lossattn_jax.commands import command
from lossattn_jax.kernels import bag_convolution
from lossattn_jax.models.layers import Conv, dense
from lossattn_jax.models.lenet import CHANNELS, HIDDEN

log = logging.getLogger("lossattn_jax.benchmarks")

WAYS = ("ours", "XLA's")


class Features(nn.Module):
    """LeNet's features with one or the other convolution and pooling.

    Attributes:
      way: of `WAYS`.
    """

    way: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[n, 28, 28, 1]` to `[n, HIDDEN]`."""
        ours = self.way == WAYS[0]
        conv = functools.partial(
            Conv,
            kernel=5,
            use_bias=True,
            conv_general_dilated=bag_convolution.conv_general_dilated if ours else None,
        )
        pool: Callable[..., Any] = bag_convolution.max_pool
        if not ours:
            pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
        for number, channels in enumerate(CHANNELS, start=1):
            x = nn.relu(pool(conv(channels, name=f"conv{number}")(x)))
        x = x.reshape(len(x), -1)
        return nn.relu(dense(HIDDEN, x.shape[-1], "dense")(x))


def run(out: str, bags: int = 100, length: int = 10, repeats: int = 5) -> dict[str, Any]:
    """Measures both ways in turn, and writes and prints the results.

    Args:
      out: JSON file for the results.
      bags: steps of each timed call.
      length: images of a bag.
      repeats: timed calls of each.

    Returns:
      What is in the file: `ms_per_bag` of each way, `difference` of their gradients relative to the largest
      one, and `speedup`, the ratio of medians.

    Raises:
      UserError: the file cannot be written.
    """
    path = machine.prepare(out)
    images = np.random.default_rng(0).standard_normal((bags, length, 28, 28, 1), np.float32)
    params = jax.jit(Features(WAYS[0]).init)(jax.random.key(0), images[0])
    jobs = {way: _job(Features(way)) for way in WAYS}
    gradients = {way: jax.block_until_ready(job(params, images)) for way, job in jobs.items()}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, job in jobs.items():
            began = time.perf_counter()
            jax.block_until_ready(job(params, images))
            seconds[way].append(time.perf_counter() - began)
    spreads = {way: machine.spread([1e3 * s / bags for s in seconds[way]]) for way in WAYS}
    record = {
        **machine.header("benchmarks.small_convolutions", ("jax", "jaxlib", "flax", "numpy")),
        "device": devices.describe(),
        "images_of_a_bag": length,
        "difference": _difference(*gradients.values()),
        "ms_per_bag": spreads,
        "speedup": spreads[WAYS[1]]["median"] / spreads[WAYS[0]]["median"],
    }
    machine.write(record, path)
    for way in WAYS:
        own = spreads[way]
        print(
            f"{way}: {own['median']:.2f} ms a bag ({own['min']:.2f} to {own['max']:.2f}), "
            "forward and backward"
        )
    log.info("results: %s", path)
    return record


def _job(module: Features) -> Callable[..., Any]:
    """A program that sums the gradients of mean squared features over bags."""

    def loss(params: Any, bag: jax.Array) -> jax.Array:
        features: Any = module.apply(params, bag)
        return jnp.mean(jnp.square(features))

    def step(total: Any, bag: jax.Array, params: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, jax.grad(loss)(params, bag)), None

    @jax.jit
    def job(params: Any, images: jax.Array) -> Any:
        start = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(functools.partial(step, params=params), start, images)[0]

    return job


def _difference(first: Any, second: Any) -> float:
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (first, second)]
    return float(np.abs(flat[0] - flat[1]).max() / np.abs(flat[1]).max())


def main() -> None:
    """The command; see the flags."""
    run(**flag_values.arguments(run))


if __name__ == "__main__":
    # Not where tests import several benchmarks, whose flags have the same names.
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_integer("bags", 100, "of each timed call", lower_bound=1)
    flags.DEFINE_integer("length", 10, "images of a bag", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "timed calls of each", lower_bound=1)
    command.run(main)
