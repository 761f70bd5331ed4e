"""Bags of images: labels that follow from the images, lengths, balance, and where digits come from."""

import os
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossattn_jax.data.bags import digit_files
from lossattn_jax.data.bags.image_bags import cifar_bags, load_digits, mnist_bags, split_digits
from lossattn_jax.errors import UserError

# Each image is known by its values, from which the tests look its label up.
COUNT = 3000
LABELS = np.random.default_rng(1).permutation(np.arange(COUNT) % 10)


def coded_images(shape):
    """uint8 `[COUNT, *shape]`: the first two values of an image tell its position."""
    images = np.zeros((COUNT, np.prod(shape)), np.uint8)
    images[:, 0], images[:, 1] = np.divmod(np.arange(COUNT), 256)
    return images.reshape(COUNT, *shape)


DIGITS = coded_images((28, 28))
PICTURES = coded_images((32, 32, 3))


def positions(dataset, mean, std):
    """The images that the instances are of, by undoing the normalisation."""
    values = np.rint((dataset.instances * np.array(std) + np.array(mean)) * 255).astype(int)
    values = values.reshape(len(values), -1)
    assert not values[:, 2:].any()
    return values[:, 0] * 256 + values[:, 1]


def digits_of(dataset):
    rows = positions(dataset, [0.1307], [0.3081])
    for bag in np.split(rows, dataset.offsets[1:-1]):
        assert len(set(bag)) == len(bag)  # drawn without replacement
    return np.split(LABELS[rows], dataset.offsets[1:-1])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6), st.integers(0, 9), st.booleans())
def test_one_target(num_bags, seed, target, balanced):
    dataset = mnist_bags(DIGITS, LABELS, num_bags, seed, targets=(target,), balanced=balanced)
    assert len(dataset) == num_bags and dataset.classes == (0, 1)
    assert dataset.instances.shape[1:] == (28, 28, 1) and dataset.instances.dtype == np.float32
    digits = digits_of(dataset)
    np.testing.assert_array_equal(dataset.labels, [target in bag for bag in digits])
    np.testing.assert_array_equal(dataset.instance_labels, np.concatenate(digits) == target)
    if balanced:
        assert dataset.labels.sum() == num_bags // 2


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 10**6),
    st.permutations(range(10)).map(lambda order: order[:3]),
    st.booleans(),
)
def test_several_targets(num_bags, seed, targets, balanced):
    dataset = mnist_bags(DIGITS, LABELS, num_bags, seed, targets=targets, balanced=balanced)
    assert dataset.classes == (0, 1, 2, 3)
    own = np.split(dataset.instance_labels, dataset.offsets[1:-1])
    for label, bag, instance_labels in zip(dataset.labels, digits_of(dataset), own, strict=True):
        present = set(bag) & set(targets)
        assert len(present) <= 1  # the other targets are left out
        assert label == (1 + targets.index(present.pop()) if present else 0)
        expected = [1 + targets.index(digit) if digit in targets else 0 for digit in bag]
        np.testing.assert_array_equal(instance_labels, expected)
    if balanced:
        counts = np.bincount(dataset.labels, minlength=4)
        assert counts.max() - counts.min() <= 1


def test_the_same_seed_makes_the_same_bags():
    first, again, other = (mnist_bags(DIGITS, LABELS, 20, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.instances, again.instances)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.instances.shape != other.instances.shape or (first.labels != other.labels).any()


def test_images_may_have_a_channel():
    flat = mnist_bags(DIGITS, LABELS, 5, seed=0)
    with_channel = mnist_bags(DIGITS[..., None], LABELS, 5, seed=0)
    np.testing.assert_array_equal(flat.instances, with_channel.instances)


def test_normalisation_by_hand():
    images = np.full((40, 28, 28), 51, np.uint8)
    dataset = mnist_bags(images, np.arange(40) % 10, 2, seed=0)
    np.testing.assert_allclose(dataset.instances, (0.2 - 0.1307) / 0.3081, rtol=1e-5)
    pictures = np.broadcast_to(np.array([0, 51, 255], np.uint8), (90, 32, 32, 3))
    dataset = cifar_bags(pictures, np.arange(90) % 10, 2, seed=0)
    expected = [-0.4914 / 0.2470, (0.2 - 0.4822) / 0.2435, (1 - 0.4465) / 0.2616]
    np.testing.assert_allclose(dataset.instances[0, 5, 7], expected, rtol=1e-5)
    assert dataset.instances.shape[1:] == (32, 32, 3)


@pytest.mark.parametrize(("mean", "std"), [(10, None), (50, None), (20, 0.0)])
def test_lengths(mean, std):
    dataset = mnist_bags(DIGITS, LABELS, 600, seed=0, mean_length=mean, std_length=std)
    if std is None:
        # Cutting to a whole number takes half an instance off the mean.
        assert dataset.lengths.mean() == pytest.approx(mean - 0.5, abs=0.02 * mean)
        assert dataset.lengths.std() == pytest.approx(mean / 5, rel=0.1)
    else:
        np.testing.assert_array_equal(dataset.lengths, 20)


def test_no_bag_is_empty():
    dataset = mnist_bags(DIGITS, LABELS, 300, seed=0, mean_length=1, std_length=3)
    assert dataset.lengths.min() == 1 and dataset.lengths.max() > 5


def test_bags_that_are_not_balanced_are_as_the_digits_are():
    dataset = mnist_bags(DIGITS, LABELS, 4000, 0, std_length=0.0, balanced=False)
    # Of ten digits without replacement: 1 - C(2700, 10) / C(3000, 10) = 0.652 hold a given one.
    assert dataset.labels.mean() == pytest.approx(0.652, abs=0.03)
    several = mnist_bags(DIGITS, LABELS, 4000, 0, targets=(3, 5, 9), std_length=0.0)
    # Of the eight digits left, one is the target: 1 - (7 / 8)^10 = 0.737, a third of it each.
    shares = np.bincount(several.labels) / 4000
    np.testing.assert_allclose(shares, [0.263, 0.246, 0.246, 0.246], atol=0.03)


def test_positive_bags_are_random_bags_that_hold_the_target():
    dataset = mnist_bags(DIGITS, LABELS, 4000, 0, std_length=0.0)
    positive = np.split(dataset.instance_labels, dataset.offsets[1:-1])
    hits = np.array([bag.sum() for bag in positive])[dataset.labels == 1]
    # One in ten of each digit, given that there is one: 1 / 0.652 of ten.
    assert hits.mean() == pytest.approx(1 / 0.652, rel=0.04)
    first = [bag[0] for bag in positive]
    assert np.mean(first) == pytest.approx(0.5 * 0.1534, abs=0.02)  # they are anywhere in a bag


def test_cifar_bags():
    dataset = cifar_bags(PICTURES, LABELS, 50, seed=2)
    spec_mean, spec_std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    labels = LABELS[positions(dataset, spec_mean, spec_std)]
    expected = np.select([labels == 3, labels == 5, labels == 9], [1, 2, 3], 0)
    np.testing.assert_array_equal(dataset.instance_labels, expected)
    highest = np.maximum.reduceat(dataset.instance_labels, dataset.offsets[:-1])
    np.testing.assert_array_equal(dataset.labels, highest)
    assert dataset.num_classes == 4 and dataset.name == "cifar_bags"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_bags": 0}, "the number of bags of mnist_bags is 0, but must be 1 or more"),
        ({"seed": -1}, "the seed of mnist_bags is -1"),
        ({"mean_length": 0.5}, "the mean length of mnist_bags is 0.5, but must be 1 or more"),
        ({"mean_length": float("nan")}, "the mean length of mnist_bags is nan"),
        ({"std_length": -1}, "the deviation of the lengths of mnist_bags is -1"),
        ({"targets": ()}, "the number of targets of mnist_bags is 0"),
        ({"targets": (3, 5, 3)}, r"the targets of mnist_bags are \(3, 5, 3\), but must differ"),
        ({"targets": (3, 11)}, "no image has the label 11, which is a target of mnist_bags"),
        ({"mean_length": 5000}, "is to have .* images, but only 2700 images have a label that"),
    ],
)
def test_arguments_out_of_range(changes, sentence):
    arguments = {"num_bags": 5, "seed": 0, **changes}
    with pytest.raises(UserError, match=sentence):
        mnist_bags(DIGITS, LABELS, **arguments)


def test_arrays_that_do_not_fit():
    with pytest.raises(ValueError, match="images have to be uint8"):
        mnist_bags(DIGITS / 255, LABELS, 5, 0)
    with pytest.raises(ValueError, match="images have to be uint8"):
        mnist_bags(DIGITS, LABELS[1:], 5, 0)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 0.95), st.integers(0, 10**6))
def test_a_split_is_disjoint_and_stratified(share, seed):
    train, test = split_digits(LABELS, share, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(COUNT))
    np.testing.assert_array_equal(np.bincount(LABELS[test], minlength=10), round(share * 300))
    again = split_digits(LABELS, share, seed)
    np.testing.assert_array_equal(test, again[1])


def test_a_split_out_of_range():
    for share in (0, 1, float("nan")):
        with pytest.raises(UserError, match="the share of test images is"):
            split_digits(LABELS, share)
    with pytest.raises(UserError, match="the seed is -1"):
        split_digits(LABELS, seed=-1)


def test_digits_of_a_file(tmp_path):
    path = tmp_path / "digits.npz"
    np.savez(path, image=DIGITS, label=LABELS.astype(np.uint8))
    parts = [load_digits(path, split) for split in ("train", "test")]
    assert [len(labels) for _, labels in parts] == [2570, 430]  # a seventh of 300 is 43
    codes = [images[:, 0, 0].astype(int) * 256 + images[:, 0, 1] for images, _ in parts]
    assert sorted(np.concatenate(codes)) == list(range(COUNT))
    for code, (images, labels) in zip(codes, parts, strict=True):
        np.testing.assert_array_equal(labels, LABELS[code])
        np.testing.assert_array_equal(images, DIGITS[code])
        assert labels.dtype == np.int32 and images.dtype == np.uint8
    np.testing.assert_array_equal(load_digits(str(path), "test")[0], parts[1][0])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "the file .*digits.npz does not exist"),
        (b"", "digits.npz cannot be read as an .npz file"),
        (b"PK\x03\x04 and so on", "digits.npz cannot be read as an .npz file"),
        ({"image": DIGITS}, "digits.npz must hold the arrays 'image' and 'label'"),
        ({"image": DIGITS[:, :8], "label": LABELS}, r"images uint8 \(3000, 8, 28\) and labels"),
        ({"image": DIGITS / 255, "label": LABELS}, "holds images float64"),
        (
            {"image": DIGITS, "label": LABELS[1:]},
            r"but must hold uint8 \[N, 28, 28\] and integers \[N\]",
        ),
    ],
)
def test_wrong_files(tmp_path, content, sentence):
    path = tmp_path / "digits.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        np.savez(path, **content)
    with pytest.raises(UserError, match=sentence):
        load_digits(path, "train")


def test_digits_that_would_fill_the_memory_are_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "digits.npz"
    np.savez_compressed(path, image=np.zeros((10000, 28, 28)), label=np.zeros(10000, int))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"holds images float64 \(10000, 28, 28\)"):
        load_digits(path, "train")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    monkeypatch.setattr(digit_files, "_MOST_DIGITS", COUNT - 1)
    np.savez(path, image=DIGITS, label=LABELS)
    with pytest.raises(UserError, match="digits.npz holds 3000 images, but may hold 2999 at most"):
        load_digits(path, "train")


def test_a_fifo_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "digits.npz")
    with pytest.raises(UserError, match="an .npz file .it is not a regular file"):
        load_digits(tmp_path / "digits.npz", "train")


def test_an_unknown_split(tmp_path):
    with pytest.raises(UserError, match="split 'all' is unknown"):
        load_digits(tmp_path / "digits.npz", "all")


# Writes a small data set mnist as TFDS stores its own: grey images with a channel, as PNG.
_PREPARE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

features = tfds.features.FeaturesDict({
    "image": tfds.features.Image(shape=(28, 28, 1)),
    "label": tfds.features.ClassLabel(num_classes=10),
})
stored = np.load(sys.argv[2])
splits = {
    split: [
        (row, {"image": stored["image"][row][..., None], "label": int(stored["label"][row])})
        for row in rows
    ]
    for split, rows in (("train", range(20)), ("test", range(20, 30)))
}
tfds.dataset_builders.store_as_tfds_dataset(
    "mnist", "3.0.1", features, splits, data_dir=sys.argv[1], file_format="array_record",
    disable_shuffling=True,
)
"""


@pytest.mark.slow
def test_digits_of_tfds(tmp_path, run_python):
    np.savez(tmp_path / "few.npz", image=DIGITS[:30], label=LABELS[:30])
    prepared = run_python("-c", _PREPARE, tmp_path / "tfds", tmp_path / "few.npz")
    assert prepared.returncode == 0, prepared.stderr
    for split, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
        images, labels = load_digits(str(tmp_path / "tfds"), split)
        np.testing.assert_array_equal(images, DIGITS[part])
        np.testing.assert_array_equal(labels, LABELS[part])


def test_digits_that_are_not_prepared(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="mnist is not prepared .*download_and_prepare"):
        load_digits(str(tmp_path), "train")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(UserError, match="none"):
        load_digits(None, "train")


def test_a_thousand_bags_are_made_in_a_second():
    images = np.zeros((10_000, 28, 28), np.uint8)
    started = time.process_time()
    dataset = mnist_bags(images, np.arange(10_000) % 10, 1000, seed=0, targets=(3, 5, 9))
    assert time.process_time() - started < 1
    assert len(dataset) == 1000
