"""Where a run goes on, after damage and with more epochs; one training at a time in a workdir."""

import math
import shutil
import types

import numpy as np
import pytest

from lossattn_jax.checkpoint.store import DAMAGED_NAME, Checkpoints
from lossattn_jax.config.images import default_config, resolve
from lossattn_jax.train import preemption
from lossattn_jax.train.images import job, resume
from lossattn_jax.train.schedules import Length, learning_rate_schedule

LIKE = {"state": {"a": np.zeros((2, 3), np.float32), "step": np.int32(0)}}


def save(workdir, *steps):
    with Checkpoints(workdir, keep=9) as checkpoints:
        for step in steps:
            items = {"state": {"a": np.full((2, 3), step, np.float32), "step": np.int32(step)}}
            checkpoints.save(step, items, {"accuracy": step / 10})


def files(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def test_any_damaged_file_does_no_harm_or_costs_one_checkpoint(tmp_path):
    save(tmp_path / "whole", 1, 2)
    left = set()
    for number, name in enumerate(files(tmp_path / "whole", 2)):
        workdir = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", workdir)
        path = workdir / "checkpoints" / "2" / name
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
        with Checkpoints(workdir) as checkpoints:
            state = resume.newest_intact(checkpoints, lambda s, c=checkpoints: c.restore(s, LIKE))
            found = int(state["state"]["step"])
            np.testing.assert_array_equal(state["state"]["a"], np.full((2, 3), found))
            if found != 2:
                assert (workdir / DAMAGED_NAME / "2").is_dir(), name
                left.add(str(name))
            checkpoints.save(found + 1, LIKE, None)
        with Checkpoints(workdir) as checkpoints:
            assert checkpoints.latest_step() == found + 1, name
    # What Orbax leaves of a save by process, and its markers of success, are not read.
    read = {"_CHECKPOINT_METADATA", "digests/metadata", "metrics/metrics", "state/_METADATA"}
    assert read | {"state/manifest.ocdbt"} <= left
    assert any(name.startswith("state/d/") for name in left)


def test_without_an_intact_checkpoint_nothing_can_be_resumed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text('{"accuracy": 0.2}')
    with Checkpoints(tmp_path) as checkpoints:
        assert resume.newest_intact(checkpoints, lambda s: checkpoints.restore(s, LIKE)) is None
        assert checkpoints.steps() == []


def test_a_stop_is_asked_for_where_the_loop_looks():
    stop, saves = preemption.Stop(), []

    def save():
        saves.append(1)
        return "all is saved"

    stop.begin(lambda: "nothing is saved yet", save)
    stop.check()
    with stop.interruptible():
        stop.ask()
    assert not saves
    with pytest.raises(preemption.Preemption):
        stop.check()
    assert saves == [1]


def test_the_updates_of_a_loop_end_where_it_is_asked_to_stop():
    stop, saves, updates = preemption.Stop(), [], []
    stop.begin(lambda: "", lambda: saves.append(1) or "")
    assert list(stop.between("abc")) == ["a", "b", "c"] and not saves
    with pytest.raises(preemption.Preemption):
        for update in stop.between(range(5)):
            updates.append(update)
            if update == 2:
                stop.ask()
    assert updates == [0, 1, 2] and saves == [1]


@pytest.mark.parametrize(
    ("schedule", "step", "rates"),
    [
        ("cosine", 4, (0.14645, 0.5)),  # (1 + cos(3/4 pi)) / 2, and half of the way down
        ("cosine", 3, (0.5, 0.69134)),  # (1 + cos(3/8 pi)) / 2
        ("one_cycle", 4, (0.25, 0.5)),
        ("ramps", 4, (math.exp(-(0.5**2) / 2), 1.0)),
        ("cosine", 0, None),  # nothing was done with the other rates
        ("cosine", 8, None),  # nothing is left to do
        ("step", 4, None),
        ("constant", 4, None),
    ],
)
def test_more_epochs_that_raise_the_rate_again_are_warned_of(caplog, schedule, step, rates):
    stored = default_config()
    stored.optimizer.learning_rate, stored.optimizer.schedule = 1.0, schedule
    stored.optimizer.ramp_up_epochs, stored.optimizer.ramp_down_epochs = 0, 2
    stored.train.epochs = 2
    longer = stored.copy_and_resolve_references()
    longer.train.epochs = 4
    for config in (stored, longer):
        caplog.clear()
        told = types.SimpleNamespace(
            options=resolve(config),
            steps_per_epoch=2,
            total_steps=2 * config.train.epochs,
            learning_rate=learning_rate_schedule(config.optimizer, Length(config.train.epochs, 2)),
        )
        job.warn_of_rise(told, resolve(stored), step)
        if config is stored or rates is None:
            assert not caplog.text
    if rates is not None:
        sentence = f"from {rates[0]:.4g} in the last update to {rates[1]:.4g} in the next"
        assert caplog.text.count(sentence) == 1
        assert "with config.train.epochs=4 instead of 2" in caplog.text
