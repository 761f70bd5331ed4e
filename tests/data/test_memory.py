import dataclasses
import logging
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lossattn_jax import data, files
from lossattn_jax.data import memory, shard_digests
from lossattn_jax.data.prepare import prepare
from lossattn_jax.files import sole_writer


@pytest.fixture
def folder(digits_dir, tmp_path):
    """A copy of the data set without caches."""
    copy = Path(shutil.copytree(digits_dir, tmp_path / "copy"))
    for cache in copy.glob("digit_scenes/*/cache_*"):
        cache.unlink()
    return copy


def _caches(folder):
    paths = folder.glob("digit_scenes/*/*cache*")
    return sorted(path.name for path in paths if path.suffix != ".lock")


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


def test_another_data_sets_shard_is_refused_until_it_is_meant(folder, digits_spec, tmp_path):
    before = data.load(digits_spec, "test", str(folder))
    (shard,) = folder.glob("digit_scenes/*/*-test.array_record*")
    other = tmp_path / "other"
    prepare("digit_scenes", str(other), builder_kwargs={"num_train": 1, "num_test": 21, "seed": 3})
    (replacement,) = other.glob("digit_scenes/*/*-test.array_record*")
    stat = shard.stat()
    content = shard.read_bytes()
    shard.write_bytes(replacement.read_bytes())
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as before the edit
    for mode in ("memory", "stream"):
        with pytest.raises(data.DamagedDataset, match=f"{shard} is not as it was when .* prepared"):
            data.open_dataset(digits_spec, "test", str(folder), mode).digest()
    (shard.parent / shard_digests.NAME).unlink()
    now = data.load(digits_spec, "test", str(folder))
    assert now.digest() != before.digest() and (now.images != before.images).any()
    (shard.parent / shard_digests.NAME).unlink()
    shard.write_bytes(content)
    assert data.load(digits_spec, "test", str(folder)).digest() == before.digest()


def test_a_copy_with_other_dates_and_inodes_is_not_decoded_again(
    folder, digits_spec, tmp_path, monkeypatch
):
    before = data.load(digits_spec, "test", str(folder))
    copy = shutil.copytree(folder, tmp_path / "again", copy_function=shutil.copy)
    (cache,) = copy.glob("digit_scenes/*/cache_test.npz")
    written = cache.stat()
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    _forbid_decoding(monkeypatch)
    assert data.load(digits_spec, "test", str(copy)).digest() == before.digest()
    assert (cache.stat().st_ino, cache.stat().st_mtime) == (written.st_ino, 1)


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
    def refuse(path):
        raise PermissionError("read-only")

    monkeypatch.setattr(files, "replacing", refuse)
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


def test_what_a_killed_writer_left_goes_and_a_live_writers_stays(folder, digits_spec):
    cache = next(folder.glob("digit_scenes/*")) / "cache_train.npz"
    leftovers = [cache.with_name(f".{name}.{'0' * 16}.part") for name in (cache.name, "mine.npz")]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    with sole_writer.attempt(cache) as sole:
        assert sole and [path.exists() for path in leftovers] == [False, True]
        leftovers[0].write_bytes(b"of a live one")
        assert len(data.load(digits_spec, "train", str(folder))) == 60
        assert leftovers[0].exists() and not cache.exists()
    data.load(digits_spec, "train", str(folder))
    assert cache.exists() and not leftovers[0].exists()


def test_links_in_the_place_of_a_cache_are_replaced(folder, digits_spec, tmp_path):
    cache = next(folder.glob("digit_scenes/*")) / "cache_train.npz"
    victim = tmp_path / "victim"
    victim.write_text("mine")
    planted = [cache, cache.with_name(shard_digests.NAME), cache.with_name(f".{cache.name}.lock")]
    for path in planted:
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
    assert len(data.load(digits_spec, "train", str(folder))) == 60
    assert victim.read_text() == "mine"
    assert not planted[0].is_symlink() and not planted[1].is_symlink()


def test_a_cache_that_would_fill_the_memory_is_not_unpacked(folder, digits_spec, caplog):
    expected = data.load(digits_spec, "test", str(folder))
    (cache,) = folder.glob("digit_scenes/*/cache_test.npz")
    with np.load(cache) as stored:
        whole = dict(stored)
    bombs = {
        "images": np.zeros((1 << 14, 32, 32, 3), np.uint8),
        "made_from": np.zeros(1 << 26, np.uint8),
    }
    for name, array in bombs.items():
        np.savez_compressed(cache, **{**whole, name: array})
        del array
        tracemalloc.start()
        loaded = data.load(digits_spec, "test", str(folder))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 24, f"{name}: {peak >> 20} MiB"
        np.testing.assert_array_equal(loaded.images, expected.images)
    assert "(its arrays are others); rebuilding it" in caplog.text
    assert "(its digests are none); rebuilding it" in caplog.text
