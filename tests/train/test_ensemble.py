"""Temporal ensembling of attention: the papers' recurrence, epoch by epoch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax import devices
from lossattn_jax.attention import ensemble as ensemble_lib

DECAY, STEPS = 0.6, 2


def test_targets_are_bias_corrected_averages_of_earlier_epochs():
    rng = np.random.default_rng(0)
    attention = rng.dirichlet(np.ones(3), (4, 4)).astype(np.float32)  # [epoch, image, patch]
    ensemble = ensemble_lib.create(4, 3)
    record = devices.pmap(lambda e, i, a: ensemble_lib.record(e, i, a))
    average = np.zeros((4, 3))
    for epoch in range(4):
        # Two steps of two images each, in another order every epoch.
        order = rng.permutation(4)
        for half in range(STEPS):
            step = jnp.int32(STEPS * epoch + half)
            index = order[2 * half : 2 * half + 2]
            ensemble = ensemble_lib.begin_step(ensemble, step, STEPS, DECAY)
            target, known = ensemble_lib.targets(ensemble, jnp.asarray(index), DECAY)
            np.testing.assert_array_equal(known, float(epoch > 0))
            expected = average[index] / (1 - DECAY**epoch) if epoch else np.zeros((2, 3))
            np.testing.assert_allclose(target, expected, rtol=1e-5, atol=1e-7)
            replicated = record(
                devices.replicate(ensemble),
                devices.shard(index.astype(np.int32)),
                devices.shard(attention[epoch, index]),
            )
            ensemble = jax.tree.map(jnp.asarray, devices.unreplicate(replicated))
        average = DECAY * average + (1 - DECAY) * attention[epoch]
    np.testing.assert_allclose(ensemble.current, attention[3], rtol=1e-6)


def test_constant_attention_is_its_target_despite_skipped_epochs():
    constant = jnp.array([[0.25, 0.75], [0.5, 0.5]])
    ensemble = ensemble_lib.create(2, 2)
    for epoch, visits in enumerate([[True, True], [True, False], [True, True]]):
        ensemble = ensemble_lib.begin_step(ensemble, jnp.int32(5 * epoch), 5, DECAY)
        seen = jnp.array(visits)
        ensemble = dataclasses.replace(ensemble, current=constant, visited=ensemble.visited | seen)
        ensemble = ensemble_lib.begin_step(ensemble, jnp.int32(5 * epoch + 1), 5, DECAY)
    ensemble = ensemble_lib.begin_step(ensemble, jnp.int32(15), 5, DECAY)
    np.testing.assert_array_equal(ensemble.epochs, [3, 2])
    np.testing.assert_array_equal(ensemble.visited, [False, False])
    target, known = ensemble_lib.targets(ensemble, jnp.array([0, 1]), DECAY)
    np.testing.assert_allclose(target, constant, rtol=1e-6)
    np.testing.assert_array_equal(known, [1, 1])


def test_an_image_that_was_never_visited_has_no_target():
    target, known = ensemble_lib.targets(ensemble_lib.create(2, 2), jnp.array([1]), DECAY)
    np.testing.assert_array_equal(target, [[0, 0]])
    np.testing.assert_array_equal(known, [0])
