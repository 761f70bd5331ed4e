"""The compiled training with everything switched on against a plain loop in NumPy, and its dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from lossattn_jax.attention import losses
from lossattn_jax.attention.poolings import BAG_POOLINGS, SUPERVISION
from lossattn_jax.data.bags.bags import BagDataset, bucket_lengths
from lossattn_jax.data.order import bucket_batches
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags import device_bags, training
from lossattn_jax.train.bags import steps as steps_lib
from lossattn_jax.train.bags.settings import Settings

pytestmark = pytest.mark.slow  # a program for nearly every test

LENGTHS = (1, 4, 2, 5, 2, 5, 1, 4, 5)
RANDOM = np.random.default_rng(3)
BAGS = [RANDOM.normal(2.0, 3.0, (length, 4)).astype(np.float32) for length in LENGTHS]
DATASET = BagDataset.from_bags(BAGS, [0, 1, 2, 1, 0, 2, 1, 0, 2])
HELD = [np.array([0, 0, 1, 1, 0, 0, 0, 0, 1], bool), np.arange(9) < 4, np.arange(9) == 5]
ORDER_SEED = 11


def mean_of(trees, weights=None):
    return jax.tree.map(lambda *leaves: np.average(leaves, axis=0, weights=weights), *trees)


def padded(values):
    """Values of a bag's instances, with zeros up to the longest bag: one program for all of them."""
    return np.pad(values, [(0, max(LENGTHS) - len(values)), *[(0, 0)] * (values.ndim - 1)])


@functools.cache
def gradient_of(network, reduction):
    """Gradient of one bag's loss, and its attention."""

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params, bag, mask, label, noise, patch_weight, target, consistency_weight):
        out, sown = network.apply(
            {"params": params}, bag[None], mask[None], True, noise[None], mutable=[SUPERVISION]
        )
        count = jnp.sum(mask, dtype=jnp.float32)
        value = losses.cross_entropy(out.logits, label[None])[0]
        if network.method == "mi_net_ds":
            side_logits = sown[SUPERVISION]["logits"][0]
            value = sum(losses.cross_entropy(side, label) for side in side_logits)
        if network.method == "clam":  # whose formula test_baselines.py has
            value = sown[SUPERVISION]["losses"][0, label]
        if network.method == "loss_attention":
            labels = jnp.broadcast_to(label, bag.shape[:1])
            each = out.attention[0] * losses.cross_entropy(out.patch_logits[0], labels)
            each = jnp.where(mask, each, 0.0)
            value += patch_weight * jnp.sum(each) / (count if reduction == "mean" else 1)
        distance = jnp.sum(jnp.square(out.attention[0] - target)) / count
        return value + consistency_weight * distance, out.attention[0]

    return gradient


@functools.cache
def logits_of(network):
    """Predictions for all bags at once."""
    masks = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    return jax.jit(lambda params, bags: network.apply({"params": params}, bags, masks).logits)


def ramp(weight, epochs, epoch):
    if not epochs:
        return weight
    return weight * np.exp(-5 * (1 - min(epoch / epochs, 1)) ** 2) if epoch else 0.0


def bytes_of(network, seed, epoch):
    """What the dropout of each instance goes by: words of the seed's stream, four bytes each."""
    units = sum(network.widths)
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    words = jax.random.bits(key, (sum(LENGTHS) + max(LENGTHS), -(-units // 4)), jnp.uint32)
    return np.asarray(words).view(np.uint8)[:, :units]


def plain(network, settings, plan):
    """One model in float64 but for its gradients: parameters and held bags' logits of each epoch."""
    settings = {**settings.__dict__, **plan.overrides}
    seen = DATASET.instances[np.repeat(plan.train, DATASET.lengths)].astype(np.float64)
    mean, spread = seen.mean(axis=0), seen.std(axis=0)
    bags = [((bag - mean) / spread).astype(np.float32) for bag in BAGS]
    every_bag, offsets = np.stack([padded(bag) for bag in bags]), DATASET.offsets
    params = jax.jit(network.init)(jax.random.key(plan.seed), jnp.zeros((1, 1, 4)))["params"]
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    first = second = jax.tree.map(np.zeros_like, params)
    updates = 0
    gradient = gradient_of(network, settings["patch_reduction"])
    bucket_of = np.searchsorted(
        bucket_lengths(DATASET.lengths, settings["max_waste"]), DATASET.lengths
    )
    remembered = [[] for _ in BAGS]
    ends, told = [], []
    for epoch in range(settings["epochs"]):
        noise = bytes_of(network, plan.seed, epoch)
        patch_weight = ramp(settings["patch_weight"], settings["patch_ramp_epochs"], epoch)
        pull = ramp(settings["consistency_weight"], settings["consistency_ramp_epochs"], epoch)
        for batch in bucket_batches(bucket_of, settings["batch_size"], ORDER_SEED, [epoch])[0]:
            rows = [row for row in batch if row >= 0 and plan.train[row]]
            if not rows:
                continue
            found = []
            for row in rows:
                decay = settings["consistency_decay"]
                shares = (1 - decay) * decay ** np.arange(epoch)[::-1]
                target = np.zeros(LENGTHS[row])
                if epoch:
                    target = np.average(remembered[row][:epoch], axis=0, weights=shares)
                one, attention = gradient(
                    params,
                    padded(bags[row]),
                    np.arange(max(LENGTHS)) < LENGTHS[row],
                    DATASET.labels[row],
                    padded(noise[offsets[row] : offsets[row + 1]]),
                    patch_weight,
                    padded(target),
                    pull if epoch else 0.0,
                )
                remembered[row].append(np.asarray(attention)[: LENGTHS[row]])
                found.append(one)
            # Adam (Kingma & Ba 2015, algorithm 1), with L2 in the gradient.
            found = jax.tree.map(
                lambda g, p: g + settings["weight_decay"] * p, mean_of(found), params
            )
            updates += 1
            first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, found)
            second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, found)
            rate = settings["learning_rate"]
            params = jax.tree.map(
                lambda p, m, v, n=updates, rate=rate: (
                    p - rate * m / (1 - 0.9**n) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8)
                ),
                params,
                first,
                second,
            )
        ends.append(params)
        averaged = params
        if settings["average_epochs"]:
            averaged = mean_of(ends[settings["epochs"] - settings["average_epochs"] :] or [params])
        told.append((averaged, np.asarray(logits_of(network)(averaged, every_bag))))
    return told


def close(actual, expected, atol):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=atol), actual, expected)


def one_of(tree, number):
    return jax.tree.map(lambda leaf: leaf[number], tree)


EVERYTHING = Settings(
    epochs=5,
    batch_size=2,
    learning_rate=0.01,
    weight_decay=0.01,
    patch_weight=2.0,
    patch_ramp_epochs=3,
    patch_reduction="mean",
    consistency_weight=5.0,
    consistency_ramp_epochs=2,
    average_epochs=3,
    max_waste=1.5,
    models_at_once=2,
)
PLANS = [
    training.Plan(40 + number, ~held, held, selection=held, keep_epoch=number + 3, overrides=own)
    for number, (held, own) in enumerate(
        zip(
            HELD,
            [
                {},
                {"learning_rate": 0.02, "consistency_weight": 0.0},
                {"patch_weight": 0.3, "weight_decay": 0.0},
            ],
            strict=True,
        )
    )
]


@pytest.fixture(scope="module")
def everything():
    """Three models, two at once, with dropout and every kind of result."""
    network = BagNetwork(3, hidden=(6, 5, 5))
    result = training.train(DATASET, network, EVERYTHING, PLANS, order_seed=ORDER_SEED)
    return result, [plain(network, EVERYTHING, plan) for plan in PLANS]


def test_the_setting_is_hard_enough():
    assert bucket_lengths(DATASET.lengths, 1.5) == (2, 5)
    bucket_of = np.searchsorted((2, 5), DATASET.lengths)
    orders = bucket_batches(bucket_of, 2, ORDER_SEED, range(5))
    assert all((order < 0).sum() == 1 for order in orders)
    batches = [batch for order in orders for batch in order if min(batch) >= 0]
    # Batches of two bags of which a model may see both, one, or none.
    assert {plan.train[batch].sum() for plan in PLANS for batch in batches} == {0, 1, 2}


@pytest.mark.parametrize("number", range(3))
def test_parameters_after_all_epochs(everything, number):
    result, told = everything
    close(one_of(result.last, number), told[number][-1][0], atol=3e-5)


@pytest.mark.parametrize("number", range(3))
def test_parameters_of_the_kept_epoch(everything, number):
    result, told = everything
    close(one_of(result.at_keep_epoch, number), told[number][number + 2][0], atol=3e-5)


@pytest.mark.parametrize("number", range(3))
def test_logits_of_the_held_bags_after_each_epoch(everything, number):
    result, told = everything
    expected = np.stack([logits for _, logits in told[number]])
    held = HELD[number]
    np.testing.assert_allclose(result.logits[number][:, held], expected[:, held], atol=2e-4)
    assert np.isnan(result.logits[number][:, ~held]).all()


@pytest.mark.parametrize("number", range(3))
def test_the_best_epoch_is_found_by_accuracy_then_loss(everything, number):
    result, told = everything
    held, labels = HELD[number], DATASET.labels[HELD[number]]
    scores = []
    for _, logits in told[number]:
        logs = log_softmax(logits[held].astype(np.float64), axis=-1)
        loss = -logs[np.arange(len(labels)), labels].mean()
        scores.append((-(logs.argmax(axis=-1) == labels).mean(), loss))
    best = min(range(5), key=scores.__getitem__)
    assert result.best_epochs[number] == best + 1
    close(one_of(result.best, number), told[number][best][0], atol=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("method", BAG_POOLINGS)
def test_every_network_trains_as_a_plain_loop_does(method, classes, monkeypatch):
    labels = DATASET.labels % classes
    dataset = BagDataset.from_bags(BAGS, labels)
    monkeypatch.setitem(globals(), "DATASET", dataset)
    network = BagNetwork(classes, method, hidden=(5, 5, 5))
    settings = Settings(epochs=4, learning_rate=0.01, patch_weight=1.0, max_waste=1.5)
    result = training.train(dataset, network, settings, PLANS[1:2], order_seed=ORDER_SEED)
    told = plain(network, settings, PLANS[1])
    # Adam makes a step of a gradient that is rounding: a few parameters may differ visibly.
    close(one_of(result.last, 0), told[-1][0], atol=5e-4)
    np.testing.assert_allclose(
        result.logits[0][:, HELD[1]], np.stack([one for _, one in told])[:, HELD[1]], atol=1e-3
    )


def noise(seed, epoch, network=BagNetwork(2, hidden=(40, 30, 27))):  # noqa: B008
    """`[N + longest, 97]` bytes as the programs draw them."""
    program = steps_lib.Program(network, EVERYTHING, (2, 5), 1, 5, False, False, False)
    steps = steps_lib.Steps(program)
    data = device_bags.pack(DATASET, (2, 5))
    model = steps_lib.Models(np.uint32(seed), *[None] * 10)
    return np.asarray(steps.noise(model, data, jnp.int32(epoch)))


def test_dropout_is_new_for_every_model_epoch_and_instance():
    drawn = [noise(seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert drawn[0].shape == (29 + 5, 97) and drawn[0].dtype == np.uint8
    rows = np.concatenate(drawn)
    assert len(np.unique(rows, axis=0)) == len(rows)
    # Bytes are even: chi squared of 255 degrees is above 340 once in 4000 seeds.
    counts = np.bincount(rows.ravel(), minlength=256)
    assert ((counts - counts.mean()) ** 2).sum() / counts.mean() < 340
    dropped = rows < 128
    assert abs(dropped.mean() - 0.5) < 0.02  # 13192 draws: 4.6 standard deviations
    # Neither units nor instances are dropped together.
    for table in (dropped, dropped.T):
        correlations = np.corrcoef(table.astype(float)) - np.eye(len(table))
        assert abs(correlations.mean()) < 0.02
    assert np.array_equal(noise(1, 1), drawn[1])


@pytest.mark.parametrize(("rate", "share"), [(0.5, 128), (0.25, 64), (0.999, 255), (0.001, 0)])
def test_the_rate_of_dropout(rate, share):
    network = BagNetwork(2, hidden=(3, 3, 256), dropout=rate)
    params = jax.tree.map(
        np.zeros_like, network.init(jax.random.key(0), np.ones((1, 1, 2)))["params"]
    )
    params["dense3"]["bias"] += 1
    params["classifier"]["kernel"][:, 1] = 1
    every = np.concatenate([np.full(6, 255), np.arange(256)]).astype(np.uint8)[None, None]
    out = network.apply({"params": params}, np.ones((1, 1, 2)), train=True, noise=every)
    # The mean of the units is as without dropout.
    np.testing.assert_allclose(out.logits, [[0, 256]], rtol=1e-5)
    mean = np.asarray(
        network.apply({"params": params}, np.ones((1, 1, 2)), train=True, noise=0 * every).logits
    )
    np.testing.assert_array_equal(mean[0, 1] > 0, share == 0)


def test_bags_are_cut_out_of_the_flat_array():
    data = device_bags.pack(DATASET, (2, 5))
    assert data.instances.shape == (29 + 5, 4)
    np.testing.assert_array_equal(data.instances[29:], 0)
    np.testing.assert_array_equal(data.bucket, [0, 1, 0, 1, 0, 1, 0, 1, 1])
    bags, mask = device_bags.cut_bags(jax.tree.map(jnp.asarray, data), jnp.array([8, 1]), 5)
    np.testing.assert_array_equal(bags[0], BAGS[8])
    np.testing.assert_array_equal(bags[1, :4], BAGS[1])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def test_writing_a_bag_leaves_its_neighbours():
    values = jnp.arange(12.0).reshape(2, 6)
    mask = jnp.array([True, True, False])
    new = jnp.full((2, 3), -1.0)
    written = device_bags.write(values, new, mask, jnp.int32(1))
    np.testing.assert_array_equal(written, [[0, -1, -1, 3, 4, 5], [6, -1, -1, 9, 10, 11]])


SCRIPT = """
import sys
import jax, numpy as np
from tests import conftest
from tests.mil import test_programs as t
assert jax.device_count() == 4
network = t.BagNetwork(3, hidden=(6, 5, 5))
result = t.training.train(t.DATASET, network, t.EVERYTHING, t.PLANS, order_seed=t.ORDER_SEED)
leaves = jax.tree.leaves((result.last, result.best, result.at_keep_epoch))
np.savez(sys.argv[1], *leaves, logits=result.logits, best_epochs=result.best_epochs)
"""


@pytest.mark.slow
def test_three_models_on_four_devices(everything, run_python, tmp_path):
    finished = run_python("-c", SCRIPT, tmp_path / "four.npz", devices=4)
    assert finished.returncode == 0, finished.stderr
    stored, result = np.load(tmp_path / "four.npz"), everything[0]
    for number, leaf in enumerate(
        jax.tree.leaves((result.last, result.best, result.at_keep_epoch))
    ):
        assert len(leaf) == 3
        np.testing.assert_allclose(stored[f"arr_{number}"], leaf, rtol=0, atol=3e-5)
    np.testing.assert_allclose(stored["logits"], result.logits, atol=2e-4)
    np.testing.assert_array_equal(stored["best_epochs"], result.best_epochs)
