"""Faithfulness metrics by hand, against NumPy and SciPy, in closed form, and their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lossattn_jax.evaluate import metrics
from lossattn_jax.explain.metrics import faithfulness, imputation
from lossattn_jax.models.geometry import PatchGrid

by_pixels = jax.jit(faithfulness.by_pixels)
by_patches = jax.jit(faithfulness.by_patches)
deletion = jax.jit(faithfulness.deletion, static_argnums=(0, 4))
insertion = jax.jit(faithfulness.insertion, static_argnums=(0, 4))
blurred = jax.jit(imputation.blur, static_argnums=1)
area = jax.jit(faithfulness.area)
road = jax.jit(faithfulness.road, static_argnums=(0, 4), static_argnames="iterations")
linear_imputation = jax.jit(imputation.linear_imputation, static_argnums=2)
comprehensiveness = jax.jit(faithfulness.comprehensiveness, static_argnums=(0, 5))
sufficiency = jax.jit(faithfulness.sufficiency, static_argnums=(0, 5))

QUARTERS = PatchGrid(2, 2, (2, 2), 1, 1)  # four patches that tile the image
HEIGHT, WIDTH, CLASSES = 8, 6, 3
SHAPE = (HEIGHT, WIDTH, 2)


def random_images(count, seed=0):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.standard_normal((count, *SHAPE)), jnp.float32)
    return images, jnp.asarray(rng.integers(0, CLASSES, count))


def weights():
    return np.random.default_rng(7).standard_normal((*SHAPE, CLASSES)).astype(np.float32)


def linear(images):
    """No probabilities, but what has closed forms."""
    return jnp.einsum("bhwc,hwck->bk", images, weights(), precision="highest")


def softmax(images):
    return jax.nn.softmax(linear(images))


def contributions(images, classes):
    """`[B, H, W]` float64: what each pixel adds to `linear`."""
    chosen = weights().astype(np.float64)[..., np.asarray(classes)]
    return np.einsum("bhwc,hwcb->bhw", np.asarray(images, np.float64), chosen)


def cells_by_distance(grid, size):
    """Nearest centre with exact whole numbers, one pixel after the other."""
    found = np.zeros(size, int)
    for y in range(size[0]):
        for x in range(size[1]):
            distances = []
            for patch in range(grid.patches):
                row, col = divmod(patch, grid.cols)
                dy = (2 * y + 1) * grid.map_size[0] - (2 * row * grid.stride + grid.kernel) * size[
                    0
                ]
                dx = (2 * x + 1) * grid.map_size[1] - (2 * col * grid.stride + grid.kernel) * size[
                    1
                ]
                # In pixels, times a common factor.
                distances.append((dy * grid.map_size[1]) ** 2 + (dx * grid.map_size[0]) ** 2)
            found[y, x] = distances.index(min(distances))
    return found


@pytest.mark.parametrize(
    ("grid", "size"),
    [
        (QUARTERS, (8, 6)),
        (QUARTERS, (5, 5)),  # the middle row and column are as near to either side
        (PatchGrid(6, 6, (32, 32), 9, 4), (32, 32)),
        (PatchGrid(6, 6, (8, 8), 3, 1), (32, 32)),
        (PatchGrid(3, 2, (7, 5), 3, 2), (14, 9)),
        (PatchGrid(1, 1, (1, 1), 1, 1), (4, 4)),
        (PatchGrid(8, 8, (8, 8), 1, 1), (4, 4)),
    ],
)
def test_cells_are_of_the_nearest_patch(grid, size):
    cells = faithfulness.cells(grid, size)
    assert cells.shape == size and cells.dtype == np.int32
    np.testing.assert_array_equal(cells, cells_by_distance(grid, size))


def test_ranks_by_hand():
    maps = jnp.array([[[1.0, 3.0], [-1.0, 3.0]], [[0.0, -0.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(by_pixels(maps), [[[2, 0], [3, 1]], [[0, 1], [2, 3]]])
    cells = faithfulness.cells(QUARTERS, (2, 4))
    patches = jnp.array([[0.0, 5.0, 5.0, 7.0], [2.0, 2.0, 2.0, 2.0]])
    ranks = by_patches(patches, cells)
    np.testing.assert_array_equal(ranks[0], [[3, 3, 1, 1], [2, 2, 0, 0]])
    np.testing.assert_array_equal(ranks[1], [[0, 0, 1, 1], [2, 2, 3, 3]])
    turned = faithfulness.least_first(ranks)
    np.testing.assert_array_equal(turned[0], [[0, 0, 2, 2], [1, 1, 3, 3]])


def test_ranks_against_numpy_with_many_ties():
    maps = np.random.default_rng(1).integers(0, 4, (5, 9, 11))
    order = np.argsort(-maps.reshape(5, -1), axis=1, kind="stable")
    ranks = by_pixels(jnp.asarray(maps, jnp.float32)).reshape(5, -1)
    np.testing.assert_array_equal(np.take_along_axis(np.asarray(ranks), order, 1)[2], np.arange(99))
    np.testing.assert_array_equal(np.sort(ranks, axis=1), np.tile(np.arange(99), (5, 1)))
    np.testing.assert_array_equal(np.argsort(ranks, axis=1), order)


def counted(images):
    """What predict is shown, as a number: the share of pixels that are 1."""
    share = jnp.mean(images, axis=(1, 2, 3))
    return jnp.stack([share, 1 - share], axis=-1)


def test_a_curve_removes_the_nearest_number_of_pixels():
    images, classes = jnp.ones((1, 2, 5, 1)), jnp.array([0])
    ranks = by_pixels(jnp.arange(10.0).reshape(1, 2, 5))
    curve = deletion(counted, images, classes, ranks, 4)
    # Of ten pixels 0, 2.5 (half up), 5, 7.5, 10.
    np.testing.assert_allclose(curve[0], [1, 0.7, 0.5, 0.2, 0], atol=1e-6)
    # A constant image is its own blur.
    np.testing.assert_allclose(
        insertion(counted, images, classes, ranks, 4), np.ones((1, 5)), rtol=1e-6
    )


def test_patches_are_removed_whole_when_their_middle_is_reached():
    images, classes = jnp.ones((1, 4, 4, 1)), jnp.array([0])
    cells = faithfulness.cells(QUARTERS, (4, 4))
    ranks = by_patches(jnp.array([[1.0, 2.0, 3.0, 4.0]]), cells)
    curve = deletion(counted, images, classes, ranks, 8)
    # Patches end at 1/4, 1/2, ...; their middles are at 1/8, 3/8, 5/8 and 7/8.
    quarters = [4, 3, 3, 2, 2, 1, 1, 0, 0]
    np.testing.assert_allclose(curve[0], np.array(quarters) / 4)
    # Ranks say an order only.
    again = deletion(counted, images, classes, 10 * ranks - 7, 8)
    np.testing.assert_array_equal(again, curve)


def test_area_by_hand():
    curves = jnp.array([[1.0, 0.5, 0.0], [1.0, 1.0, 0.0], [0.25, 0.25, 0.25]])
    np.testing.assert_allclose(area(curves), [0.5, 0.75, 0.25])


def test_linear_deletion_and_insertion_have_a_closed_form():
    images, classes = random_images(4)
    pixels = HEIGHT * WIDTH
    added = contributions(images, classes)
    ranks = by_pixels(jnp.asarray(added, jnp.float32))
    ordered = -np.sort(-added.reshape(4, -1), axis=1)

    curve = deletion(linear, images, classes, ranks, pixels)
    left = ordered.sum(axis=1, keepdims=True) - np.cumsum(np.pad(ordered, ((0, 0), (1, 0))), axis=1)
    np.testing.assert_allclose(curve, left, atol=1e-4)
    # Each pixel counts until it goes, and half of the step in which it goes.
    places = (np.arange(pixels) + 0.5) / pixels
    np.testing.assert_allclose(area(curve), ordered @ places, atol=1e-4)

    start = np.asarray(blurred(images))
    gained = contributions(images - start, classes)
    ranks = by_pixels(jnp.asarray(gained, jnp.float32))
    curve = insertion(linear, images, classes, ranks, pixels)
    ordered = -np.sort(-gained.reshape(4, -1), axis=1)
    base = contributions(start, classes).sum(axis=(1, 2))
    expected = base[:, None] + np.cumsum(np.pad(ordered, ((0, 0), (1, 0))), axis=1)
    np.testing.assert_allclose(curve, expected, atol=1e-4)


def test_the_best_order_has_the_least_area():
    images, classes = random_images(3)
    best = by_pixels(jnp.asarray(contributions(images, classes), jnp.float32))
    others = [faithfulness.least_first(best), by_pixels(images[..., 0])]
    for other in others:
        curves = (deletion(softmax, images, classes, ranks, 12) for ranks in (best, other))
        assert np.less(*map(area, curves)).all()


@pytest.mark.parametrize("sigma", [0.0, 5 / 32, 0.5])
def test_blur_against_scipy(sigma):
    images = np.random.default_rng(2).standard_normal((2, 9, 6, 2))
    deviations = (0, 9 * sigma, 6 * sigma, 0)
    expected = gaussian_filter(images, deviations, mode="mirror", truncate=4.0)
    measured = blurred(jnp.asarray(images, jnp.float32), sigma)
    np.testing.assert_allclose(measured, expected, atol=2e-6)


def test_blur_of_narrow_and_of_flat_images():
    np.testing.assert_allclose(blurred(jnp.full((1, 1, 2, 1), 3.0)), 3, rtol=1e-6)


def dense_imputation(image, missing):
    """The same equations for one image `[H, W, C]`, solved with NumPy in float64."""
    height, width = missing.shape
    places = {place: index for index, place in enumerate(zip(*np.nonzero(missing), strict=True))}
    matrix, right = np.eye(len(places)), np.zeros((len(places), image.shape[-1]))
    for (y, x), index in places.items():
        around = {
            (y + dy, x + dx): 1 / 6 if dy == 0 or dx == 0 else 1 / 12
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if (dy or dx) and 0 <= y + dy < height and 0 <= x + dx < width
        }
        for place, weight in around.items():
            share = weight / sum(around.values())
            if place in places:
                matrix[index, places[place]] -= share
            else:
                right[index] += share * image[place]
    filled = np.array(image, np.float64)
    filled[missing] = np.linalg.solve(matrix, right)
    return filled


def test_imputation_by_hand():
    image = jnp.array([[[[1.0], [2.0]], [[3.0], [9.0]]]])
    corner = jnp.array([[[False, False], [False, True]]])
    # Two direct neighbours and a diagonal one: (2 * 2 + 2 * 3 + 1) / 5.
    filled = linear_imputation(image, corner)
    np.testing.assert_allclose(filled[0, :, :, 0], [[1, 2], [3, 11 / 5]], rtol=1e-6)
    row = jnp.arange(4.0).reshape(1, 1, 4, 1)
    gap = jnp.array([[[False, True, True, False]]])
    np.testing.assert_allclose(linear_imputation(9 * row, gap), 9 * row, rtol=1e-5)


def holes():
    """Small and large holes, at edges and inside, the last with one known pixel: `[6, 12, 10]`."""
    rng = np.random.default_rng(3)
    missing = rng.uniform(size=(6, 12, 10)) < np.reshape([0.1, 0.5, 0.9, 0, 0, 1], (6, 1, 1))
    missing[3, 2:9, 1:8] = True
    missing[4, :, 3:] = True
    missing[5, 0, 0] = False
    return missing


def test_imputation_against_a_dense_solve():
    images = np.random.default_rng(4).standard_normal((6, 12, 10, 2)).astype(np.float32)
    missing = holes()
    filled = linear_imputation(images, missing)
    for index in range(6):
        expected = dense_imputation(images[index], missing[index])
        np.testing.assert_allclose(filled[index], expected, atol=2e-5)
    np.testing.assert_array_equal(np.asarray(filled)[~missing], images[~missing])


def test_imputation_converges_as_documented():
    rng = np.random.default_rng(5)
    images = rng.standard_normal((5, 24, 24, 1)).astype(np.float32)
    missing = rng.uniform(size=images.shape[:3]) < np.reshape([0.5, 0.9, 0.99, 0, 1], (5, 1, 1))
    missing[3, 1:-1, 1:-1] = True
    missing[4, 0, 0] = missing[4, -1, -1] = False
    quick, whole, long = (linear_imputation(images, missing, n) for n in (25, None, 1000))
    expected = np.stack([dense_imputation(*pair) for pair in zip(images, missing, strict=True)])
    np.testing.assert_allclose(quick[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(whole, expected, atol=1e-4)
    # What is solved stays solved, although residuals cannot go on falling.
    np.testing.assert_allclose(long, expected, atol=1e-4)


def test_imputation_without_anything_known_is_the_mean_colour():
    everything = jnp.ones((1, 4, 5), bool)
    filled = linear_imputation(jnp.full((1, 4, 5, 1), 3.0), everything)
    np.testing.assert_array_equal(filled, 0)
    single = linear_imputation(jnp.ones((1, 1, 1, 1)), jnp.ones((1, 1, 1), bool))
    np.testing.assert_array_equal(single, 0)


def test_road_is_the_prediction_of_imputed_images():
    images, classes = random_images(3)
    ranks = by_pixels(images[..., 0])
    shares = (0.0, 0.3, 0.75, 1.0)
    first, again, other = (
        road(softmax, images, classes, ranks, shares, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert first.probability.shape == first.is_highest.shape == (3, 4)
    np.testing.assert_array_equal(first.probability, again.probability)
    assert np.not_equal(first.probability, other.probability)[:, 1:].all()
    for place, count in enumerate((0, 14, 36)):  # 0.3 and 0.75 of 48 are 14.4 and 36
        missing = np.asarray(ranks) < count
        filled = [dense_imputation(*pair) for pair in zip(np.asarray(images), missing, strict=True)]
        logits = np.asarray(linear(jnp.asarray(np.stack(filled), jnp.float32)), np.float64)
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        followed = np.take_along_axis(expected, np.asarray(classes)[:, None], axis=1)[:, 0]
        # Noise of 0.01 on each of 96 values, with weights around 1, is 0.1 of a logit.
        np.testing.assert_allclose(
            first.probability[:, place], followed, atol=0.15 if count else 1e-5
        )
        if not count:
            np.testing.assert_array_equal(
                first.is_highest[:, 0], expected.argmax(axis=1) == classes
            )


def test_road_noise_is_on_imputed_pixels_with_its_deviation():
    images, classes = jnp.zeros((2, 64, 64, 3)), jnp.zeros(2, int)
    ranks = by_pixels(np.arange(2 * 64 * 64.0).reshape(2, 64, 64))

    def looked(images):
        halves = images[:, 32:], images[:, :32]
        return jnp.stack([jnp.std(half, axis=(1, 2, 3)) for half in halves], axis=-1)

    for label, expected in ((0, 0.01), (1, 0.0)):
        seen = road(
            looked, images, classes + label, ranks, (0.5, 0.5), jax.random.key(2), iterations=1
        )
        np.testing.assert_allclose(seen.probability, expected, rtol=0.03)
        # One key gives every image and every share noise of its own.
        assert len(np.unique(seen.probability)) == (4 if expected else 1)


@pytest.mark.parametrize("shares", [(0.1, 1.1), (-0.1,)])
def test_road_refuses(shares):
    images, classes = random_images(1)
    ranks = by_pixels(images[..., 0])
    with pytest.raises(ValueError, match="share"):
        road(softmax, images, classes, ranks, shares, jax.random.key(0))


def test_comprehensiveness_and_sufficiency_of_a_linear_model():
    images, classes = random_images(3)
    grid = PatchGrid(4, 3, (4, 3), 1, 1)
    cells = faithfulness.cells(grid, (HEIGHT, WIDTH))
    parts = contributions(images, classes).reshape(3, 4, 2, 3, 2).sum(axis=(2, 4)).reshape(3, 12)
    patches = jnp.asarray(parts, jnp.float32)
    ordered = -np.sort(-parts, axis=1)
    # 10, 20 and 50 per cent of twelve patches: 1.2, 2.4 and 6.
    tops = np.stack([ordered[:, :k].sum(axis=1) for k in (1, 2, 6)], axis=1)
    args = (linear, images, classes, patches, cells)
    np.testing.assert_allclose(comprehensiveness(*args), tops, atol=1e-5)
    rest = ordered.sum(axis=1, keepdims=True) - tops
    np.testing.assert_allclose(sufficiency(*args), rest, atol=1e-5)
    everything = sufficiency(*args, (1.0,))
    np.testing.assert_array_equal(everything, 0)


def test_numbers_of_patches_are_rounded_half_up_and_never_none():
    images, classes = jnp.ones((1, 1, 10, 1)), jnp.array([0])
    cells = faithfulness.cells(PatchGrid(1, 10, (1, 10), 1, 1), (1, 10))
    shares = (0.01, 0.1, 0.15, 0.25, 0.35, 0.44, 0.3, 1.0)
    drops = comprehensiveness(counted, images, classes, jnp.arange(10.0)[None], cells, shares)
    np.testing.assert_allclose(drops[0] * 10, [1, 1, 2, 3, 4, 4, 3, 10], rtol=1e-6)


def test_a_network_that_looks_nowhere_has_flat_curves():
    images, classes = random_images(2)
    ranks = by_pixels(jnp.zeros((2, HEIGHT, WIDTH)))  # a flat map, too

    def blind(images):
        return jnp.broadcast_to(jnp.array([[0.5, 0.25, 0.25]]), (len(images), 3))

    expected = np.where(np.asarray(classes) == 0, 0.5, 0.25)
    for curve in (deletion, insertion):
        np.testing.assert_allclose(area(curve(blind, images, classes, ranks, 5)), expected)
    cells = faithfulness.cells(QUARTERS, (HEIGHT, WIDTH))
    drops = comprehensiveness(blind, images, classes, jnp.zeros((2, 4)), cells)
    np.testing.assert_array_equal(drops, 0)


@jax.jit
def all_metrics(images, classes, patches, keys):
    cells = faithfulness.cells(QUARTERS, (HEIGHT, WIDTH))
    ranks = by_pixels(images[..., 0])
    seen = road(softmax, images, classes, ranks, (0.2, 0.6), keys, iterations=10)
    return {
        "deletion": deletion(softmax, images, classes, by_patches(patches, cells), 4),
        "insertion": insertion(softmax, images, classes, ranks, 4),
        "comprehensiveness": comprehensiveness(softmax, images, classes, patches, cells),
        "sufficiency": sufficiency(softmax, images, classes, patches, cells),
        "probability": seen.probability,
        "kept": seen.is_highest,
    }


def test_no_image_changes_another():
    images, classes = random_images(7)
    patches = np.random.default_rng(8).integers(0, 3, (7, 4)).astype(np.float32)
    inputs = (images, classes, patches, jax.random.split(jax.random.key(3), 7))
    expected = all_metrics(*inputs)
    # Instead of the last two, padding that would be noticed: of classes that do not exist, too.
    padding = (np.full((2, *SHAPE), np.inf), [7, -9], np.full((2, 4), np.nan))
    padded = all_metrics(
        *(
            np.concatenate([x[:5], y]).astype(x.dtype)
            for x, y in zip(inputs, padding, strict=False)
        ),
        inputs[-1],
    )
    mixed = np.random.default_rng(9).permutation(7)
    permuted = all_metrics(*(array[mixed] for array in inputs))
    mask = np.array([1.0] * 5 + [0.0] * 2, np.float32)
    mean_of_each = jax.jit(jax.vmap(metrics.mean_of, (1, None)))
    for name, values in expected.items():
        assert values.dtype == jnp.float32
        np.testing.assert_array_equal(padded[name][:5], values[:5])
        np.testing.assert_allclose(permuted[name], values[mixed], atol=1e-6)
        mean = mean_of_each(padded[name], mask)
        np.testing.assert_allclose(mean.total, np.sum(values[:5], axis=0), atol=1e-5)
    # Nor does their number.
    fewer = insertion(softmax, images[:5], classes[:5], by_pixels(images[:5, ..., 0]), 4)
    np.testing.assert_allclose(fewer, expected["insertion"][:5], atol=1e-6)
