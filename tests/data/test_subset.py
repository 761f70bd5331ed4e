import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossattn_jax import data
from lossattn_jax.data import labelled_subset
from lossattn_jax.data.subset import places_of_split
from lossattn_jax.errors import UserError


@given(
    seed=st.integers(0, 2**31 - 1),
    classes=st.integers(1, 5),
    wanted=st.integers(1, 6),
    spare=st.lists(st.integers(0, 9), min_size=5, max_size=5),
)
@settings(deadline=None)
def test_a_subset_is_balanced_and_a_pure_function(seed, classes, wanted, spare):
    counts = [wanted + more for more in spare[:classes]]
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), counts))
    kept = labelled_subset(labels, wanted * classes, classes, seed)
    assert kept.dtype == np.int64
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(np.bincount(labels[kept]), [wanted] * classes)
    np.testing.assert_array_equal(labelled_subset(labels, len(kept), classes, seed), kept)
    if wanted > 1:  # a smaller subset is a part of it
        smaller = labelled_subset(labels, (wanted - 1) * classes, classes, seed)
        assert set(smaller) < set(kept)


def test_the_subset_is_the_one_that_earlier_runs_used():
    # Written down from this code: a change would train a resumed run on other examples.
    labels = np.arange(30) % 3
    assert labelled_subset(labels, 6, 3, seed=0).tolist() == [0, 1, 3, 17, 19, 26]
    assert labelled_subset(labels, 6, 3, seed=7).tolist() == [4, 11, 12, 14, 21, 25]


def test_every_example_of_a_class_is_as_likely():
    labels = np.repeat([0, 1], 8)
    draws = [labelled_subset(labels, 4, 2, seed) for seed in range(400)]
    times = np.bincount(np.concatenate(draws), minlength=16)
    # 400 draws with probability 1/4: 100 times, give or take 4.5 standard deviations of 8.7.
    assert times.min() > 60 and times.max() < 140
    # The classes are drawn independently of each other.
    same = np.mean([np.array_equal(draw[:2], draw[2:] - 8) for draw in draws])
    assert same < 0.1  # 1/28 expected


def test_all_examples_are_a_subset_too():
    labels = np.arange(20) % 10
    np.testing.assert_array_equal(labelled_subset(labels, 20, 10, 3), np.arange(20))


@pytest.mark.parametrize(
    ("num_labels", "seed", "sentence"),
    [
        (25, 0, "num_labels is 25, but must be 0 .* multiple of the number of classes, 10"),
        (-10, 0, "num_labels is -10, but must be"),
        (0, 0, "num_labels is 0, but must be"),
        (110, 0, "num_labels is 110, but .* at most the number of training examples, 100"),
        (100, 0, "takes 10 examples of each of the 10 classes, but class 4 has only 9"),
        (50, -1, "label_seed is -1, but must be 0 or more"),
    ],
)
def test_mistakes_are_told_in_a_sentence(num_labels, seed, sentence):
    labels = np.arange(100) % 10
    labels[4] = 5
    with pytest.raises(UserError, match=sentence) as caught:
        labelled_subset(labels, num_labels, 10, seed)
    assert "\n" not in str(caught.value)


@given(seed=st.integers(0, 2**31 - 1), held_out=st.integers(1, 4), num_labels=st.integers(0, 3))
@settings(deadline=None)
def test_held_out_images_are_balanced_and_not_trained_on(seed, held_out, num_labels):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(3), 8))
    numbers = {"held_out": 3 * held_out, "num_labels": 3 * num_labels, "seed": seed}
    train, tested = (places_of_split(labels, s, 3, **numbers) for s in ("train", "held_out"))
    np.testing.assert_array_equal(np.bincount(labels[tested]), [held_out] * 3)
    np.testing.assert_array_equal(np.bincount(labels[train]), [num_labels or 8 - held_out] * 3)
    assert not set(train) & set(tested)
    assert (np.diff(train) > 0).all() and (np.diff(tested) > 0).all()


def test_held_out_images_are_the_ones_that_earlier_runs_used():
    # Written down from this code: a change would let a resumed run train on what it is tested on.
    labels = np.arange(30) % 3
    places = places_of_split(labels, "held_out", 3, held_out=6, seed=0).tolist()
    assert places == [19, 20, 24, 26, 27, 28]
    assert places != labelled_subset(labels, 6, 3, seed=0).tolist()


@pytest.mark.parametrize(
    ("held_out", "num_labels", "sentence"),
    [
        (25, 0, "held_out is 25, but must be 0 .none. or a positive multiple of .* classes, 10"),
        (110, 0, "held_out is 110, but .* at most the number of training examples, 100"),
        (100, 0, "held_out is 100, but must be less than the number of training examples"),
        (60, 50, "num_labels is 50, but .* at most the number of training examples, 40"),
    ],
)
def test_numbers_that_leave_nothing_to_train_on_are_refused(held_out, num_labels, sentence):
    with pytest.raises(UserError, match=sentence):
        places_of_split(np.arange(100) % 10, "train", 10, held_out=held_out, num_labels=num_labels)


def test_labels_have_to_be_numbers():
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        labelled_subset(np.zeros((4, 2)), 2, 2)


@pytest.fixture(params=["memory", "stream"])
def mode(request):
    return request.param


def test_a_reduced_training_set(digits_dir, digits_spec, mode):
    whole = data.load(digits_spec, "train", digits_dir)
    kept = labelled_subset(whole.labels, 20, 10, seed=5)
    dataset = data.open_dataset(digits_spec, "train", digits_dir, mode, num_labels=20, label_seed=5)
    assert len(dataset) == 20
    batches = dataset.train_batches(batch_size=8, seed=1, start_step=1)
    for step, batch in zip(itertools.count(1), itertools.islice(batches, 6)):
        # Places count within the reduced set.
        np.testing.assert_array_equal(batch["index"], data.train_indices(1, step, 20, 8))
        np.testing.assert_array_equal(batch["image"], whole.images[kept[batch["index"]]])
        np.testing.assert_array_equal(batch["label"], whole.labels[kept[batch["index"]]])
    batches.close()
    (batch,) = dataset.eval_batches(batch_size=20)
    np.testing.assert_array_equal(batch["index"], np.arange(20))
    np.testing.assert_array_equal(batch["box"], whole.boxes[kept])
    np.testing.assert_array_equal(np.bincount(batch["label"]), [2] * 10)


def test_workers_read_the_reduced_set_as_well(digits_dir, digits_spec):
    options = {"num_labels": 20, "label_seed": 2}
    memory = data.open_dataset(digits_spec, "train", digits_dir, **options)
    stream = data.open_dataset(digits_spec, "train", digits_dir, "stream", num_workers=1, **options)
    pairs = zip(memory.eval_batches(batch_size=7), stream.eval_batches(batch_size=7), strict=True)
    for one, other in pairs:
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_the_test_set_is_never_reduced(digits_dir, digits_spec, mode):
    # Not even looked at: 37 is no number of labels.
    dataset = data.open_dataset(digits_spec, "test", digits_dir, mode, num_labels=37)
    assert len(dataset) == 21
    whole = data.open_dataset(digits_spec, "train", digits_dir, mode)
    assert len(whole) == 60


def test_a_number_that_the_set_cannot_give_is_refused(digits_dir, digits_spec, mode):
    with pytest.raises(UserError, match="num_labels is 70, .* 60"):
        data.open_dataset(digits_spec, "train", digits_dir, mode, num_labels=70)


def test_a_set_is_divided_into_training_and_held_out_images(digits_dir, digits_spec, mode):
    whole = data.load(digits_spec, "train", digits_dir)
    train, held_out = (
        data.open_dataset(digits_spec, split, digits_dir, mode, held_out=20, label_seed=3)
        for split in ("train", "held_out")
    )
    assert (train.split, held_out.split) == ("train", "held_out")
    assert (len(train), len(held_out)) == (40, 20)
    places = [
        places_of_split(whole.labels, s, 10, held_out=20, seed=3) for s in ("train", "held_out")
    ]
    for dataset, indices in zip((train, held_out), places, strict=True):
        (batch,) = dataset.eval_batches(batch_size=len(dataset))
        np.testing.assert_array_equal(batch["image"], whole.images[indices])
        np.testing.assert_array_equal(batch["label"], whole.labels[indices])
    np.testing.assert_array_equal(np.sort(np.concatenate(places)), np.arange(60))


def test_held_out_images_need_their_number(digits_dir, digits_spec, mode):
    with pytest.raises(UserError, match="held_out, but config.data.held_out is 0"):
        data.open_dataset(digits_spec, "held_out", digits_dir, mode)
    assert len(data.open_dataset(digits_spec, "test", digits_dir, mode, held_out=20)) == 21
