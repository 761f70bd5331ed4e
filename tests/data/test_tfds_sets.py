"""Any data set of TFDS by its name, and other sizes and statistics of those of this package."""

import json

import numpy as np
import pytest
from PIL import Image

from lossattn_jax import data
from lossattn_jax.checkpoint import runs
from lossattn_jax.config.options import DataOptions
from lossattn_jax.data import own_images
from lossattn_jax.errors import UserError
from lossattn_jax.registry import is_reference
from tests.support import image_sets


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures, and one with a TFDS set of them."""
    root, data_dir = (tmp_path_factory.mktemp(name) for name in ("pictures", "tfds"))
    image_sets.write(root, {"train": 4, "validation": 2})
    image_sets.prepare(root, data_dir, splits=("train", "validation"))
    return root, data_dir


def options(data_dir, **changes):
    return DataOptions(**{"name": "tfds:jpeg_set", "dir": str(data_dir), **changes})


def test_the_folder_says_what_the_data_set_is(pictures):
    root, data_dir = pictures
    spec = runs.spec_of(options(data_dir))
    assert (spec.name, spec.class_names) == ("tfds:jpeg_set", image_sets.CLASSES)
    assert (spec.image_shape, spec.canvas, spec.flip) == ((8, 8, 3), 0, True)
    assert (spec.train_split, spec.test_split) == ("train", "validation")
    assert (spec.num_train, spec.num_test) == (12, 6)
    pixels = np.stack([np.asarray(Image.open(path)) for path in (root / "train").rglob("*.jpg")])
    np.testing.assert_allclose(spec.mean, pixels.mean((0, 1, 2), np.float64) / 255, rtol=1e-12)
    np.testing.assert_allclose(spec.std, pixels.std((0, 1, 2), np.float64) / 255, rtol=1e-12)


def test_statistics_are_remembered_by_digest(pictures, monkeypatch):
    _, data_dir = pictures
    spec = runs.spec_of(options(data_dir))
    source = data.open_source(spec, "train", str(data_dir))
    path = next((data_dir / "jpeg_set/1.0.0").glob("pixels_*.json"))
    record = json.loads(path.read_text())
    assert record["made_from"] == {"images": source.digests().examples}
    monkeypatch.setattr("lossattn_jax.data.tfds_sets._sum_pixels", None)
    assert runs.spec_of(options(data_dir)) == spec


def test_streamed_statistics_are_the_same(pictures):
    _, data_dir = pictures
    expected = runs.spec_of(options(data_dir))
    for path in (data_dir / "jpeg_set/1.0.0").glob("pixels_*.json"):
        path.unlink()
    assert runs.spec_of(options(data_dir, mode="stream")) == expected


def test_another_size_is_stored_with_a_border(pictures):
    root, data_dir = pictures
    own = options(data_dir, image_size=112, normalisation="imagenet")
    spec = runs.spec_of(own)
    assert (spec.image_shape, spec.view.stored_shape) == ((112, 112, 3), (128, 128, 3))
    dataset = runs.open_split(own, spec, "test")
    source = data.open_source(spec, "test", str(data_dir))
    path = root / source.records[0]["path"].decode()
    np.testing.assert_array_equal(
        dataset.read(np.arange(1))["image"][0], own_images.read_image(path, spec.view)
    )


def test_cifar_100_may_have_the_normalisation_of_cifar_10():
    """As the published code has it, which rounds to three decimals."""
    own, other = (
        runs.spec_of(DataOptions("cifar100", normalisation=choice))
        for choice in ("auto", "cifar10")
    )
    np.testing.assert_allclose(other.mean, (0.491, 0.482, 0.447), atol=6e-4)
    np.testing.assert_allclose(other.std, (0.247, 0.243, 0.262), atol=6e-4)
    assert (own.mean[0], own.std[0]) == (0.5071, 0.2673) and other.num_classes == 100
    picture = np.full((1, 32, 32, 3), 128, np.uint8)
    value = np.asarray(data.network_input(picture, other, np.float32))[0, 0, 0, 0]
    assert value == pytest.approx((128 / 255 - 0.4914) / 0.2470, rel=1e-5)


def test_a_set_without_tests_is_divided(tmp_path):
    image_sets.write(tmp_path / "pictures", {"train": 10})
    image_sets.prepare(tmp_path / "pictures", tmp_path, splits=("train",))
    own = options(tmp_path, test_share=0.3)
    spec = runs.spec_of(own)
    assert (spec.train_split, spec.test_split) == ("train[:70%]", "train[70%:]")
    splits = {split: runs.open_split(own, spec, split) for split in ("train", "test")}
    assert {split: len(one) for split, one in splits.items()} == {"train": 21, "test": 9}
    images = np.concatenate([one.images for one in splits.values()])
    assert len(np.unique(images.reshape(30, -1), axis=0)) == 30


def test_boxes_of_a_cropped_size(scenes_dir):
    own = DataOptions(name="digit_scenes", dir=str(scenes_dir), image_size=112)
    spec = runs.spec_of(own)
    before = data.open_source(data.get_spec("digit_scenes"), "test", str(scenes_dir))[0]["box"]
    after = data.open_source(spec, "test", str(scenes_dir))[0]["box"]
    # Of 128 stored pixels of a side 8 are cut off at each end.
    expected = np.clip((before * 128 - 8) / 112, 0, 1)
    np.testing.assert_allclose(after, expected, atol=1e-6)
    assert spec.mean == data.get_spec("digit_scenes").mean
    measured = runs.spec_of(
        DataOptions(name="digit_scenes", dir=str(scenes_dir), normalisation="training")
    )
    np.testing.assert_allclose(measured.mean, spec.mean, atol=0.02)
    assert measured.mean != spec.mean


@pytest.mark.parametrize("name", ["tfds:", "tfds:../up", "tfds:a/b/c", "tfds:a b"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="must be tfds:NAME or tfds:NAME/CONFIG"):
        data.get_spec(name)


def test_a_name_of_tfds_names_no_code():
    assert not is_reference("tfds:mnist") and is_reference("mine:mnist")
