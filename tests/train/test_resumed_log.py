"""What a run says that is killed, or whose workdir goes: what one says that is not, or that it went."""

import json
import shutil

import pytest

from lossattn_jax import data
from lossattn_jax.checkpoint.store import Checkpoints
from lossattn_jax.errors import UserError
from lossattn_jax.train.images import loop
from tests.support.toys import GRADIENT, LOSS, STEPS, settings


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


class Killed(Exception):
    """What ends a run right after a checkpoint."""


def train_in_pieces(config, workdir):
    """Trains, killed after each checkpoint but the last."""
    save = Checkpoints.save
    last = config.train.epochs * STEPS

    def save_and_die(self, step, *arguments):
        save(self, step, *arguments)
        self.wait()
        if self.workdir == workdir and step < last:  # not of a dump
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        for _ in range(config.train.epochs - 1):
            with pytest.raises(Killed):
                loop.train(config, workdir)
        loop.train(config, workdir)


@pytest.mark.slow
def test_a_resumed_run_logs_the_lines_of_an_uninterrupted_one(toy_runs, tmp_path):
    """Its checkpoint of the fourth step lies between two lines."""
    toy_runs[5] = GRADIENT
    config = settings(log__every_steps=3, checkpoint__every_epochs=1, train__epochs=2)
    loop.train(config, tmp_path / "whole")
    train_in_pieces(config, tmp_path / "resumed")
    timed = ("images_per_second", "input_wait", "seconds")
    whole, resumed = (
        [{name: value for name, value in line.items() if name not in timed} for line in told]
        for told in (lines(tmp_path / "whole"), lines(tmp_path / "resumed"))
    )
    assert [line["step"] for line in whole if line["kind"] == "train"] == [3, 6, 8]
    assert sum(line.get("skipped", 0) for line in whole) == 2
    assert whole == resumed


def test_a_row_of_skipped_updates_goes_on_after_a_checkpoint(toy_runs, tmp_path):
    last, first = (set(data.train_indices(0, step, 32, 8)) for step in (3, 4))
    toy_runs[int(min(last & first))] = LOSS
    config = settings(train__max_skipped=2, log__every_steps=100, train__epochs=2)
    config.checkpoint.every_epochs = 1
    for train in (loop.train, train_in_pieces):
        workdir = tmp_path / train.__name__
        with pytest.raises(UserError) as error:
            train(config, workdir)
        assert "updates in a row, the first after step 3" in str(error.value)
        assert (workdir / "nonfinite" / "step_3").is_dir()


@pytest.mark.parametrize(("step", "again"), [(STEPS, True), (2 * STEPS, False)])
def test_a_run_whose_workdir_goes_does_not_say_finished(
    toy_runs, tmp_path, monkeypatch, caplog, step, again
):
    """After some checkpoint, also where another folder has its name then."""
    caplog.set_level("INFO", "lossattn_jax")
    workdir, save = tmp_path / "run", Checkpoints.save

    def save_and_move(self, saved, *arguments):
        save(self, saved, *arguments)
        if saved == step:
            self.wait()
            shutil.move(workdir, tmp_path / "elsewhere")
            if again:
                workdir.mkdir()

    monkeypatch.setattr(Checkpoints, "save", save_and_move)
    config = settings(checkpoint__every_epochs=1, train__epochs=2)
    with pytest.raises(UserError, match="the workdir was moved or removed since"):
        loop.train(config, workdir)
    assert "finished" not in caplog.text
    assert workdir.exists() == again and not list(tmp_path.glob("run/*"))
    monkeypatch.setattr(Checkpoints, "save", save)
    assert loop.train(config, tmp_path / "elsewhere")["num_examples"] == 32


def test_a_checkpoint_that_is_removed_is_missed(toy_runs, tmp_path, monkeypatch):
    wait = Checkpoints.wait

    def wait_and_remove(self):
        wait(self)
        shutil.rmtree(tmp_path / "checkpoints" / str(STEPS), ignore_errors=True)

    monkeypatch.setattr(Checkpoints, "wait", wait_and_remove)
    with pytest.raises(UserError, match="checkpoint 4 is gone from .*checkpoints: something else"):
        loop.train(settings(train__epochs=1), tmp_path)
