"""Several updates in one call of a program, and examples that lie on the devices: both change nothing."""

import json
import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import data, devices
from lossattn_jax.attention import pooling
from lossattn_jax.checkpoint import runs
from lossattn_jax.config import images as config_lib
from lossattn_jax.evaluate import metrics
from lossattn_jax.models import Outputs
from lossattn_jax.train.images import feed, loop, memory
from lossattn_jax.train.images.step import make_train_step, zero_metrics
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import Length, learning_rate_schedule
from lossattn_jax.train.state import create_state
from tests.support import shrunk

SPEC = data.DatasetSpec("toy", 3, ("a", "b", "c"), image_shape=(4, 4, 3))
DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
LABELS = DRAW.integers(0, 3, 40).astype(np.int32)
TRAIN_SET = data.ArrayDataset(SPEC, "train", IMAGES, LABELS)
STEPS = 5  # of 8 images an epoch


class Toy(nn.Module):
    """As little of a network as compiles in no time: each row of the image is a patch."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        patch_logits = nn.Dense(3)(images.reshape(*images.shape[:2], -1))
        attention = pooling.loss_attention(patch_logits, grid=4)
        logits = pooling.weighted_sum(patch_logits, attention)
        return Outputs(logits, patch_logits, attention)


def job(most, on_device="off", epochs=2):
    """What `feed` takes of a job."""
    config = config_lib.default_config()
    config.train.update(batch_size=8, epochs=epochs, steps_per_dispatch=most)
    config.data.update(crop_padding=0, flip=True, on_device=on_device)
    config.optimizer.update(schedule="constant", learning_rate=0.1)
    config.log.every_steps = 3
    config.loss.patch_ramp_epochs = 1
    return types.SimpleNamespace(
        options=config_lib.resolve(config),
        train_set=TRAIN_SET,
        steps_per_epoch=STEPS,
        total_steps=epochs * STEPS,
        has_partial_batch=False,
    )


@pytest.fixture(scope="module")
def program():
    """The compiled updates, and the state to start from."""
    options, model = job(1).options, Toy()
    length = Length(options.train.epochs, STEPS)
    schedule = learning_rate_schedule(options.optimizer, length)
    optimizer = make_optimizer(options.optimizer, schedule, length)
    state = create_state(model, optimizer, SPEC.image_shape, 0)
    return make_train_step(model, optimizer, SPEC, options, STEPS), state


def trained(program, job, start=0, stop=None, state=None):
    """The state after the dispatches from `start` to `stop`, and the metrics by update."""
    steps, fresh = program
    examples = feed.on_devices(job)
    kept = () if examples is None else (examples,)
    replicated = devices.replicate(state or fresh)
    totals = devices.replicate(zero_metrics(job.options.loss))
    sizes, told = feed.dispatches(job, start), {}
    with feed.open_batches(job, start, sizes, bool(kept)) as batches:
        for batch in batches:
            replicated, totals, history = steps(replicated, totals, batch, *kept)
            history = devices.unreplicate(history)
            for place in range(history["loss"].total.size):
                start += 1
                told[start] = metrics.compute(
                    jax.tree.map(lambda array, place=place: array[place], history)
                )
                told[start]["images"] = float(history["accuracy"].count[place])
            if start == stop:
                break
    return devices.unreplicate(replicated), told


@pytest.fixture(scope="module")
def one_by_one(program):
    return trained(program, job(1))


@pytest.fixture(scope="module")
def two_at_once(program):
    return trained(program, job(2))


def assert_close(first, second, tolerance=1e-5):
    def compare(a, b):
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * max(np.abs(a).max(), 1e-3))

    jax.tree.map(compare, first, second)


def test_metrics_start_anew_after_each_step_that_is_logged(one_by_one):
    _, told = one_by_one
    assert [told[step]["images"] for step in range(1, 11)] == [8, 16, 24] * 3 + [8]


def test_two_updates_at_once_are_two_updates(one_by_one, two_at_once):
    """Five an epoch, so that an epoch ends with one alone."""
    assert_close(one_by_one[0], two_at_once[0])
    for step, values in one_by_one[1].items():
        assert two_at_once[1][step] == pytest.approx(values, rel=1e-5), step


@pytest.mark.parametrize("stop", [2, 5])  # within an epoch and at its end
def test_a_resumed_run_has_the_same_bits(program, two_at_once, stop):
    state, _ = trained(program, job(2), stop=stop)
    assert int(state.step) == stop
    again, _ = trained(program, job(2), start=stop, state=state)
    jax.tree.map(np.testing.assert_array_equal, two_at_once[0], again)


def test_examples_on_the_devices_train_as_the_hosts(program, one_by_one):
    """Two programs, which a compiler may round differently."""
    state, by_update = trained(program, job(1, on_device="on"))
    assert_close(one_by_one[0], state, 1e-6)
    for step, values in one_by_one[1].items():
        assert by_update[step] == pytest.approx(values, rel=1e-6), step


def test_one_update_needs_no_loop(program):
    steps, state = program
    state, totals = devices.replicate((state, zero_metrics(job(1).options.loss)))
    for most, scans in ((1, False), (2, True)):
        with feed.open_batches(job(most), 0, [most], False) as batches:
            text = str(jax.make_jaxpr(steps)(state, totals, next(batches)))
        assert ("scan[" in text) == scans


@pytest.mark.parametrize(
    ("start", "most", "sizes"),
    [
        (0, 1, [1] * 12),
        (0, 4, [4, 2, 4, 2]),
        (0, 100, [6, 6]),
        (1, 4, [3, 2, 4, 2]),  # within an epoch: first to the next multiple
        (5, 4, [1, 4, 2]),
        (6, 4, [4, 2]),
        (12, 4, []),
    ],
)
def test_dispatches_end_with_the_epoch(start, most, sizes):
    assert feed.dispatch_sizes(start, 12, 6, most) == sizes


@pytest.mark.parametrize(
    ("backend", "left", "wanted", "there"),
    [
        ("cpu", None, "auto", False),
        ("cpu", None, "on", True),
        ("gpu", 4 * IMAGES.nbytes, "auto", True),
        ("gpu", 4 * IMAGES.nbytes - 1, "auto", False),
        ("gpu", None, "auto", False),
        ("gpu", 2**40, "off", False),
    ],
)
def test_examples_lie_on_devices_that_have_room(monkeypatch, backend, left, wanted, there):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(memory, "free_bytes", lambda: left)
    found = feed.on_devices(job(1, on_device=wanted))
    assert (found is not None) == there
    if there:
        np.testing.assert_array_equal(devices.unreplicate(found)["image"], IMAGES)


@pytest.mark.slow
def test_four_updates_at_once_write_the_same_and_resume_exactly(scenes_dir, tmp_path):
    """Six steps an epoch, told of after every third; the second run has its images on the devices."""

    def train(name, epochs=3, **options):
        fixed = {"optimizer__schedule": "constant", "optimizer__warmup_epochs": 0.0}
        fixed |= {"optimizer__learning_rate": 0.02, "log__every_steps": 4, "log__pictures": 0}
        options = {**fixed, "train__epochs": epochs, "model__width": 0.0625, **options}
        loop.train(shrunk.config(scenes_dir, **options), tmp_path / name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return runs.load(tmp_path / name).variables, [json.loads(line) for line in lines]

    four = {"train__steps_per_dispatch": 4}
    one, told_one = train("one", log__every_steps=3)
    several, told = train("several", log__every_steps=3, data__on_device="on", **four)
    assert_close(one, several)
    timed = ("seconds", "images_per_second", "input_wait")
    for line, other in zip(told_one, told, strict=True):
        assert line.keys() == other.keys()
        assert (line.pop("kind"), line["step"]) == (other.pop("kind"), other["step"])
        values = {name: value for name, value in line.items() if name not in timed}
        assert {name: other[name] for name in values} == pytest.approx(values, rel=1e-5)
    assert [line["step"] for line in told if "input_wait" in line] == [3, 6, 9, 12, 15, 18]
    whole, told_whole = train("whole", **four)
    assert [line["step"] for line in told_whole if line["kind"] == "train"] == [4, 8, 12, 16, 18]
    assert 0 <= told_whole[0]["input_wait"] <= 1
    train("parts", epochs=1, **four)
    parts, _ = train("parts", **four)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
