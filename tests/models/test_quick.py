"""The quick backbone: what whitening does to training images, and how a run begins with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lossattn_jax import models
from lossattn_jax.checkpoint import runs, store
from lossattn_jax.models import quick
from lossattn_jax.train.images import job as jobs
from lossattn_jax.train.images import loop
from tests.support import toys


def smooth_images():
    """Images whose neighbouring pixels are alike, as photographs' are."""
    draw = np.random.default_rng(0).normal(size=(40, 12, 12, 3)) @ [
        [1, 0.8, 0.6],
        [0, 1, 0.5],
        [0, 0, 1],
    ]
    return (draw[:, 1:] + draw[:, :-1]).astype(np.float32)[:, :, :11]


def start(module, images):
    return module.init(jax.random.key(0), images[:1])


def test_whitened_patches_are_uncorrelated():
    images = smooth_images()
    variables = start(quick.Whitening(), images)
    stats = quick.whiten({"whitening": variables["batch_stats"]}, images)
    outputs = quick.Whitening().apply({**variables, "batch_stats": stats["whitening"]}, images)
    assert outputs.shape == (40, 11, 11, 24) and outputs.dtype == jnp.float32
    whole = outputs[:, :10, :10]  # without the patches that reach over the border
    rows = np.asarray(whole, np.float64).reshape(-1, 24)
    np.testing.assert_allclose(rows[:, 12:], -rows[:, :12])
    np.testing.assert_allclose(rows[:, :12].T @ rows[:, :12] / len(rows), np.eye(12), atol=5e-3)


def test_before_whitening_outputs_are_pixels_and_their_negatives():
    images = smooth_images()[:2]
    outputs = quick.Whitening().apply(start(quick.Whitening(), images), images)
    padded = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)))
    corners = [padded[:, i : i + 11, j : j + 11] for i in range(2) for j in range(2)]
    pixels = np.concatenate(corners, axis=-1)
    np.testing.assert_array_equal(outputs, np.concatenate([pixels, -pixels], axis=-1))


def test_images_that_are_all_alike_have_a_finite_kernel():
    stats = start(quick.Whitening(), np.zeros((1, 4, 4, 3), np.float32))["batch_stats"]
    kernel = quick.whiten({"whitening": stats}, np.zeros((5, 4, 4, 3), np.float32))["whitening"][
        "kernel"
    ]
    assert np.isfinite(kernel).all()


def test_an_image_of_32_pixels_has_64_patches():
    model = models.build("quick", "none", "loss_attention", width=1 / 16)
    grid = model.patch_grid((32, 32, 3))
    assert (grid.rows, grid.cols) == (8, 8)
    images = jnp.ones((2, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    assert "whitening" not in variables["params"]["backbone"]
    outputs = jax.jit(model.apply)(variables, images)
    assert outputs.attention.shape == (2, 64)
    np.testing.assert_allclose(outputs.attention.sum(1), 1, rtol=1e-6)


class Small(nn.Module):
    """A whitening convolution as a backbone of four positions."""

    @nn.compact
    def __call__(self, x, train=False):
        return quick.Whitening(name="whitening")(x)[:, ::2, ::2]


SMALL = models.parts.Backbone(lambda build: Small, plain_form="patches", from_images=quick.whiten)


def test_a_run_begins_with_statistics_of_its_training_images(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "spec_of", lambda config: toys.SPEC)
    monkeypatch.setattr(runs, "open_split", lambda *_: toys.train_set({}))
    config = toys.settings(model__backbone=f"{__name__}:SMALL", model__head="none")
    config.model.pooling = "mean"
    job = jobs.open_job(config, tmp_path)
    with store.Checkpoints(job.workdir) as checkpoints:
        state, _ = jobs.first_state(job, checkpoints)
    images = toys.train_set({}).images / np.float32(255)
    normalised = (images - np.float32(toys.SPEC.mean)) / np.float32(toys.SPEC.std)
    by_hand = quick.whiten({"whitening": {}}, normalised)["whitening"]["kernel"]
    kernel = state.batch_stats["backbone"]["whitening"]["kernel"]
    np.testing.assert_allclose(kernel, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_training_leaves_the_kernel_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "spec_of", lambda config: toys.SPEC)
    monkeypatch.setattr(runs, "open_split", lambda *_: toys.train_set({}))
    config = toys.settings(model__backbone=f"{__name__}:SMALL", model__head="none")
    config.model.pooling = "mean"
    job = jobs.open_job(config, tmp_path / "first")
    with store.Checkpoints(job.workdir) as checkpoints:
        before, _ = jobs.first_state(job, checkpoints)
    loop.train(config, tmp_path / "run")
    after = runs.load(tmp_path / "run", trust_code=True).variables
    kernel = before.batch_stats["backbone"]["whitening"]["kernel"]
    np.testing.assert_array_equal(after["batch_stats"]["backbone"]["whitening"]["kernel"], kernel)
    assert "backbone" not in after["params"]
    classifier = jax.tree.map(np.array_equal, before.params, after["params"])
    assert not any(jax.tree.leaves(classifier))
