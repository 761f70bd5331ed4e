"""The last batch of an epoch, of fewer images, where it is not dropped."""

import itertools

import jax
import numpy as np
import pytest

from lossattn_jax import data, devices
from lossattn_jax.checkpoint.store import Checkpoints
from lossattn_jax.config import images as config_lib
from lossattn_jax.errors import UserError
from lossattn_jax.train.images import feed, loop
from lossattn_jax.train.images.step import zero_metrics
from tests.support.toys import SPEC, settings, train_set
from tests.train import test_step
from tests.train.test_nonfinite import Program


def test_an_epoch_takes_every_example_once():
    images = np.zeros((20, 4, 4, 3), np.uint8)
    dataset = data.ArrayDataset(SPEC, "train", images, np.zeros(20, np.int32))
    batches = dataset.train_batches(batch_size=6, seed=1, drop_last=False)
    for epoch in range(2):
        places = [batch["index"] for batch in itertools.islice(batches, 4)]
        assert [len(part) for part in places] == [6, 6, 6, 2]
        np.testing.assert_array_equal(np.concatenate(places), data.epoch_order(1, epoch, 20))
    resumed = dataset.train_batches(batch_size=6, seed=1, start_step=3, drop_last=False)
    np.testing.assert_array_equal(next(resumed)["index"], data.epoch_order(1, 0, 20)[18:])
    np.testing.assert_array_equal(next(resumed)["index"], data.epoch_order(1, 1, 20)[:6])
    parts = [
        next(
            dataset.train_batches(
                batch_size=6,
                seed=1,
                start_step=3,
                process_index=process,
                process_count=2,
                drop_last=False,
            )
        )["index"]
        for process in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), data.epoch_order(1, 0, 20)[18:])


def test_steps_of_cifars_epoch():
    assert data.steps_per_epoch(50_000, 128, drop_last=False) == 391
    assert data.steps_per_epoch(50_000, 128) == 390
    assert data.steps_per_epoch(5, 8, drop_last=False) == 1
    with pytest.raises(UserError, match="config.train.batch_size is 8, but must be between 1"):
        data.steps_per_epoch(5, 8)


@pytest.mark.parametrize(
    ("start", "most", "sizes"),
    [(0, 3, [3, 1, 3, 1]), (2, 3, [1, 1, 3, 1]), (3, 2, [1, 2, 1, 1]), (0, 1, [1] * 8)],
)
def test_the_last_batch_is_a_dispatch_by_itself(start, most, sizes):
    assert feed.dispatch_sizes(start, 8, 4, most, last_alone=True) == sizes


def stored_params(workdir, program):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        return step, checkpoints.restore(step, program.state.items())["variables"]["params"]


@pytest.mark.slow
def test_a_run_makes_the_updates_of_the_batches_alone(toy_runs, tmp_path):
    """32 images in batches of 12, 12 and 8, also where two updates go in one dispatch and it resumes."""
    changes = {"data__drop_last": False, "train__batch_size": 12, "optimizer__schedule": "constant"}
    changes["train__epochs"] = 2
    loop.train(settings(**changes, train__steps_per_dispatch=2, checkpoint__keep=1), tmp_path)
    program = Program(settings(**changes), steps_per_epoch=3)
    images = train_set({})
    state = devices.replicate(program.state)
    totals = devices.replicate(zero_metrics(program.options.loss))
    for epoch in range(2):
        for places in np.split(data.epoch_order(0, epoch, 32), [12, 24]):
            batch = devices.shard_steps([images.read(places)])
            state, totals, _ = program.step(state, totals, batch)
    step, params = stored_params(tmp_path, program)
    assert step == 6
    expected = devices.unreplicate(state).params
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected
    )


def test_an_update_of_few_images_is_that_of_numpy():
    """The classifier's bias moves against the mean gradient of the cross-entropy of these images alone."""
    options = test_step.settings(model__pooling="mean", model__head="none")
    few = {name: array[:5] for name, array in test_step.BATCH.items()}
    before, after, told = test_step.updated(options, few)
    model = test_step.runs.build_model(options.model, test_step.SPEC)
    pixels = (few["image"] / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    variables = {"params": before, "batch_stats": test_step.start(options)[1].batch_stats}
    outputs, _ = model.apply(variables, np.float32(pixels), train=True, mutable=["batch_stats"])
    odds = np.exp(np.asarray(outputs.logits, np.float64))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    right = np.eye(3)[few["label"]]
    assert told["loss"] == pytest.approx(
        -np.log((probabilities * right).sum(axis=1)).mean(), rel=1e-4
    )
    moved = np.asarray(after.params["classifier"]["bias"] - before["classifier"]["bias"])
    np.testing.assert_allclose(
        moved, -0.5 * (probabilities - right).mean(axis=0), rtol=1e-3, atol=1e-6
    )


@pytest.mark.slow
def test_four_devices_share_a_small_batch_as_one_takes_it(run_python, tmp_path):
    script = (
        "import numpy as np, jax\n"
        "from tests.train import test_step\n"
        "few = {name: array[:4] for name, array in test_step.BATCH.items()}\n"
        "_, state, _ = test_step.updated(test_step.settings(), few)\n"
        f"np.savez({str(tmp_path / 'four.npz')!r}, *jax.tree.leaves(state.params))"
    )
    finished = run_python("-c", script, devices=4)
    assert finished.returncode == 0, finished.stderr
    few = {name: array[:4] for name, array in test_step.BATCH.items()}
    _, state, _ = test_step.updated(test_step.settings(), few)
    with np.load(tmp_path / "four.npz") as four:
        for name, leaf in zip(four.files, jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(four[name], leaf, rtol=2e-4, atol=2e-6)


def test_a_last_batch_that_cannot_be_shared_is_refused(toy_runs, tmp_path):
    changes = {"train__batch_size": 12, "train__accumulate": 3, "data__drop_last": False}
    with pytest.raises(UserError, match="drop_last is False, but the last batch .* has 8 images"):
        loop.train(settings(**changes), tmp_path)
    config = settings()
    config.data.drop_last = False
    assert not config_lib.resolve(config).data.drop_last
