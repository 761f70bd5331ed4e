"""Schedules and optimisers against the papers' numbers and PyTorch's update rule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.config import default_config
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import learning_rate_schedule, patch_weight_schedule


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 0.0),
        (1, 0.1 * math.exp(-5 * (79 / 80) ** 2)),
        (40, 0.1 * math.exp(-1.25)),
        (80, 0.1),
        (199, 0.1),
    ],
)
def test_patch_weight_of_the_paper(epoch, expected):
    assert float(patch_weight_schedule(epoch, 0.1, 80)) == pytest.approx(expected, rel=1e-6)
    traced = jax.jit(lambda e: patch_weight_schedule(e, 0.1, 80))(jnp.int32(epoch))
    assert float(traced) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.1), (99.9, 0.1), (100, 0.01), (149.9, 0.01), (150, 0.001)]
)
def test_learning_rate_of_the_paper(epoch, expected):
    schedule = learning_rate_schedule(default_config(), steps_per_epoch=390)
    assert float(schedule(math.floor(epoch * 390))) == pytest.approx(expected, rel=1e-6)


def test_one_cycle_rises_to_the_top_and_falls_to_zero():
    config = default_config()
    config.optimizer.schedule = "one_cycle"
    config.optimizer.warmup_epochs = 2.0
    config.train.epochs = 10
    schedule = learning_rate_schedule(config, steps_per_epoch=5)
    rates = [float(schedule(step)) for step in range(50)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.1)
    assert rates[30] == pytest.approx(0.05)
    assert rates[49] == pytest.approx(0.1 / 40)
    assert max(rates) == pytest.approx(0.1)


def test_cosine_after_warmup():
    config = default_config()
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0
    config.train.epochs = 11
    schedule = learning_rate_schedule(config, steps_per_epoch=4)
    assert float(schedule(0)) == pytest.approx(0.025)
    assert float(schedule(24)) == pytest.approx(0.05)
    assert float(schedule(44)) == pytest.approx(0, abs=1e-9)


def test_a_warmup_moves_no_milestone():
    config = default_config()
    config.optimizer.warmup_epochs = 5.0
    schedule = learning_rate_schedule(config, steps_per_epoch=10)
    assert float(schedule(999)) == pytest.approx(0.1)
    assert float(schedule(1000)) == pytest.approx(0.01)


def pytorch_sgd(params, gradients, rates, momentum, decay, nesterov):
    """torch.optim.SGD's documented rule, in float64."""
    buffer = None
    for gradient, rate in zip(gradients, rates, strict=True):
        change = gradient + decay * params
        buffer = change if buffer is None else momentum * buffer + change
        params = params - rate * (change + momentum * buffer if nesterov else buffer)
    return params


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_pytorchs_rule(nesterov):
    config = default_config()
    config.optimizer.nesterov = nesterov
    config.optimizer.milestones = (2,)
    config.train.epochs = 4
    schedule = learning_rate_schedule(config, steps_per_epoch=2)
    optimizer = make_optimizer(config, schedule)
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(6), rng.standard_normal((8, 6))
    params = {"bias": jnp.asarray(start, jnp.float32)}
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(
            {"bias": jnp.asarray(gradient, jnp.float32)}, state, params
        )
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    rates = [0.1] * 4 + [0.01] * 4
    expected = pytorch_sgd(start, gradients, rates, 0.9, 5e-4, nesterov)
    np.testing.assert_allclose(params["bias"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_weight_decay_mask_spares_all_but_kernels(name):
    config = default_config()
    config.optimizer.name = name
    config.optimizer.weight_decay_mask = "kernels"
    optimizer = make_optimizer(config, lambda step: 0.1)
    params = {"conv": {"kernel": jnp.ones((2, 2))}, "bn": {"scale": jnp.ones(2)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert float(jnp.max(updates["conv"]["kernel"])) < 0
    np.testing.assert_array_equal(updates["bn"]["scale"], 0)
