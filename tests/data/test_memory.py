import dataclasses
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from lossattn_jax import data
from lossattn_jax.data import memory
from lossattn_jax.data.prepare import prepare


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


def test_an_edited_cache_is_rebuilt_with_a_warning(folder, digits_spec, caplog):
    expected = data.load(digits_spec, "test", str(folder))
    (cache,) = folder.glob("digit_scenes/*/cache_test.npz")
    with np.load(cache) as stored:
        arrays = dict(stored)
    whole = dict(arrays)
    edits = {
        "images": np.zeros_like(arrays["images"]),
        "labels": (arrays["labels"] + 1) % 10,
        "boxes": arrays["boxes"][:, ::-1],
        "made_from": np.array("0" * 64),
    }
    for name, array in edits.items():
        np.savez(cache, **{**whole, name: array})
        caplog.clear()
        loaded = data.load(digits_spec, "test", str(folder))
        for kept in ("images", "labels", "boxes"):
            np.testing.assert_array_equal(getattr(loaded, kept), getattr(expected, kept))
        assert f"{cache} " in caplog.text and "rebuilding it" in caplog.text


def test_a_cache_without_digests_is_rebuilt(folder, digits_spec, caplog):
    expected = data.load(digits_spec, "test", str(folder))
    (cache,) = folder.glob("digit_scenes/*/cache_test.npz")
    with np.load(cache) as stored:
        arrays = {name: stored[name] for name in ("images", "labels", "boxes")}
    np.savez(cache, fingerprint=np.array("{}"), **{**arrays, "images": arrays["images"] + 1})
    loaded = data.load(digits_spec, "test", str(folder))
    np.testing.assert_array_equal(loaded.images, expected.images)
    assert "was written before caches carried digests; rebuilding it" in caplog.text


def test_other_files_make_another_cache_and_other_dates_do_not(
    folder, digits_spec, tmp_path, monkeypatch
):
    before = data.load(digits_spec, "test", str(folder))
    (shard,) = folder.glob("digit_scenes/*/*-test.array_record*")
    other = tmp_path / "other"
    prepare("digit_scenes", str(other), builder_kwargs={"num_train": 1, "num_test": 21, "seed": 3})
    (replacement,) = other.glob("digit_scenes/*/*-test.array_record*")
    stat = shard.stat()
    content = shard.read_bytes()
    for written, changed in ((replacement.read_bytes(), True), (content, False)):
        shard.write_bytes(written)
        os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as before the edit
        now = data.load(digits_spec, "test", str(folder))
        assert (now.digest() != before.digest()) == changed
        assert (now.images != before.images).any() == changed
    copy = shutil.copytree(folder, tmp_path / "again", copy_function=shutil.copy)
    (shard,) = copy.glob("digit_scenes/*/*-test.array_record*")
    os.utime(shard, (1, 1))
    _forbid_decoding(monkeypatch)
    assert data.load(digits_spec, "test", str(copy)).digest() == before.digest()


def test_a_digest_does_not_depend_on_where_examples_are_kept(digits_dir, digits_spec):
    options = {"num_labels": 20, "label_seed": 1}
    for split, changes in (("train", {}), ("test", {}), ("train", options)):
        memory_set, stream = (
            data.open_dataset(digits_spec, split, digits_dir, mode, **changes)
            for mode in ("memory", "stream")
        )
        assert memory_set.digest() == stream.digest()
    digests = {
        data.open_dataset(digits_spec, "train", digits_dir, num_labels=n, label_seed=s).digest()
        for n, s in ((0, 0), (20, 0), (20, 1), (30, 0))
    }
    assert len(digests) == 4


def test_arrays_of_ones_own_have_their_own_digest(digits_dir, digits_spec):
    loaded = data.load(digits_spec, "test", digits_dir)
    changed = dataclasses.replace(loaded, images=loaded.images ^ 1)
    alike = dataclasses.replace(loaded, images=loaded.images ^ 1)
    assert changed.digest() == alike.digest() != loaded.digest()
    relabelled = dataclasses.replace(changed, labels=changed.labels[::-1])
    unboxed = dataclasses.replace(changed, boxes=None)
    assert len({changed.digest(), relabelled.digest(), unboxed.digest()}) == 3


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
