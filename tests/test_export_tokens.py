"""Tokens of a run's backbone as bags."""

import csv
import logging

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import data
from lossattn_jax.checkpoint import runs
from lossattn_jax.data.bags import bag_folder
from lossattn_jax.errors import UserError
from lossattn_jax.export_tokens import token_bags
from lossattn_jax.export_tokens.token_bags import export_tokens
from lossattn_jax.train.images import loop
from tests.support import shrunk


@pytest.fixture(scope="module")
def workdir(scenes_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    options = {"train__epochs": 1, "optimizer__warmup_epochs": 0.0, "log__pictures": 0}
    loop.train(shrunk.config(scenes_dir, **options), workdir)
    return workdir


@pytest.fixture(scope="module")
def tokens(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens") / "out"
    export_tokens(workdir, out)
    return out


def test_a_bag_holds_the_backbones_map(workdir, tokens):
    run = runs.load(workdir)
    dataset = runs.open_dataset(run, "test")
    images = jnp.asarray(dataset.read(np.array([3]))["image"])
    digits = len(str(len(dataset) - 1))
    variables = {kind: tree["backbone"] for kind, tree in run.variables.items()}
    pixels = data.normalise(images, run.spec.mean, run.spec.std)
    expected = jax.jit(lambda v, x: run.model.make_backbone().apply(v, x, False))(variables, pixels)
    with h5py.File(tokens / "features" / f"test_{3:0{digits}d}.h5") as file:
        features, coords = file["features"][()], file["coords"][()]
        size = file["coords"].attrs["patch_size_level0"]
    _, height, width, channels = expected.shape
    np.testing.assert_allclose(
        features, np.asarray(expected).reshape(-1, channels), rtol=1e-4, atol=1e-5
    )
    assert size == 32 / width
    np.testing.assert_array_equal(coords[1], [size, 0])  # (x, y): the second of the first row
    np.testing.assert_array_equal(coords[width], [0, 32 / height])


def test_the_table_has_every_image_with_its_class_and_split(workdir, tokens):
    rows = list(csv.DictReader((tokens / "labels.csv").read_text().splitlines()))
    run = runs.load(workdir)
    datasets = {split: runs.open_dataset(run, split) for split in ("train", "test")}
    assert len(rows) == sum(map(len, datasets.values()))
    assert len(list((tokens / "features").iterdir())) == len(rows)
    for row in rows:
        split, _, place = row["bag"].partition("_")
        label = datasets[split].read(np.array([int(place)]))["label"][0]
        assert (row["label"], row["split"]) == (run.spec.class_names[label], split)


def test_the_commands_on_bags_read_them(tokens):
    bags = bag_folder.open_bags(tokens / "features", tokens / "labels.csv")
    assert len(bags) == len(list((tokens / "features").iterdir()))
    assert set(bags.splits) == {"train", "test"}


def test_the_same_command_goes_on(workdir, tokens, tmp_path, caplog, monkeypatch):
    class Killed(Exception):
        pass

    count = 0

    def stop(content, real=token_bags._hdf5):
        nonlocal count
        count += 1
        if count == 30:
            raise Killed
        return real(content)

    monkeypatch.setattr(token_bags, "_hdf5", stop)
    with pytest.raises(Killed):
        export_tokens(workdir, tmp_path / "out")
    with pytest.raises(UserError, match="was made from other inputs"):
        export_tokens(workdir, tmp_path / "out", dtype="float16")
    export_tokens(workdir, tmp_path / "out")
    files = sorted(path for path in tokens.rglob("*.h5"))
    assert count == 30 + len(files) - 29
    for path in files:
        other = tmp_path / "out" / path.relative_to(tokens)
        assert other.read_bytes() == path.read_bytes()
    with caplog.at_level(logging.INFO, "lossattn_jax"):
        export_tokens(workdir, tmp_path / "out")
    assert "was complete" in caplog.text


def test_float16_that_overflows_is_refused():
    with pytest.raises(UserError, match="reach 70000, which float16 does not hold; --dtype"):
        token_bags._refuse_overflow(np.array([7e4]), "float16")
    with pytest.raises(UserError, match="the run has diverged"):
        token_bags._refuse_overflow(np.array([np.nan]), "float16")
