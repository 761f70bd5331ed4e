"""Optimisers and schedules: what each entry says of itself, and those of the user's own."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossattn_jax.checkpoint import runs
from lossattn_jax.config.options import OptimizerOptions
from lossattn_jax.errors import UserError
from lossattn_jax.train.images import loop
from lossattn_jax.train.optimizer import (
    OPTIMIZERS,
    at_step,
    describe_optimizer,
    make_optimizer,
    restart,
)
from lossattn_jax.train.schedules import SCHEDULES, Length, learning_rate_schedule
from lossattn_jax.train.update import ModelState, apply_update
from tests.support.toys import STEPS, settings

LENGTH = Length(epochs=6, steps_per_epoch=4)
# With an effect each, and with the betas of the ramps.
FULL = OptimizerOptions(
    schedule="ramps",
    nesterov=True,
    weight_decay=0.1,
    weight_decay_mask="kernels",
    momentum_end=0.5,
    beta2_end=0.99,
    milestones=(2, 4),
    warmup_epochs=1.0,
    ramp_up_epochs=2,
    ramp_down_epochs=3,
)
# Another value of every key.
OTHERS = {
    "momentum": 0.8,
    "beta2": 0.95,
    "nesterov": False,
    "others_rate": 0.5,
    "weight_decay": 0.2,
    "weight_decay_mask": "all",
    "momentum_end": 0.3,
    "beta2_end": 0.9,
    "milestones": (3,),
    "decay_factor": 0.5,
    "ramp_up_epochs": 1,
    "ramp_down_epochs": 2,
}
OF_OPTIMIZERS = [*OTHERS][:8]
OF_SCHEDULES = [*OTHERS][8:]


def trained(options, schedule=lambda step: 0.1):
    """The parameters after all updates of the length, with gradients that change."""
    optimizer = make_optimizer(options, schedule, LENGTH)
    params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.5])}
    state = optimizer.init(params)

    @jax.jit  # else Muon's loops are compiled in each of its updates
    def update(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    for step in range(LENGTH.epochs * LENGTH.steps_per_epoch):
        gradients = jax.tree.map(lambda leaf, step=step: leaf * jnp.cos(0.5 * step), params)
        params, state = update(params, state, gradients)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])


def rates(options):
    schedule = learning_rate_schedule(options, LENGTH)
    return np.array([schedule(step) for step in range(LENGTH.epochs * LENGTH.steps_per_epoch)])


def differ(first, second):
    return not np.allclose(first, second, rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", [FULL, dataclasses.replace(FULL, schedule="constant")])
def test_no_two_optimisers_compute_the_same(options):
    results = {name: trained(dataclasses.replace(options, name=name)) for name in OPTIMIZERS}
    for first, second in itertools.combinations(OPTIMIZERS, 2):
        assert differ(results[first], results[second]), (first, second)


def test_no_two_schedules_compute_the_same():
    results = {name: rates(dataclasses.replace(FULL, schedule=name)) for name in SCHEDULES}
    for first, second in itertools.combinations(SCHEDULES, 2):
        assert differ(results[first], results[second]), (first, second)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_takes_the_parameters_that_it_names(name):
    options = dataclasses.replace(FULL, name=name)
    plain = trained(options)
    taken = {
        key
        for key in OF_OPTIMIZERS
        if differ(trained(dataclasses.replace(options, **{key: OTHERS[key]})), plain)
    }
    assert taken == set(OPTIMIZERS[name].parameters)


def by_newton_schulz(matrix):
    """Singular values near 1, as Jordan et al. 2024 compute them; float64."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_moves_kernels_as_numpy_and_others_as_adam():
    options = OptimizerOptions(name="muon", momentum=0.6, nesterov=True, weight_decay=0.1)
    optimizer = make_optimizer(options, lambda step: 0.2, LENGTH)
    draw = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 2, 5), "classifier": (5, 4)}
    params = {name: {"kernel": draw.normal(size=shape)} for name, shape in shapes.items()}
    gradients = {name: {"kernel": draw.normal(size=shape)} for name, shape in shapes.items()}
    single = jax.tree.map(jnp.float32, (params, gradients))
    updates, _ = optimizer.update(single[1], optimizer.init(single[0]), single[0])
    # Of the first update momentum has the gradient's direction.
    rows = gradients["conv"]["kernel"].reshape(18, 5)
    by_hand = by_newton_schulz(rows.T).T.reshape(shapes["conv"])
    kernel = params["conv"]["kernel"]
    np.testing.assert_allclose(
        updates["conv"]["kernel"], -0.2 * (by_hand + 0.1 * kernel), rtol=2e-4, atol=1e-5
    )
    singular = np.linalg.svd(by_hand.reshape(18, 5), compute_uv=False)
    assert 0.6 < singular.min() and singular.max() < 1.3
    gradient, kernel = gradients["classifier"]["kernel"], params["classifier"]["kernel"]
    assert (
        np.sign(updates["classifier"]["kernel"] + 0.02 * 0.1 * kernel) == -np.sign(gradient)
    ).all()
    sizes = np.abs(updates["classifier"]["kernel"] + 0.02 * 0.1 * kernel)
    np.testing.assert_allclose(sizes, sizes.flat[0], rtol=1e-3)  # as Adam's first update


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_takes_the_parameters_that_it_names(name):
    options = dataclasses.replace(FULL, schedule=name)
    plain = rates(options)
    taken = {
        key
        for key in OF_SCHEDULES
        if differ(rates(dataclasses.replace(options, **{key: OTHERS[key]})), plain)
    }
    assert taken == set(SCHEDULES[name].parameters)


@pytest.mark.parametrize("schedule", ["ramps", "constant"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_holds_the_state_that_it_names(name, schedule):
    options = dataclasses.replace(FULL, name=name, schedule=schedule)
    params = {"kernel": jnp.zeros((2, 3))}
    state = make_optimizer(options, lambda step: 0.1, LENGTH).init(params)
    of_parameters = {
        path[-2].name
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.shape == (2, 3)
    }
    assert of_parameters == set(OPTIMIZERS[name].state)


def test_an_optimiser_is_described_by_what_it_takes():
    assert describe_optimizer(OptimizerOptions(warmup_epochs=2.0)) == (
        "sgd (momentum 0.9, nesterov False, weight_decay 0.0005, weight_decay_mask all), which holds trace; "
        "learning rate 0.1, step (milestones (100, 150), decay_factor 0.1), warm-up 2 epochs"
    )


def test_schedules_go_on_from_a_step_and_moments_do_not():
    options = dataclasses.replace(FULL, name="adam")
    optimizer = make_optimizer(options, lambda step: 0.1 / (1 + step), LENGTH)
    state = at_step(optimizer.init({"kernel": jnp.zeros(2)}), jnp.int32(5))
    counts = {
        jax.tree_util.keystr(path): int(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if getattr(path[-1], "name", "") == "count"
    }
    assert sorted(counts.values()) == [0, 5, 5, 5, 5]
    (of_adam,) = (path for path, count in counts.items() if count == 0)
    assert "inner_state" in of_adam


# --- moments that begin anew ---


def restarted_in_numpy(options, gradients, skipped=()):
    """The parameter after all updates, in float64, with moments of 0 at the start of each period."""
    value, first, second, updates = 1.0, 0.0, 0.0, 0
    period = options.restart_epochs * LENGTH.steps_per_epoch
    for step, gradient in enumerate(gradients):
        if step % period == 0:
            first, second, updates = 0.0, 0.0, 0
        if step in skipped:
            continue
        epoch = step // LENGTH.steps_per_epoch
        updates += 1
        slope = gradient + options.weight_decay * value
        beta1, beta2 = options.momentum, options.beta2
        if (
            options.schedule == "ramps"
        ):  # a fall over the last 3 of 6 epochs; beta 2 changes after epoch 2
            fall = np.exp(-((max(epoch - 3, 0) / 2) ** 2) / 3)
            beta1, beta2 = fall * beta1 + (1 - fall) * 0.5, beta2 if epoch <= 2 else 0.99
        if options.name == "sgd":
            first = beta1 * first + slope
            change = first
        else:
            first = beta1 * first + (1 - beta1) * slope
            second = beta2 * second + (1 - beta2) * slope**2
            spread = np.sqrt(second / (1 - beta2**updates)) + 1e-8
            change = first / (1 - beta1**updates) / spread
        value -= 0.1 / (1 + step) * change
    return value


@pytest.mark.parametrize(
    ("name", "schedule", "epochs"),
    [
        ("adam", "constant", 1),
        ("adam", "ramps", 1),
        ("adam", "constant", 2),
        ("sgd", "constant", 1),
    ],
)
@pytest.mark.parametrize("skipped", [(), (3, 4)])
def test_moments_begin_anew_as_in_numpy(name, schedule, epochs, skipped):
    changes = {"name": name, "schedule": schedule, "restart_epochs": epochs, "nesterov": False}
    options = dataclasses.replace(FULL, **changes, weight_decay_mask="all")
    optimizer = make_optimizer(options, lambda step: 0.1 / (1 + step), LENGTH)
    gradients = np.random.default_rng(3).normal(1, 1, LENGTH.epochs * LENGTH.steps_per_epoch)
    params = {"kernel": jnp.ones(1)}
    state = ModelState(params, optimizer.init(params))

    @jax.jit
    def update(state, gradient, step, applies):
        return apply_update(optimizer, {"kernel": gradient}, state, step, applies)

    values = []
    for step, gradient in enumerate(gradients):
        value = np.nan if step in skipped else gradient
        state = update(state, jnp.full(1, value), jnp.int32(step), jnp.bool(step not in skipped))
        values.append(float(state.params["kernel"][0]))
    expected = [
        restarted_in_numpy(options, gradients[: step + 1], skipped)
        for step in range(len(gradients))
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    never = trained(dataclasses.replace(options, restart_epochs=0))
    assert differ(trained(options), never)


def test_a_run_may_change_how_often_moments_begin_anew():
    """Moments that are younger than the period's start stay."""
    params = {"kernel": jnp.ones(1)}
    every_two, every_four = (restart(optax.sgd(0.1, 0.9), period) for period in (2, 4))
    state, traces = every_two.init(params), []
    for step in range(7):  # begins at 0 and 2; from step 3 on by periods of 4, at 4
        optimizer = every_two if step < 3 else every_four
        _, state = optimizer.update({"kernel": jnp.ones(1)}, state, params)
        traces.append(round(float(state.inner_state[0].trace["kernel"][0]), 4))
    assert traces == [1, 1.9, 1, 1.9, 1, 1.9, 2.71]


def test_what_begins_anew_is_described():
    options = OptimizerOptions(name="adam", schedule="constant", restart_epochs=3)
    assert "holds mu and nu, begun anew every 3 epochs; learning" in describe_optimizer(options)


# --- of the user's own ---

CODE = """
import jax.numpy as jnp
import optax

def make(options, learning_rate):
    lion = optax.scale_by_lion(options.momentum, 0.99)
    return optax.chain(lion, optax.scale_by_learning_rate(learning_rate))

def halve(options, length):
    return lambda step: options.learning_rate * 0.5 ** (step // length.steps_per_epoch)

def nothing(*_):
    return None

NUMBER = 3
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A module outside of the package."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_optimizer.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))


OWN = {
    "optimizer__name": "own_optimizer:make",
    "optimizer__schedule": "own_optimizer:halve",
    "optimizer__learning_rate": 0.01,
}


@pytest.mark.slow
def test_an_own_optimiser_trains_resumes_and_is_stored(own_code, toy_runs, tmp_path):
    whole = loop.train(settings(**OWN), tmp_path / "whole")
    loop.train(settings(**OWN, train__epochs=1), tmp_path / "resumed")
    resumed = loop.train(settings(**OWN), tmp_path / "resumed")
    assert whole["loss"] == resumed["loss"]
    first, second = (runs.load(tmp_path / name, trust_code=True) for name in ("whole", "resumed"))
    assert first.step == second.step == 3 * STEPS
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)
    stored = json.loads((tmp_path / "resumed" / "config.json").read_text())["optimizer"]
    assert stored["name"] == OWN["optimizer__name"]
    assert stored["schedule"] == OWN["optimizer__schedule"]
    other = loop.train(settings(optimizer__learning_rate=0.01), tmp_path / "sgd")
    assert other["loss"] != whole["loss"]
    with pytest.raises(UserError, match="config.optimizer.name is 'sgd', but the run in"):
        loop.train(settings(optimizer__learning_rate=0.01), tmp_path / "resumed")


def test_a_run_with_an_own_optimiser_is_read_without_its_code(toy_runs, tmp_path, own_code):
    loop.train(settings(**OWN, train__epochs=1), tmp_path / "run")
    (tmp_path / "code" / "own_optimizer.py").write_text("raise AssertionError('imported')\n")
    import sys

    del sys.modules["own_optimizer"]
    with pytest.raises(UserError, match="own_optimizer:make"):
        runs.load(tmp_path / "run")
    loaded = runs.load(tmp_path / "run", trust_code=True)
    assert loaded.options.optimizer.name == "own_optimizer:make"
    assert "own_optimizer" not in sys.modules


@pytest.mark.parametrize(
    ("key", "reference", "sentence"),
    [
        ("name", "own_optimizer:absent", "but own_optimizer has no attribute 'absent'"),
        ("name", "no_such_module:make", "but there is no module 'no_such_module'"),
        ("name", "own_optimizer:NUMBER", "which is a int, but must be a function of Optimiz"),
        ("name", "own_optimizer:nothing", "which makes a NoneType, but must make an optax"),
        ("schedule", "own_optimizer:NUMBER", "which is a int, but must be a function of"),
        ("schedule", "own_optimizer:nothing", "which makes a NoneType, but must make a func"),
    ],
)
def test_what_is_no_optimiser_is_a_sentence(own_code, toy_runs, tmp_path, key, reference, sentence):
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=f"config.optimizer.{key} is '{reference}', {sentence}"):
        loop.train(settings(**{f"optimizer__{key}": reference}), workdir)
    assert not workdir.exists()
