"""Damaged prepared data sets: one sentence that names the file and the way out, and nothing wrong is read."""

import errno
import json
import os
import resource
import shutil

import pytest

from lossattn_jax import data
from lossattn_jax.data import shard_digests
from lossattn_jax.data.prepare import prepare
from lossattn_jax.errors import UserError
from reliability import in_process

STANDARD_FILES = 3  # that a process has open at least


@pytest.fixture
def folder(digits_dir, tmp_path):
    """The folder of a version, in a copy of the data set."""
    shutil.copytree(digits_dir, tmp_path / "copy")
    return tmp_path / "copy" / "digit_scenes" / "1.0.0"


def _shard(folder, split):
    (path,) = folder.glob(f"*-{split}.array_record*")
    return path


def _flip(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


SHARDS = {
    "cut": lambda content, _: content[: len(content) // 2],
    "cut a little": lambda content, _: content[:-1],
    "empty": lambda content, _: b"",
    "zeros": lambda content, _: bytes(len(content)),
    "a hole": lambda content, _: content[:5000] + bytes(99) + content[5099:],
    "a bit of an image": lambda content, _: _flip(content, 5000),
    "a bit of a header": lambda content, _: _flip(content, 70),
    "another split's": lambda _, other: other,
    "longer": lambda content, _: content + b"more",
}
METADATA = {
    "dataset_info.json": {
        "fewer": lambda text: text.replace('"21"', '"20"'),
        "more": lambda text: text.replace('"21"', '"22"'),
        "another split": lambda text: text.replace('"test"', '"tost"'),
        "another version": lambda text: text.replace('"version": "1.0.0"', '"version": "2.0.0"'),
        "another format": lambda text: text.replace("array_record", "array_rec0rd"),
        "cut": lambda text: text[:500],
        "empty": lambda text: "",
        "zeros": lambda text: "\0" * len(text),
    },
    "features.json": {
        "another name": lambda text: text.replace('"label"', '"lable"'),
        "another type": lambda text: text.replace("int32", "int16"),
        "cut": lambda text: text[:200],
        "empty": lambda text: "",
    },
}


def _read_all(folder, mode):
    dataset = data.open_dataset(data.get_spec("digit_scenes"), "test", str(folder.parents[1]), mode)
    dataset.digest()
    for _ in dataset.eval_batches(batch_size=21):
        pass


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize("kind", SHARDS)
def test_a_damaged_shard_is_refused_though_there_is_a_cache(folder, kind, mode):
    shard = _shard(folder, "test")
    shard.write_bytes(SHARDS[kind](shard.read_bytes(), _shard(folder, "train").read_bytes()))
    assert (folder / "cache_test.npz").exists()
    sentence = f"{shard} (cannot be read|is not as it was) .*remove the folder {folder} and prepare"
    with pytest.raises(data.DamagedDataset, match=sentence):
        _read_all(folder, mode)


@pytest.mark.parametrize("kind", [kind for kind in SHARDS if kind != "another split's"])
def test_damage_is_met_while_streaming_too(folder, kind):
    """As of a shard whose date has not changed, or that nobody has read before."""
    shard = _shard(folder, "test")
    shard.write_bytes(SHARDS[kind](shard.read_bytes(), b""))
    (folder / shard_digests.NAME).unlink()
    dataset = data.open_dataset(
        data.get_spec("digit_scenes"), "test", str(folder.parents[1]), "stream"
    )
    with pytest.raises(data.DamagedDataset, match=f"{shard} cannot be read"):
        list(dataset.eval_batches(batch_size=21))


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize(("name", "kind"), [(n, kind) for n in METADATA for kind in METADATA[n]])
def test_damaged_metadata_are_refused(folder, name, kind, mode):
    path = folder / name
    text = path.read_text()
    path.write_text(METADATA[name][kind](text))
    assert path.read_text() != text
    sentence = f"{folder}.* (cannot be read|is not as it was) .*remove the folder {folder} and prep"
    with pytest.raises(data.DamagedDataset, match=sentence):
        _read_all(folder, mode)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "shard", "cache_test.npz"])
def test_a_fifo_in_the_place_of_a_file_keeps_nobody_waiting(folder, name, caplog):
    path = _shard(folder, "test") if name == "shard" else folder / name
    path.unlink()
    os.mkfifo(path)
    if name == "cache_test.npz":
        _read_all(folder, "memory")
        assert path.is_file() and "it is not a regular file); rebuilding it" in caplog.text
    else:
        with pytest.raises(
            data.DamagedDataset, match=f"{path} cannot be read .it is not a regular"
        ):
            _read_all(folder, "memory")


def test_another_splits_shard_is_refused_before_it_is_remembered(folder):
    for path in (*folder.glob("cache_*.npz"), folder / "shard_digests.json"):
        path.unlink(missing_ok=True)
    train, test = (_shard(folder, split) for split in ("train", "test"))
    there, prepared = _count(train), _count(test)
    assert there != prepared
    test.write_bytes(train.read_bytes())
    sentence = (
        f"{test} cannot be read .it holds {there} examples, but {prepared} were prepared.*again"
    )
    with pytest.raises(data.DamagedDataset, match=sentence):
        _read_all(folder, "memory")


def _count(shard):
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(shard))
    try:
        return reader.num_records()
    finally:
        reader.close()


def test_an_intact_shard_with_another_label_is_refused(folder):
    """The plausible edit: a valid file, with one label changed."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    shard = _shard(folder, "test")
    reader = ArrayRecordReader(str(shard))
    examples = reader.read_all()
    reader.close()
    for changed in (False, True):
        writer = ArrayRecordWriter(str(shard), "group_size:1")
        for example in examples:
            at = example.index(b"label") + len(b"label")
            # An int64 list of one number is its last byte; of classes 0 ... 9 another one.
            value = example.index(b"\x0a\x01", at) + 2
            edited = bytes([(example[value] + changed) % 10])
            writer.write(example[:value] + edited + example[value + 1 :])
        writer.close()
        if not changed:
            _read_all(folder, "memory")
    with pytest.raises(data.DamagedDataset, match="is not as it was"):
        _read_all(folder, "memory")


def test_a_command_refuses_a_damaged_shard(folder, tmp_path):
    shard = _shard(folder, "train")
    shard.write_bytes(_flip(shard.read_bytes(), 5000))
    root = folder.parents[1]
    small = ["--config.model.width=0.125", "--config.train.batch_size=20"]
    small += [f"--config.data.dir={root}", f"--workdir={tmp_path}/run"]
    config = f"--config={in_process.ROOT}/configs/digit_scenes.py"
    for arguments in (
        ["train.py", config, *small],
        ["train.py", config, *small, "--config.data.mode=stream"],
        ["-m", "lossattn_jax.data.prepare", "--dataset=digit_scenes", f"--data_dir={root}"],
    ):
        finished = in_process.run(arguments, tmp_path)
        assert finished.returncode == 2, finished.stderr
        assert "Traceback" not in finished.stderr and finished.stdout == ""
        (sentence,) = (line for line in finished.stderr.splitlines() if line.startswith("error: "))
        assert f"{shard} cannot be read (Corrupted Riegeli/records file: chunk data" in sentence
        assert f"remove the folder {folder} and prepare the data set again" in sentence


def test_a_lack_of_open_files_is_no_damage(folder):
    spec = data.get_spec("digit_scenes")
    source = data.open_source(spec, "test", str(folder.parents[1]))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    actions = [
        source.labels,
        source.digests,
        lambda: data.load(spec, "test", str(folder.parents[1])),
    ]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (STANDARD_FILES, before[1]))
        for action in actions:
            with pytest.raises(OSError) as caught:
                action()
            assert caught.value.errno == errno.EMFILE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(data.open_source(spec, "test", str(folder.parents[1])).labels()) == 21


def test_settings_survive_a_kill_before_they_lie_beside_the_data(folder):
    """TFDS has renamed its folder, and the process ends before the settings are in it."""
    root = folder.parents[1]
    settings = {"num_train": 60, "num_test": 21}
    os.replace(folder / "prepared.json", folder.parent / "preparing.json")
    assert prepare("digit_scenes", str(root), builder_kwargs=settings) == str(folder)
    with pytest.raises(UserError, match="num_test 21 instead of 22"):
        prepare("digit_scenes", str(root), builder_kwargs={**settings, "num_test": 22})
    assert json.loads((folder / "prepared.json").read_text())["made_from"] == settings
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
