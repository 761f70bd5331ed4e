"""Digests of shards: computed once, and again where anything about the file has changed."""

import json
import os
import pathlib

import pytest

from lossattn_jax import data
from lossattn_jax.data import damage, shard_digests
from lossattn_jax.data.prepare import prepare
from lossattn_jax.data.shard_digests import Shard, of_shards
from lossattn_jax.errors import UserError


@pytest.fixture
def digest(tmp_path):
    """`of_shards` of two files; the second result are the places whose examples were read."""
    shards = [Shard(str(tmp_path / name), 0, 9) for name in ("a", "b")]
    for shard in shards:
        (tmp_path / shard.path).write_text(shard.path)

    def call():
        read = []

        def examples(place):
            read.append(place)
            return f"examples of {pathlib.Path(shards[place].path).read_text()}"

        return of_shards(str(tmp_path), shards, examples), read

    return call


def test_examples_are_read_once(digest, tmp_path):
    first, read = digest()
    assert read == [0, 1]
    assert first == [f"examples of {tmp_path / name}" for name in "ab"]
    assert digest() == (first, [])


def test_other_dates_read_the_bytes_and_other_bytes_the_examples(digest, tmp_path, monkeypatch):
    first, _ = digest()
    os.utime(tmp_path / "a", (1, 1))
    assert digest() == (first, [])
    monkeypatch.setattr(shard_digests, "_sha256", lambda path: pytest.fail("remembered"))
    assert digest() == (first, [])
    monkeypatch.undo()
    stat = (tmp_path / "b").stat()
    (tmp_path / "b").write_text(str(tmp_path / "c"))
    os.utime(tmp_path / "b", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (tmp_path / "b").stat().st_size == stat.st_size
    sentence = f"{tmp_path}/b is not as it was .* remove {tmp_path}/{shard_digests.NAME} alone"
    with pytest.raises(damage.DamagedDataset, match=sentence):
        digest()
    (tmp_path / shard_digests.NAME).unlink()
    assert digest() == ([first[0], f"examples of {tmp_path / 'c'}"], [0, 1])


def test_other_bytes_with_the_same_examples_are_the_same_data(digest, tmp_path):
    shards = [Shard(str(tmp_path / "a"), 0, 9)]
    assert of_shards(str(tmp_path), shards, lambda _: "alike") == ["alike"]
    (tmp_path / "a").write_text("fields in another order")
    assert of_shards(str(tmp_path), shards, lambda _: "alike") == ["alike"]
    assert of_shards(str(tmp_path), shards, lambda _: pytest.fail("remembered")) == ["alike"]


def test_what_says_how_examples_are_read_may_not_change(tmp_path):
    for name in ("a", "features.json"):
        (tmp_path / name).write_text("as prepared")
    shards = [Shard(str(tmp_path / "a"), 0, 9)]
    arguments = (str(tmp_path), shards, lambda _: "alike", ("features.json",))
    assert of_shards(*arguments) == of_shards(*arguments) == ["alike"]
    (tmp_path / "features.json").write_text("edited")
    with pytest.raises(damage.DamagedDataset, match="features.json is not as it was"):
        of_shards(*arguments)


def test_processes_that_remember_at_once_keep_each_others(digest, tmp_path):
    """Another process remembers a file while this one reads it."""
    first = of_shards(str(tmp_path), [Shard(str(tmp_path / "a"), 0, 9)], lambda _: digest()[0][0])
    assert digest() == ([first[0], f"examples of {tmp_path / 'b'}"], [])


@pytest.mark.parametrize("text", ["", "[]", '{"a[0:9]": {}}', None])
def test_a_memory_that_is_damaged_is_made_again(digest, tmp_path, text):
    first, _ = digest()
    memory = tmp_path / shard_digests.NAME
    edited = json.loads(memory.read_text())
    edited["a[0:9]"]["examples"] = "others"
    memory.write_text(json.dumps(edited) if text is None else text)
    assert digest() == (first, [0, 1])
    assert digest() == (first, [])


def test_a_folder_that_cannot_be_written_is_read_each_time(digest, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr(shard_digests.records, "write", refuse)
    first, _ = digest()
    assert digest() == (first, [0, 1])


def test_a_file_that_cannot_be_read_is_a_sentence(digest, tmp_path):
    (tmp_path / "b").unlink()
    with pytest.raises(UserError, match="b cannot be read .*No such file"):
        digest()


def test_the_same_scenes_prepared_again_are_the_same_data(digits_dir, digits_spec, tmp_path):
    """TFDS writes the fields of a record in any order, so that the files differ."""
    prepare("digit_scenes", str(tmp_path), builder_kwargs={"num_train": 60, "num_test": 21})
    for split in ("train", "test"):
        one, two = (data.open_source(digits_spec, split, d) for d in (digits_dir, str(tmp_path)))
        assert one.digests() == two.digests()
