"""Networks by name: shapes, dtypes, the properties of their outputs, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import models
from lossattn_jax.errors import UserError

IMAGES = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
NARROW = {"resnet18": 0.0625, "small": 0.125}


def build(backbone, pooling="loss_attention", **options):
    return models.build(backbone, "conv", pooling, width=NARROW[backbone], **options)


@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [
        *(("small", pooling) for pooling in models.POOLINGS),
        ("resnet18", "loss_attention"),
        *(pytest.param("resnet18", pooling, marks=pytest.mark.slow) for pooling in ("mean", "max")),
    ],
)
def test_every_network_gives_predictions_for_images_and_patches(backbone, pooling):
    module = build(backbone, pooling, num_classes=7)
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)
    out = jax.jit(module.apply)(variables, IMAGES)
    assert out.logits.shape == (2, 7)
    assert out.patch_logits.shape == (2, 36, 7)
    assert out.attention.shape == (2, 36)
    np.testing.assert_allclose(out.attention.sum(axis=1), 1, rtol=1e-5)
    assert (np.asarray(out.attention) >= 0).all()


@pytest.mark.parametrize("pooling", ["mean", "loss_attention"])
def test_the_image_prediction_is_the_weighted_patch_prediction(pooling):
    # One classifier for both: W (sum a h) + b = sum a (W h + b) since the weights sum to 1.
    module = build("small", pooling)
    variables = module.init(jax.random.key(1), IMAGES)
    out = module.apply(variables, IMAGES)
    expected = np.einsum("bp,bpk->bk", out.attention, out.patch_logits)
    np.testing.assert_allclose(out.logits, expected, rtol=1e-4, atol=1e-5)


def test_patches_come_in_row_major_order():
    module = build("small")
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)
    changed = IMAGES.copy()
    changed[:, :6, -6:] += 3  # the corner at the top right: the end of the first row
    before, after = (module.apply(variables, x).patch_logits for x in (IMAGES, changed))
    moved = np.abs(np.asarray(after - before)).max(axis=(0, 2)).reshape(6, 6)
    quadrants = moved.reshape(2, 3, 2, 3).mean(axis=(1, 3))
    assert quadrants[0, 1] > 3 * max(quadrants[0, 0], quadrants[1, 0], quadrants[1, 1])


def test_bfloat16_computes_close_to_float32_with_float32_parameters_and_outputs():
    exact = build("small")
    variables = exact.init(jax.random.key(0), IMAGES)
    rounded = build("small", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded.init(jax.random.key(0), IMAGES))} == {
        jnp.dtype("float32")
    }
    out, expected = rounded.apply(variables, IMAGES), exact.apply(variables, IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(out.logits, expected.logits, atol=0.02)
    assert np.abs(np.asarray(out.logits - expected.logits)).max() > 0


def test_training_moves_the_running_statistics_and_evaluation_does_not():
    module = build("small")
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)
    _, trained = module.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), trained["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))
    _, kept = module.apply(variables, IMAGES, train=False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])


# The golden files check the gradients of resnet18 too.
@pytest.mark.parametrize("backbone", ["small", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_every_parameter_gets_a_finite_gradient(backbone):
    module = build(backbone)
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)

    def loss(params):
        out, _ = module.apply(
            {**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(out.logits[:, 0]) + jnp.sum(out.attention[:, 0] * out.patch_logits[:, 0, 1])

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_patch_windows_of_the_paper_head():
    grid = build("resnet18").patch_grid((32, 32, 3))
    assert (grid.rows, grid.cols) == (6, 6)
    pixels = grid.boxes() * 32
    np.testing.assert_allclose(pixels[0], [0, 0, 9, 9], atol=1e-5)
    np.testing.assert_allclose(pixels[1], [0, 4, 9, 13], atol=1e-5)
    np.testing.assert_allclose(pixels[35], [20, 20, 29, 29], atol=1e-5)
    np.testing.assert_allclose(grid.centres()[7] * 32, [8.5, 8.5], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backbone": "resnet19"}, "backbone is 'resnet19', but must be one of: resnet18, small"),
        ({"head": "convolution"}, "head is 'convolution', but must be one of: conv"),
        ({"pooling": "sum"}, "pooling is 'sum', but must be one of: mean, max, loss_attention"),
        ({"num_classes": 1}, "num_classes is 1, but a classifier needs at least 2"),
        ({"width": 0}, "width is 0, but must be positive"),
        ({"width": float("nan")}, "width is nan, but must be positive"),
        ({"threshold": -0.1}, "threshold is -0.1, but must lie between 0 and 1"),
    ],
)
def test_an_impossible_network_is_refused_with_a_sentence(options, sentence):
    with pytest.raises(UserError) as refused:
        models.build(**options)
    assert str(refused.value) == sentence
