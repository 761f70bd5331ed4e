"""Our forms of a convolution against sums of products in float64, with their gradients, and against JAX's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.kernels import winograd
from lossattn_jax.kernels.convolution import convolve


def by_hand(x, kernel, stride, padding):
    """The definition, position by position."""
    side = kernel.shape[0]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    high, wide = ((n - side) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((len(x), high, wide, kernel.shape[3]))
    for i in range(high):
        for j in range(wide):
            window = x[:, stride * i : stride * i + side, stride * j : stride * j + side]
            out[:, i, j] = np.tensordot(window, kernel, 3)
    return out


def gradients_by_hand(x, kernel, stride, padding, gradient):
    """Those of `sum(gradient * by_hand(x, kernel))`."""
    side = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    to_x, to_kernel = np.zeros_like(padded), np.zeros_like(kernel)
    for i in range(gradient.shape[1]):
        for j in range(gradient.shape[2]):
            rows = slice(stride * i, stride * i + side), slice(stride * j, stride * j + side)
            to_kernel += np.tensordot(padded[:, *rows], gradient[:, i, j], ((0,), (0,)))
            to_x[:, *rows] += np.tensordot(gradient[:, i, j], kernel, ((1,), (3,)))
    height, width = x.shape[1:3]
    return to_x[:, padding : padding + height, padding : padding + width], to_kernel


CASES = {
    "the paper's head": ((2, 13, 11, 3), 9, 5, 4, 0),
    "stride 2, padded": ((2, 8, 9, 3), 3, 4, 2, 1),
    "a kernel smaller than its stride": ((1, 7, 8, 2), 1, 3, 2, 0),
    "stride 3": ((2, 10, 12, 3), 2, 2, 3, 1),
    "as long as its stride": ((1, 12, 12, 2), 4, 3, 4, 0),
    "more padding than needed": ((1, 9, 9, 2), 5, 2, 2, 3),
    "1x1": ((2, 5, 6, 3), 1, 4, 1, 0),
    "Winograd": ((3, 8, 4, 128), 3, 130, 1, 1),
    "too few channels for Winograd": ((2, 8, 4, 5), 3, 7, 1, 1),
    "windows of some images at a time": ((6, 20, 24, 40), 3, 3, 1, 1),
    "a map of no whole tiles": ((1, 8, 6, 128), 3, 128, 1, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_a_convolution_and_its_gradients_match_their_definition(case):
    shape, side, features, stride, padding = CASES[case]
    random = np.random.default_rng(0)
    x = random.standard_normal(shape)
    kernel = random.standard_normal((side, side, shape[-1], features))
    expected = by_hand(x, kernel, stride, padding)
    gradient = random.standard_normal(expected.shape)

    @jax.jit
    def both(x, kernel, gradient):
        out, pull_back = jax.vjp(lambda *a: convolve(*a, stride, padding), x, kernel)
        return out, pull_back(gradient)

    out, pulled = both(*(jnp.asarray(a, jnp.float32) for a in (x, kernel, gradient)))
    most = 6e-6 if case == "Winograd" else 2e-6
    assert relative_error(out, expected) < most
    by_definition = gradients_by_hand(x, kernel, stride, padding, gradient)
    for ours, theirs in zip(pulled, by_definition, strict=True):
        assert relative_error(ours, theirs) < most


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(("side", "stride", "channels"), [(5, 2, 2), (3, 1, 128), (3, 1, 4)])
def test_it_can_be_transformed_as_any_function(side, stride, channels):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((2, 8, 8, channels)), jnp.float32)
    kernel = jnp.asarray(random.standard_normal((side, side, channels, channels)), jnp.float32)
    padding = side // 2

    def ours(x, kernel):
        return jnp.mean(jnp.sin(convolve(x, kernel, stride, padding)), (1, 2, 3))

    def of_jax(x, kernel):
        sides = [(padding, padding)] * 2
        out = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.mean(jnp.sin(out), (1, 2, 3))

    def transformed(function):
        of_each = jax.vmap(jax.grad(lambda x, k: function(x[None], k)[0], 1), (0, None))
        forward = jax.jvp(function, (x, kernel), (x + 1, 2 * kernel))
        # A product of the Hessian and a vector: forward over reverse.
        whole = jax.grad(lambda k: function(x, k).sum())
        return of_each(x, kernel), forward, jax.jvp(whole, (kernel,), (kernel + 1,))

    pairs = [jax.tree.leaves(jax.jit(transformed, static_argnums=0)(f)) for f in (ours, of_jax)]
    for one, other in zip(*pairs, strict=True):
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * scale)


def test_bfloat16_is_left_to_jax_and_so_are_accelerators(monkeypatch):
    def primitives(dtype):
        x, kernel = jnp.ones((1, 4, 4, 128), dtype), jnp.ones((3, 3, 128, 128), dtype)
        return str(jax.make_jaxpr(lambda *a: convolve(*a, 1, 1))(x, kernel))

    assert "conv_general_dilated" not in primitives(jnp.float32)
    assert "conv_general_dilated" in primitives(jnp.bfloat16)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in primitives(jnp.float32)


@pytest.mark.parametrize(
    ("padded", "shape", "features"),
    [
        (functools.partial(convolve, padding=1), (2, 5, 6, 3), 4),
        (winograd.convolve, (2, 4, 4, 3), 5),
    ],
    ids=["direct", "Winograd"],
)
@pytest.mark.parametrize("wanted", [0, 1])
def test_one_gradient_alone_is_that_of_both(padded, shape, features, wanted):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal(shape), jnp.float32)
    kernel = jnp.asarray(random.standard_normal((3, 3, shape[-1], features)), jnp.float32)

    def total(x, kernel):
        return jnp.sum(jnp.cos(padded(x, kernel)))

    both = jax.jit(jax.grad(total, (0, 1)))(x, kernel)
    alone = jax.jit(jax.grad(total, wanted))(x, kernel)
    np.testing.assert_allclose(alone, both[wanted], rtol=1e-5, atol=1e-5)


def test_windows_are_held_of_a_few_images_at_a_time():
    x = jax.ShapeDtypeStruct((64, 32, 32, 24), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 24, 16), jnp.float32)
    total = jax.grad(lambda kernel, x: jnp.sum(jnp.sin(convolve(x, kernel, 1, 1))))
    compiled = jax.jit(total).lower(kernel, x).compile()
    windows = 9 * x.size * 4
    # Beside the results and their gradient, 4 MiB each, and two copies of one part.
    assert compiled.memory_analysis().temp_size_in_bytes < 0.4 * windows
