import copy
import itertools

import numpy as np
import pytest

from lossattn_jax import data
from lossattn_jax.data import digit_rendering, digit_scenes, legible_digits

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def drawn():
    """Some scenes with the backgrounds that they were drawn on: (scene, background uint8)."""
    digits = legible_digits.split_digits(0)["train"]
    scenes = []
    for index in range(60):
        rng = np.random.default_rng(index)
        pieces = [digits.glyphs[index + other].piece(2, 3, 4) for other in range(1, 4)]
        background = digit_rendering.background(copy.deepcopy(rng), pieces)
        scene = digit_rendering.render(rng, digits.glyphs[index], pieces)
        scenes.append((*scene, np.rint(background * 255).astype(np.uint8)))
    return scenes


def test_the_prepared_set(digits_dir, digits_spec):
    for split, count in (("train", 60), ("test", 21)):
        dataset = data.load(digits_spec, split, digits_dir)
        assert dataset.images.shape == (count, 32, 32, 3)
        expected = [count // 10 + (label < count % 10) for label in range(10)]
        np.testing.assert_array_equal(np.bincount(dataset.labels, minlength=10), expected)
        ymin, xmin, ymax, xmax = dataset.boxes.T
        assert (ymin >= 0).all() and (xmin >= 0).all() and (ymax <= 1).all() and (xmax <= 1).all()
        assert (ymax - ymin > 0.3).all() and (xmax - xmin > 0.1).all()


def test_the_prepared_set_is_what_is_drawn(digits_dir, digits_spec):
    # TFDS shuffles what it stores.
    dataset = data.load(digits_spec, "test", digits_dir)
    stored = {image.tobytes(): index for index, image in enumerate(dataset.images)}
    for scene in digit_scenes.scenes(0, "test", 21):
        index = stored.pop(scene["image"].tobytes())
        assert dataset.labels[index] == scene["label"]
        np.testing.assert_array_equal(dataset.boxes[index], scene["box"])
    assert not stored


def test_training_and_test_use_different_digits(digits_dir, digits_spec):
    used = {}
    for split in ("train", "test"):
        records = data.open_source(digits_spec, split, digits_dir).records
        used[split] = {records[index]["source_index"] for index in range(len(records))}
        sources = legible_digits.split_digits(0)[split].sources
        assert used[split] <= set(sources.tolist())
    assert not used["train"] & used["test"]
    splits = legible_digits.split_digits(0)
    train, test = (set(splits[split].sources.tolist()) for split in ("train", "test"))
    assert not train & test
    assert 3.5 < len(train) / len(test) < 4.5


def test_only_the_few_doubtful_digits_are_left_out():
    splits = legible_digits.split_digits(0)
    labels = np.concatenate([digits.labels for digits in splits.values()])
    assert 0.9 * 1797 < len(labels) < 0.97 * 1797
    assert np.bincount(labels).min() > 120  # of some 180 a class


def test_labels_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits = load_digits()
    for split in legible_digits.split_digits(0).values():
        np.testing.assert_array_equal(split.labels, digits.target[split.sources])
    for scene in digit_scenes.scenes(0, "train", 30):
        assert scene["label"] == digits.target[scene["source_index"]]


def test_a_scene_follows_from_seed_split_and_place():
    first = list(digit_scenes.scenes(0, "train", 12))
    again = list(digit_scenes.scenes(0, "train", 4))
    for one, other in zip(first, again, strict=False):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["box"], other["box"])
    for other in (digit_scenes.scenes(1, "train", 12), digit_scenes.scenes(0, "test", 12)):
        for one, two in zip(first, other, strict=True):
            assert not np.array_equal(one["image"], two["image"])


def test_the_box_holds_the_digit_exactly(drawn):
    for image, box, background in drawn:
        changed = (image != background).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        extent = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
        np.testing.assert_array_equal(box * 32, extent)


def test_digits_vary_in_place_size_and_colour(drawn):
    boxes = np.array([box for _, box, _ in drawn]) * 32
    heights = boxes[:, 2] - boxes[:, 0]
    assert heights.min() >= 11 and heights.max() <= 24 and heights.std() > 1.5
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (centres.std(0) > 2.5).all()
    colours = np.array([image[(image != ground).any(-1)].mean(0) for image, _, ground in drawn])
    assert (colours.std(0) > 40).all()


def test_a_digit_stands_out_from_its_surroundings(drawn):
    for image, box, background in drawn:
        top, left, bottom, right = (box * 32).astype(int)
        inside = np.s_[top:bottom, left:right]
        ink = (image != background).any(-1)[inside]
        level = np.median((image[inside] @ LUMA)[ink]) / 255
        around = np.sort((background[inside] @ LUMA).ravel()) / 255
        dark, bright = around[len(around) // 10], around[-1 - len(around) // 10]
        assert level < dark - 0.15 or level > bright + 0.15


def test_a_glyph_is_an_enlarged_digit():
    digit = np.zeros((8, 8))
    digit[1:7, 3:5] = 16  # a bar six rows tall and two columns wide
    ink = digit_rendering.Glyph.of(digit).coverage(16)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    assert abs(len(rows) - 12) <= 2 and abs(len(columns) - 4) <= 2
    assert ink[16, 16] == 1 and ink[16, 4] == 0
    # Quarter of a turn: the bar lies down.
    turned = digit_rendering.Glyph.of(digit).coverage(16, turn=np.pi / 2)
    np.testing.assert_allclose(turned, ink.T, atol=1e-4)
    # Slanting moves the upper half to the right.
    slanted = digit_rendering.Glyph.of(digit).coverage(16, slant=0.3)
    middle = [(row * np.arange(32)).sum() / row.sum() for row in (slanted[12], slanted[19])]
    assert abs(middle[0] - middle[1] - 7 * 0.3) < 0.4


def _ridge_accuracy(train_x, train_y, test_x, test_y, strength):
    mean = train_x.mean(0)
    train_x, test_x = train_x - mean, test_x - mean
    gram = train_x.T @ train_x + strength * np.eye(train_x.shape[1], dtype=np.float32)
    weights = np.linalg.solve(gram, train_x.T @ (np.eye(10, dtype=np.float32)[train_y] - 0.1))
    return ((test_x @ weights).argmax(1) == test_y).mean()


def _cut_out(scene):
    """The digit alone, 12x12, as a difference in brightness: what a network has to find."""
    top, left, bottom, right = scene["box"] * 32
    rows = np.linspace(top, bottom - 1, 12).round().astype(int)
    columns = np.linspace(left, right - 1, 12).round().astype(int)
    grey = scene["image"][np.ix_(rows, columns)] @ LUMA / 255
    return np.abs(grey - np.median(grey[[0, -1]]))


@pytest.mark.slow
def test_a_linear_model_needs_cut_out_digits_and_fails_on_pixels():
    train, test = (
        list(itertools.islice(digit_scenes.scenes(0, split, count), count))
        for split, count in (("train", 2000), ("test", 600))
    )
    train_y, test_y = (np.array([scene["label"] for scene in split]) for split in (train, test))
    pixels = [
        np.array([scene["image"].ravel() for scene in split], np.float32) / 255
        for split in (train, test)
    ]
    for strength in (10.0, 1e3):
        assert _ridge_accuracy(pixels[0], train_y, pixels[1], test_y, strength) < 0.3
    digits = [
        np.array([_cut_out(scene).ravel() for scene in split], np.float32)
        for split in (train, test)
    ]
    assert _ridge_accuracy(digits[0], train_y, digits[1], test_y, 10.0) > 0.6


def test_equally_near_neighbours_count_by_their_place():
    """NumPy sorts ties otherwise where there is AVX-512; the digit 1,210 depends on one."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    distances = np.square(images[1210] - images).sum(1)
    nearest = np.argsort(distances, kind="stable")[1:6]
    farther = (distances == distances[nearest[-1]]).sum()
    assert farther > 1 and (labels[nearest] == labels[1210]).sum() == 4
    sources = legible_digits.load_legible().sources
    assert len(sources) == 1679 and 1210 in sources
