import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from lossattn_jax import data
from lossattn_jax.data import memory


@pytest.fixture
def folder(digits_dir, tmp_path):
    """A copy of the data set without caches."""
    copy = Path(shutil.copytree(digits_dir, tmp_path / "copy"))
    for cache in copy.glob("digit_scenes/*/cache_*"):
        cache.unlink()
    return copy


def _caches(folder):
    return sorted(path.name for path in folder.glob("digit_scenes/*/*cache*"))


def _forbid_decoding(monkeypatch):
    def decode(source):
        raise AssertionError("decoded again")

    monkeypatch.setattr(memory, "_decode", decode)


def test_arrays_hold_what_the_source_holds(digits_dir, digits_spec):
    dataset = data.load(digits_spec, "test", digits_dir)
    source = data.open_source(digits_spec, "test", digits_dir)
    assert len(dataset) == len(source) == 21
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int32
    assert dataset.boxes is not None and dataset.boxes.dtype == np.float32
    for index in (0, 9, 20):
        np.testing.assert_array_equal(dataset.images[index], source[index]["image"])
        np.testing.assert_array_equal(dataset.boxes[index], source[index]["box"])
        assert dataset.labels[index] == source[index]["label"]


def test_the_second_start_reads_the_cache(folder, digits_spec, monkeypatch):
    first = data.load(digits_spec, "train", str(folder))
    assert _caches(folder) == ["cache_train.npz"]
    _forbid_decoding(monkeypatch)
    second = data.load(digits_spec, "train", str(folder))
    for name in ("images", "labels", "boxes"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert getattr(first, name).dtype == getattr(second, name).dtype


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_a_truncated_cache_is_rebuilt(folder, digits_spec, monkeypatch, kept):
    expected = data.load(digits_spec, "train", str(folder))
    (cache,) = folder.glob("digit_scenes/*/cache_train.npz")
    content = cache.read_bytes()
    cache.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    np.testing.assert_array_equal(
        data.load(digits_spec, "train", str(folder)).images, expected.images
    )
    _forbid_decoding(monkeypatch)  # it was written anew
    data.load(digits_spec, "train", str(folder))


def test_a_flipped_bit_is_noticed(folder, digits_spec):
    expected = data.load(digits_spec, "train", str(folder))
    (cache,) = folder.glob("digit_scenes/*/cache_train.npz")
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 1
    cache.write_bytes(content)
    np.testing.assert_array_equal(
        data.load(digits_spec, "train", str(folder)).images, expected.images
    )


def test_the_cache_of_another_version_is_rebuilt(folder, digits_spec):
    data.load(digits_spec, "test", str(folder))
    (cache,) = folder.glob("digit_scenes/*/cache_test.npz")
    with np.load(cache) as stored:
        arrays = dict(stored)
    arrays["images"] = np.zeros_like(arrays["images"])
    np.savez(cache, **arrays)
    assert not data.load(digits_spec, "test", str(folder)).images.any()  # fits, so it is believed

    (shard,) = folder.glob("digit_scenes/*/*-test.array_record*")
    os.utime(shard, (1, 1))
    assert data.load(digits_spec, "test", str(folder)).images.any()


def test_a_folder_that_cannot_be_written_is_no_obstacle(folder, digits_spec, monkeypatch, caplog):
    def refuse(**kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with caplog.at_level(logging.WARNING, logger="lossattn_jax"):
        assert len(data.load(digits_spec, "train", str(folder))) == 60
    assert "read-only" in caplog.text
    assert _caches(folder) == []


def test_a_full_disk_leaves_nothing_behind(folder, digits_spec, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", fail)
    assert len(data.load(digits_spec, "train", str(folder))) == 60
    assert _caches(folder) == []
