import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lossattn_jax import data
from lossattn_jax.data import augmentation

crop = jax.jit(augmentation.crop, static_argnames=("size", "pad", "area", "flip"))
random_part = jax.jit(augmentation.random_part, static_argnames=("size", "area", "flip"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (64, 12, 10, 3), np.uint8)


def _windows(image, pad):
    """All windows of the image with black around it, by their corners: NumPy's own crop."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return {
        (row, column): padded[row : row + height, column : column + width]
        for row in range(2 * pad + 1)
        for column in range(2 * pad + 1)
    }


@pytest.mark.parametrize("pad", [1, 4])
def test_a_crop_is_a_window_of_the_padded_image(images, pad):
    cropped = np.asarray(data.random_crop(jax.random.key(0), jnp.asarray(images), pad))
    assert cropped.shape == images.shape and cropped.dtype == np.uint8
    corners = []
    for image, crop in zip(images, cropped, strict=True):
        found = [c for c, window in _windows(image, pad).items() if np.array_equal(window, crop)]
        assert len(found) == 1
        corners += found
    rows, columns = zip(*corners, strict=True)
    assert min(rows) == min(columns) == 0
    assert max(rows) == max(columns) == 2 * pad
    assert len(set(corners)) > 8  # rows and columns are drawn apart


def test_every_window_is_equally_likely():
    pad, count = 2, 20_000
    # A picture whose corner pixel names the window.
    image = np.zeros((count, 5, 5, 1), np.uint8)
    image[:, 2, 2, 0] = 1
    cropped = np.asarray(data.random_crop(jax.random.key(1), jnp.asarray(image), pad))
    counts = cropped.sum(axis=0)[..., 0].ravel()  # the mark lands anywhere with equal chance
    assert counts.sum() == count
    expected = count / 25
    assert ((counts - expected) ** 2 / expected).sum() < 52.6  # chi-squared, 24 degrees, p = 0.0006


def test_no_padding_means_no_crop(images):
    same = data.random_crop(jax.random.key(0), jnp.asarray(images), 0)
    np.testing.assert_array_equal(same, images)


def test_half_of_the_images_are_mirrored():
    images = np.random.default_rng(0).integers(0, 256, (4000, 2, 3, 1), np.uint8)
    flipped = np.asarray(data.random_flip(jax.random.key(0), jnp.asarray(images)))
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 0.04  # five standard deviations


def test_alternating_flips_show_both_sides_in_two_epochs():
    key, indices = jax.random.key(3), jnp.arange(1000, dtype=jnp.int32)
    epochs = [np.asarray(data.alternate_flips(key, indices, jnp.int32(e))) for e in range(4)]
    np.testing.assert_array_equal(epochs[0], ~epochs[1])
    np.testing.assert_array_equal(epochs[0], epochs[2])
    np.testing.assert_array_equal(epochs[1], epochs[3])
    assert 400 < epochs[0].sum() < 600
    # An image's side follows from its place in the training set, not from its place in a batch.
    part = data.alternate_flips(key, indices[700:], jnp.int32(0))
    np.testing.assert_array_equal(part, epochs[0][700:])


@pytest.mark.parametrize("stored", [4, 6])
def test_images_that_are_named_are_mirrored_in_every_crop(stored):
    images = np.random.default_rng(0).integers(0, 256, (6, stored, stored, 3)).astype(np.uint8)
    flips = jnp.array([True, False, True, True, False, False])
    plain, turned = (
        np.asarray(
            augmentation.crop(
                jax.random.key(1), jnp.asarray(images), (4, 4), pad=1, area=0.3, flip=flip
            )
        )
        for flip in (False, flips)
    )
    expected = np.where(flips[:, None, None, None], plain[:, :, ::-1], plain)
    np.testing.assert_allclose(turned, expected, atol=1e-4)


def test_crop_and_flip_are_drawn_apart():
    image = np.zeros((2000, 3, 3, 1), np.uint8)
    image[:, 1, 1] = 1
    key = jax.random.key(0)
    moved_down = np.asarray(data.random_crop(key, jnp.asarray(image), 1))[:, 2].any((1, 2))
    image[:, 1, 1], image[:, 1, 0] = 0, 1
    mirrored = np.asarray(data.random_flip(key, jnp.asarray(image)))[:, 1, 2, 0] == 1
    assert abs(np.corrcoef(moved_down, mirrored)[0, 1]) < 0.1


def test_normalisation_against_float64(images):
    spec = data.get_spec("svhn_cropped")
    expected = (images.astype(np.float64) / 255 - spec.mean) / spec.std
    found = data.normalise(jnp.asarray(images), spec.mean, spec.std)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)
    half = data.normalise(jnp.asarray(images), spec.mean, spec.std, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=2**-8)


def test_what_comes_in_from_outside_is_black_and_not_grey():
    spec = data.get_spec("cifar10")
    white = jnp.full((32, 8, 8, 3), 255, jnp.uint8)
    found = np.asarray(
        data.augment(jax.random.key(0), white, spec_flip=True, mean=spec.mean, std=spec.std)
    )
    black_and_white = (np.array([[0.0], [1.0]]) - spec.mean) / spec.std
    distance = np.abs(found[..., None, :] - black_and_white).max(-1)
    assert distance.min(-1).max() < 1e-5  # every pixel is one of the two
    assert set(distance.argmin(-1).ravel().tolist()) == {0, 1}


@pytest.mark.parametrize("name", ["svhn_cropped", "digit_scenes"])
def test_digits_are_never_mirrored(name):
    spec = data.get_spec(name)
    images = np.zeros((200, 6, 6, 3), np.uint8)
    images[:, :, :3] = 255
    found = data.augment(
        jax.random.key(0),
        jnp.asarray(images),
        spec_flip=spec.flip,
        pad=0,
        mean=spec.mean,
        std=spec.std,
    )
    np.testing.assert_array_equal(found, data.normalise(jnp.asarray(images), spec.mean, spec.std))


def _augment(key, images, positions=None):
    spec = data.get_spec("cifar10")
    return data.augment(
        key, images, spec_flip=True, mean=spec.mean, std=spec.std, positions=positions
    )


@pytest.mark.parametrize("devices", [2, 4, 64])
def test_splitting_a_batch_changes_nothing(images, devices):
    key = jax.random.fold_in(jax.random.key(3), 17)
    whole = _augment(key, jnp.asarray(images))
    local = 64 // devices
    parts = jnp.asarray(images).reshape(devices, local, *images.shape[1:])
    positions = jnp.arange(64).reshape(devices, local)
    split = jax.jit(jax.vmap(_augment, in_axes=(None, 0, 0)))(key, parts, positions)
    np.testing.assert_allclose(split.reshape(whole.shape), whole, atol=1e-6)


def test_neighbours_do_not_matter(images):
    key = jax.random.key(3)
    chosen = np.array([5, 60, 0])
    whole = np.asarray(_augment(key, jnp.asarray(images)))
    some = _augment(key, jnp.asarray(images[chosen]), jnp.asarray(chosen))
    np.testing.assert_allclose(some, whole[chosen], atol=1e-6)


def test_steps_differ(images):
    key = jax.random.key(3)
    one, two = (
        np.asarray(_augment(jax.random.fold_in(key, s), jnp.asarray(images))) for s in (1, 2)
    )
    assert (one != two).any((1, 2, 3)).mean() > 0.9


def test_a_random_part_is_that_of_the_picture():
    """A ramp in both directions, of which any part resized is a ramp too."""
    ramp = np.stack(np.meshgrid(np.arange(48.0), np.arange(64.0)), axis=-1)  # columns, rows
    images = jnp.asarray(np.broadcast_to(ramp, (200, 64, 48, 2)).astype(np.uint8))
    parts = np.asarray(random_part(jax.random.key(0), images, (16, 16), 0.2))
    assert parts.shape == (200, 16, 16, 2) and parts.dtype == np.float32
    # Away from the edges, where the filter has both sides.
    width, height = (np.diff(parts[:, 4:12, 4:12, c], axis=2 - c).mean((1, 2)) * 16 for c in (0, 1))
    areas, proportions = width * height / (64 * 48), width / height
    assert 0.19 < areas.min() < 0.25 and areas.max() > 0.8
    assert 0.74 < proportions.min() < 0.8 and 1.25 < proportions.max() < 1.34
    assert parts.min() >= 0 and parts[..., 0].max() <= 47 and parts[..., 1].max() <= 63
    # Places are spread over what is left beside a part.
    left = parts[..., 0].mean((1, 2)) + 0.5 - width / 2
    free = 48 - width
    assert np.corrcoef(left, free)[0, 1] > 0.3 and (left > -0.6).all() and (left < free + 0.6).all()


def test_a_part_as_pillow_cuts_it():
    """The whole picture, reduced: Pillow's filter widens in the same way."""
    picture = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    ours = random_part(jax.random.key(0), jnp.asarray(picture[None]), (15, 15), 1.0)
    theirs = Image.fromarray(picture).resize((15, 15), Image.Resampling.BILINEAR)
    # No part of the whole area but of other proportions fits, so that it is the picture itself.
    np.testing.assert_allclose(ours[0], np.asarray(theirs), atol=1.0)


def test_parts_follow_from_key_and_place_alone():
    images = np.random.default_rng(0).integers(0, 256, (8, 20, 20, 3), np.uint8)
    key = jax.random.key(2)
    whole = random_part(key, jnp.asarray(images), (8, 8), 0.08)
    places = jnp.array([5, 2])
    some = random_part(key, jnp.asarray(images[[5, 2]]), (8, 8), 0.08, places)
    np.testing.assert_allclose(some, whole[jnp.array([5, 2])], atol=1e-3)
    other = random_part(jax.random.key(3), jnp.asarray(images), (8, 8), 0.08)
    assert not np.allclose(other, whole, atol=1)


def test_parts_are_mirrored_as_whole_images_are():
    images = np.random.default_rng(0).integers(0, 256, (8, 20, 18, 3), np.uint8)
    key, places = jax.random.key(2), jnp.arange(8) + 3
    plain = random_part(key, jnp.asarray(images), (8, 7), 0.2, places)
    mirrored = random_part(key, jnp.asarray(images), (8, 7), 0.2, places, flip=True)
    is_mirrored = np.asarray(plain != mirrored).any((1, 2, 3))
    assert 0 < is_mirrored.sum() < 8
    np.testing.assert_allclose(mirrored, data.random_flip(key, plain, places), atol=1e-4)


def test_stored_pictures_are_cropped_by_their_size():
    images = jnp.arange(2 * 10 * 10 * 1, dtype=jnp.uint8).reshape(2, 10, 10, 1)
    key = jax.random.key(0)
    centre = crop(key, images, (6, 6), pad=4, area=0.0)
    np.testing.assert_array_equal(centre, images[:, 2:8, 2:8])
    padded = crop(key, images, (10, 10), pad=2, area=0.5)
    np.testing.assert_array_equal(padded, data.random_crop(key, images, 2))
    part = crop(key, images, (6, 6), pad=2, area=0.5)
    np.testing.assert_allclose(part, random_part(key, images, (6, 6), 0.5), atol=1e-3)
