"""Training of many networks at once against a plain loop, and what must not change the result."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossattn_jax.attention.poolings import SUPERVISION
from lossattn_jax.data.bags.bags import BagDataset, bucket_lengths
from lossattn_jax.data.order import bucket_batches
from lossattn_jax.errors import UserError
from lossattn_jax.mil import BagNetwork
from lossattn_jax.train.bags import training
from lossattn_jax.train.bags.objective import bag_loss
from lossattn_jax.train.bags.settings import Settings

RANDOM = np.random.default_rng(0)
LENGTHS = (1, 4, 2, 3, 6, 1, 2)
BAGS = [RANDOM.normal(3.0, 2.0, (length, 5)).astype(np.float32) for length in LENGTHS]
LABELS = [0, 1, 2, 1, 0, 2, 1]
DATASET = BagDataset.from_bags(BAGS, LABELS)
TRAIN = np.array([True, True, False, True, True, True, False])
NETWORK = BagNetwork(3, hidden=(6, 5, 4), dropout=0.0)
SETTINGS = Settings(epochs=3, learning_rate=0.01, patch_weight=0.7, max_waste=1.5)
PLAN = training.Plan(seed=7, train=TRAIN, held_out=~TRAIN)


def close(actual, expected, rtol=2e-4, atol=2e-5):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), actual, expected
    )


def model(params, number=0):
    return jax.tree.map(lambda leaf: leaf[number], params)


@functools.cache
def trained(count=2, **changes):
    """`count` models of one fold each, from different seeds."""
    plans = [dataclasses.replace(PLAN, seed=7 + number) for number in range(count)]
    return training.train(DATASET, NETWORK, dataclasses.replace(SETTINGS, **changes), plans)


@functools.cache
def gradient_of(network):
    """A jitted gradient for one unpadded bag, and its attention."""

    @jax.jit
    def gradient(params, bag, label, patch_weight, target, weight):
        def loss(params):
            out, sown = network.apply({"params": params}, bag[None], mutable=[SUPERVISION])
            side_logits = sown.get(SUPERVISION, {}).get("logits")
            mask = jnp.ones(bag.shape[:1], bool)[None]
            own = patch_weight if network.method == "loss_attention" else None
            distance = jnp.mean(jnp.square(out.attention[0] - target))
            (value,) = bag_loss(out, label[None], mask, own, "sum", side_logits)
            return value + weight * distance, out.attention[0]

        return jax.grad(loss, has_aux=True)(params)

    return gradient


def plain(network, settings, seed=7, consistency=None):
    """One model, one bag after the other, unpadded, with optax: the parameters at each epoch's end."""
    bags = DATASET.bags
    instances = np.concatenate([bag for bag, used in zip(bags, TRAIN, strict=True) if used])
    mean, scale = instances.mean(0), instances.std(0)
    params = jax.jit(network.init)(jax.random.key(seed), jnp.zeros((1, 2, 5)))["params"]
    optimizer = optax.chain(
        optax.add_decayed_weights(settings.weight_decay), optax.adam(settings.learning_rate)
    )
    moments = optimizer.init(params)
    gradient = gradient_of(network)
    tops = bucket_lengths(DATASET.lengths, settings.max_waste)
    bucket_of = np.searchsorted(tops, DATASET.lengths)
    averages = [np.zeros(len(bag)) for bag in bags]
    ends = []
    for epoch in range(settings.epochs):
        seen = [np.zeros(len(bag)) for bag in bags]
        for (row,) in bucket_batches(bucket_of, 1, 0, [epoch])[0]:
            if not TRAIN[row]:
                continue
            target = np.zeros(len(bags[row])) if epoch == 0 else averages[row] / (1 - 0.6**epoch)
            weight = consistency[epoch] if consistency else 0.0
            bag, label = (bags[row] - mean) / scale, jnp.asarray(LABELS[row])
            found, attention = gradient(
                params, bag, label, settings.patch_weight, jnp.asarray(target), weight
            )
            seen[row] = np.asarray(attention)
            with jax.numpy_dtype_promotion("standard"):  # optax multiplies counts by floats
                updates, moments = optimizer.update(found, moments, params)
            params = optax.apply_updates(params, updates)
        averages = [0.6 * old + 0.4 * new for old, new in zip(averages, seen, strict=True)]
        ends.append(params)
    return ends


@pytest.mark.slow
def test_loss_attention_trains_as_a_plain_loop_does():
    close(model(trained().last), plain(NETWORK, SETTINGS)[-1])
    close(model(trained().last, 1), plain(NETWORK, SETTINGS, seed=8)[-1])
    start = NETWORK.init(jax.random.key(7), jnp.zeros((1, 2, 5)))["params"]
    moved = model(trained().last)["dense1"]["kernel"] - start["dense1"]["kernel"]
    assert np.abs(moved).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mi_net", "mi_net_bag", "mi_net_ds", "gated_attention"])
def test_the_other_networks_do_too(method):
    network = BagNetwork(3, method, hidden=(6, 5, 4), dropout=0.0)
    result = training.train(DATASET, network, SETTINGS, [PLAN])
    close(model(result.last), plain(network, SETTINGS)[-1])


@pytest.mark.slow
def test_logits_after_each_epoch_are_of_the_held_bags():
    ends = plain(NETWORK, SETTINGS)
    result = trained()
    assert result.logits.shape == (2, 3, 7, 3)
    np.testing.assert_array_equal(np.isnan(result.logits).all((0, 1, 3)), TRAIN)
    bag = (BAGS[2] - result.mean[0]) / result.scale[0]
    for epoch, params in enumerate(ends):
        expected = NETWORK.apply({"params": params}, bag[None]).logits[0]
        np.testing.assert_allclose(result.logits[0, epoch, 2], expected, rtol=1e-3, atol=1e-4)


def test_predictions_of_new_bags_are_the_networks():
    result = trained()
    asked = np.array([[True, False], [True, True]])
    new = BagDataset.from_bags([BAGS[2], BAGS[4]], [0, 1])
    said = training.predict(
        new, NETWORK, SETTINGS, result.last, result.mean, result.scale, predict_mask=asked
    )
    np.testing.assert_allclose(said.logits[0, 0], result.logits[0, -1, 2], rtol=1e-4, atol=1e-5)
    assert np.isnan(said.logits[0, 1]).all() and np.isnan(said.attention[0, 2:]).all()
    np.testing.assert_allclose(said.attention[0, :2].sum(), 1, rtol=1e-5)
    bag = (BAGS[4] - result.mean[1]) / result.scale[1]
    out = NETWORK.apply({"params": model(result.last, 1)}, bag[None])
    np.testing.assert_allclose(said.attention[1, 2:], out.attention[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        said.instance_logits[1, 2:], out.patch_logits[0], rtol=1e-3, atol=1e-4
    )


def test_a_bag_with_nonfinite_outputs_has_no_even_attention():
    result, asked = trained(), np.ones((2, 2), bool)
    new = BagDataset.from_bags([BAGS[2], np.full((3, 5), 3e38, np.float32)], [0, 1])
    small = result.scale * 1e-6
    said = training.predict(
        new, NETWORK, SETTINGS, result.last, result.mean, small, predict_mask=asked
    )
    assert not np.isfinite(said.logits[:, 1]).any()
    assert np.isnan(said.attention[:, 2:]).all() and np.isfinite(said.attention[:, :2]).all()


@pytest.mark.slow
def test_models_together_give_what_each_gives_alone():
    close(model(trained(count=1).last), model(trained().last), rtol=0, atol=0)
    close(trained(models_at_once=2).last, trained().last)


def test_a_held_out_bag_has_no_influence():
    bags = [bag if used else bag * 50 + 7 for bag, used in zip(BAGS, TRAIN, strict=True)]
    labels = [label if used else 2 - label for label, used in zip(LABELS, TRAIN, strict=True)]
    other = BagDataset.from_bags(bags, labels)
    result = training.train(other, NETWORK, SETTINGS, [PLAN, dataclasses.replace(PLAN, seed=8)])
    close(result.last, trained().last, rtol=0, atol=0)
    assert np.nanmax(np.abs(result.logits - trained().logits)) > 0.1


@pytest.mark.slow
def test_dropout_does_not_depend_on_padding():
    network = NETWORK.clone(dropout=0.5)
    settings = dataclasses.replace(SETTINGS, max_waste=100.0, epochs=1)
    results = []
    for length in (2, 13):  # of the last bag, which is held out: all are padded to 6, or to 13
        dataset = BagDataset.from_bags([*BAGS[:-1], np.ones((length, 5))], LABELS)
        assert bucket_lengths(dataset.lengths, 100.0) == (max(6, length),)
        results.append(training.train(dataset, network, settings, [PLAN]).last)
    close(*results, rtol=1e-5, atol=1e-6)
    without = plain(NETWORK, settings)[0]["dense1"]["kernel"]
    assert np.abs(model(results[0])["dense1"]["kernel"] - without).max() > 1e-3


@pytest.mark.slow
def test_best_and_kept_epochs_and_averages():
    plans = [
        dataclasses.replace(PLAN, selection=~TRAIN, keep_epoch=2),
        dataclasses.replace(PLAN, seed=8, keep_epoch=1),
    ]
    result = training.train(DATASET, NETWORK, SETTINGS, plans)
    ends = plain(NETWORK, SETTINGS)
    close(model(result.at_keep_epoch), ends[1])
    close(model(result.at_keep_epoch, 1), plain(NETWORK, SETTINGS, seed=8)[0])
    held = np.flatnonzero(~TRAIN)
    logits = result.logits[0][:, held].astype(np.float64)
    right = (logits.argmax(-1) == np.array(LABELS)[held]).mean(-1)
    losses = -jax.nn.log_softmax(logits)[:, np.arange(2), np.array(LABELS)[held]].mean(-1)
    expected = np.lexsort((losses, -right))[0]
    assert result.best_epochs[0] == expected + 1
    close(model(result.best), ends[expected])
    averaged = trained(average_epochs=2)
    close(model(averaged.last), jax.tree.map(lambda a, b: (a + b) / 2, ends[1], ends[2]))


def test_a_models_own_settings_are_those_of_a_run_of_its_own():
    own = {"learning_rate": 0.003, "patch_weight": 2.0, "weight_decay": 0.1}
    result = training.train(
        DATASET, NETWORK, SETTINGS, [dataclasses.replace(PLAN, overrides=own), PLAN]
    )
    close(model(result.last), plain(NETWORK, dataclasses.replace(SETTINGS, **own))[-1])
    close(model(result.last, 1), model(trained().last))


@pytest.mark.slow
def test_consistency_pulls_attention_to_its_average_over_epochs():
    settings = dataclasses.replace(SETTINGS, consistency_weight=30.0, consistency_ramp_epochs=0)
    result = training.train(DATASET, NETWORK, settings, [PLAN])
    expected = plain(NETWORK, SETTINGS, consistency=[0.0, 30.0, 30.0])[-1]
    close(model(result.last), expected, rtol=1e-3, atol=1e-4)
    moved = model(result.last)["dense1"]["kernel"] - model(trained().last)["dense1"]["kernel"]
    assert np.abs(moved).max() > 1e-3


@pytest.mark.slow
def test_a_batch_is_the_mean_over_the_models_own_bags():
    settings = dataclasses.replace(SETTINGS, batch_size=7, max_waste=10.0, epochs=1)
    result = training.train(DATASET, NETWORK, settings, [PLAN])
    params = jax.jit(NETWORK.init)(jax.random.key(7), jnp.zeros((1, 2, 5)))["params"]
    each = []
    for row in np.flatnonzero(TRAIN):
        bag, label = (BAGS[row] - result.mean[0]) / result.scale[0], jnp.asarray(LABELS[row])
        nothing = jnp.zeros(len(bag))
        each.append(gradient_of(NETWORK)(params, bag, label, 0.7, nothing, 0.0)[0])
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *each)
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.adam(0.01))
    with jax.numpy_dtype_promotion("standard"):  # as above
        updates, _ = optimizer.update(mean, optimizer.init(params), params)
    close(model(result.last), optax.apply_updates(params, updates), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("plan", "options", "sentence"),
    [
        (dataclasses.replace(PLAN, train=~(TRAIN | True)), {}, "no bag to train on"),
        (dataclasses.replace(PLAN, selection=TRAIN), {}, "no bag to find its best epoch by"),
        (dataclasses.replace(PLAN, keep_epoch=9), {}, "is to keep epoch 9, but has 3"),
        (dataclasses.replace(PLAN, overrides={"epochs": 2}), {}, "epochs cannot differ"),
        (dataclasses.replace(PLAN, selection=~TRAIN), {"every_epoch": False}, "cannot be found"),
    ],
)
def test_impossible_plans_are_refused(plan, options, sentence):
    with pytest.raises(UserError, match=sentence):
        training.train(DATASET, NETWORK, SETTINGS, [plan], **options)


SCRIPT = """
import sys
import numpy as np, jax
from tests.mil import test_training as t
assert jax.device_count() == 4
result = t.trained()
np.savez(sys.argv[1], *jax.tree.leaves(result.last), logits=result.logits)
"""


@pytest.mark.slow
def test_four_devices_train_as_one(run_python, tmp_path):
    finished = run_python("-c", SCRIPT, tmp_path / "four.npz", devices=4)
    assert finished.returncode == 0, finished.stderr
    stored = np.load(tmp_path / "four.npz")
    for number, leaf in enumerate(jax.tree.leaves(trained().last)):
        np.testing.assert_allclose(stored[f"arr_{number}"], leaf, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stored["logits"], trained().logits, rtol=1e-4, atol=1e-5)
