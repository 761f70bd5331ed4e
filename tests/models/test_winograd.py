"""Winograd's algorithm against the definition, in parts and at once, and what it holds in memory.

Values, gradients and other derivatives are those of any convolution: `test_image_convolution`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import ad

from lossattn_jax.kernels import ordering, winograd
from lossattn_jax.kernels.winograd import TILE


def test_the_matrices_give_a_convolution_in_float64():
    random = np.random.default_rng(0)
    tile, kernel = random.standard_normal((6, 6)), random.standard_normal((3, 3))
    expected = np.array(
        [[np.sum(tile[i : i + 3, j : j + 3] * kernel) for j in range(TILE)] for i in range(TILE)]
    )
    b, g, a = winograd._matrices()
    # The four cuts of a tile: of 4x4, 4x2, 2x4 and 2x2 positions.
    cuts = tile[:4, :4], tile[:4, 4:], tile[4:, :4], tile[4:, 4:]
    positions = np.concatenate([cut.ravel() for cut in cuts])
    result = a @ ((g @ kernel.ravel()) * (b @ positions))
    np.testing.assert_allclose(result.reshape(TILE, TILE), expected, rtol=1e-12, atol=1e-12)


def with_gradients(x, kernel):
    def total(x, kernel):
        return jnp.sum(jnp.sin(0.1 * winograd.convolve(x, kernel)))

    return jax.jit(jax.value_and_grad(total, (0, 1)))(x, kernel)


@pytest.mark.parametrize("shape", [(6, 4, 8, 8), (5, 8, 4, 3)])
def test_in_parts_it_is_what_it_is_at_once(shape, monkeypatch):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal(shape), jnp.float32)
    kernel = jnp.asarray(random.standard_normal((3, 3, shape[3], 8)), jnp.float32)
    whole = with_gradients(x, kernel)
    of_an_image = 4 * 36 * (shape[1] // TILE) * (shape[2] // TILE) * 8
    # Four images would fit, of which three divide six, and one five.
    monkeypatch.setattr(winograd, "_BYTES", 4 * of_an_image + 1)
    images = {6: 3, 5: 1}[len(x)]
    assert winograd._images_at_a_time(x, kernel) == images
    parts = with_gradients(x, kernel)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_devices_may_share_the_kernel():
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((4, 4, 4, 3)), jnp.float32)
    kernel = jnp.asarray(random.standard_normal((3, 3, 3, 5)), jnp.float32)

    def total(kernel, x):
        return jnp.sum(jnp.cos(winograd.convolve(x, kernel)))

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    split, same = jax.sharding.PartitionSpec("devices"), jax.sharding.PartitionSpec()
    sharded = jax.shard_map(
        jax.grad(total, (0, 1)), mesh=mesh, in_specs=(same, split), out_specs=(same, split)
    )
    ours, expected = jax.jit(sharded)(kernel, x), jax.grad(total, (0, 1))(kernel, x)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_gradient_of_nothing_is_zero():
    """JAX may say so by a type of its own, though it mostly asks for no such gradient."""
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    forward = jax.make_jaxpr(lambda *a: jax.jvp(winograd.convolve, a, a))(x, kernel)
    (tangent,) = (e.primitive for e in forward.eqns if e.primitive.name == "winograd_tangent")
    nothing = ad.Zero(jax.typeof(winograd.convolve(x, kernel)))
    moved = [ad.UndefinedPrimal(jax.typeof(array)) for array in (x, kernel)]
    to_x, to_kernel, *others = ad.primitive_transposes[tangent](nothing, *moved, x, kernel)
    np.testing.assert_array_equal(to_x, jnp.zeros_like(x))
    np.testing.assert_array_equal(to_kernel, jnp.zeros_like(kernel))
    assert others == [None, None]


def test_a_gradient_that_is_not_finite_stays_so():
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    to_x, to_kernel = jax.vjp(winograd.convolve, x, kernel)[1](jnp.full((1, 4, 4, 2), jnp.nan))
    assert np.isnan(to_x).all() and np.isnan(to_kernel).all()


def temporaries():
    """Bytes that XLA takes for the gradients of eight convolutions, one after the other."""
    x = jax.ShapeDtypeStruct((4, 32, 32, 32), jnp.float32)
    kernels = [jax.ShapeDtypeStruct((3, 3, 32, 32), jnp.float32)] * 8

    def total(kernels, x):
        for kernel in kernels:
            x = jax.nn.relu(winograd.convolve(x, kernel))
        return jnp.sum(x)

    compiled = jax.jit(jax.grad(total)).lower(kernels, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_the_backward_pass_holds_the_places_of_one_layer_only(monkeypatch):
    ordered = temporaries()
    monkeypatch.setattr(ordering, "after", lambda earlier, values: values)
    as_xla_likes = temporaries()
    # Of 0.5 MB are a map and of 1.2 MB its places; eight maps are kept in any case.
    assert ordered < 0.75 * as_xla_likes
    assert ordered < 8 * 0.53e6 + 5 * 1.2e6
