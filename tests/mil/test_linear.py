"""The matrix product against JAX's own: values, gradients, batches of models, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.kernels import linear
from lossattn_jax.models.bag_networks import dense

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
WEIGHTS = RANDOM.standard_normal((4, 5)).astype(np.float32)
PULL = RANDOM.standard_normal((2, 3, 5)).astype(np.float32)
LAST = (((2,), (0,)), ((), ()))


def pulled(product, x, weights, pull=PULL):
    """Value and both gradients of a product, the gradient of whose result is `pull`."""
    value, back = jax.vjp(lambda x, w: product(x, w, LAST), x, weights)
    return (value, *back(jnp.asarray(pull, value.dtype)))


def same(actual, expected, **tolerances):
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(
            np.asarray(one, np.float64), np.asarray(other, np.float64), **tolerances
        )


def test_values_and_gradients_by_hand():
    value, of_x, of_weights = pulled(linear.dot_general, X, WEIGHTS)
    np.testing.assert_allclose(value, np.einsum("bnd,df->bnf", X, WEIGHTS), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_x, np.einsum("bnf,df->bnd", PULL, WEIGHTS), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_weights, np.einsum("bnd,bnf->df", X, PULL), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_jaxs_product(dtype):
    x, weights = jnp.asarray(X, dtype), jnp.asarray(WEIGHTS, dtype)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.02
    same(
        pulled(linear.dot_general, x, weights),
        pulled(jax.lax.dot_general, x, weights),
        rtol=tolerance,
        atol=tolerance,
    )


def test_it_is_jaxs_product_for_several_models_at_once():
    x, weights = np.stack([X, 2 * X]), np.stack([WEIGHTS, WEIGHTS + 1])

    def of(product, axes):
        one = jax.vmap(lambda x, w: pulled(product, x, w), in_axes=axes)
        return jax.jit(one)(x if axes[0] == 0 else X, weights)

    for axes in ((0, 0), (None, 0)):
        same(of(linear.dot_general, axes), of(jax.lax.dot_general, axes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "weights", "numbers", "options"),
    [
        (X, WEIGHTS.T, (((2,), (1,)), ((), ())), {}),  # another axis
        (X, RANDOM.standard_normal((4, 5, 6)).astype(np.float32), LAST, {}),
        (X, WEIGHTS, LAST, {"precision": jax.lax.Precision.HIGHEST}),
        (X, WEIGHTS, LAST, {"precision": None, "preferred_element_type": jnp.float32}),
        (X, WEIGHTS, LAST, {"precision": None, "preferred_element_type": None}),
    ],
)
def test_everything_else_goes_to_jax(x, weights, numbers, options):
    expected = jax.lax.dot_general(x, weights, numbers, **options)
    actual = linear.dot_general(x, weights, numbers, **options)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    # Another precision or type is not lost on the way.
    text = str(
        jax.make_jaxpr(lambda a, b: linear.dot_general(a, b, numbers, **options))(x, weights)
    )
    ours = numbers == LAST and weights.ndim == 2 and not any(options.values())
    assert ("custom_vjp" in text) == ours


def test_it_makes_the_networks_layers():
    layer = dense(5, 4, "layer")
    params = jax.tree.map(np.asarray, layer.init(jax.random.key(0), X)["params"])
    text = str(jax.make_jaxpr(lambda x: layer.apply({"params": params}, x))(X))
    assert "custom_vjp" in text
    np.testing.assert_allclose(
        layer.apply({"params": params}, X), X @ params["kernel"] + params["bias"], rtol=1e-5
    )
