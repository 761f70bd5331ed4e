"""Runs that are tested on training images which they do not train on."""

import json

import numpy as np
import pytest

from lossattn_jax import data
from lossattn_jax.checkpoint import runs
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate.evaluation import evaluate_run
from lossattn_jax.train.images import job as jobs
from lossattn_jax.train.images import loop
from tests.support import shrunk


def held_out_config(data_dir, number=50, **overrides):
    return shrunk.config(
        data_dir, data__held_out=number, train__epochs=2, log__pictures=0, **overrides
    )


def test_a_run_opens_what_it_trains_on_and_what_it_does_not(scenes_dir, tmp_path):
    job = jobs.open_job(held_out_config(scenes_dir), tmp_path)
    assert (len(job.train_set), len(job.test_set)) == (150, 50)
    assert (job.train_set.split, job.test_set.split) == ("train", "held_out")
    assert job.steps_per_epoch == 150 // 32
    whole = data.open_dataset(job.spec, "train", str(scenes_dir))
    images = [{image.tobytes() for image in part.images} for part in (job.train_set, job.test_set)]
    assert not images[0] & images[1]
    assert images[0] | images[1] == {image.tobytes() for image in whole.images}
    np.testing.assert_array_equal(np.bincount(job.test_set.labels), [5] * 10)


def test_a_run_is_tested_on_held_out_images_and_stays_with_them(scenes_dir, tmp_path, caplog):
    with caplog.at_level("INFO"):
        measured = loop.train(held_out_config(scenes_dir), tmp_path)
    assert "150 training and 50 held-out training images" in caplog.text
    again = evaluate_run(str(tmp_path), "held_out")
    for name in ("accuracy", "loss"):
        assert again[name] == pytest.approx(measured[name], rel=1e-5)
    assert (
        json.loads((tmp_path / "evaluation_held_out.json").read_text())["accuracy"]
        == again["accuracy"]
    )
    run = runs.load(tmp_path)
    of_split = {
        s: len(runs.open_split(run.options.data, run.spec, s))
        for s in ("train", "held_out", "test")
    }
    assert of_split == {"train": 150, "held_out": 50, "test": 60}
    with pytest.raises(UserError, match="config.data.held_out is 20, but the run in"):
        loop.train(held_out_config(scenes_dir, 20), tmp_path)
