"""Where a run goes on after damage, and that a workdir has one training at a time."""

import shutil

import numpy as np
import pytest

from lossattn_jax.checkpoint import DAMAGED_NAME, Checkpoints
from lossattn_jax.errors import UserError
from lossattn_jax.train import preemption, resume

LIKE = {"state": {"a": np.zeros((2, 3), np.float32), "step": np.int32(0)}}


def save(workdir, *steps):
    with Checkpoints(workdir, keep=9) as checkpoints:
        for step in steps:
            items = {"state": {"a": np.full((2, 3), step, np.float32), "step": np.int32(step)}}
            checkpoints.save(step, items, {"accuracy": step / 10})


def files(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def test_any_damaged_file_leads_to_the_older_checkpoint_or_does_no_harm(tmp_path):
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


def test_without_an_intact_checkpoint_there_is_nothing_to_go_on_from(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text('{"accuracy": 0.2}')
    with Checkpoints(tmp_path) as checkpoints:
        assert resume.newest_intact(checkpoints, lambda s: checkpoints.restore(s, LIKE)) is None
        assert checkpoints.steps() == []


def test_a_second_training_is_refused_while_the_first_lasts(tmp_path):
    with resume.alone(tmp_path), pytest.raises(UserError, match="is being trained in already"):
        with resume.alone(tmp_path):
            pass
    with resume.alone(tmp_path):
        pass


def test_a_stop_is_asked_for_where_the_loop_looks():
    stop, left = preemption.Stop(), []

    def leave():
        left.append("left")
        return "all is saved"

    stop.check(leave)
    stop.may_end(leave)
    stop.ask()
    assert not left
    with pytest.raises(preemption.Ended):
        stop.check(leave)
    assert left == ["left"]
