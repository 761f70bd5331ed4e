"""Replay of dumps as the release before wrote them, and of what is none."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from lossattn_jax import mil
from lossattn_jax.errors import UserError
from lossattn_jax.train.replay import replay
from reliability import in_process

STORED = pathlib.Path(__file__).parents[1] / "stored_dumps"


def test_a_former_dump_of_bags_is_replayed():
    sentences = replay(STORED / "bags")
    update = "the update of model 1 (fold2) after 0 updates in epoch 2 on the bag b5 was made again"
    assert sentences[0] == f"own, Loss-Attention: {update}."
    assert sentences[1].startswith("The largest feature is 1.36 in size, and 1.36 as")
    assert sentences[2] == "Before it, parameters and the optimiser's state were finite."
    assert sentences[3].startswith("The losses of all bags are finite, 1.509")
    assert "its norm of 2.08e+38 is not in float32" in sentences[4]


def test_a_former_dump_of_images_is_replayed(toy_runs):
    assert replay(STORED / "images") == [
        "The update after step 0 was made again on 8 images.",
        "Before it, parameters, running statistics and the optimiser's state were finite.",
        "The losses of 1 of 8 images are not finite, by their places in the training set: 26 (nan).",
        "The gradients of 5 of 5 parameters are not finite: Dense_0/bias, Dense_0/kernel, extra, "
        "norm/bias, norm/scale.",
    ]


def other_arrays(path, name):
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **{**arrays, name: arrays[name] + 1})


def other_momentum(path):
    config = json.loads(path.read_bytes())
    config["optimizer"]["momentum"] = 0.5
    del config["digest"]
    path.write_text(json.dumps(config))


def without_digests(path):
    record = json.loads(path.read_bytes())
    del record["digest"], record["made_from"]
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("bags", lambda f: other_arrays(f / "arrays.npz", "bags/x"), r"\(other arrays\)"),
        ("bags", lambda f: without_digests(f / "update.json"), "before dumps carried digests"),
        ("images", lambda f: other_arrays(f / "batch.npz", "label"), r"\(other batch\)"),
        ("images", lambda f: without_digests(f / "dump.json"), "before dumps carried digests"),
        (
            "images",
            lambda f: other_momentum(f / "config.json"),
            r"\(config.optimizer.momentum 0.9 instead of 0.5\)",
        ),
        ("images", lambda f: shutil.rmtree(f / "checkpoints"), "it has no checkpoint"),
    ],
)
def test_a_former_dump_of_mixed_parts_is_refused(toy_runs, tmp_path, kind, change, sentence):
    folder = pathlib.Path(shutil.copytree(STORED / kind, tmp_path / "dump"))
    change(folder)
    with pytest.raises(UserError, match=sentence):
        replay(folder)


def test_the_former_name_for_bags_is_the_same_command(tmp_path):
    arguments = ["-m", "lossattn_jax.mil.replay", f"--dump={STORED / 'bags'}"]
    finished = in_process.run(arguments, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "lossattn mil replay is lossattn replay now" in finished.stderr
    assert finished.stdout == "\n".join(replay(STORED / "bags")) + "\n"
    assert mil.replay.replay is replay


def test_the_update_that_is_replayed_leaves_the_dump_as_it_is(toy_runs):
    before = {p: p.read_bytes() for p in sorted(STORED.rglob("*")) if p.is_file()}
    replay(STORED / "images")
    assert jax.tree.leaves(before)
    assert before == {p: p.read_bytes() for p in sorted(STORED.rglob("*")) if p.is_file()}
