"""A conversion that is killed at any moment: the same one goes on, and nothing else mixes with it."""

import contextlib
import json
import os
import pathlib

import numpy as np
import pytest

from lossattn_jax.checkpoint import conversion, conversion_folder, run_folder, runs, weight_files
from lossattn_jax.checkpoint.store import Checkpoints
from lossattn_jax.config import images as config_lib
from lossattn_jax.errors import UserError
from lossattn_jax.files import records
from lossattn_jax.train.images import job


def small_config():
    config = config_lib.default_config()
    config.data.name = "digit_scenes"
    config.model.update(backbone="small", width=0.05)
    return config


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of weights of two networks alike, but for their numbers."""
    config = small_config()
    module = runs.build_model(config.model, runs.spec_of(config.data))
    shapes = conversion.torch_names.layout(module, (32, 32, 3))
    folder = tmp_path_factory.mktemp("weights")
    for name, value in (("one", 0.5), ("other", 0.25)):
        arrays = {slot.key: np.full(slot.shape, value, np.float32) for slot in shapes.slots}
        arrays |= {key: np.asarray(array) for key, array in shapes.unused.items()}
        weight_files.write(arrays, folder / f"{name}.npz")
    return folder


class Killed(BaseException):
    """What ends a conversion."""


MOMENTS = {
    "before the mark": (records, "write", False),
    "after the mark": (records, "write", True),
    "before the checkpoint is begun": (Checkpoints, "save", False),
    "after the checkpoint": (Checkpoints, "close", True),
    "before the config": (run_folder, "write_config", False),
    "after the config": (run_folder, "write_config", True),
    "before the mark is removed": (pathlib.Path, "unlink", False),
}


def convert_and_die(weights, folder, moment):
    owner, name, after = MOMENTS[moment]
    function = getattr(owner, name)

    def die(*arguments, **options):
        if after:
            function(*arguments, **options)
        if name != "close" or arguments[0]._writer is not None:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, die)
        conversion.convert_file(weights / "one.npz", small_config(), folder)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_same_conversion_finishes_what_was_killed(weights, tmp_path, moment):
    convert_and_die(weights, tmp_path, moment)
    unfinished = (tmp_path / conversion_folder.UNFINISHED_NAME).exists()
    assert unfinished == (moment != "before the mark")
    part = tmp_path / "checkpoints" / "0.orbax-checkpoint-tmp"  # as Orbax is killed
    (part / "variables").mkdir(parents=True)
    conversion.convert_file(weights / "one.npz", small_config(), tmp_path)
    assert not (tmp_path / conversion_folder.UNFINISHED_NAME).exists()
    assert os.listdir(tmp_path / "checkpoints") == ["0"]
    run = runs.load(tmp_path)
    assert run.step == 0
    assert {float(np.ravel(leaf)[0]) for leaf in leaves(run.variables["params"])} == {0.5}
    with pytest.raises(UserError, match="holds a run already: use another one"):
        conversion.convert_file(weights / "one.npz", small_config(), tmp_path)


def leaves(tree):
    for value in tree.values():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield value


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_other_conversion_and_no_training_goes_on_with_it(weights, tmp_path):
    convert_and_die(weights, tmp_path, "after the checkpoint")
    before = files_of(tmp_path)
    other = small_config()
    other.seed = 7
    for name, config, sentence in (
        ("other", small_config(), r"made from other inputs \(other weights\); use another workdir"),
        ("one", other, r"made from other inputs \(config.seed 0 instead of 7\); use another"),
    ):
        with pytest.raises(UserError, match=sentence):
            conversion.convert_file(weights / f"{name}.npz", config, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        training = type("Job", (), {"workdir": tmp_path, "config": small_config()})
        with pytest.raises(
            UserError, match="holds a conversion that was not finished: the same co"
        ):
            job.first_state(training, checkpoints)
    assert files_of(tmp_path) == before


def test_a_damaged_mark_is_made_again_with_a_warning(weights, tmp_path, caplog):
    convert_and_die(weights, tmp_path, "before the config")
    (tmp_path / conversion_folder.UNFINISHED_NAME).write_bytes(b"")
    conversion.convert_file(weights / "one.npz", small_config(), tmp_path)
    assert "unfinished_conversion.json cannot be read" in caplog.text
    assert runs.load(tmp_path).step == 0


@pytest.mark.parametrize("name", ["data.json", "metrics.jsonl"])
def test_a_training_without_a_checkpoint_is_not_converted_into(weights, tmp_path, name):
    run_folder.write_config(small_config(), tmp_path)
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="a training without a checkpoint yet: use another one"):
        conversion.convert_file(weights / "one.npz", small_config(), tmp_path)


def test_a_config_without_a_checkpoint_is_unfinished(weights, tmp_path):
    """As earlier versions left it."""
    other = small_config()
    other.seed = 7
    run_folder.write_config(other, tmp_path)
    with pytest.raises(UserError, match=r"with another config \(config.seed 7 instead of 0\): use"):
        conversion.convert_file(weights / "one.npz", small_config(), tmp_path)
    conversion.convert_file(weights / "one.npz", other, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7


def test_the_second_of_two_at_once_is_refused(weights, tmp_path):
    with contextlib.ExitStack() as first:
        first.enter_context(run_folder.lock_workdir(tmp_path))
        with pytest.raises(UserError, match="is being written by another command already"):
            conversion.convert_file(weights / "one.npz", small_config(), tmp_path)
    assert os.listdir(tmp_path) == ["workdir.lock"]
    conversion.convert_file(weights / "one.npz", small_config(), tmp_path)
