"""Receptive fields against the network's Jacobian and against changed pixels; maps over pixels by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lossattn_jax import models
from lossattn_jax.explain import receptive_field
from lossattn_jax.explain.receptive_field import extents, pixel_map, receptive_fields
from lossattn_jax.models.patch_head import MapHead
from tests.support import parameters

SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def network():
    model = models.build("small", num_classes=3, width=0.1)
    variables = parameters.draw(model, np.zeros((1, *SHAPE), np.float32))
    return model, variables


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32)


@pytest.fixture(scope="module")
def fields(network, images):
    return receptive_fields(*network, images)


def test_they_follow_the_jacobian(network, images):
    model, variables = network

    def logits(x):
        return model.apply(variables, x[None], train=False).patch_logits[0]

    jacobian = jax.jit(jax.vmap(jax.jacrev(logits)))(images)  # [N, P, K, H, W, C]
    exact = np.sqrt(np.mean(np.sum(np.square(jacobian), axis=(2, -1)), axis=0, dtype=np.float64))
    exact /= exact.sum(axis=(1, 2), keepdims=True)
    # Squares are what is unbiased; 64 draws of signs an image leave some noise.
    found = receptive_fields(*network, jnp.tile(images, (64, 1, 1, 1)))
    np.testing.assert_allclose(found, exact, rtol=0.35, atol=2e-4)
    error = np.abs(found - exact).sum(axis=(1, 2))
    assert error.max() < 0.05


def test_a_patch_sees_what_its_field_says_and_nothing_else(network):
    model, variables = network
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 48, 48, 3)), jnp.float32)
    fields = receptive_fields(model, variables, images)
    apply = jax.jit(lambda x: model.apply(variables, x, train=False).patch_logits)
    before = apply(images)
    corner = 0
    unseen = fields[corner] == 0
    assert 0 < unseen.sum() < unseen.size
    far = apply(jnp.where(unseen[None, :, :, None], 9.0, images))[:, corner]
    np.testing.assert_array_equal(far, before[:, corner])
    near = apply(jnp.where(unseen[None, :, :, None], images, 9.0))[:, corner]
    assert np.abs(near - before[:, corner]).max() > 1e-3


def test_each_patch_has_sum_1_and_looks_around_its_own_window(network, fields):
    model, _ = network
    np.testing.assert_allclose(fields.sum(axis=(1, 2)), 1, rtol=1e-5)
    ys, xs = np.meshgrid(*((np.arange(16) + 0.5) / 16,) * 2, indexing="ij")
    centres = np.stack([(fields * axis).sum(axis=(1, 2)) for axis in (ys, xs)], axis=1)
    nominal = model.patch_grid(SHAPE).centres()
    distances = np.linalg.norm(centres[:, None] - nominal[None], axis=-1)
    np.testing.assert_array_equal(distances.argmin(axis=1), np.arange(len(fields)))


def test_a_network_without_weights_sees_nothing(network, images):
    model, variables = network
    zeros = jax.tree.map(jnp.zeros_like, variables["params"])
    fields = receptive_fields(model, {**variables, "params": zeros}, images)
    np.testing.assert_array_equal(fields, 0)
    np.testing.assert_array_equal(pixel_map(np.ones(len(fields)), fields), 0)
    assert extents(fields) == (0.0, 0.0)


class Strips(nn.Module):
    """Squares of two by two pixels and their neighbours; or, `far`, one sees the first too."""

    far: bool = False

    @nn.compact
    def __call__(self, x, train):
        y = nn.relu(nn.Conv(4, (4, 4), (2, 2), name="local")(x))
        if self.far:
            y = y.at[:, 5, 3].add(y[:, 0, 0] ** 2)
        return y


@pytest.mark.parametrize("far", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_patches_that_see_nothing_in_common_share_passes(far, monkeypatch):
    make = functools.partial(Strips, far)
    model = models.PatchNetwork(make, MapHead, 3, pooling="mean")
    shape = (28, 36, 3)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)), jnp.float32)
    variables = parameters.draw(model, images)
    alone = receptive_fields(model, variables, images)
    assert alone.shape == (14 * 18, 28, 36)
    passes = []
    whole = receptive_field._in_parts
    monkeypatch.setattr(
        receptive_field,
        "_in_parts",
        lambda measure, sets: passes.append(len(sets)) or whole(measure, sets),
    )
    monkeypatch.setattr(receptive_field, "_FEW", 100)
    together = receptive_fields(model, variables, images)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(together == 0, alone == 0)
    # Windows of 4x4 pixels are 3 patches apart at least: 9 passes, or 252, filled up to whole calls.
    assert passes == ([16, 256] if far else [16])


@pytest.mark.parametrize(("patches", "probes"), [(1, 32), (49, 32), (98, 16), (196, 8), (900, 8)])
def test_many_patches_are_measured_on_fewer_images(patches, probes):
    assert receptive_field.count_probes(patches) == probes


def test_what_is_left_to_measure_is_said(monkeypatch, caplog):
    monkeypatch.setattr(receptive_field, "_LOG_SECONDS", 0.0)
    caplog.set_level("INFO")
    parts = list(receptive_field._in_parts(lambda sets: 2 * sets, np.eye(16)))
    np.testing.assert_array_equal(
        np.concatenate([energies for _, energies in parts]), 2 * np.eye(16)
    )
    assert "what patches see: 8 of 16 passes" in caplog.text
    assert "16 of 16 passes  0:00:00 left" in caplog.text


def test_maps_over_pixels_by_hand():
    fields = np.zeros((2, 1, 4), np.float32)
    fields[0, 0] = (0.5, 0.5, 0, 0)
    fields[1, 0] = (0, 0.25, 0.75, 0)
    values = np.array([[3.0, 0.0], [1.0, 1.0]])
    expected = [[[3, 2, 0, 0]], [[1, 1, 1, 0]]]
    np.testing.assert_allclose(pixel_map(values, fields), expected)
    assert extents(fields, 0.7) == (0.5, (2 + 1) / 2 / 4)
