"""BatchNorm and convolution against NumPy float64 after PyTorch's definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.attention.scorers import AttentionScores
from lossattn_jax.models.layers import BatchNorm, Conv, torch_bias_init, torch_kernel_init


def batch_norm_variables(rng, channels):
    return {
        "params": {
            "scale": jnp.asarray(rng.uniform(0.5, 2, channels), jnp.float32),
            "bias": jnp.asarray(rng.standard_normal(channels), jnp.float32),
        },
        "batch_stats": {
            "mean": jnp.asarray(rng.standard_normal(channels), jnp.float32),
            "var": jnp.asarray(rng.uniform(0.5, 2, channels), jnp.float32),
        },
    }


def normalised(x, mean, var, params):
    scale, bias = (np.asarray(params[name], np.float64) for name in ("scale", "bias"))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


@pytest.mark.parametrize(("running_mean", "tolerance"), [(48.0, 3e-5), (0.0, 1e-3)])
def test_batch_norm_trains_as_pytorch_defines_it(running_mean, tolerance):
    rng = np.random.default_rng(0)
    # A batch mean of many standard deviations is what a one-pass variance is weak at.
    x = (50 + 3 * rng.standard_normal((4, 5, 6, 3))).astype(np.float32)
    variables = batch_norm_variables(rng, 3)
    variables["batch_stats"]["mean"] = jnp.full(3, running_mean)
    y, updated = BatchNorm().apply(variables, jnp.asarray(x), True, mutable=["batch_stats"])
    flat = x.astype(np.float64).reshape(-1, 3)
    mean, var, unbiased = flat.mean(0), flat.var(0), flat.var(0, ddof=1)
    np.testing.assert_allclose(y, normalised(x, mean, var, variables["params"]), atol=tolerance)
    before = {name: np.asarray(stat) for name, stat in variables["batch_stats"].items()}
    after = updated["batch_stats"]
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * unbiased, rtol=tolerance)


def test_batch_norm_evaluates_with_running_statistics_unchanged():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 3, 4)).astype(np.float32)
    variables = batch_norm_variables(rng, 4)
    y, updated = BatchNorm().apply(variables, jnp.asarray(x), False, mutable=["batch_stats"])
    stats = variables["batch_stats"]
    expected = normalised(
        x, np.asarray(stats["mean"]), np.asarray(stats["var"]), variables["params"]
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], stats)


def test_batch_norm_over_replicas_is_that_of_the_whole_batch():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal((4, 6, 2, 2, 3)), jnp.float32)
    variables = batch_norm_variables(rng, 3)

    def shared(x):
        return BatchNorm(axis_name="replicas").apply(variables, x, True, mutable=["batch_stats"])

    y, updated = jax.vmap(shared, axis_name="replicas")(x)
    whole, expected = BatchNorm().apply(
        variables, x.reshape(24, 2, 2, 3), True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(y.reshape(whole.shape), whole, atol=1e-5)
    for name in ("mean", "var"):
        for replica in updated["batch_stats"][name]:
            np.testing.assert_allclose(replica, expected["batch_stats"][name], rtol=1e-5)


def test_batch_norm_keeps_float32_statistics_in_bfloat16():
    x = jnp.asarray(100 + np.random.default_rng(3).standard_normal((64, 4, 4, 2)), jnp.bfloat16)
    module = BatchNorm(dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), x, True)
    y, updated = module.apply(variables, x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
    expected = np.asarray(x, np.float64).reshape(-1, 2).mean(0)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * expected, rtol=1e-4)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 2, 0)])
def test_convolution_by_its_definition(kernel, stride, padding):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    module = Conv(4, kernel, stride, padding)
    variables = module.init(jax.random.key(1), jnp.asarray(x))
    weights = np.asarray(variables["params"]["conv"]["kernel"], np.float64)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    side = (8 + 2 * padding - kernel) // stride + 1
    expected = np.zeros((2, side, side, 4))
    for row, col in np.ndindex(side, side):
        top, left = row * stride, col * stride
        window = padded[:, top : top + kernel, left : left + kernel]
        expected[:, row, col] = np.tensordot(window, weights, axes=3)
    np.testing.assert_allclose(module.apply(variables, jnp.asarray(x)), expected, atol=1e-5)


def test_initial_values_fill_pytorchs_interval():
    kernel = np.asarray(torch_kernel_init(jax.random.key(0), (3, 3, 16, 64)))
    bias = np.asarray(torch_bias_init(144)(jax.random.key(1), (1000,)))
    for values in (kernel, bias):
        assert np.abs(values).max() <= 1 / 12
        assert np.abs(values).max() > 0.98 / 12
        assert values.std() == pytest.approx(1 / 12 / np.sqrt(3), rel=0.05)


def test_attention_layers_start_in_the_interval_of_their_inputs():
    module = AttentionScores(hidden=400, has_gate=True)
    params = module.init(jax.random.key(0), jnp.ones((1, 2, 25)))["params"]
    for name, inputs, outputs in (("tanh", 25, 400), ("gate", 25, 400), ("score", 400, 1)):
        kernel, bias = (np.abs(params[name][part]) * np.sqrt(inputs) for part in ("kernel", "bias"))
        assert kernel.shape == (inputs, outputs) and bias.shape == (outputs,)
        assert 0.95 < kernel.max() <= 1
        assert bias.max() <= 1 and (outputs == 1 or bias.max() > 0.95)
    ungated = AttentionScores(hidden=4).init(jax.random.key(0), jnp.ones((1, 2, 3)))
    assert set(ungated["params"]) == {"tanh", "score"}
