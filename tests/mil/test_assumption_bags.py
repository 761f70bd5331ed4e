"""Bags with a misleading clue: contents, labels by brute force, the source, the command."""

import numpy as np
import pytest

from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import assumption_bags, sources
from lossattn_jax.errors import UserError
from lossattn_jax.mil import experiment

NAMES = ("single_concept", "multi_concept", "false_frequency")
DRAWN = {
    (name, shifted): assumption_bags.draw_bags(name, 400, 3, shifted)
    for name in NAMES
    for shifted in (False, True)
}
EVERY = pytest.mark.parametrize(("name", "shifted"), DRAWN)


def count_close(bags, centre):
    """For each bag the instances whose mean over features is close to that of a kind.

    The mean of 16 numbers of deviation 0.1 has the deviation 0.025, that of a background's 0.25.
    """
    return np.array([(np.abs(bag.mean(1) - centre) < 0.2).sum() for bag in bags.bags])


def find_shared(bags, others):
    """Instances that are in both; of one feature alone some are the same by chance."""
    rows = (set(map(tuple, own.instances[:, :4].tolist())) for own in (bags, others))
    return set.intersection(*rows)


def options(**changes):
    config = config_lib.default_config()
    config.bags.train, config.bags.test, config.repeats = (6, 8), 10, 2
    for key, value in changes.items():
        config.bags[key] = value
    return config


@EVERY
def test_half_of_the_bags_are_positive_in_any_order(name, shifted):
    bags = DRAWN[name, shifted]
    assert bags.labels.sum() == 200 and 60 < bags.labels[:200].sum() < 140
    assert bags.instances.shape[1] == 16 and bags.instances.dtype == np.float32
    assert bags.classes == (0, 1) and bags.positive == 1
    # The standard assumption holds of the instances' own labels.
    parts = np.split(bags.instance_labels, bags.offsets[1:-1])
    np.testing.assert_array_equal([part.any() for part in parts], bags.labels)


@EVERY
def test_bags_follow_from_the_arguments_alone(name, shifted):
    bags, again = DRAWN[name, shifted], assumption_bags.draw_bags(name, 400, 3, shifted)
    np.testing.assert_array_equal(again.instances, bags.instances)
    np.testing.assert_array_equal(again.labels, bags.labels)
    others = [
        assumption_bags.draw_bags(name, 400, 4, shifted),
        *(own for key, own in DRAWN.items() if key != (name, shifted)),
    ]
    for other in others:
        assert not find_shared(other, bags)


@pytest.mark.parametrize("shifted", [False, True])
def test_poison_of_one_concept_changes_sides_when_shifted(shifted):
    bags = DRAWN["single_concept", shifted]
    np.testing.assert_array_equal(count_close(bags, -10), bags.labels == int(shifted))
    own = np.split(bags.instance_labels, bags.offsets[1:-1])
    counts = np.array([part.sum() for part in own])
    assert set(counts[bags.labels == 1]) == {1, 2, 3}
    others = bags.lengths - counts - count_close(bags, -10)  # the background
    assert set(others[bags.labels == 1]) == {1, 2, 3, 4}
    assert set(others[bags.labels == 0]) == set(range(1, 10))


def test_an_instance_of_the_concept_is_wide_or_high():
    bags = DRAWN["single_concept", False]
    concept = bags.instances[bags.instance_labels == 1]
    wide = concept.std(1) > 1.8  # deviations 3 and 1 of 16 numbers
    assert 0.4 < wide.mean() < 0.6
    assert concept[wide].std() == pytest.approx(3, rel=0.05)
    assert abs(concept[wide].mean()) < 0.2
    assert concept[~wide].std() == pytest.approx(1, rel=0.05)
    assert concept[~wide].mean() == pytest.approx(1, abs=0.1)
    poison = bags.instances.mean(1) < -8
    rest = bags.instances[(bags.instance_labels == 0) & ~poison]
    assert rest.std() == pytest.approx(1, rel=0.05) and abs(rest.mean()) < 0.05


@pytest.mark.parametrize(
    ("name", "centres"), [("multi_concept", (2, 3)), ("false_frequency", (-2, 2))]
)
@pytest.mark.parametrize("shifted", [False, True])
def test_positive_is_a_bag_with_both_concepts(name, centres, shifted):
    bags = DRAWN[name, shifted]
    first, second = (count_close(bags, centre) for centre in centres)
    np.testing.assert_array_equal((first > 0) & (second > 0), bags.labels)
    assert ((first > 0) | (second > 0)).all()
    own = np.split(bags.instance_labels, bags.offsets[1:-1])
    counts = np.array([part.sum() for part in own])
    np.testing.assert_array_equal(counts, (first + second) * bags.labels)
    # A negative bag has one of the concepts, each as often.
    assert 60 < (first > 0)[bags.labels == 0].sum() < 140


def test_poison_of_two_concepts_changes_sides_when_shifted():
    bags = DRAWN["multi_concept", False]
    poison = count_close(bags, -10)
    assert set(poison[bags.labels == 0]) == {1} and set(poison[bags.labels == 1]) == {0, 1}
    assert 8 <= poison[bags.labels == 1].sum() <= 35  # a tenth of 200
    shifted = DRAWN["multi_concept", True]
    np.testing.assert_array_equal(count_close(shifted, -10), shifted.labels)
    for own in (bags, shifted):
        near, far = (count_close(own, centre) for centre in (2, 3))
        assert set(near[own.labels == 1]) == set(far[own.labels == 1]) == {1, 2, 3, 4}
        assert set((near + far)[own.labels == 0]) == {1}
        background = own.lengths - near - far - count_close(own, -10)
        assert set(background) == {1, 2, 3, 4}


@pytest.mark.parametrize(("shifted", "often"), [(False, {1}), (True, set(range(35, 40)))])
def test_one_concept_is_often_where_bags_are_shifted(shifted, often):
    bags = DRAWN["false_frequency", shifted]
    low, upper = (count_close(bags, centre) for centre in (-2, 2))
    assert set((low + upper)[bags.labels == 0]) == often
    assert set(low[bags.labels == 1]) == set(upper[bags.labels == 1]) == {1}
    assert set(bags.lengths - low - upper) == set(range(1, 10))


def test_numbers_out_of_range_are_refused():
    with pytest.raises(UserError, match="the number of bags of multi_concept is 1, but must be 2"):
        assumption_bags.draw_bags("multi_concept", 1, 0)
    with pytest.raises(UserError, match="the seed of multi_concept is -1, but must be 0"):
        assumption_bags.draw_bags("multi_concept", 4, -1)


def test_two_experiments_share_their_trainings():
    config = config_lib.resolve(options())
    names = sources.names("single_concept", config.bags)
    experiments = sources.experiments("single_concept", "nowhere", config)
    assert names == tuple(own.dataset.name for own in experiments)
    assert names == tuple(f"single_concept_{end}" for end in ("6", "6_shifted", "8", "8_shifted"))
    same, shifted = experiments[:2]
    assert len(same.splits) == len(shifted.splits) == 2
    for first, second in zip(same.splits, shifted.splits, strict=True):
        bags = same.dataset.select(first.train), shifted.dataset.select(second.train)
        np.testing.assert_array_equal(bags[0].instances, bags[1].instances)
        assert len(bags[0]) == 6 and not (first.train & first.test).any()
    tests = [own.dataset.select(own.splits[0].test) for own in (same, shifted)]
    assert [len(own) for own in tests] == [10, 10]
    poisoned = [count_close(own, -10) > 0 for own in tests]
    np.testing.assert_array_equal(poisoned[0], tests[0].labels == 0)
    np.testing.assert_array_equal(poisoned[1], tests[1].labels == 1)
    # Other repeats train on other bags.
    first, second = (same.dataset.select(split.train) for split in same.splits)
    assert not find_shared(first, second)


def test_settings_that_only_images_have_are_refused():
    for key, value in (("targets", (3,)), ("mean_length", 5)):
        config = config_lib.resolve(options(**{key: value}))
        with pytest.raises(UserError, match=f"bags.{key} is .*single_concept have no such setting"):
            sources.experiments("single_concept", "nowhere", config)
    with pytest.raises(UserError, match="bags that are drawn are for cross-validation"):
        sources.open_all("single_concept", sources.Request("nowhere", config))


def test_the_command_measures_both_kinds_of_bags(tmp_path):
    config = options(train=(60,))
    summaries = experiment.run(
        ["single_concept"], ["mi_kernel"], ["final"], config, str(tmp_path / "run"), "nowhere"
    )
    areas = {own.dataset: own.auc for own in summaries}
    # A kernel of whole bags has learned the poison.
    assert areas["single_concept_60"] > 0.9 and areas["single_concept_60_shifted"] < 0.1
