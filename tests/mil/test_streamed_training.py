"""Networks for bags that are read one by one: the same as for bags that lie on the devices."""

import dataclasses
import functools
import sys

import jax
import numpy as np
import pytest

from lossattn_jax.data.bags import bag_stream
from lossattn_jax.data.bags.bag_survey import survey_bags
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.lazy_bags import ArrayReader, Bags
from lossattn_jax.data.bags.splits import cross_validation
from lossattn_jax.data.bags.streaming import StreamedBags
from lossattn_jax.errors import UserError
from lossattn_jax.mil import BagNetwork, network_folds, selection
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.train import dumps
from lossattn_jax.train.bags import streamed_prediction, streamed_steps, streamed_training, training
from lossattn_jax.train.bags.settings import Settings
from lossattn_jax.train.bags.streamed_prediction import StreamedPredictor
from lossattn_jax.train.replay import replay
from tests.support import compilations, parameters

RANDOM = np.random.default_rng(8)
ARRAYS = [RANDOM.normal(1, 2, (n, 3)).astype(np.float32) for n in (4, 1, 7, 12, 3, 9, 2, 5)]
LABELS = [0, 1, 0, 1, 1, 0, 1, 0]
BAGS = Bags.from_arrays(ARRAYS, LABELS)
SETTINGS = Settings(epochs=3, learning_rate=0.01, patch_weight=0.5, max_waste=1.5)
NETWORK = BagNetwork(2, hidden=(4, 4, 4), dropout=0.0)
MEMORY = 1 << 30


def plan(seed=1, left_out=(6, 7), **options):
    used = ~np.isin(np.arange(len(ARRAYS)), left_out)
    return training.Plan(seed, used, ~used, **options)


def streamed(bags=BAGS, network=NETWORK, plans=None, *, options=None, **changes):
    return streamed_training.train(
        bags,
        survey_bags(bags),
        network,
        dataclasses.replace(SETTINGS, **changes),
        plans or [plan()],
        **{"memory": MEMORY, **(options or {})},
    )


def resident(network=NETWORK, plans=None, **changes):
    dataset = BagDataset.from_bags(ARRAYS, LABELS)
    settings = dataclasses.replace(SETTINGS, **changes)
    return training.train(dataset, network, settings, plans or [plan()])


def close(first, second, atol=2e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=atol), first, second)


def equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def same(one, other):
    """Whether two results are those of the same trainings, but for rounding."""
    for field in ("last", "best", "at_keep_epoch"):
        close(getattr(one, field), getattr(other, field))
    np.testing.assert_array_equal(one.best_epochs, other.best_epochs)
    close(one.logits, other.logits, atol=1e-4)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12)
    np.testing.assert_allclose(one.scale, other.scale, rtol=1e-12)


@pytest.mark.parametrize(
    "method",
    [
        "loss_attention",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("attention", "mi_net_ds", "clam", "dsmil", "transmil")
        ),
    ],
)
def test_training_is_that_of_resident_bags(method):
    network = NETWORK.clone(method=method)
    same(streamed(network=network), resident(network))


@pytest.mark.slow
def test_several_models_are_those_of_resident_bags():
    held = np.isin(np.arange(8), (6, 7))
    plans = [
        plan(selection=held, keep_epoch=2),
        plan(2, selection=held, keep_epoch=1, overrides={"learning_rate": 0.02}),
        plan(3, (0, 1, 6, 7), selection=held),
    ]
    plans = [dataclasses.replace(p, class_weights=np.array([1.0, 3.0])) for p in plans]
    changes = {"batch_size": 2, "average_epochs": 2}
    one, other = streamed(plans=plans, **changes), resident(plans=plans, **changes)
    assert one.best_epochs is not None
    same(one, other)


@pytest.mark.slow
def test_four_devices_train_as_one(run_python, tmp_path):
    finished = run_python("-c", SCRIPT, tmp_path / "four.npz", devices=4)
    assert finished.returncode == 0, finished.stderr
    stored = np.load(tmp_path / "four.npz")
    one = streamed(plans=[plan(seed) for seed in range(3)])
    for number, leaf in enumerate(jax.tree.leaves(one.last)):
        np.testing.assert_allclose(stored[f"arr_{number}"], leaf, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stored["logits"], one.logits, rtol=1e-4, atol=1e-5)


SCRIPT = """
import sys
import jax
import numpy as np
from tests.mil import test_streamed_training as t
assert jax.device_count() == 4
result = t.streamed(plans=[t.plan(seed) for seed in range(3)])
np.savez(sys.argv[1], *jax.tree.leaves(result.last), logits=result.logits)
"""


def test_instances_of_half_precision_are_computed_in_single():
    half = [array.astype(np.float16) for array in ARRAYS]
    assert bag_stream.pad(half, 8, 12)[0].dtype == np.float16
    single = [array.astype(np.float32) for array in half]
    one, other = (streamed(Bags.from_arrays(arrays, LABELS)) for arrays in (half, single))
    equal(one.last, other.last)


def test_an_offset_takes_no_digits():
    """A Unix time beside its distance from the first one."""
    plain = [np.float64(array) for array in ARRAYS]
    moved = [array + np.array([1.7e9, 0, 0]) for array in plain]
    one, other = (streamed(Bags.from_arrays(arrays, LABELS)) for arrays in (plain, moved))
    close(one.last, other.last, atol=1e-4)


def test_an_epoch_sees_other_instances_of_a_long_bag():
    options = {"max_instances": 4}
    settings = {"epochs": 2, "learning_rate": 1e-9}
    drawn = [bag_stream.draw_instances(0, epoch, "3", 12, 4) for epoch in range(2)]
    assert not np.array_equal(*drawn)
    result = streamed(options=options, **settings)
    # The evaluation takes all instances: nothing is trained, so both are of the same parameters.
    close(result.logits[:, 0], streamed(**settings).logits[:, 0])
    assert not np.array_equal(
        jax.tree.leaves(streamed(options=options).last)[0], jax.tree.leaves(streamed().last)[0]
    )


@pytest.mark.slow
def test_dropout_does_not_depend_on_padding(monkeypatch):
    draw = functools.partial(streamed_steps.draw_noise, NETWORK)
    row, seed, epoch = np.array([3], np.int32), np.uint32(7), np.int32(2)
    short, long = (np.asarray(draw(seed, epoch, row, length)) for length in (5, 12))
    np.testing.assert_array_equal(short, long[:, :5])
    assert short.shape == (1, 5, 12) and len(np.unique(short)) > 20
    other = np.asarray(draw(seed, epoch, np.array([4], np.int32), 5))
    assert not np.array_equal(short, other)
    network = NETWORK.clone(dropout=0.5)
    one, pad = streamed(network=network), bag_stream.pad
    longer = lambda parts, count, length, *rest: pad(parts, count, length + 5, *rest)  # noqa: E731
    monkeypatch.setattr(bag_stream, "pad", longer)
    close(one.last, streamed(network=network).last)


@pytest.mark.parametrize(
    "method",
    [
        "loss_attention",
        "mi_net_rc",
        "mi_net",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("gated_attention", "mean", "clam", "dsmil", "transmil")
        ),
    ],
)
def test_pieces_give_what_the_whole_gives(method, monkeypatch):
    network = NETWORK.clone(method=method)
    params = parameters.draw(network, ARRAYS[0][None])["params"]
    params = jax.tree.map(lambda leaf: np.stack([leaf, leaf[..., ::-1]]), params)
    mean, scale = np.ones((2, 3), np.float32), np.full((2, 3), 0.5, np.float32)
    predictor = StreamedPredictor(network, params, mean, scale)

    def predict():
        return list(predictor.predict(BAGS, range(8), MEMORY, lambda x: x))

    whole = predict()
    monkeypatch.setattr(streamed_prediction, "PIECE", 4)
    pieces = predict()
    assert [bag.row for bag in pieces] == list(range(8))
    for one, other, array in zip(whole, pieces, ARRAYS, strict=True):
        assert one.attention.shape == (2, len(array))
        assert one.instance_logits.shape == (2, len(array), 2)
        np.testing.assert_allclose(one.attention.sum(axis=1), 1, atol=1e-6)
        for field in ("logits", "attention", "instance_logits"):
            np.testing.assert_allclose(
                getattr(one, field), getattr(other, field), rtol=1e-5, atol=1e-6
            )
    outputs = jax.jit(network.apply)(
        {"params": jax.tree.map(lambda leaf: leaf[1], params)}, (ARRAYS[3] - 1)[None] * 0.5
    )
    np.testing.assert_allclose(pieces[3].logits[1], outputs.logits[0], rtol=1e-5, atol=1e-6)


def test_nonfinite_outputs_have_no_attention():
    bags = Bags.from_arrays([ARRAYS[0], np.full((2, 3), 3e38, np.float32)])
    params = parameters.draw(NETWORK, ARRAYS[0][None])["params"]
    params = jax.tree.map(lambda leaf: leaf[None] * 1e3, params)
    predictor = StreamedPredictor(NETWORK, params, np.zeros((1, 3)), np.ones((1, 3)))
    fine, wrong = predictor.predict(bags, (0, 1), MEMORY, lambda x: x)
    assert np.isfinite(fine.attention).all() and np.isnan(wrong.attention).all()


@pytest.mark.slow
def test_a_dozen_programs_do_for_bags_of_any_lengths(monkeypatch):
    monkeypatch.setattr(streamed_prediction, "PIECE", 64)
    arrays = [RANDOM.normal(size=(n, 3)).astype(np.float32) for n in (*range(1, 50), 70, 300, 999)]
    bags = Bags.from_arrays(arrays, np.arange(len(arrays)) % 2)
    used = np.arange(len(arrays)) < 40
    plans = [training.Plan(0, used, ~used)]
    streamed_steps.forget()
    jax.clear_caches()
    with compilations.counted() as names:
        streamed(bags, plans=plans, epochs=1)
    ours = [name for name in names if name == "jit(_fun)"]  # of pmap
    assert 4 <= len(ours) <= 12


@pytest.mark.slow
def test_too_many_skipped_updates_end_with_a_dump(tmp_path):
    arrays = [*ARRAYS[:3], np.full((2, 3), 3e38, np.float32), *ARRAYS[4:]]
    bags = Bags.from_arrays(arrays, LABELS, ids=[f"b{row}" for row in range(8)])
    network = NETWORK.clone(dropout=0.5)
    options = {"standardise": False, "dump_dir": tmp_path}
    with pytest.raises(UserError, match=r"not finite in 1 updates in a row, the first of model 0 "):
        streamed(bags, network, options=options, max_skipped=1)
    (folder,) = tmp_path.iterdir()
    assert "The largest feature is 3e+38 in size" in "\n".join(replay(folder))
    stored = dumps.read(folder)
    assert stored.content["ids"] == ["b3"]
    np.testing.assert_array_equal(stored.arrays["batch/x"][0, :2], arrays[3])
    skipped = streamed(bags, network, options={"standardise": False}, max_skipped=9).num_skipped
    np.testing.assert_array_equal(skipped, [SETTINGS.epochs])


def test_a_skipped_update_changes_nothing():
    arrays = [*ARRAYS[:3], np.full((2, 3), 3e38, np.float32), *ARRAYS[4:]]
    options = {"standardise": False}
    whole = streamed(Bags.from_arrays(arrays, LABELS), options=options)
    without = streamed(plans=[plan(left_out=(3, 6, 7))], options=options)
    # Adam's counts differ, but not what they are counts of: no schedule is on.
    equal(jax.tree.map(np.shape, whole.last), jax.tree.map(np.shape, without.last))
    assert (
        whole.num_skipped[0] == SETTINGS.epochs
        and np.isfinite(jax.tree.leaves(whole.last)[0]).all()
    )


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="consistency_weight is above 0"):
        streamed(consistency_weight=1.0)
    with pytest.raises(UserError, match="give more by --memory, or take fewer instances"):
        streamed(options={"memory": 10})
    with pytest.raises(UserError, match="model 0 has no bag to train on"):
        streamed(plans=[plan(left_out=range(8))])


class Remote:
    """Bags of a file that has changed since."""

    dtype, place, shape = np.dtype(np.float32), "a.h5", (2, 3)

    def read(self, start=0, stop=None):
        raise UserError("a.h5 is gone")

    def read_coords(self):
        return None


def test_a_reader_that_fails_ends_the_training():
    readers = (*map(ArrayReader, ARRAYS[:7]), Remote())
    bags = Bags(readers, tuple("abcdefgh"), np.array(LABELS), (0, 1))
    with pytest.raises(UserError, match=r"a\.h5 is gone"):
        survey_bags(bags)
    survey = survey_bags(BAGS)
    with pytest.raises(UserError, match=r"a\.h5 is gone"):
        streamed_training.train(
            bags, survey, NETWORK, SETTINGS, [plan(left_out=(0,))], memory=MEMORY
        )


@pytest.mark.slow
def test_cross_validation_of_streamed_bags_is_that_of_others():
    dataset = BagDataset.from_bags(ARRAYS, LABELS)
    lazy = Bags.from_dataset(dataset)
    fields = {field.name: getattr(lazy, field.name) for field in dataclasses.fields(Bags)}
    splits = cross_validation(dataset, 2, 2, seed=3)
    options = {"rules": tuple(selection.RULES), "ensemble": 2, "seed": 5}
    options["validation"] = selection.Validation(0.3, 1, {"learning_rate": (0.01, 0.02)})
    one, other = (
        network_folds.run(bags, splits, NETWORK, SETTINGS, **options)
        for bags in (dataset, StreamedBags(**fields, memory=MEMORY))
    )
    assert len(one) == len(other) == 3 * 4
    for first, second in zip(one, other, strict=True):
        assert (first.rule, first.split, first.settings, first.epoch) == (
            (second.rule, second.split, second.settings, second.epoch)
        )
        np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-4)
        np.testing.assert_allclose(first.accuracies, second.accuracies)
        for own, weights in zip(first.weights, second.weights, strict=True):
            np.testing.assert_allclose(own, weights, atol=1e-5)


@pytest.mark.slow
def test_classifiers_read_bags_one_by_one():
    settings = Settings(epochs=3, learning_rate=0.01)
    method = NetworkClassifier(hidden=(4, 4, 4), dropout=0.0, settings=settings, ensemble=2)
    words = np.array(["yes", "no"])[LABELS]
    whole = method.fit(ARRAYS, words)
    expected = whole.predict_proba(ARRAYS), whole.instance_scores(ARRAYS)
    single = [bag for bag in method.predict_bags(BAGS)]
    np.testing.assert_allclose([bag.probabilities for bag in single], expected[0], atol=1e-6)
    for bag, scores in zip(single, expected[1], strict=True):
        np.testing.assert_allclose(bag.scores, scores, atol=1e-6)
    method.set_params(memory_gib=1e-7)  # less than the bags, so that they are streamed
    with pytest.raises(UserError, match="the longest bag of a step takes"):
        method.fit(ARRAYS, words)
    method.set_params(memory_gib=None, max_instances=11)
    lazy = Bags.from_arrays(ARRAYS, words)
    streamed_probabilities = method.fit(lazy).predict_proba(lazy)
    assert list(method.classes_) == ["no", "yes"] and method.positive_ == "yes"
    np.testing.assert_allclose(streamed_probabilities.sum(axis=1), 1, atol=1e-6)
    assert method.n_features_in_ == 3 and method.networks_.mean.shape == (2, 3)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
