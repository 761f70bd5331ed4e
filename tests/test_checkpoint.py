"""Checkpoints: what is kept, what is refused, and that foreign files do no harm."""

import gc
import os
import shutil
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lossattn_jax.checkpoint import run_folder, store
from lossattn_jax.config.images import default_config
from lossattn_jax.errors import DamagedCheckpoint, UserError


def state(value):
    return {"a": np.full((2, 3), value, np.float32), "step": np.int32(value), "empty": {}}


def save_all(workdir, accuracies, keep):
    with store.Checkpoints(workdir, keep=keep) as checkpoints:
        for step, accuracy in enumerate(accuracies, start=1):
            metrics = None if accuracy is None else {"accuracy": accuracy}
            checkpoints.save(step, {"state": state(step)}, metrics)


@pytest.mark.parametrize(
    ("accuracies", "keep", "kept", "best"),
    [
        ([0.1, 0.9, 0.3, 0.4], 1, [2, 4], 2),
        ([0.1, 0.2, 0.3, 0.4], 2, [3, 4], 4),
        ([0.1, 0.9, None, None], 1, [2, 4], 2),
        ([None, None, None], 2, [2, 3], None),
        ([0.5, float("nan"), 0.3], 1, [1, 3], 1),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, accuracies, keep, kept, best):
    save_all(tmp_path, accuracies, keep)
    with store.Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == kept
        assert checkpoints.latest_step() == kept[-1]
        assert checkpoints.best_step() == best


def test_an_item_fits_by_its_shapes(tmp_path):
    save_all(tmp_path, [0.5], 1)
    with store.Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.fits(1, "state", state(7))
        assert not checkpoints.fits(1, "state", state(7) | {"a": np.zeros((3, 2), np.float32)})
        assert not checkpoints.fits(1, "state", state(7) | {"more": np.int32(0)})
        assert not checkpoints.fits(1, "other", state(7))


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    saved = {"a": values, "b": {"c": np.int32(3)}, "empty": {}}
    with store.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"state": saved, "more": {"x": np.zeros(2)}}, {"accuracy": 1.0})
    like = {"a": jnp.zeros(100), "b": {"c": jnp.int32(0)}, "empty": {}}
    with store.Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore(5, {"state": like})["state"]
    np.testing.assert_array_equal(np.asarray(restored["a"]).view(np.int32), values.view(np.int32))
    assert int(restored["b"]["c"]) == 3


@pytest.mark.parametrize(
    "like",
    [
        {"a": np.zeros((3, 3), np.float32), "step": np.int32(0), "empty": {}},
        {"other": np.zeros((2, 3), np.float32), "step": np.int32(0), "empty": {}},
    ],
    ids=["shape", "name"],
)
def test_other_arrays_are_refused(tmp_path, like):
    save_all(tmp_path, [0.5], keep=1)
    with (
        store.Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(UserError, match="checkpoint 1 in .* is of another model: its array"),
    ):
        checkpoints.restore(1, {"state": like})


def test_half_written_and_foreign_folders_are_no_checkpoints(tmp_path):
    save_all(tmp_path, [0.5, 0.6], keep=2)
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "checkpoints" / "notes").mkdir()
    (tmp_path / "checkpoints" / "99").mkdir()
    (tmp_path / "checkpoints" / "readme.txt").write_text("mine")
    with store.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        checkpoints.save(3, {"state": state(3)}, {"accuracy": 0.1})
    with store.Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 3
    assert (tmp_path / "checkpoints" / "readme.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "digests", "state/_METADATA"])
def test_a_checkpoint_that_lost_a_file_still_is_the_newest(tmp_path, name):
    save_all(tmp_path, [0.5, 0.6], keep=2)
    lost = tmp_path / "checkpoints" / "2" / name
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with store.Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 2
        if not name.startswith("state"):  # without that one all arrays can be read
            with pytest.raises(DamagedCheckpoint, match="checkpoint 2 in .* is damaged"):
                checkpoints.look(2)


def test_an_unwritable_workdir_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the workdir .*file/run cannot be written"):
        run_folder.write_config(default_config(), tmp_path / "file" / "run")


def test_a_fifo_among_the_arrays_is_damage_and_not_waited_for(tmp_path):
    save_all(tmp_path, [0.5], keep=1)
    metadata = store.folder(tmp_path, 1) / "state" / "_METADATA"
    metadata.unlink()
    os.mkfifo(metadata)
    with (
        store.Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(DamagedCheckpoint, match="state has what is not a regular file"),
    ):
        checkpoints.restore(1, {"state": state(1)})


@pytest.mark.parametrize(
    ("move", "words", "sentence"),
    [
        (lambda run: run.rename(run.with_name("moved")), "in any words", "the workdir was moved"),
        (
            lambda run: None,
            "NOT_FOUND: x",
            "something else has moved",
        ),
        (lambda run: None, "Checkpoint directory does not exist: x", "something else has moved"),
    ],
    ids=["workdir", "TensorStore", "Orbax"],
)
def test_a_folder_that_goes_away_during_a_save_is_a_sentence(
    tmp_path, monkeypatch, move, words, sentence
):
    workdir = tmp_path / "run"
    workdir.mkdir()

    def fail(manager):
        move(workdir)
        raise ValueError(words)

    with store.Checkpoints(workdir) as checkpoints:
        checkpoints.save(1, {"state": state(1)}, None)
        checkpoints.wait()
        checkpoints.save(2, {"state": state(2)}, None)
        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, "wait_until_finished", fail)
            with pytest.raises(UserError, match=f"checkpoint 2 cannot be written .*: {sentence}"):
                checkpoints.wait()


def test_a_failed_read_leaves_no_tracebacks_at_the_end(tmp_path, monkeypatch, caplog):
    reports = []
    monkeypatch.setattr(sys, "unraisablehook", reports.append)
    tree = {f"a{number}": np.full(1000, number, np.float32) for number in range(50)}
    with store.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"state": tree}, {"accuracy": 0.5})
    (tmp_path / "checkpoints/1/state/manifest.ocdbt").unlink()
    with warnings.catch_warnings(record=True) as caught:
        for _ in range(10):  # each time other arrays come before the first error
            with store.Checkpoints(tmp_path, read_only=True) as checkpoints:
                with pytest.raises(DamagedCheckpoint, match="state cannot be read"):
                    checkpoints.restore(1, {"state": tree})
        gc.collect()
    assert [str(report.exc_value) for report in reports] == []
    assert [str(one.message) for one in caught if "await" in str(one.message)] == []
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_a_link_to_checkpoints_is_read_but_not_written(tmp_path):
    save_all(tmp_path / "other", [0.5], 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "other" / "checkpoints")
    with pytest.raises(
        UserError, match="run/checkpoints is a symbolic link, which is not followed"
    ):
        store.Checkpoints(tmp_path / "run")
    with store.Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
