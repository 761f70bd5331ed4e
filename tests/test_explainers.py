"""Explainers: closed forms, what they sum to, and that every image is explained by itself."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lossattn_jax import models
from lossattn_jax.errors import UserError
from lossattn_jax.explain import explainers
from lossattn_jax.explain.explainers import Subject
from lossattn_jax.explain.explainers.occlusion import occlusion
from lossattn_jax.models.geometry import sliding_grid
from lossattn_jax.models.patch_head import MapHead
from tests.support import parameters

SHAPE = (8, 8, 3)
IMAGES = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
CLASSES = np.array([1, 0, 2])


def keys(count, seed=0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))


class LinearBackbone(nn.Module):
    """Squares of two by two pixels, each through the same linear layer."""

    @nn.compact
    def __call__(self, x, train):
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, -1)
        return nn.Dense(5, use_bias=False)(x)


def linear():
    """A network whose logits are linear in the pixels: the mean of 4x4 patches' logits."""
    return models.PatchNetwork(LinearBackbone, MapHead, 3, pooling="mean")


def small(pooling="loss_attention", head="conv"):
    return models.build("small", head, pooling, num_classes=3, width=0.1)


def started(model, shape=SHAPE):
    return parameters.draw(model, np.zeros((1, *shape), np.float32))


@pytest.fixture(scope="module")
def linear_variables():
    return started(linear())


@pytest.fixture(scope="module")
def small_variables():
    return started(small(), (32, 32, 3))


def explained(name, model, variables, images=IMAGES, classes=CLASSES, **options):
    explain = jax.jit(explainers.make(name, model, images.shape[1:], **options))
    return explain(variables, images, classes, keys(len(images)))


def scores(model, variables, images=IMAGES, classes=CLASSES):
    subject = Subject(model, images.shape[1:])
    return np.asarray(subject.score(variables, images, classes), np.float64)


def pixel_gradient(variables):
    """`[K, 8, 8, 3]` of the linear network, by hand."""
    first = np.asarray(variables["params"]["backbone"]["Dense_0"]["kernel"], np.float64)
    last = np.asarray(variables["params"]["classifier"]["kernel"], np.float64)
    square = (first @ last).reshape(2, 2, 3, 3).transpose(3, 0, 1, 2)  # [K, 2, 2, channels]
    return np.tile(square, (1, 4, 4, 1)) / 16


@pytest.mark.parametrize("name", ["gradient_x_input", "integrated_gradients"])
def test_of_a_linear_network_gradients_give_each_pixels_part(name, linear_variables):
    found = explained(name, linear(), linear_variables)
    expected = (IMAGES * pixel_gradient(linear_variables)[CLASSES]).sum(-1)
    np.testing.assert_allclose(found.pixels, expected, rtol=1e-4, atol=1e-6)
    # A patch has the mean over its 2x2 window.
    means = expected.reshape(3, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(3, 16)
    np.testing.assert_allclose(found.patches, means, rtol=1e-4, atol=1e-6)


def test_of_a_linear_network_smooth_grad_is_the_gradients_size(linear_variables):
    found = explained("smooth_grad", linear(), linear_variables, samples=3)
    expected = np.abs(pixel_gradient(linear_variables)).max(-1)[CLASSES]
    np.testing.assert_allclose(found.pixels, expected, rtol=1e-4, atol=1e-6)


def test_occlusion_of_a_linear_network_is_what_the_squares_hide(linear_variables):
    found = explained("occlusion", linear(), linear_variables, size=4, stride=2)
    part = (IMAGES * pixel_gradient(linear_variables)[CLASSES]).sum(-1)
    expected = np.zeros((3, 8, 8))
    for row in range(8):
        for column in range(8):
            # The four squares of 4x4 that hold the pixel, cut off at the edges.
            tops = [top for top in range(-2, 8, 2) if top <= row < top + 4]
            lefts = [left for left in range(-2, 8, 2) if left <= column < left + 4]
            assert len(tops) == len(lefts) == 2
            expected[:, row, column] = np.mean(
                [
                    part[:, max(top, 0) : top + 4, max(left, 0) : left + 4].sum(axis=(1, 2))
                    for top in tops
                    for left in lefts
                ],
                axis=0,
            )
    np.testing.assert_allclose(found.pixels, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "size", "count"), [(8, 8, 9), (64, 8, 289), (128, 16, 289), (224, 28, 289)]
)
def test_occluding_squares_grow_with_the_image(side, size, count):
    # Of a score that is the image's sum, a square in the middle of nothing else takes its own pixels.
    covered = []

    def score(variables, images, classes):
        jax.debug.callback(lambda visible: covered.append(np.asarray(visible)), images)
        return jnp.sum(images, axis=(1, 2, 3))

    subject = types.SimpleNamespace(score=score, from_pixels=lambda pixels: pixels)
    images = jnp.ones((1, side, side, 1))
    occlusion(subject, {}, images, jnp.zeros(1, int), None)
    jax.effects_barrier()  # callbacks may come after the result
    hidden = [int((1 - visible).sum()) for visible in covered]
    assert len(hidden) == 1 + count and max(hidden) == size * size


@pytest.mark.parametrize("shape", [(12, 9), (20, 31)])
def test_pixels_and_patches_are_means_over_windows(shape):
    grid = sliding_grid((6, 7), 3, 2)
    model = types.SimpleNamespace(patch_grid=lambda _: grid)
    subject = Subject(model, (*shape, 3))
    covers = grid.coverage(shape).astype(np.float64)
    assert covers.shape == (6, *shape)
    draw = np.random.default_rng(4)
    pixels = draw.standard_normal((2, *shape)).astype(np.float32)
    means = np.einsum("bhw,phw->bp", pixels, covers) / covers.sum((1, 2))
    np.testing.assert_allclose(subject.from_pixels(jnp.asarray(pixels)).patches, means, atol=1e-6)
    patches = draw.standard_normal((2, 6)).astype(np.float32)
    total = np.einsum("bp,phw->bhw", patches, covers)
    means = total / np.maximum(covers.sum(0), 1)
    assert not covers.sum(0).all()  # the map's last row or column is in no window
    np.testing.assert_allclose(subject.from_patches(jnp.asarray(patches)).pixels, means, atol=1e-6)


def test_of_a_linear_network_grad_cam_weighs_the_map(linear_variables):
    subject = Subject(linear(), SHAPE)
    seen = np.asarray(subject.backbone_map(linear_variables, IMAGES), np.float64)
    assert seen.shape == (3, 4, 4, 5)
    last = np.asarray(linear_variables["params"]["classifier"]["kernel"], np.float64)
    # The mean gradient over the 16 positions is that of each of them.
    cam = np.maximum(np.einsum("bhwc,bc->bhw", seen, last.T[CLASSES] / 16), 0)
    expected = jax.image.resize(cam.astype(np.float32), (3, 8, 8), "bilinear")
    found = explained("grad_cam", linear(), linear_variables)
    np.testing.assert_allclose(found.pixels, expected, rtol=1e-4, atol=1e-6)


def test_integrated_gradients_sum_to_the_change_from_mean_colour(small_variables):
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    classes = np.array([0, 2])
    model = small()
    found = explained("integrated_gradients", model, small_variables, images, classes, steps=256)
    difference = scores(model, small_variables, images, classes) - scores(
        model, small_variables, np.zeros_like(images), classes
    )
    np.testing.assert_allclose(found.pixels.sum(axis=(1, 2)), difference, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize(
    "kind", ["loss_attention", pytest.param("gated_attention", marks=pytest.mark.slow)]
)
def test_contributions_and_bias_are_logits_up_to_a_constant(kind):
    model = small(kind)
    variables = started(model, (32, 32, 3))
    images = np.random.default_rng(2).standard_normal((2, 32, 32, 3)).astype(np.float32)
    logits = np.asarray(jax.jit(model.apply)(variables, images).logits, np.float64)
    for classes in (np.array([0, 1]), np.array([2, 2])):
        found = explained("contribution", model, variables, images, classes)
        expected = logits[np.arange(2), classes] - logits.mean(axis=-1)
        np.testing.assert_allclose(found.patches.sum(axis=1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("conv", "loss_attention"),
        pytest.param("capsule", "dynamic_routing", marks=pytest.mark.slow),
    ],
)
def test_attention_is_that_of_the_forward_pass(head, kind):
    model = small(kind, head)
    variables = started(model, (32, 32, 3))
    images = np.random.default_rng(3).standard_normal((2, 32, 32, 3)).astype(np.float32)
    outputs = jax.jit(model.apply)(variables, images)
    found = explained("attention", model, variables, images, np.array([0, 1]))
    np.testing.assert_allclose(found.patches, outputs.attention, rtol=1e-6)
    assert found.pixels.shape == (2, 32, 32)


def test_a_flat_map_is_flat_to_the_bit():
    subject = Subject(small(), (32, 32, 3))
    pixels = np.asarray(subject.from_patches(jnp.full((1, 36), 1 / 36)).pixels)
    np.testing.assert_array_equal(pixels, np.full_like(pixels, np.float32(1 / 36)))


def test_pixels_have_the_mean_of_the_windows_that_hold_them():
    subject = Subject(small(), (32, 32, 3))
    # Windows of 3 of 8 map positions, one apart: 12 pixels wide, 4 apart.
    patches = np.random.default_rng(4).random((1, 36)).astype(np.float32)
    found = np.asarray(subject.from_patches(jnp.asarray(patches)).pixels)
    grid = patches.reshape(6, 6)
    assert found[0, 0, 0] == pytest.approx(grid[0, 0])
    assert found[0, 4, 0] == pytest.approx(grid[:2, 0].mean())
    assert found[0, 13, 17] == pytest.approx(grid[1:4, 2:5].mean())
    assert found[0, 31, 31] == pytest.approx(grid[5, 5])
    pixels = np.random.default_rng(5).standard_normal((1, 32, 32)).astype(np.float32)
    back = np.asarray(subject.from_pixels(jnp.asarray(pixels)).patches).reshape(6, 6)
    assert back[2, 3] == pytest.approx(pixels[0, 8:20, 12:24].mean(), abs=1e-6)


@pytest.mark.parametrize("name", explainers.NAMES)
def test_every_image_is_explained_by_itself(name, linear_variables):
    options = {"samples": 2} if name == "smooth_grad" else {}
    found = explained(name, linear(), linear_variables, **options)
    assert found.patches.shape == (3, 16) and found.pixels.shape == (3, 8, 8)
    assert found.patches.dtype == found.pixels.dtype == jnp.float32
    padded = np.concatenate([IMAGES, np.zeros((2, *SHAPE), np.float32)])
    more = explained(
        name, linear(), linear_variables, padded, np.concatenate([CLASSES, [0, 0]]), **options
    )
    for one, other in ((found.patches, more.patches), (found.pixels, more.pixels)):
        assert np.isfinite(other).all()
        np.testing.assert_allclose(other[:3], one, rtol=1e-5, atol=1e-6)


def test_the_noise_is_a_function_of_the_key(small_variables):
    images = np.random.default_rng(6).standard_normal((2, 32, 32, 3)).astype(np.float32)
    explain = jax.jit(explainers.make("smooth_grad", small(), (32, 32, 3), samples=2))
    classes = np.array([0, 1])
    first, again, other = (
        explain(small_variables, images, classes, keys(2, seed)).pixels for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first) - np.asarray(other)).max() > 1e-6


def test_an_unknown_explainer_is_named():
    with pytest.raises(UserError, match="explainer is 'lime', but must be one of: attention"):
        explainers.make("lime", small(), SHAPE)
