"""Training in a workdir with a damaged file: refused in a sentence, or the same bits as without it."""

import json
import os

import jax
import numpy as np
import pytest

from lossattn_jax.checkpoint import runs
from lossattn_jax.checkpoint.store import Checkpoints
from lossattn_jax.errors import UserError
from lossattn_jax.train.images import loop
from reliability import damage
from tests.support.toys import STEPS, settings

DAMAGES = {**damage.CHANGES, "edit": lambda content, place: content.replace(b"1", b"2")}


def train(workdir, epochs):
    config = settings(train__epochs=epochs, optimizer__schedule="constant")
    loop.train(config, workdir)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == epochs * STEPS
    return runs.load(workdir).variables


@pytest.mark.slow
def test_damage_of_what_is_beside_the_checkpoints(toy_runs, tmp_path, caplog):
    expected = train(tmp_path / "whole", 2)
    workdir = tmp_path / "run"
    train(workdir, 1)
    whole = {path: path.read_bytes() for path in workdir.glob("*.json*")}
    assert sorted(path.name for path in whole) == ["config.json", "data.json", "metrics.jsonl"]
    for change in DAMAGES.values():
        path = workdir / "config.json"
        path.write_bytes(change(whole[path], 0.5))
        with pytest.raises(
            UserError, match="config.json .* bring the file back, or use another wo"
        ):
            train(workdir, 2)
        path.write_bytes(whole[path])
    for way in ("cut", "edit"):
        for name in ("data.json", "metrics.jsonl"):
            path = workdir / name
            path.write_bytes(DAMAGES[way](whole[path], 0.5))
    caplog.clear()
    variables = train(workdir, 2)
    assert "data.json is not as it was written" in caplog.text
    for one, other in zip(*map(jax.tree.leaves, (variables, expected)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2 * STEPS
    assert not [name for name in os.listdir(workdir) if name.endswith(".part")]
