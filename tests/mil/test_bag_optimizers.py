"""Every optimiser and schedule of bags against a plain loop in NumPy, with models of their own rates."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.config import bags as config_lib
from lossattn_jax.config.options import OptimizerOptions
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.order import bucket_batches
from lossattn_jax.errors import UserError
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train import replay
from lossattn_jax.train.bags import training
from lossattn_jax.train.bags.objective import bag_loss
from lossattn_jax.train.bags.settings import Settings

RANDOM = np.random.default_rng(8)
BAGS = [RANDOM.normal(0, 1, (length, 3)).astype(np.float32) for length in (2, 3, 1, 3, 2)]
LABELS = [0, 1, 0, 1, 1]
DATASET = BagDataset.from_bags(BAGS, LABELS, ids=list("abcde"), name="own")
NETWORK = BagNetwork(2, hidden=(4, 4, 4), dropout=0.0)
EPOCHS, STEPS = 4, 5
SETTINGS = Settings(
    epochs=EPOCHS, learning_rate=0.02, weight_decay=0.01, patch_weight=0.5, max_waste=10.0
)
USED = np.arange(5) != 2
PLANS = [
    training.Plan(1, USED, ~USED),
    training.Plan(1, USED, ~USED, overrides={"learning_rate": 0.05, "weight_decay": 0.1}),
]

# Factors of the learning rate by step.
RATES = {
    "constant": lambda step: 1.0,
    "step": lambda step: 0.1 ** sum(step >= epoch * STEPS for epoch in (1, 3)),
    "cosine": lambda step: 0.5 * (1 + math.cos(math.pi * step / (EPOCHS * STEPS))),
    "one_cycle": lambda step: (
        (step + 1) / STEPS if step < STEPS else 1 - (step - STEPS) / ((EPOCHS - 1) * STEPS)
    ),
    "ramps": lambda step: (
        math.exp(-5 * (1 - min(step // STEPS / 2, 1)) ** 2)
        * math.exp(-((max(step // STEPS - 2, 0) / 2) ** 2) / 2)
    ),
}
KEYS = {
    "step": {"milestones": (1.0, 3.0)},
    "one_cycle": {"warmup_epochs": 1.0},
    "ramps": {"ramp_up_epochs": 2.0, "ramp_down_epochs": 2.0},
}


@functools.cache
def gradient():
    @jax.jit
    @jax.grad
    def of_bag(params, bag, mask, label):
        out = NETWORK.apply({"params": params}, bag[None], mask[None])
        return bag_loss(out, label[None], mask[None], 0.5, "sum")[0]

    return of_bag


def plain(options, plan, betas=None):
    """The parameters after all updates, in float64 but for the gradients."""
    rate = plan.overrides.get("learning_rate", SETTINGS.learning_rate)
    decay = plan.overrides.get("weight_decay", SETTINGS.weight_decay)
    params = jax.jit(NETWORK.init)(jax.random.key(plan.seed), jnp.zeros((1, 1, 3)))["params"]
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda leaf: np.asarray(leaf, float), params))
    first, second = ([np.zeros_like(leaf) for leaf in leaves] for _ in range(2))
    updates = 0
    for step, row in enumerate(bucket_batches(np.zeros(5, int), 1, 0, range(EPOCHS)).ravel()):
        if not plan.train[row]:
            continue
        updates += 1
        bag = np.pad(BAGS[row], [(0, 3 - len(BAGS[row])), (0, 0)])
        params = jax.tree.map(np.float32, jax.tree.unflatten(tree, leaves))
        slopes = jax.tree.leaves(
            gradient()(params, bag, np.arange(3) < len(BAGS[row]), jnp.int32(LABELS[row]))
        )
        now = rate * RATES[options.schedule](step)
        beta1, beta2 = (options.momentum, options.beta2) if betas is None else betas(step)
        for place, slope in enumerate(np.asarray(slope, float) for slope in slopes):
            leaf = leaves[place]
            if options.name != "adamw":
                slope = slope + decay * leaf
            if options.name == "sgd":
                first[place] = slope + options.momentum * first[place]
                change = first[place]
                if options.nesterov:
                    change = slope + options.momentum * first[place]
            else:
                first[place] = beta1 * first[place] + (1 - beta1) * slope
                second[place] = beta2 * second[place] + (1 - beta2) * slope**2
                spread = np.sqrt(second[place] / (1 - beta2**updates)) + 1e-8
                change = first[place] / (1 - beta1**updates) / spread
            if options.name == "adamw":
                change = change + decay * leaf
            leaves[place] = leaf - now * change
    return jax.tree.unflatten(tree, leaves)


def check(options, betas=None):
    settings = dataclasses.replace(SETTINGS, optimizer=options)
    result = training.train(DATASET, NETWORK, settings, PLANS, standardise=False)
    for number, plan in enumerate(PLANS):
        jax.tree.map(
            lambda ours, theirs, number=number: np.testing.assert_allclose(
                ours[number], theirs, rtol=0, atol=2e-5
            ),
            result.last,
            plain(options, plan, betas),
        )
    assert not result.num_skipped.any()
    assert np.abs(result.last["dense1"]["kernel"][0] - result.last["dense1"]["kernel"][1]).max() > 0


SLOW = [("sgd", "step"), ("sgd", "constant"), ("adam", "cosine"), ("adamw", "one_cycle")]
SLOW += [("adamw", "constant"), ("adam", "step")]


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        *[("sgd", "cosine"), ("adamw", "ramps"), ("adam", "constant")],
        pytest.param("adam", "one_cycle", marks=pytest.mark.slow),
        *[pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW],
    ],
)
def test_bags_are_trained_as_a_plain_loop_does(name, schedule):
    check(OptimizerOptions(name=name, schedule=schedule, **KEYS.get(schedule, {})))


@pytest.mark.slow
def test_nesterov_and_other_betas_are_taken():
    check(OptimizerOptions(name="sgd", momentum=0.5, nesterov=True, schedule="constant"))


def test_the_papers_ramps_of_rate_and_betas_exist_for_bags():
    options = OptimizerOptions(
        name="adam", schedule="ramps", momentum_end=0.5, beta2_end=0.9, **KEYS["ramps"]
    )

    def betas(step):
        epoch = step // STEPS
        share = math.exp(-((max(epoch - 2, 0) / 2) ** 2) / 2)
        return share * 0.9 + (1 - share) * 0.5, 0.999 if epoch <= 2 else 0.9

    check(options, betas)


SEED = 2  # of a model that the bad bag is too much for in every epoch
BAD = [np.array(bag) for bag in BAGS]
BAD[3][:] = 3e38 * np.array([1, -1, 1])[:, None]


@pytest.mark.parametrize("name", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_every_optimiser_skips_updates_that_are_not_finite(name):
    dataset = BagDataset.from_bags(BAD, LABELS, ids=list("abcde"), name="own")
    used = np.arange(5) != 3
    without = training.Plan(SEED, used, ~used)
    options = OptimizerOptions(name=name, schedule="cosine")
    settings = dataclasses.replace(SETTINGS, optimizer=options)
    every = training.Plan(SEED, np.ones(5, bool), np.zeros(5, bool))
    result = training.train(dataset, NETWORK, settings, [every, without], standardise=False)
    assert result.num_skipped.tolist() == [EPOCHS, 0]
    # The schedule goes by the steps, also by those that are skipped.
    jax.tree.map(
        lambda leaf: np.testing.assert_allclose(leaf[0], leaf[1], rtol=0, atol=1e-5), result.last
    )


def test_a_gradient_whose_norm_alone_overflows_is_skipped():
    """Plain SGD keeps nothing of a gradient by which the fast program could see it later."""
    settings = dataclasses.replace(
        SETTINGS,
        epochs=1,
        patch_weight=1e20,
        optimizer=OptimizerOptions(name="sgd", momentum=0.0, schedule="constant"),
        learning_rate=1e-30,
    )
    plans = [training.Plan(1, np.ones(5, bool), np.zeros(5, bool))]
    result = training.train(DATASET, NETWORK, settings, plans, standardise=False)
    assert result.num_skipped.tolist() == [5]


def test_a_dump_of_another_optimiser_is_replayed(tmp_path):
    dataset = BagDataset.from_bags(BAD, LABELS, ids=list("abcde"), name="own")
    options = OptimizerOptions(name="sgd", schedule="step", milestones=(1.0, 3.0))
    settings = dataclasses.replace(SETTINGS, optimizer=options, max_skipped=1)
    plans = [training.Plan(SEED, np.ones(5, bool), np.zeros(5, bool))]
    with pytest.raises(UserError, match="not finite in 1 updates in a row"):
        training.train(dataset, NETWORK, settings, plans, standardise=False, dump_dir=tmp_path)
    (folder,) = tmp_path.iterdir()
    sentences = replay.replay(folder)
    assert sentences[2] == "Before it, parameters and the optimiser's state were finite."
    assert "its norm of" in sentences[4] and "is not in float32" in sentences[4]


def test_a_config_of_bags_takes_any_optimiser_and_schedule():
    config = config_lib.default_config()
    config.optimizer.update(name="sgd", schedule="cosine", learning_rate=0.3)
    options = config_lib.resolve(config)
    settings = config_lib.settings(options)
    assert settings.optimizer == options.optimizer and settings.learning_rate == 0.3
    config.optimizer.schedule = "cosines"
    with pytest.raises(UserError, match=r"config\.optimizer\.schedule is 'cosines', but must be"):
        config_lib.check(config)
