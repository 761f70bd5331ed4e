"""Localisation metrics against values by hand, NumPy and scikit-learn, and their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from lossattn_jax import data
from lossattn_jax.evaluate import metrics
from lossattn_jax.explain.metrics import localisation
from lossattn_jax.models.geometry import PatchGrid

pointing = jax.jit(localisation.pointing)
patch_pointing = jax.jit(localisation.patch_pointing)
mass_in_box = jax.jit(localisation.mass_in_box)
localised = jax.jit(localisation.is_localised)
patch_scores = jax.jit(localisation.patch_scores)

QUARTERS = PatchGrid(2, 2, (2, 2), 1, 1)  # four patches that tile the image
TOP_LEFT = jnp.array([[0.0, 0.0, 0.5, 0.5]])


def random_maps(count, height=6, width=5):
    """Maps with ties, and boxes."""
    rng = np.random.default_rng(count)
    maps = rng.integers(-3, 4, (count, height, width)) / 2
    corners = np.sort(rng.uniform(size=(2, count, 2)), axis=0)
    boxes = np.concatenate(corners, axis=-1)
    return jnp.asarray(maps, jnp.float32), jnp.asarray(boxes, jnp.float32)


def pixels_inside(shape, box):
    ys, xs = (np.arange(shape[0]) + 0.5) / shape[0], (np.arange(shape[1]) + 0.5) / shape[1]
    in_y = (ys >= np.float64(box[0])) & (ys <= np.float64(box[2]))
    in_x = (xs >= np.float64(box[1])) & (xs <= np.float64(box[3]))
    return in_y[:, None] & in_x[None, :]


def test_pointing_by_hand():
    peak = np.zeros((1, 4, 4), np.float32)
    peak[0, 1, 1] = 2.0
    np.testing.assert_array_equal(pointing(peak, TOP_LEFT), [1])
    # Of three tied pixels one lies in the box; the centre (1, 2) is at x = 5/8.
    tied = peak.copy()
    tied[0, 1, 2] = tied[0, 3, 3] = 2.0
    np.testing.assert_allclose(pointing(tied, TOP_LEFT), [1 / 3], rtol=1e-6)
    # Negative maps have a highest value too.
    bottom_right = jnp.array([[0.5, 0.5, 1.0, 1.0]])
    np.testing.assert_allclose(pointing(tied - 5.0, bottom_right), [1 / 3], rtol=1e-6)


@pytest.mark.parametrize("level", [0.0, -1.0, 3e37, 1e-30])
def test_a_flat_map_points_at_the_share_of_the_box(level):
    flat = jnp.full((1, 8, 8), level)
    np.testing.assert_allclose(pointing(flat, TOP_LEFT), [0.25])
    centres = jnp.asarray(QUARTERS.centres())
    pointed = patch_pointing(jnp.full((1, 4), level), centres, TOP_LEFT)
    np.testing.assert_allclose(pointed, [0.25])
    expected = 0.25 if level > 0 else 0.0
    np.testing.assert_allclose(mass_in_box(flat, TOP_LEFT), [expected], rtol=1e-6)


def test_pointing_and_mass_against_numpy():
    maps, boxes = random_maps(40)
    pointed, mass = pointing(maps, boxes), mass_in_box(maps, boxes)
    for index, (values, box) in enumerate(zip(np.float64(maps), np.asarray(boxes), strict=True)):
        inside = pixels_inside(values.shape, box)
        top, positive = values == values.max(), np.maximum(values, 0)
        assert float(pointed[index]) == pytest.approx(top[inside].sum() / top.sum(), abs=1e-6)
        expected = positive[inside].sum() / positive.sum()
        assert float(mass[index]) == pytest.approx(expected, abs=1e-6)


def test_patch_pointing_agrees_with_pixels_of_the_same_grid():
    maps, boxes = random_maps(30, 4, 4)
    centres = jnp.asarray(PatchGrid(4, 4, (4, 4), 1, 1).centres())
    np.testing.assert_array_equal(
        patch_pointing(maps.reshape(30, -1), centres, boxes),
        pointing(maps, boxes),
    )


def test_a_perfect_map_scores_one():
    _, boxes = random_maps(20, 16, 16)
    boxes = np.concatenate([boxes[:, :2] / 2, 0.5 + boxes[:, 2:] / 2], axis=1)
    maps = jnp.asarray([pixels_inside((16, 16), box) for box in boxes], jnp.float32)
    np.testing.assert_allclose(pointing(maps, boxes), 1, rtol=1e-6)
    np.testing.assert_allclose(mass_in_box(maps, boxes), 1, rtol=1e-6)
    truth = np.asarray(maps).reshape(20, -1) > 0
    scores = patch_scores(maps.reshape(20, -1), truth)
    for name in ("precision", "recall", "f"):
        np.testing.assert_allclose(getattr(scores, name), 1, rtol=1e-6)


def test_empty_boxes_and_maps_are_finite():
    maps = jnp.asarray([np.zeros((4, 4)), -np.ones((4, 4)), np.eye(4)], jnp.float32)
    boxes = jnp.zeros((3, 4))
    for metric in (pointing, mass_in_box):
        np.testing.assert_array_equal(metric(maps, boxes), 0)
    scores = patch_scores(maps.reshape(3, -1), jnp.zeros((3, 16), bool))
    assert all(np.isfinite(part).all() for part in scores)
    np.testing.assert_array_equal(scores.f, 0)


def test_mass_of_extreme_maps():
    for scale in (1e-30, 3e36):
        maps = scale * jnp.asarray([[[3.0, 1.0], [-2.0, 0.0]]])
        np.testing.assert_allclose(mass_in_box(maps, TOP_LEFT), [0.75], rtol=1e-6)


def test_patch_scores_by_hand():
    patches = jnp.array([[4.0, 2.0, 1.0, -1.0], [-3.0, -1.0, -2.0, 0.0]])
    inside = jnp.array([[True, False, True, False], [True, True, False, False]])
    scores = patch_scores(patches, inside, jnp.array([0.25, 0.5, 0.75]))
    # Passing: 4 2 1, then 4 2, then 4; nothing of the second image, whose highest is 0.
    np.testing.assert_array_equal(scores.passing, [[3, 2, 1], [0, 0, 0]])
    np.testing.assert_array_equal(scores.hits, [[2, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(scores.true, np.full((2, 3), 2))
    np.testing.assert_allclose(scores.precision, [[2 / 3, 1 / 2, 1], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(scores.recall, [[1, 1 / 2, 1 / 2], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(scores.f, [[4 / 5, 1 / 2, 2 / 3], [0, 0, 0]], rtol=1e-6)


def test_patch_scores_against_scikit_learn_per_image_and_pooled():
    rng = np.random.default_rng(0)
    patches = rng.integers(1, 11, (12, 9)) / 10
    patches[:, 0] = 1.0  # so that a tenth is a tenth of the highest
    inside = rng.uniform(size=(12, 9)) < 0.4
    inside[0] = False
    scores = patch_scores(jnp.asarray(patches, jnp.float32), jnp.asarray(inside))
    pooled = localisation.scores_of_counts(
        *(np.sum(part, axis=0) for part in (scores.hits, scores.passing, scores.true))
    )
    arrays = [np.asarray(part) for part in scores[:3]]
    for t in range(9):
        passing = np.round(10 * patches) >= t + 1
        for image in range(12):
            expected = precision_recall_fscore_support(
                inside[image], passing[image], average="binary", zero_division=0
            )[:3]
            measured = [part[image, t] for part in arrays]
            np.testing.assert_allclose(measured, expected, rtol=1e-6)
        expected = precision_recall_fscore_support(
            inside.ravel(), passing.ravel(), average="binary"
        )[:3]
        np.testing.assert_allclose([part[t] for part in pooled], expected, rtol=1e-6)


def test_localised_by_hand():
    patch_boxes = jnp.asarray(QUARTERS.boxes())
    first = [3.0, 1.0, 0.0, 0.0]

    def judged(patches, box):
        return float(localised(np.array([patches]), np.array([box]), patch_boxes)[0])

    assert judged(first, [0.0, 0.0, 0.5, 0.25]) == 1  # exactly half of the patch
    assert judged(first, [0.0, 0.0, 0.5, 0.24]) == 0
    assert judged(first, [0.0, 0.0, 1.0, 1.0]) == 1
    assert judged(first, [0.5, 0.5, 1.0, 1.0]) == 0
    # Of two tied patches, one inside is half of their area.
    both = [3.0, 3.0, 0.0, 0.0]
    assert judged(both, [0.0, 0.0, 0.5, 0.5]) == 1
    assert judged(both, [0.0, 0.0, 0.5, 0.45]) == 0
    # A flat map is right where the box is half of the image.
    flat = [0.0] * 4
    assert judged(flat, [0.0, 0.0, 0.5, 1.0]) == 1
    assert judged(flat, [0.0, 0.0, 0.5, 0.9]) == 0


@pytest.mark.parametrize("side", range(6, 40))
def test_half_a_patch_is_half_in_any_fractions(side):
    grid = PatchGrid(6, 6, (side, side), 1, 1)
    boxes = grid.boxes().astype(np.float64)
    halves = np.concatenate([boxes[:, :3], boxes[:, 1::2].mean(axis=1, keepdims=True)], axis=1)
    halves, boxes = jnp.asarray(halves, jnp.float32), jnp.asarray(grid.boxes())
    np.testing.assert_array_equal(localised(jnp.eye(36), halves, boxes), 1)


def test_localisation_average_precision_by_hand():
    # Precisions at the right ones: 1 and 2/3.
    right, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])
    measured = localisation.localisation_average_precision(right, scores)
    assert measured == pytest.approx((1 + 2 / 3) / 2)
    # Of four objects two were not found.
    measured = localisation.localisation_average_precision(right, scores, objects=4)
    assert measured == pytest.approx((1 + 2 / 3) / 4)
    # Equal scores: all four at once.
    assert localisation.localisation_average_precision(right, np.ones(4)) == pytest.approx(0.5)
    assert localisation.localisation_average_precision(np.zeros(4), scores) == 0
    assert localisation.localisation_average_precision(np.ones(4), scores, objects=4) == 1


def test_localisation_average_precision_against_scikit_learn():
    rng = np.random.default_rng(1)
    for count in (1, 5, 200):
        right = rng.integers(0, 2, count)
        right[0] = 1
        scores = rng.integers(0, 30, count) / 30
        measured = localisation.localisation_average_precision(right, scores)
        assert measured == pytest.approx(average_precision_score(right, scores), abs=1e-12)
        mixed = rng.permutation(count)
        again = localisation.localisation_average_precision(right[mixed], scores[mixed])
        assert again == pytest.approx(measured, abs=1e-12)


@pytest.mark.parametrize(
    ("right", "scores", "objects"),
    [
        ([1, 0], [0.5], None),
        ([], [], None),
        ([[1]], [[0.5]], None),
        ([1, 0], [0.5, np.nan], None),
        ([1, 0.5], [0.5, 0.2], None),
        ([1, 1], [0.5, 0.2], 1),
    ],
)
def test_localisation_average_precision_refuses(right, scores, objects):
    with pytest.raises(ValueError):
        localisation.localisation_average_precision(np.array(right), np.array(scores), objects)


def all_metrics(maps, boxes):
    grid = PatchGrid(*maps.shape[1:], maps.shape[1:], 1, 1)
    patches, centres = maps.reshape(len(maps), -1), jnp.asarray(grid.centres())
    inside = metrics.centres_in_boxes(centres, boxes)
    return {
        "pointing": pointing(maps, boxes),
        "patch_pointing": patch_pointing(patches, centres, boxes),
        "mass": mass_in_box(maps, boxes),
        "localised": localised(patches, boxes, jnp.asarray(grid.boxes())),
        **patch_scores(patches, inside)._asdict(),
    }


def test_one_of_several_boxes_is_one_box():
    maps, boxes = random_maps(7)
    absent = np.tile(np.array(data.NO_BOX, np.float32), (7, 1))
    several = jnp.asarray(np.stack([absent, boxes, absent], axis=1))
    assert metrics.has_box(boxes).all() and metrics.has_box(several).all()
    assert not metrics.has_box(jnp.asarray(absent)).any()
    measured = jax.jit(all_metrics)
    for name, values in measured(maps, boxes).items():
        np.testing.assert_array_equal(measured(maps, several)[name], values)
        # Nothing but the number of patches that pass can be told without a box.
        nothing = measured(maps, several[:, ::2])[name]
        assert not nothing.any() or name == "passing", name


def test_overlapping_boxes_count_once_but_one_must_hold_a_half():
    maps = jnp.asarray([[[3.0, 1.0], [1.0, 0.0]]])
    # The first two overlap in the patch at the top left.
    corners = [[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 1.0]]
    np.testing.assert_allclose(mass_in_box(maps, jnp.array([corners])), [0.8], rtol=1e-6)
    np.testing.assert_allclose(pointing(maps, jnp.array([corners[::-1]])), [1], rtol=1e-6)
    quarter = [[0.0, 0.0, 0.5, 0.2], [0.0, 0.3, 0.5, 0.5]]  # together they hold four fifths
    windows = jnp.asarray(QUARTERS.boxes())
    flat = maps.reshape(1, 4)
    np.testing.assert_array_equal(localised(flat, jnp.array([quarter]), windows), [0])
    np.testing.assert_array_equal(
        localised(flat, jnp.array([[quarter[0], corners[0]]]), windows), [1]
    )


def test_boxes_of_one_class():
    boxes = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 3, 4)), jnp.float32)
    labels = jnp.array([[4, 0, 4], [0, -1, -1]])
    kept = jax.jit(localisation.boxes_of_class)(boxes, labels, jnp.array([4, 4]))
    np.testing.assert_array_equal(kept[0, ::2], boxes[0, ::2])
    np.testing.assert_array_equal(kept[0, 1], data.NO_BOX)
    np.testing.assert_array_equal(kept[1], [data.NO_BOX] * 3)


def test_padding_and_order_of_examples_change_nothing():
    maps, boxes = random_maps(7)
    measured = jax.jit(all_metrics)
    expected = measured(maps, boxes)
    padded = measured(
        np.concatenate([maps, np.full((3, 6, 5), 7.0)]), np.concatenate([boxes, boxes[:3] + 4])
    )
    mixed = np.random.default_rng(0).permutation(7)
    permuted = measured(maps[mixed], boxes[mixed])
    mask = np.array([1.0] * 7 + [0.0] * 3, np.float32)
    mean_of_each = jax.jit(jax.vmap(metrics.mean_of, (1, None)))
    for name, values in expected.items():
        assert values.dtype == jnp.float32 and values.shape[0] == 7
        np.testing.assert_allclose(padded[name][:7], values, rtol=1e-6)
        np.testing.assert_array_equal(permuted[name], values[mixed])
        if values.ndim == 1:
            assert float(metrics.mean_of(padded[name], mask).total) == pytest.approx(
                float(np.sum(values)), rel=1e-6
            )
        else:
            mean = mean_of_each(padded[name], mask)
            np.testing.assert_allclose(mean.total, np.sum(values, axis=0), rtol=1e-6)
            np.testing.assert_array_equal(mean.count, np.full(9, 7))
