"""Convolution as a product, and pooling by comparison: values, gradients, and where they do not apply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from lossattn_jax.kernels.bag_convolution import conv_general_dilated, max_pool
from lossattn_jax.models.layers import Conv

DRAW = np.random.default_rng(0)
NHWC = ("NHWC", "HWIO", "NHWC")


def convolved(x, kernel, stride=1, padding="VALID", **options):
    return conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=NHWC, **options
    )


def jaxs(x, kernel, stride=1, padding="VALID", **options):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=NHWC, **options
    )


def drawn(*shape):
    return DRAW.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_convolution_of_every_image(channels):
    x, kernel = drawn(2, 7, 8, channels), drawn(3, 5, channels, 4)
    expected = np.stack(
        [
            [
                # SciPy's own sum over the window and the channels, in float64.
                correlate(image.astype(np.float64), kernel[..., k], mode="valid")[..., 0]
                for k in range(4)
            ]
            for image in x
        ]
    ).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(convolved(x, kernel), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["VALID", [(0, 0), (0, 0)]])
def test_its_gradients_are_those_of_jax(padding):
    x, kernel, weights = drawn(2, 6, 7, 3), drawn(3, 3, 3, 5), drawn(2, 4, 5, 5)

    def gradients(convolution):
        return jax.grad(lambda *a: jnp.sum(weights * convolution(*a, padding=padding)), (0, 1))(
            x, kernel
        )

    for found, wanted in zip(gradients(convolved), gradients(jaxs), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"padding": "SAME"},
        {"padding": [(1, 1), (0, 0)]},
        {"padding": [(0, 0), (0, 0)], "lhs_dilation": (2, 2)},
        {"rhs_dilation": (2, 2)},
        {"feature_group_count": 2},
        {"batch_group_count": 2},
        {"precision": jax.lax.Precision.HIGHEST},
        {"preferred_element_type": jnp.float32},
    ],
)
def test_other_convolutions_are_left_to_jax(options):
    x = drawn(2, 9, 9, 4)
    kernel = drawn(3, 3, 4 // options.get("feature_group_count", 1), 6)
    np.testing.assert_array_equal(convolved(x, kernel, **options), jaxs(x, kernel, **options))
    text = jax.jit(lambda a, b: convolved(a, b, **options)).lower(x, kernel).as_text()
    assert "stablehlo.convolution" in text


def test_another_layout_is_left_to_jax():
    x, kernel = drawn(2, 3, 6, 6), drawn(5, 3, 3, 3)
    found = conv_general_dilated(x, kernel, (1, 1), "VALID")  # JAX's default is NCHW
    np.testing.assert_array_equal(found, jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID"))


def test_it_is_a_product_on_cpus_only():
    x, kernel = drawn(2, 6, 6, 3), drawn(3, 3, 3, 5)
    traced = jax.jit(convolved).trace(x, kernel)
    on_cpu, on_gpu = (
        traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda")
    )
    assert "dot_general" in on_cpu and "stablehlo.convolution" not in on_cpu
    assert "dot_general" not in on_gpu and "stablehlo.convolution" in on_gpu


def test_a_layer_with_it_has_the_same_parameters_and_outputs():
    x = drawn(2, 6, 6, 3)
    own = Conv(5, 3, use_bias=True, conv_general_dilated=conv_general_dilated)
    plain = Conv(5, 3, use_bias=True)
    variables = plain.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, own.init(jax.random.key(0), x), variables)
    np.testing.assert_allclose(own.apply(variables, x), plain.apply(variables, x), atol=1e-5)


def test_pooling_takes_the_highest_of_four_without_an_odd_edge():
    x = drawn(2, 5, 7, 3)
    expected = x[:, :4, :6].reshape(2, 2, 2, 3, 2, 3).max(axis=(2, 4))
    np.testing.assert_array_equal(max_pool(x), expected)


@pytest.mark.parametrize(
    ("window", "chosen"),
    [
        ([[1, 1], [1, 1]], (0, 0)),  # of equals the first
        ([[0, 2], [2, 1]], (0, 1)),  # of equals in different rows that of the upper one
        ([[0, 1], [3, 2]], (1, 0)),
        ([[-1, -2], [-2, -0.5]], (1, 1)),
    ],
)
def test_the_gradient_goes_to_one_of_the_highest(window, chosen):
    x = np.array(window, np.float32)[None, :, :, None]
    gradient = jax.grad(lambda x: 3 * jnp.sum(max_pool(x)))(x)[0, :, :, 0]
    expected = np.zeros((2, 2))
    expected[chosen] = 3
    np.testing.assert_array_equal(gradient, expected)


def test_pooling_can_be_transformed_as_any_function():
    x, moved = drawn(2, 5, 7, 3), drawn(2, 5, 7, 3) + 1
    highest, tangent = jax.jvp(max_pool, (x,), (moved,))
    np.testing.assert_array_equal(highest, max_pool(x))
    blocks, moves = (
        np.asarray(a)[:, :4, :6].reshape(2, 2, 2, 3, 2, 3).transpose(0, 1, 3, 5, 2, 4)
        for a in (x, moved)
    )
    places = blocks.reshape(2, 2, 3, 3, 4).argmax(-1)[..., None]
    expected = np.take_along_axis(moves.reshape(2, 2, 3, 3, 4), places, -1)[..., 0]
    np.testing.assert_array_equal(tangent, expected)
    weights = jnp.arange(tangent.size, dtype=jnp.float32).reshape(tangent.shape)
    (gradient,) = jax.vjp(max_pool, x)[1](weights)
    np.testing.assert_allclose(jnp.vdot(gradient, moved), jnp.vdot(weights, tangent), rtol=1e-5)
    assert np.all(np.asarray(gradient)[:, 4] == 0) and np.all(np.asarray(gradient)[:, :, 6] == 0)
    of_each = jax.vmap(jax.grad(lambda x: jnp.sum(max_pool(x[None]) ** 2)))(x)
    np.testing.assert_allclose(of_each, jax.grad(lambda x: jnp.sum(max_pool(x) ** 2))(x))


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_value_that_is_no_number_stays_one(place):
    x = np.ones((2, 2), np.float32)
    x[place] = np.nan
    # The second operand of a comparison with a NaN is taken by where, and the first by our own rule.
    assert np.isnan(max_pool(x[None, :, :, None])).all()
