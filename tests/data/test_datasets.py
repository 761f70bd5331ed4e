import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lossattn_jax import data
from lossattn_jax.data import datasets
from lossattn_jax.data.specs import with_size
from lossattn_jax.errors import UserError


def test_the_data_sets():
    for name, spec in data.DATASETS.items():
        assert spec.name == name
        assert len(spec.class_names) == len(set(spec.class_names)) == spec.num_classes
        assert len(spec.mean) == len(spec.std) == spec.image_shape[-1]
    assert data.get_spec("cifar100").class_names == tuple(
        sorted(data.get_spec("cifar100").class_names)  # its labels are in alphabetical order
    )
    # A mirrored digit is another digit or none.
    flips = {
        "cifar10": True,
        "cifar100": True,
        "coco": True,
        "digit_scenes": False,
        "svhn_cropped": False,
        "svhn_full": False,
        "tiny_imagenet": True,
    }
    assert {name: data.DATASETS[name].flip for name in flips} == flips
    boxes = {"coco": 100, "digit_scenes": 1, "svhn_full": 6, "tiny_imagenet": 1, "cifar10": 0}
    assert {name: data.DATASETS[name].max_boxes for name in boxes} == boxes
    assert data.get_spec("coco").box_shape == (100, 4)
    assert data.get_spec("digit_scenes").box_shape == (4,)


def test_extra_adds_the_extra_images_of_svhn():
    spec = data.get_spec("svhn_cropped", extra=True)
    assert (spec.train_split, spec.num_train) == ("train+extra", 604_388)
    assert spec.test_split == "test"
    with pytest.raises(UserError, match="'cifar10' has no 'extra' split"):
        data.get_spec("cifar10", extra=True)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        UserError,
        match="'mnist', but must be one of: digit_scenes, .*, folder; or package.*, or tfds:NAME",
    ):
        data.get_spec("mnist")


def test_an_unknown_split_is_refused(digits_dir, digits_spec):
    with pytest.raises(UserError, match="'valid' is unknown.*'train' and 'test'"):
        data.open_source(digits_spec, "valid", digits_dir)


def test_examples_of_a_source(digits_dir, digits_spec):
    source = data.open_source(digits_spec, "train", digits_dir)
    assert len(source) == 60
    one, two = source.__getitems__([7, 3])
    assert (one["image"].shape, one["image"].dtype) == ((32, 32, 3), np.uint8)
    assert isinstance(one["label"], int)
    assert (one["box"].shape, one["box"].dtype) == ((4,), np.float32)
    np.testing.assert_array_equal(source[3]["image"], two["image"])
    assert not np.array_equal(one["image"], two["image"])


def test_a_split_may_join_several(digits_dir, digits_spec):
    # What svhn_cropped does with train+extra.
    joined = dataclasses.replace(digits_spec, train_split="train+test")
    source = data.open_source(joined, "train", digits_dir)
    test = data.open_source(digits_spec, "test", digits_dir)
    assert len(source) == 81
    np.testing.assert_array_equal(source[60]["image"], test[0]["image"])
    np.testing.assert_array_equal(
        data.load(joined, "train", digits_dir).images[80], test[20]["image"]
    )


@pytest.mark.parametrize("name", [*sorted({*data.DATASETS} - {"folder"}), "tfds:beans"])
def test_an_absent_data_set_says_where_and_what_to_do(name, tmp_path, capfd):
    with pytest.raises(data.DatasetNotFound) as caught:
        data.open_source(data.get_spec(name), "test", str(tmp_path))
    text = str(caught.value)
    assert f"data set {name} " in text
    where = tmp_path / data.get_spec(name).tfds_name
    assert f" in {where}; name the folder that has it, or prepare it with: " in text
    assert f"python -m lossattn_jax.data.prepare --dataset={name} --data_dir={tmp_path}" in text
    assert "\n" not in text
    assert isinstance(caught.value, UserError)
    assert capfd.readouterr() == ("", "")  # nothing but the sentence


def test_the_default_folder_is_that_of_tfds(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert data.resolve_data_dir() == data.resolve_data_dir("") == str(tmp_path)
    with pytest.raises(data.DatasetNotFound) as caught:
        data.open_source(data.get_spec("cifar10"), "train")
    assert str(tmp_path) in str(caught.value)
    assert str(caught.value).endswith("--dataset=cifar10")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert data.resolve_data_dir() == str(Path.home() / "tensorflow_datasets")


def test_a_copy_that_lacks_a_shard_is_damaged(digits_dir, digits_spec, tmp_path):
    copy = Path(shutil.copytree(digits_dir, tmp_path / "copy"))
    (shard,) = copy.glob("digit_scenes/*/*-test.array_record*")
    shard.unlink()
    with pytest.raises(
        data.DamagedDataset, match=f"{shard.name} cannot be read .there is no such file"
    ):
        data.open_source(digits_spec, "test", str(copy))


def test_a_copy_without_random_access_is_not_there(digits_dir, digits_spec, tmp_path):
    copy = Path(shutil.copytree(digits_dir, tmp_path / "copy"))
    (info,) = copy.glob("digit_scenes/*/dataset_info.json")
    content = json.loads(info.read_text())
    content["fileFormat"] = "tfrecord"
    info.write_text(json.dumps(content))
    with pytest.raises(data.DatasetNotFound, match="not prepared \\(as array_record\\)"):
        data.open_source(digits_spec, "test", str(copy))


def test_the_newest_version_is_read(digits_dir, digits_spec, tmp_path):
    copy = Path(shutil.copytree(digits_dir, tmp_path / "copy"))
    (folder,) = copy.glob("digit_scenes/*")
    for version in ("0.9.0", "0.10.0"):
        shutil.copytree(folder, folder.parent / version)
    assert data.open_source(digits_spec, "test", str(copy)).folder == str(folder)
    shutil.rmtree(folder)
    assert data.open_source(digits_spec, "test", str(copy)).folder.endswith("/0.10.0")


def test_caches_of_earlier_versions_stay_valid(digits_dir, digits_spec, monkeypatch):
    monkeypatch.setattr(datasets.shard_digests, "of_shards", lambda *_: ["0a"])
    source = data.open_source(digits_spec, "test", digits_dir)
    content = {
        "name": "digit_scenes/1.0.0",
        "split": "test",
        "num_examples": len(source),
        "shape": (32, 32, 3),
        "shards": [[source._shards()[0].name, "0a"]],
    }
    expected = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert source.digests().examples == expected


def test_labels_are_read_without_decoding(digits_dir, digits_spec, monkeypatch):
    def refuse(self, encoded):
        raise AssertionError("decoded")

    expected = data.load(digits_spec, "train", digits_dir).labels
    monkeypatch.setattr(datasets.ImageSource, "_image", refuse)
    monkeypatch.setattr(datasets, "_READ_AT_ONCE", 25)  # 60 are more than two helpings
    labels = data.open_source(digits_spec, "train", digits_dir).labels()
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, expected)


def test_digests_follow_the_files(digits_dir, digits_spec):
    train = data.open_source(digits_spec, "train", digits_dir)
    assert train.digests() == data.open_source(digits_spec, "train", digits_dir).digests()
    assert train.digests() != data.open_source(digits_spec, "test", digits_dir).digests()
    joined = dataclasses.replace(digits_spec, train_split="train+test")
    both = data.open_source(joined, "train", digits_dir).digests()
    assert both.pictures != train.digests().pictures
    large = with_size(digits_spec, 64)
    of_large = data.open_source(large, "train", digits_dir).digests()
    assert of_large.pictures == train.digests().pictures
    assert of_large.examples != train.digests().examples


_READ = """
import sys
from lossattn_jax import data
assert "tensorflow_datasets" not in sys.modules, "imported before it is needed"
spec = data.get_spec("digit_scenes")
for mode in ("memory", "stream"):
    for split in ("train", "test"):
        dataset = data.open_dataset(spec, split, sys.argv[1], mode=mode)
        next(dataset.train_batches(batch_size=8, seed=0))
        for batch in dataset.eval_batches(batch_size=8):
            assert batch["image"].shape == (8, 32, 32, 3)
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
"""


def test_reading_imports_no_tensorflow(digits_dir, tmp_path, run_python):
    copy = shutil.copytree(digits_dir, tmp_path / "copy")
    for cache in Path(copy).glob("digit_scenes/*/cache_*"):
        cache.unlink()  # so that decoding is looked at as well
    done = run_python("-c", _READ, copy)
    assert done.returncode == 0, done.stderr
