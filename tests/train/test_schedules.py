"""Schedules and optimisers against the papers' numbers and PyTorch's update rule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.config.images import default_config
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import (
    Length,
    beta_schedules,
    fall_schedule,
    learning_rate_schedule,
    loss_weight_schedule,
)
from tests.support import shrunk


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
    assert float(loss_weight_schedule(epoch, 0.1, 80)) == pytest.approx(expected, rel=1e-6)
    traced = jax.jit(lambda e: loss_weight_schedule(e, 0.1, 80))(jnp.int32(epoch))
    assert float(traced) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.1), (99.9, 0.1), (100, 0.01), (149.9, 0.01), (150, 0.001)]
)
def test_learning_rate_of_the_paper(epoch, expected):
    schedule = learning_rate_schedule(default_config().optimizer, Length(200, 390))
    assert float(schedule(math.floor(epoch * 390))) == pytest.approx(expected, rel=1e-6)


def test_one_cycle_rises_to_the_top_and_falls_to_zero():
    config = default_config()
    config.optimizer.schedule = "one_cycle"
    config.optimizer.warmup_epochs = 2.0
    config.train.epochs = 10
    schedule = learning_rate_schedule(config.optimizer, Length(config.train.epochs, 5))
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
    schedule = learning_rate_schedule(config.optimizer, Length(config.train.epochs, 4))
    assert float(schedule(0)) == pytest.approx(0.025)
    assert float(schedule(24)) == pytest.approx(0.05)
    assert float(schedule(44)) == pytest.approx(0, abs=1e-9)


def test_a_warmup_moves_no_milestone():
    config = default_config()
    config.optimizer.warmup_epochs = 5.0
    schedule = learning_rate_schedule(config.optimizer, Length(config.train.epochs, 10))
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
    schedule = learning_rate_schedule(config.optimizer, Length(config.train.epochs, 2))
    optimizer = make_optimizer(config.optimizer, schedule, Length(4, 2))
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
    optimizer = make_optimizer(config.optimizer, lambda step: 0.1, Length(1, 1))
    params = {"conv": {"kernel": jnp.ones((2, 2))}, "bn": {"scale": jnp.ones(2)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert float(jnp.max(updates["conv"]["kernel"])) < 0
    np.testing.assert_array_equal(updates["bn"]["scale"], 0)


def test_a_ramp_of_no_epochs_is_the_whole_weight_from_the_start():
    assert float(loss_weight_schedule(0, 1.0, 0)) == 1.0
    assert float(loss_weight_schedule(7, 400.0, 0)) == 400.0


def aaai_config():
    return shrunk.load("aaai_resnet18.py")


@pytest.mark.parametrize(
    ("epoch", "rate", "beta1", "beta2"),
    [
        (0, 0.003 * math.exp(-5), 0.9, 0.99),
        (40, 0.003 * math.exp(-5 / 4), 0.9, 0.99),
        (80, 0.003, 0.9, 0.99),
        (81, 0.003, 0.9, 0.999),
        (150, 0.003, 0.9, 0.999),
        (160, 0.003 * math.exp(-25 / 50), 0.5 + 0.4 * math.exp(-25 / 50), 0.999),
        (199, 0.003 * math.exp(-(24.5**2) / 50), 0.5 + 0.4 * math.exp(-(24.5**2) / 50), 0.999),
    ],
)
def test_the_aaai_ramps(epoch, rate, beta1, beta2):
    config = aaai_config()
    schedule = learning_rate_schedule(config.optimizer, Length(config.train.epochs, 10))
    first, second = beta_schedules(config.optimizer, Length(config.train.epochs, 10))
    for step in (10 * epoch, 10 * epoch + 9):
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5)
        assert float(first(step)) == pytest.approx(beta1, rel=1e-5)
        assert float(second(step)) == pytest.approx(beta2, rel=1e-6)


def test_no_ramp_down_is_no_fall():
    assert float(fall_schedule(199, 200, 0)) == 1.0


def test_adam_with_changing_betas_follows_the_rule():
    config = aaai_config()
    config.train.epochs = 4
    config.optimizer.restart_epochs = 0
    config.optimizer.ramp_up_epochs = 1
    config.optimizer.ramp_down_epochs = 2
    length = Length(4, 1)
    schedule = learning_rate_schedule(config.optimizer, length)
    optimizer = make_optimizer(config.optimizer, schedule, length)
    rng = np.random.default_rng(1)
    params = {"bias": jnp.asarray(rng.standard_normal(5), jnp.float32)}
    state = optimizer.init(params)
    expected = np.asarray(params["bias"], np.float64)
    first = second = np.zeros(5)
    falls = [1, 1, 1, math.exp(-0.25 / 2)]
    for epoch, fall in enumerate(falls):
        gradient = rng.standard_normal(5)
        beta1 = fall * 0.9 + (1 - fall) * 0.5
        beta2 = 0.99 if epoch <= 1 else 0.999
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        rate = 0.003 * fall * (math.exp(-5) if epoch == 0 else 1)
        corrected = first / (1 - beta1 ** (epoch + 1))
        scale = np.sqrt(second / (1 - beta2 ** (epoch + 1))) + 1e-8
        expected -= rate * corrected / scale
        updates, state = optimizer.update(
            {"bias": jnp.asarray(gradient, jnp.float32)}, state, params
        )
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    np.testing.assert_allclose(params["bias"], expected, rtol=1e-5)
