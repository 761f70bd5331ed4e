"""Checkpoints of other versions, of this package and of JAX, are read as they were written."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from lossattn_jax.checkpoint.store import Checkpoints
from lossattn_jax.train.state import TrainState
from tests.support import stored_checkpoint

FOLDERS = sorted((pathlib.Path(__file__).parent / "stored_checkpoints").iterdir())


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def workdir(request, tmp_path):
    """A copy, so that nothing that reads it can change what is kept."""
    return shutil.copytree(request.param, tmp_path / "run")


def test_checkpoints_of_other_versions_are_there():
    assert len(FOLDERS) >= 3


def test_training_goes_on_from_every_array(workdir):
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps() == [stored_checkpoint.STEP]
        assert checkpoints.best_step() == stored_checkpoint.STEP
        like = stored_checkpoint.shapes().items()
        restored = checkpoints.restore(stored_checkpoint.STEP, like)
    expected = stored_checkpoint.items()
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    state = TrainState.from_items(restored)
    assert state.ensemble is not None and state.ensemble.average.any()


def test_evaluation_says_the_same(workdir):
    expected = np.array(json.loads((workdir / "logits.json").read_text()))
    np.testing.assert_allclose(stored_checkpoint.logits(workdir), expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 0.01
