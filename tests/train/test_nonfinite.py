"""Updates that are not finite: skipped without a trace, counted, told of, and in the end a dump to replay."""

import dataclasses
import errno
import json
import os
import shutil

import jax
import numpy as np
import pytest

from lossattn_jax import data, devices
from lossattn_jax.attention import ensemble
from lossattn_jax.checkpoint import runs
from lossattn_jax.checkpoint.store import Checkpoints
from lossattn_jax.config import images as config_lib
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import metrics
from lossattn_jax.train import dumps
from lossattn_jax.train.images import loop, nonfinite, training_data
from lossattn_jax.train.images.step import make_train_step, zero_metrics
from lossattn_jax.train.optimizer import at_step, make_optimizer
from lossattn_jax.train.replay import replay
from lossattn_jax.train.schedules import Length, learning_rate_schedule
from lossattn_jax.train.skips import Skips
from lossattn_jax.train.state import create_state
from tests.support import compilations
from tests.support.toys import GRADIENT, LOSS, NORM, SPEC, STEPS, Toy, settings, train_set


class Program:
    """The compiled update of a config, and a state to start from."""

    def __init__(self, config, steps_per_epoch=STEPS):
        model = Toy()
        self.options = options = config_lib.resolve(config)
        length = Length(options.train.epochs, steps_per_epoch)
        schedule = learning_rate_schedule(options.optimizer, length)
        optimizer = make_optimizer(options.optimizer, schedule, length)
        kept = ensemble.create(32, 4)
        self.state = create_state(model, optimizer, SPEC.image_shape, 0, kept)
        self.step = make_train_step(model, optimizer, SPEC, options, steps_per_epoch)

    def run(self, images, updates, state=None, at_once=1):
        """The states before and after every dispatch, and the last metrics' history by update."""
        state = devices.unreplicate(devices.replicate(self.state if state is None else state))
        states, told = [state], []
        totals = devices.replicate(zero_metrics(self.options.loss))
        replicated = devices.replicate(state)
        for begin in range(int(state.step), int(state.step) + updates, at_once):
            places = [data.train_indices(0, begin + i, 32, 8) for i in range(at_once)]
            batch = devices.shard_steps([images.read(p) for p in places])
            replicated, totals, history = self.step(replicated, totals, batch)
            states.append(devices.unreplicate(replicated))
            history = devices.unreplicate(history)
            told += [jax.tree.map(lambda a, i=i: a[i], history) for i in range(at_once)]
        return states, told


@pytest.fixture(scope="module")
def program():
    return Program(settings())


def place_of(step):
    """The place of an image that the update after `step` takes."""
    return int(data.train_indices(0, step, 32, 8)[3])


def equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def advanced(state, skipped=1):
    """`state` as it is when the next update leaves no trace."""
    step = state.step + np.int32(1)
    return dataclasses.replace(
        state, step=step, opt_state=at_step(state.opt_state, step), skipped=np.int32(skipped)
    )


@pytest.mark.parametrize("step", [0, 2, 5])
@pytest.mark.parametrize("kind", [LOSS, GRADIENT, NORM])
def test_an_update_that_is_not_finite_leaves_no_trace(program, kind, step):
    good, bad = train_set({}), train_set({place_of(step): kind})
    before = program.run(good, step)[0][-1]
    (_, after), told = program.run(bad, 1, before)
    equal(after, advanced(before))
    assert told[0]["skipped"].total == 1 and told[0]["loss"].count == 0
    # And the next is that of a run which never saw the batch.
    states, _ = program.run(good, 1, after)
    expected, _ = program.run(good, 1, dataclasses.replace(advanced(before), skipped=np.int32(1)))
    equal(states[1], expected[1])
    assert states[1].skipped == 0
    assert np.abs(states[1].params["Dense_0"]["kernel"] - before.params["Dense_0"]["kernel"]).max()


def test_an_epoch_begins_with_its_first_update_that_is_made(program):
    """Which is when the average of attention takes in that of the epoch before."""
    bad = place_of(STEPS)
    states, _ = program.run(train_set({bad: LOSS}), STEPS + 2)
    first_epoch = [data.train_indices(0, step, 32, 8) for step in range(STEPS)]
    visited = np.ones(32)
    visited[next(batch for batch in first_epoch if bad in batch)] = 0
    np.testing.assert_array_equal(states[STEPS + 1].ensemble.epochs, 0)
    np.testing.assert_array_equal(states[STEPS + 2].ensemble.epochs, visited)


def test_metrics_are_of_the_updates_that_were_made(program, caplog):
    images = train_set({place_of(1): LOSS})
    _, told = program.run(images, 3)
    assert told[2]["loss"].count == 16
    means = nonfinite.compute_means(told[2], 3, Skips(1, 10))
    assert means["skipped"] == 1 and "first_skipped" not in means
    assert "1 of the last 3 updates were skipped" in caplog.text
    assert "(first after step 1)" in caplog.text
    assert all(np.isfinite(value) for value in means.values())
    first = metrics.compute(told[0])
    third = program.run(images, 1, program.run(images, 2)[0][-1])[1][0]
    both = (first["loss"] + metrics.compute(third)["loss"]) / 2
    assert means["loss"] == pytest.approx(both, rel=1e-6)
    second = program.run(images, 1, program.run(images, 1)[0][-1])[1][0]
    nothing = nonfinite.compute_means(second, 2, Skips(1, 10))
    assert np.isnan(nothing["loss"]) and nothing["skipped"] == 1


@pytest.mark.slow
def test_after_so_many_in_a_row_nothing_moves_any_more():
    program = Program(settings(train__max_skipped=2))
    states, _ = program.run(train_set({place_of(s): LOSS for s in (1, 2)}), 5)
    frozen = states[1]
    for count, state in enumerate(states[2:], 1):
        frozen = advanced(frozen, count)
        equal(state, frozen)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"train__accumulate": 2}, {}], ids=["in parts", "two at once"])
def test_parts_and_several_updates_at_once_skip_alike(program, changes):
    other, at_once = (Program(settings(**changes)), 1) if changes else (program, 2)
    states, told = other.run(train_set({place_of(2): GRADIENT}), 4, at_once=at_once)
    assert [m["skipped"].total for m in told] == [0, 0, 1, 0]  # counted anew after the third
    assert states[-1].step == 4 and states[-1].skipped == 0
    if not changes:
        alone, _ = program.run(train_set({place_of(2): GRADIENT}), 4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            states[-1],
            alone[-1],
        )


OPTIMIZERS = {
    "sgd": {"optimizer__name": "sgd", "optimizer__nesterov": True},
    "adam": {"optimizer__name": "adam"},
    "adamw": {"optimizer__name": "adamw"},
    "adam with ramps": {
        "optimizer__name": "adam",
        "optimizer__schedule": "ramps",
        "optimizer__ramp_down_epochs": 1,
        "optimizer__ramp_up_epochs": 1,
        "optimizer__momentum_end": 0.5,
        "optimizer__beta2_end": 0.99,
    },
}


@pytest.mark.parametrize(
    "name",
    [name if name == "adam" else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS],
)
def test_no_optimiser_zeroes_parameters_for_what_is_not_finite(name):
    """As the papers' Adam did, in silence."""
    program = Program(settings(**OPTIMIZERS[name]))
    (start, *_, before), _ = program.run(train_set({}), 2)
    for kind in (LOSS, GRADIENT, NORM):
        (_, after), _ = program.run(train_set({place_of(2): kind}), 1, before)
        equal(after, advanced(before))
    states, _ = program.run(train_set({place_of(2): LOSS}), 3)
    kernel = states[-1].params["Dense_0"]["kernel"]
    assert (kernel != 0).all() and np.isfinite(kernel).all()
    # The schedule has gone on: its counts are those of a run of three updates.
    plain, _ = program.run(train_set({}), 3)
    if "hyperparams" in str(type(plain[-1].opt_state[-1])) or name == "adam with ramps":
        ours, theirs = (s[-1].opt_state[-1].hyperparams_states for s in (states, plain))
        equal(ours, theirs)
    assert np.abs(kernel - start.params["Dense_0"]["kernel"]).max() < 0.5


def lines(workdir):
    told = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in told]


def last_state(workdir):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        program = Program(settings())
        return checkpoints.restore(checkpoints.latest_step(), program.state.items())


@pytest.mark.slow
def test_a_run_counts_warns_and_resumes(toy_runs, tmp_path, caplog):
    toy_runs[5] = GRADIENT
    with compilations.counted() as names:
        counts = []
        save = Checkpoints.save

        def counted(*arguments):
            save(*arguments)
            counts.append(len(names))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "save", counted)
            loop.train(settings(optimizer__schedule="constant"), tmp_path / "whole")
    assert len(set(counts)) == 1, "something was compiled after the first epoch"
    whole = [line for line in lines(tmp_path / "whole") if line["kind"] == "train"]
    assert sum(line["skipped"] for line in whole) == 3
    assert all(line["loss"] is not None for line in whole)
    warned = caplog.text.count("updates were skipped because loss or gradient was not finite")
    assert warned == sum(line["skipped"] > 0 for line in whole) > 1
    for epochs in (1, 3):
        config = settings(optimizer__schedule="constant", train__epochs=epochs)
        loop.train(config, tmp_path / "resumed")
    equal(last_state(tmp_path / "whole"), last_state(tmp_path / "resumed"))


def refuses_mixed_parts(dump, copy):
    """Of a dump that replays, copies with something of another dump, or without its record."""
    with np.load(dump / dumps.ARRAYS_NAME) as stored:
        arrays = dict(stored)

    def write_arrays(folder, name, change):
        np.savez(folder / dumps.ARRAYS_NAME, **{**arrays, name: arrays[name] + change})

    def edit_record(folder, before, after):
        path = folder / dumps.RECORD_NAME
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))

    mixed = r"its arrays are not those that were written with dump\.json; the same training"
    edited = r"cannot be read .*dump\.json is not as it was written; the same training"
    for change, sentence in (
        (lambda folder: write_arrays(folder, "batch/label", 1), mixed),
        (lambda folder: write_arrays(folder, "state/variables/params/extra", 1), mixed),
        (lambda folder: edit_record(folder, '"step": 5', '"step": 6'), edited),
        (lambda folder: edit_record(folder, '.momentum": 0.9', '.momentum": 0.5'), edited),
        (lambda folder: (folder / dumps.RECORD_NAME).unlink(), r"it has no dump\.json"),
        (lambda folder: (folder / dumps.ARRAYS_NAME).unlink(), r"it has no arrays\.npz"),
    ):
        shutil.copytree(dump, copy)
        change(copy)
        with pytest.raises(UserError, match=sentence):
            replay(copy)
        shutil.rmtree(copy)


def test_too_many_in_a_row_end_the_run_with_a_dump_that_replays(toy_runs, tmp_path, monkeypatch):
    # Of the updates after 5 and after 6 an image each, which are in one batch of the epoch before.
    earlier = data.epoch_order(0, 0, 32)[: 8 * STEPS].reshape(STEPS, 8)
    pairs = [
        [set(data.train_indices(0, step, 32, 8)) & set(batch) for step in (5, 6)]
        for batch in earlier
    ]
    toy_runs |= {int(min(images)): LOSS for images in next(p for p in pairs if all(p))}
    config = settings(train__max_skipped=2, log__every_steps=100)
    config.train.epochs = 2
    with pytest.raises(UserError) as error:
        loop.train(config, tmp_path)
    folder = tmp_path / "nonfinite" / "step_5"
    sentence = str(error.value)
    places = data.train_indices(0, 5, 32, 8).tolist()
    for part in (
        " updates in a row, the first after step 5 on the images ",
        ", ".join(map(str, places)),
        f"--dump={folder} says",
        "a lower config.optimizer.learning_rate than 0.05",
    ):
        assert part in sentence
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [STEPS]
    # The dump has the data set, so that its files need not be there.
    assert dumps.read(folder).content["data_set"]["class_names"] == ["a", "b", "c"]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "spec_of", None)
        told = "\n".join(replay(folder))
    bad = [place for place in places if place in toy_runs]
    assert "update after step 5 was made again on 8 images" in told
    assert "state were finite" in told
    assert f"The losses of {len(bad)} of 8 images are not finite" in told
    for place in bad:
        assert f"{place} (nan)" in told
    assert "Dense_0/kernel" in told
    refuses_mixed_parts(folder, tmp_path / "mixed")
    # What is dumped is the state before.
    program = Program(config)
    stored = dumps.read(folder).restore_state(program.state.items())
    before = program.run(train_set(toy_runs), 5)[0][-1]
    assert int(stored["training"]["step"]) == 5
    jax.tree.map(np.testing.assert_array_equal, stored["training"]["opt_state"], before.opt_state)
    # Again: the dump of before goes.
    with pytest.raises(UserError, match="the first after step 5 on the images"):
        loop.train(config, tmp_path)


def test_an_unwritable_dump_does_not_hide_why_a_run_ends(toy_runs, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    toy_runs |= {place_of(0): LOSS, place_of(1): LOSS}
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="in 2 updates in a row, the first after step 0") as error:
        loop.train(settings(train__max_skipped=2, log__every_steps=1), tmp_path)
    folder = tmp_path / "nonfinite" / "step_0"
    told = f"nothing was kept (the dump {folder} cannot be written: No space left on device), and"
    assert told in str(error.value)


def test_damaged_arrays_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / dumps.ARRAYS_NAME
    np.savez(path, **train_set({}).read(np.arange(8)))
    whole = path.read_bytes()
    assert len(dumps.read_arrays(path)["index"]) == 8
    flipped = bytearray(whole)
    flipped[whole.index(b"image.npy") + 300] ^= 8
    for damaged in (whole[:400], whole[:-30], b"", bytes(flipped), b"PK" + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"arrays\.npz cannot be read as arrays of a skipped"):
            dumps.read_arrays(path)


def test_a_run_goes_on_with_its_own_images_only(toy_runs, tmp_path, caplog):
    """Of one name and size."""
    constant = {"optimizer__schedule": "constant"}  # which more epochs do not raise again
    loop.train(settings(train__epochs=1, **constant), tmp_path)
    record = tmp_path / training_data.RECORD_NAME
    whole = record.read_bytes()
    toy_runs |= {3: 7}
    sentence = r"than the run in .* was started with \(other training images\): give the folder"
    with pytest.raises(UserError, match=sentence):
        loop.train(settings(train__epochs=2, **constant), tmp_path)
    assert record.read_bytes() == whole
    toy_runs.clear()
    loop.train(settings(train__epochs=2, **constant), tmp_path)
    assert record.read_bytes() == whole
    assert "warning: " not in caplog.text


def test_where_a_run_does_not_say_its_images_it_warns(tmp_path, caplog):
    images = training_data.describe(train_set({}), train_set({3: 7}))
    training_data.refuse_other(tmp_path, images, "data")
    assert "was started before runs said by digests" in caplog.text
    training_data.write(tmp_path, images, "toy")
    caplog.clear()
    training_data.refuse_other(tmp_path, images, "data")
    assert not caplog.text
    other = training_data.describe(train_set({}), train_set({3: 8}))
    with pytest.raises(UserError, match=r"the data set in data is .* \(other test images\)"):
        training_data.refuse_other(tmp_path, other, "data")
    path = tmp_path / training_data.RECORD_NAME
    path.write_text(path.read_text().replace("toy", "tor"))
    training_data.refuse_other(tmp_path, other, "data")
    assert "data.json is not as it was written: whether the images are the same" in caplog.text


@pytest.mark.slow
def test_replay_says_what_was_wrong_and_what_only_overflows(toy_runs, tmp_path):
    toy_runs |= {place_of(0): NORM, place_of(1): NORM}
    with pytest.raises(UserError, match="in 2 updates in a row, the first after step 0"):
        loop.train(settings(train__max_skipped=2, log__every_steps=1), tmp_path)
    told = "\n".join(replay(tmp_path / "nonfinite" / "step_0"))
    assert "The losses of all images are finite" in told
    assert "most of it comes from extra" in told
    with pytest.raises(UserError, match="nothing is not a dump of a skipped update"):
        replay(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"is not a dump of a skipped update: it has no dump\.json"):
        replay(tmp_path)


def test_arrays_in_no_regular_file_or_packed_are_refused(tmp_path):
    path = tmp_path / dumps.ARRAYS_NAME
    os.mkfifo(path)
    with pytest.raises(UserError, match="cannot be read .* it is not a regular file"):
        dumps.read_arrays(path)
    path.unlink()
    np.savez_compressed(path, image=np.zeros((9000, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="it has .* bytes and would unpack to 432000"):
        dumps.read_arrays(path)


@pytest.mark.slow
def test_four_devices_skip_as_one(program, run_python, tmp_path):
    script = (
        "import numpy as np, jax\n"
        "from tests.train import test_nonfinite as t\n"
        "assert jax.device_count() == 4\n"
        "images = t.train_set({t.place_of(1): t.LOSS})\n"
        "states, told = t.Program(t.settings()).run(images, 3)\n"
        "assert [int(m['skipped'].total) for m in told] == [0, 1, 1]\n"
        "t.equal(states[2], t.advanced(states[1]))\n"
        f"np.savez({str(tmp_path / 'four.npz')!r}, *jax.tree.leaves(states[-1].params))"
    )
    finished = run_python("-c", script, devices=4)
    assert finished.returncode == 0, finished.stderr
