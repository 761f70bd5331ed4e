"""One update: in parts, with rematerialisation, and on several devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import data, devices
from lossattn_jax.attention import ensemble, losses
from lossattn_jax.checkpoint import runs
from lossattn_jax.config import images as config_lib
from lossattn_jax.config.options import ModelOptions
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import metrics
from lossattn_jax.registry import Registry
from lossattn_jax.train.images.gradients import make_forward
from lossattn_jax.train.images.step import make_train_step, zero_metrics
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import Length, learning_rate_schedule
from lossattn_jax.train.state import create_state

SPEC = data.DatasetSpec("toy", 3, ("a", "b", "c"), image_shape=(16, 16, 3))
DRAW = np.random.default_rng(0)
BATCH = {
    "image": DRAW.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8),
    "label": DRAW.integers(0, 3, 8).astype(np.int32),
    "index": np.arange(8, dtype=np.int32),
}


def settings(**changes):
    """Plain gradient descent without augmentation, so that an update is a multiple of the gradient."""
    config = config_lib.default_config()
    config.model.backbone, config.model.width = "small", 0.1
    config.data.crop_padding, config.data.flip = 0, False
    config.optimizer.schedule, config.optimizer.learning_rate = "constant", 0.5
    config.optimizer.momentum, config.optimizer.weight_decay = 0.0, 0.0
    config.loss.patch_ramp_epochs = 0
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config_lib.resolve(config)


def optimizer_of(options):
    length = Length(options.train.epochs, 10)
    schedule = learning_rate_schedule(options.optimizer, length)
    return make_optimizer(options.optimizer, schedule, length)


def start(options):
    model = runs.build_model(options.model, SPEC, bn_axis_name=devices.AXIS)
    optimizer = optimizer_of(options)
    state = create_state(model, optimizer, SPEC.image_shape, options.seed, None)
    return make_train_step(model, optimizer, SPEC, options, 10), state


def updated(options, batch=BATCH, batch_stats=None):
    """The parameters before, the state after one step on `batch`, and what the step tells."""
    step, state = start(options)
    if batch_stats is not None:
        state = dataclasses.replace(state, batch_stats=batch_stats)
    totals = devices.replicate(zero_metrics(options.loss))
    after, told, _ = step(devices.replicate(state), totals, devices.shard_steps([batch]))
    return state.params, devices.unreplicate(after), metrics.compute(devices.unreplicate(told))


def squares(logits, labels):
    """Brier's score: squares of what the probabilities lack."""
    wrong = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.sum(jnp.square(wrong), axis=-1)


def test_a_loss_of_the_registry_is_chosen_by_its_name(monkeypatch):
    registered = {**losses.LOSSES, "brier": losses.Loss(squares, None, jax.nn.softmax)}
    monkeypatch.setattr(losses, "LOSSES", Registry("loss", losses.Loss, registered))
    options = settings(loss__name="brier", model__pooling="mean")
    before, after, told = updated(options)

    model = runs.build_model(options.model, SPEC)
    pixels = (BATCH["image"] / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    variables = {"params": before, "batch_stats": start(options)[1].batch_stats}
    images = jnp.asarray(pixels, jnp.float32)
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    outputs, _ = apply(variables, images)
    odds = np.exp(np.asarray(outputs.logits, np.float64))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    expected = np.square(probabilities - np.eye(3)[BATCH["label"]]).sum(axis=1).mean()
    assert told["loss"] == pytest.approx(expected, rel=1e-4)
    assert told["patch_loss"] == 0
    # The classifier's bias moves against the gradient of that score through the softmax.
    lacking = probabilities - np.eye(3)[BATCH["label"]]
    along = (lacking * probabilities).sum(axis=1, keepdims=True)
    gradient = (2 * probabilities * (lacking - along)).mean(axis=0)
    moved = np.asarray(after.params["classifier"]["bias"] - before["classifier"]["bias"])
    np.testing.assert_allclose(moved, -0.5 * gradient, rtol=1e-3, atol=1e-6)
    with pytest.raises(UserError, match="name is 'margin', but must be auto or cross_entropy or b"):
        runs.loss_kind(model, SPEC, "margin")


def assert_close(first, second, rtol=2e-4, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), first, second)


@pytest.mark.slow
def test_alternating_flips_are_those_of_the_images_places(monkeypatch):
    flips = np.array([True, False] * 4)
    monkeypatch.setattr(
        data, "alternate_flips", lambda key, indices, epoch: jnp.asarray(flips)[indices]
    )
    _, after, _ = updated(settings(data__flip=True, data__flip_order="alternate"))
    mirrored = {**BATCH, "image": BATCH["image"].copy()}
    mirrored["image"][::2] = mirrored["image"][::2, :, ::-1]
    _, by_hand, _ = updated(settings(), mirrored)
    jax.tree.map(np.testing.assert_array_equal, after.params, by_hand.params)


def test_parts_give_the_mean_of_their_gradients():
    _, first, told_first = updated(settings(), {k: v[::2] for k, v in BATCH.items()})
    second_half = {k: v[1::2] for k, v in BATCH.items()}
    _, second, told_second = updated(settings(), second_half, first.batch_stats)
    _, both, told = updated(settings(train__accumulate=2))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first.params, second.params)
    assert_close(both.params, mean)
    assert_close(both.batch_stats, second.batch_stats)
    for name in ("loss", "patch_loss", "accuracy", "attention_entropy"):
        assert told[name] == pytest.approx((told_first[name] + told_second[name]) / 2, rel=1e-4)


@pytest.mark.slow
def test_rematerialisation_changes_no_update():
    before, plain, told = updated(settings())
    _, again, told_again = updated(settings(train__remat=True))
    assert_close(again.params, plain.params)
    assert told_again == pytest.approx(told, rel=1e-4)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, plain.params)
    assert max(jax.tree.leaves(moved)) > 1e-2


@pytest.mark.parametrize("backbone", ["vgg11_bn", "resnet18"])
def test_rematerialisation_keeps_less_for_the_backward_pass(backbone):
    """By what JAX hands to it: on CPUs XLA computes much of the rest again in any case."""
    spec = data.get_spec("cifar10")
    model = runs.build_model(ModelOptions(backbone, width=0.125), spec)
    images = jax.ShapeDtypeStruct((8, *spec.image_shape), np.float32)
    key = jax.random.key(0)
    variables = jax.eval_shape(model.init, key, images)

    def kept(remat):
        forward = make_forward(model, remat)

        def back(params, batch_stats, images):
            def logits(params):
                return forward(params, batch_stats, images, key)[0].logits

            return jax.vjp(logits, params)[1]

        arrays = jax.tree.leaves(
            jax.eval_shape(back, variables["params"], variables["batch_stats"], images)
        )
        return sum(array.size for array in arrays)

    assert kept(True) < 0.3 * kept(False)


@pytest.mark.slow
def test_the_average_of_attention_is_kept_in_parts_too():
    changes = {"loss__consistency_weight": 1.0, "model__threshold": 0.0}
    attention = []
    for parts in (1, 2):
        options = settings(**changes, train__accumulate=parts)
        model = runs.build_model(options.model, SPEC, bn_axis_name=devices.AXIS)
        kept = ensemble.create(8, model.patch_grid(SPEC.image_shape).patches)
        optimizer = optimizer_of(options)
        state = create_state(model, optimizer, SPEC.image_shape, 0, kept)
        step = make_train_step(model, optimizer, SPEC, options, 10)
        totals = devices.replicate(zero_metrics(options.loss))
        after, _, _ = step(devices.replicate(state), totals, devices.shard_steps([BATCH]))
        attention.append(devices.unreplicate(after).ensemble.current)
    np.testing.assert_allclose(attention[1].sum(axis=1), 1, rtol=1e-5)
    # Not the same, since batch normalisation sees half as many images; nearest to its own image, though.
    distance = np.abs(attention[0][:, None] - attention[1][None]).sum(axis=-1)
    assert np.median(distance.argmin(axis=1) == np.arange(8)) == 1


def test_parts_have_to_divide_the_batch():
    with pytest.raises(
        UserError, match="accumulate is 3, but must divide config.train.batch_size, 128"
    ):
        settings(train__accumulate=3)
    with pytest.raises(
        UserError, match="accumulate is 1.5, but must be a whole number, at least 1"
    ):
        config = config_lib.default_config()
        config.train = {**config.train, "accumulate": 1.5}
        config_lib.check(config)
    with pytest.raises(
        UserError, match="accumulate is 16, but must divide the images of a device, 8"
    ):
        updated(settings(train__accumulate=16))


@pytest.mark.slow
def test_four_devices_take_the_same_parts_as_one(run_python, tmp_path):
    script = (
        "import numpy as np, jax\n"
        "from tests.train import test_step\n"
        "assert jax.device_count() == 4\n"
        "_, state, _ = test_step.updated(test_step.settings(train__accumulate=2))\n"
        f"np.savez({str(tmp_path / 'four.npz')!r}, *jax.tree.leaves(state.params))"
    )
    finished = run_python("-c", script, devices=4)
    assert finished.returncode == 0, finished.stderr
    _, state, _ = updated(settings(train__accumulate=2))
    with np.load(tmp_path / "four.npz") as four:
        for name, leaf in zip(four.files, jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(four[name], leaf, rtol=2e-4, atol=2e-6)
