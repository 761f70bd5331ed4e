"""Placement on devices, here on whatever number this process has."""

import pathlib

import jax
import numpy as np
import pytest

from lossattn_jax import devices
from lossattn_jax.errors import UserError


def test_unreplicate_undoes_replicate_with_copies():
    tree = {"a": np.arange(6.0).reshape(2, 3), "b": np.int32(7)}
    replicated = devices.replicate(tree)
    assert replicated["a"].shape == (jax.local_device_count(), 2, 3)
    back = devices.unreplicate(replicated)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    # What was fetched outlives a step that takes over the memory it was read from.
    devices.pmap(lambda t: jax.tree.map(lambda x: x + 1, t), donate=(0,))(replicated)
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_gather_undoes_shard_in_order():
    batch = {"x": np.arange(8 * 3).reshape(8, 3)}
    sharded = devices.shard(batch)
    assert sharded["x"].shape[0] == jax.local_device_count()
    np.testing.assert_array_equal(devices.gather(sharded)["x"], batch["x"])


def test_the_batches_of_several_steps_are_sharded_each():
    batches = [{"x": np.arange(8 * 3).reshape(8, 3) + 100 * step} for step in range(5)]
    sharded = devices.shard_steps(batches)["x"]
    count = jax.local_device_count()
    assert sharded.shape == (count, 5, 8 // count, 3)
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(devices.gather(sharded[:, step]), batch["x"])


def test_positions_number_the_global_batch():
    batch = devices.shard(np.zeros((8, 1)))
    positions = devices.pmap(lambda x: devices.global_positions(x.shape[0]))(batch)
    np.testing.assert_array_equal(devices.gather(positions), np.arange(8))


CACHE_OPTIONS = ("dir", "max_size")


@pytest.fixture
def uncached(monkeypatch):
    """No cache of programs is set; afterwards, all is as it was."""
    names = [f"jax_compilation_cache_{name}" for name in CACHE_OPTIONS]
    names.append("jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache(monkeypatch, tmp_path, uncached):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    devices.keep_programs()
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    assert folder.is_dir() and folder.parent == tmp_path / "lossattn_jax"
    assert jax.config.jax_compilation_cache_max_size == 4 * 2**30
    devices.keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_a_folder_that_the_user_has_set_stays(monkeypatch, tmp_path, uncached):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    devices.keep_programs()
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_is_kept(monkeypatch, tmp_path, uncached):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    devices.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_four_devices_place_and_number_as_one(run_python):
    finished = run_python("-m", "pytest", "tests/test_devices.py", "-k", "not four", devices=4)
    assert finished.returncode == 0, finished.stdout


def test_batches_are_shared_equally_or_refused():
    count = jax.device_count()
    assert devices.per_device(4 * count, "config.train.batch_size") == 4
    assert devices.round_up(3 * count) == 3 * count
    assert devices.round_up(3 * count + 1) == (4 * count if count > 1 else 4)
    if count > 1:
        with pytest.raises(UserError, match=f"must be a multiple of .* {count}"):
            devices.per_device(count + 1, "config.train.batch_size")
