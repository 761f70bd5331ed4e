"""The network of CIFAR-bags against NumPy: LeNet, dropout, a dense layer with tanh, attention."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from benchmarks import shipped_configs
from lossattn_jax.config import bags as config_lib
from lossattn_jax.mil import BagNetwork
from lossattn_jax.train.schedules import Length, beta_schedules, learning_rate_schedule

BAGS = np.random.default_rng(0).standard_normal((1, 3, 16, 16, 3)).astype(np.float32)
WIDTHS = (6, 5)
MODULE = BagNetwork(4, backbone="lenet_tanh", hidden=WIDTHS)


def drawn_variables():
    """With biases that are not 0."""
    variables = jax.jit(MODULE.init)(jax.random.key(0), BAGS)
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf + 0.1 * draw.standard_normal(leaf.shape), np.float32),
        variables,
    )


def pooled_convolution(images, params):
    """A 5x5 convolution, ReLU and 2x2 max pooling of `[N, H, W, C]`."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (5, 5), axis=(1, 2))
    x = np.einsum("nhwcij,ijco->nhwo", windows, params["conv"]["kernel"])
    x += params["conv"]["bias"]
    side = x.shape[1] // 2
    return np.maximum(x, 0).reshape(-1, side, 2, side, 2, x.shape[-1]).max(axis=(2, 4))


def test_it_computes_what_numpy_does():
    variables = drawn_variables()
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    x = pooled_convolution(BAGS[0].astype(np.float64), params["conv1"])
    x = pooled_convolution(x, params["conv2"]).reshape(3, 50)  # of one pixel
    x = np.maximum(x @ params["dense"]["kernel"] + params["dense"]["bias"], 0)
    x = np.tanh(x @ params["dense2"]["kernel"] + params["dense2"]["bias"])
    classifier = params["classifier"]
    scores = x @ classifier["kernel"] + classifier["bias"]
    weights = softmax(np.log(np.exp(scores).sum(axis=1)))
    out = jax.jit(MODULE.apply)(variables, BAGS)
    np.testing.assert_allclose(out.patch_logits[0], scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.attention[0], weights, rtol=1e-4)
    np.testing.assert_allclose(out.logits[0], weights @ scores, rtol=1e-4, atol=1e-5)


def test_dropout_is_before_the_layer_with_tanh():
    variables = drawn_variables()
    params = variables["params"]
    all_dropped = np.zeros((1, 3, sum(WIDTHS)), np.uint8)
    all_dropped[..., WIDTHS[0] :] = 255  # bytes that no layer uses
    apply = jax.jit(MODULE.apply, static_argnames="train")
    out = apply(variables, BAGS, train=True, noise=jnp.asarray(all_dropped))
    scores = np.tanh(params["dense2"]["bias"]) @ params["classifier"]["kernel"]
    expected = np.broadcast_to(scores + params["classifier"]["bias"], (3, 4))
    np.testing.assert_allclose(out.patch_logits[0], expected, rtol=1e-5, atol=1e-6)


def test_it_has_the_parameters_of_table_a10():
    module = BagNetwork(4, backbone="lenet_tanh")
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    # 28x28 and 14x14 after the first convolution, 10x10 and 5x5 after the second.
    assert count == 20 * 76 + 50 * 501 + 500 * (50 * 25 + 1) + 500 * 501 + 4 * 501


def test_the_supplements_schedules_are_its_formulas():
    config = shipped_configs.load("mil_cifar.py").get_config("5000,supplement")
    assert config.bags.train == (5000,) and config.optimizer.weight_decay == 0
    options = config_lib.resolve(config)
    settings = config_lib.settings(options)
    length = Length(settings.epochs, 500)
    rate = learning_rate_schedule(settings.optimizer, length)
    betas = beta_schedules(settings.optimizer, length)
    for epoch in (0, 1, 20, 39, 40, 41, 70, 71, 85, 99):
        rise, fall = min(epoch / 40, 1), 1 - max(epoch - 70, 0) / 30  # T1 and T2
        down = np.exp(-7.5 * (1 - fall) ** 2)
        step = 500 * epoch + 7
        np.testing.assert_allclose(
            rate(step), 1e-3 * np.exp(-5 * (1 - rise) ** 2) * down, rtol=1e-5
        )
        np.testing.assert_allclose(betas[0](step), 0.9 * down + 0.5 * (1 - down), rtol=1e-5)
        np.testing.assert_allclose(betas[1](step), 0.99 if epoch <= 40 else 0.999, rtol=1e-6)
