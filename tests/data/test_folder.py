"""A user's own images as a data set: pictures, statistics, caches, damage."""

import dataclasses
import json
import logging
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from lossattn_jax import data
from lossattn_jax.checkpoint import runs
from lossattn_jax.config.options import DataOptions
from lossattn_jax.data import file_survey, image_folder, memory, own_images
from lossattn_jax.data.boxes import NO_BOX
from lossattn_jax.data.prepare import prepare_folder
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.train.images import loop
from tests.support import image_sets, toys

MODES = ("memory", "stream")


def options(folder, **changes):
    return DataOptions(**{"name": "folder", "dir": str(folder), "image_size": 8, **changes})


def open_split(folder, split, **changes):
    own = options(folder, **changes)
    return runs.open_split(own, runs.spec_of(own), split)


@pytest.fixture
def folder(tmp_path):
    return image_sets.write(tmp_path / "pictures", {"train": 6, "test": 3})


def test_pictures_are_stored_as_they_are_read_elsewhere(folder):
    dataset = open_split(folder, "train")
    assert isinstance(dataset, data.ArrayDataset) and len(dataset) == 18
    assert dataset.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    expected = np.asarray(Image.open(folder / "train/cat/002.jpg"))
    np.testing.assert_array_equal(dataset.images[8], expected)
    np.testing.assert_array_equal(
        own_images.read_image(folder / "train/cat/002.jpg", dataset.spec.view), expected
    )


def test_the_statistics_are_those_of_the_training_pictures(folder):
    spec = runs.spec_of(options(folder))
    pixels = np.stack([np.asarray(Image.open(path)) for path in (folder / "train").rglob("*.jpg")])
    np.testing.assert_allclose(spec.mean, pixels.mean((0, 1, 2), np.float64) / 255, rtol=1e-12)
    np.testing.assert_allclose(spec.std, pixels.std((0, 1, 2), np.float64) / 255, rtol=1e-12)
    assert (spec.num_train, spec.num_test, spec.class_names) == (18, 9, image_sets.CLASSES)
    of_imagenet = runs.spec_of(options(folder, normalisation="imagenet"))
    assert of_imagenet.mean == (0.485, 0.456, 0.406) and of_imagenet.std == (0.229, 0.224, 0.225)


def test_large_pictures_are_stored_with_a_border(tmp_path):
    image_sets.write(tmp_path, {"train": 2, "test": 1}, size=(60, 120))
    own = options(tmp_path, image_size=112)
    spec = runs.spec_of(own)
    assert (spec.view.stored_shape, spec.image_shape) == ((128, 128, 3), (112, 112, 3))
    for mode in MODES:
        dataset = runs.open_split(own, spec, "train", mode=mode)
        batch = next(dataset.train_batches(batch_size=2, seed=0))
        assert batch["image"].shape == (2, 128, 128, 3)
        tested = next(iter(dataset.eval_batches(batch_size=6)))["image"]
        stored = dataset.read(np.arange(6), stored=True)["image"]
        np.testing.assert_array_equal(tested, stored[:, 8:-8, 8:-8])
        path = tmp_path / "train/bee/000.jpg"
        np.testing.assert_array_equal(tested[0], own_images.read_image(path, spec.view))


def test_photographs_have_the_usual_size():
    assert data.get_spec("folder").view.stored_shape == (256, 256, 3)
    assert data.get_spec("folder").image_shape == (224, 224, 3)


def test_both_modes_give_the_same_batches(folder):
    one, two = (open_split(folder, "train", mode=mode) for mode in MODES)
    assert isinstance(two, data.StreamDataset) and one.digest() == two.digest()
    assert one.picture_digest() == two.picture_digest() != one.digest()
    batches = (dataset.train_batches(batch_size=5, seed=1) for dataset in (one, two))
    for _, a, b in zip(range(5), *batches, strict=False):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_same_pictures_are_known_at_two_sizes(folder):
    sizes = [open_split(folder, "test", image_size=size) for size in (8, 16)]
    small, large = sizes
    assert small.digest() != large.digest()
    assert small.picture_digest() == large.picture_digest()
    parts = [one.take(np.array([2, 0])).picture_digest() for one in sizes]
    assert parts[0] == parts[1] != small.picture_digest()
    image_sets.picture(9).save(folder / "test/dog/000.jpg")
    assert open_split(folder, "test", image_size=16).picture_digest() != small.picture_digest()
    shutil.copytree(folder / "test/dog", folder / "test/eel")
    shutil.rmtree(folder / "test/dog")  # the same pictures with another label
    shutil.move(folder / "train/dog", folder / "train/eel")
    assert open_split(folder, "test").picture_digest() != small.picture_digest()


def test_memory_is_chosen_where_it_suffices(folder, monkeypatch):
    needed = 27 * 8 * 8 * 3
    spec = runs.spec_of(options(folder))
    for free, fits in ((2 * needed, True), (2 * needed - 1, False), (None, True)):
        monkeypatch.setattr(memory.cpu, "free_memory", lambda free=free: free)
        assert memory.keeps("auto", spec, 27) == fits
    assert memory.keeps("memory", spec, 10**12) and not memory.keeps("stream", spec, 1)


def test_each_file_is_decoded_once(folder, monkeypatch):
    decoded = []
    read = own_images.read_stored

    def count(path, view):
        decoded.append(path)
        return read(path, view)

    monkeypatch.setattr(own_images, "read_stored", count)
    for split in ("train", "test"):
        open_split(folder, split, mode="memory")
    assert len(decoded) == len(set(decoded)) == 27
    shutil.copy(folder / "test/cat/000.jpg", folder / "test/cat/new.jpg")  # known by content
    image_sets.picture(7).save(folder / "test/dog/new.png")
    open_split(folder, "test", mode="stream")
    assert decoded[27:] == [folder / "test/dog/new.png"]


def test_what_is_put_in_the_place_of_a_file_is_seen(folder):
    before = open_split(folder, "train").digest()
    path = folder / "train/cat/000.jpg"
    image_sets.picture(8).save(path)
    dataset = open_split(folder, "train")
    assert dataset.digest() != before
    np.testing.assert_array_equal(dataset.images[6], np.asarray(Image.open(path)))


def test_a_moved_folder_is_the_same_data_set(folder, tmp_path):
    own = options(folder)
    spec = runs.spec_of(own)
    before = runs.open_split(own, spec, "test").digest()
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".lossattn"))
    shutil.rmtree(folder)
    assert runs.open_split(own, spec, "test", str(tmp_path / "copy")).digest() == before
    with pytest.raises(UserError, match="pictures is not there; config.data.dir, or --data_dir"):
        runs.open_split(own, spec, "test")


def test_a_damaged_memory_is_made_again(folder, caplog):
    before = runs.spec_of(options(folder))
    (memory_file,) = (folder / ".lossattn").glob("survey_*.npz")
    content = bytearray(memory_file.read_bytes())
    content[len(content) // 2] ^= 255
    memory_file.write_bytes(content)
    assert runs.spec_of(options(folder)) == before
    assert "is damaged" in caplog.text and "the images are read again" in caplog.text


def test_caches_are_elsewhere_where_the_folder_is_not_ours(folder, tmp_path, monkeypatch):
    (folder / ".lossattn").write_bytes(b"")  # so that no folder can be made
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_split(folder, "train", mode="memory")
    (own,) = (tmp_path / "cache/lossattn_jax").iterdir()
    assert own.name.startswith("pictures-")
    assert len(list(own.glob("cache_*.npz"))) == 2 and len(list(own.glob("survey_*.npz"))) == 1


def damage(folder, *names):
    for name in names:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])


def test_damaged_files_are_left_out_by_name(folder, caplog):
    damage(folder, "train/bee/001.jpg", "train/dog/005.jpg", "test/cat/000.jpg")
    dataset = open_split(folder, "train")
    assert dataset.labels.tolist() == [0] * 5 + [1] * 6 + [2] * 5
    sentence = (
        f"2 of 18 train images in {folder} cannot be read and are left out, the first: train/bee"
    )
    assert sentence in caplog.text
    np.testing.assert_array_equal(
        dataset.images, open_split(folder, "train", mode="stream").read(np.arange(16))["image"]
    )
    caplog.clear()
    with (
        caplog.at_level("INFO"),
        pytest.raises(Incomplete, match=f"{sentence}.*; 1 of 9 test images .*test/cat/000.jpg"),
    ):
        prepare_folder(options(folder))
    assert f"{folder}: 16 training and 8 test images of 3 classes, of" in caplog.text


def test_a_class_whose_files_are_all_damaged_is_refused(folder):
    damage(folder, *(f"train/cat/{number:03d}.jpg" for number in range(6)))
    with pytest.raises(
        UserError, match="no training image of the class 'cat' in .* can be read: train"
    ):
        runs.spec_of(options(folder))


def test_images_in_both_splits_are_counted(folder, caplog):
    shutil.copy(folder / "train/cat/003.jpg", folder / "test/cat/000.jpg")
    runs.spec_of(options(folder))
    assert f"1 of 9 test images in {folder} are training images too" in caplog.text
    assert "the first: test/cat/000.jpg is train/cat/003.jpg" in caplog.text


def test_other_classes_than_the_runs_are_refused(folder):
    own = options(folder)
    spec = dataclasses.replace(runs.spec_of(own), class_names=("bee", "cat", "cow"))
    with pytest.raises(
        UserError, match="class 'dog', but the data set has 3 classes without it: bee"
    ):
        runs.open_split(own, spec, "test")


def test_a_folder_must_be_named():
    with pytest.raises(
        UserError, match="config.data.dir is '', but must be the folder of the images"
    ):
        runs.spec_of(DataOptions(name="folder"))


def test_boxes_are_fractions_of_what_is_seen(tmp_path):
    image_sets.write(tmp_path, 2, size=(20, 40))
    rows = ["path,label,split,ymin,xmin,ymax,xmax"]
    for name in image_sets.CLASSES:
        rows += [f"{name}/000.jpg,{name},train,5,15,15,30", f"{name}/001.jpg,{name},test,,,,"]
    (tmp_path / "images.csv").write_text("\n".join(rows))
    for mode in MODES:
        train, test = (open_split(tmp_path, split, mode=mode) for split in ("train", "test"))
        assert train.spec.has_boxes
        # Of 20x40 pixels the 20 columns in the middle are seen, from the 10th on.
        box = train.read(np.arange(1), with_boxes=True)["box"]
        np.testing.assert_allclose(box, [[0.25, 0.25, 0.75, 1.0]])
        np.testing.assert_array_equal(test.read(np.arange(1), with_boxes=True)["box"], [NO_BOX])


def write_several(root):
    """A table in which two of six images have two labels, and one has none."""
    image_sets.write(root, 2, size=(8, 8))
    cells = ["bee;cat", "dog", "cat", "bee;dog", ";", "cat;dog"]
    paths = [f"{name}/00{n}.jpg" for name in image_sets.CLASSES for n in range(2)]
    splits = ["train", "test", "train", "train", "test", "test"]
    rows = [",".join(row) for row in zip(paths, cells, splits, strict=True)]
    (root / "images.csv").write_text("\n".join(["path,label,split", *rows]))


def test_several_labels_are_multi_hot_in_both_modes(tmp_path):
    write_several(tmp_path)
    for mode in MODES:
        train, test = (open_split(tmp_path, split, mode=mode) for split in ("train", "test"))
        assert train.spec.multi_label and train.spec.class_names == image_sets.CLASSES
        labels = train.read(np.arange(3))["label"]
        np.testing.assert_array_equal(labels, np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]], np.uint8))
        assert test.read(np.arange(3))["label"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 1]]


def test_a_run_of_one_label_refuses_several(tmp_path):
    write_several(tmp_path)
    spec = runs.spec_of(options(tmp_path))
    one_each = dataclasses.replace(spec, multi_label=False)
    with pytest.raises(UserError, match="has images with several labels, but the data set's have"):
        runs.open_split(options(tmp_path), one_each, "test")
    # The other way round one label is one of several.
    (tmp_path / "images.csv").write_text("path,label,split\nbee/000.jpg,dog,test\n")
    dataset = runs.open_split(options(tmp_path), spec, "test")
    assert dataset.labels.tolist() == [[0, 0, 1]]


class SmallToy(toys.Toy):
    """The same on images of 8x8 pixels, two rows of which are a patch."""

    def __call__(self, images, train=False):
        return super().__call__(images.reshape(len(images), 4, 16, 3), train)


@pytest.fixture
def toy_networks(monkeypatch):
    monkeypatch.setattr(runs, "build_model", lambda *_, **__: SmallToy())


def train(workdir, **of_data):
    config = toys.settings()
    config.data.update(flip=True, crop_padding=1, **of_data)
    config.train.update(batch_size=6, epochs=2)
    config.log.every_steps = 1
    loop.train(config, str(workdir))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 8  # of six updates and two tests
    return losses, runs.load(workdir)


@pytest.mark.slow
def test_files_train_as_the_tfds_set_of_the_same_pictures(folder, tmp_path, toy_networks):
    image_sets.prepare(folder, tmp_path / "tfds")
    of_tfds = dict(name="tfds:jpeg_set", dir=str(tmp_path / "tfds"))
    losses, run = train(tmp_path / "of_tfds", **of_tfds)
    rows = ["path,label,split"]
    for split in ("train", "test"):  # in the order that TFDS shuffled them to
        source = data.open_source(run.spec, split, of_tfds["dir"])
        for place, label in enumerate(source.labels()):
            path = source.records[place]["path"].decode()
            rows.append(f"{path},{image_sets.CLASSES[label]},{split}")
    (folder / "order.csv").write_text("\n".join(rows))
    for mode in MODES:
        of_files = dict(name="folder", dir=str(folder), table="order.csv", image_size=8, mode=mode)
        own_losses, own_run = train(tmp_path / mode, **of_files)
        assert own_losses == losses and own_run.spec.mean == run.spec.mean
        jax.tree.map(np.testing.assert_array_equal, own_run.variables, run.variables)


@pytest.mark.slow
def test_a_run_keeps_its_data_set(folder, tmp_path, toy_networks):
    of_data = dict(name="folder", dir=str(folder), image_size=8)
    _, run = train(tmp_path / "run", **of_data)
    shutil.move(folder, tmp_path / "moved")
    again = runs.load(tmp_path / "run")
    assert again.spec == run.spec and again.spec.class_names == image_sets.CLASSES
    dataset = runs.open_dataset(again, "test", str(tmp_path / "moved"))
    assert len(dataset) == 9
    image_sets.picture(9).save(tmp_path / "moved/train/dog/000.jpg")
    with pytest.raises(UserError, match="is another one than the run in .*other training images"):
        train(tmp_path / "run", **{**of_data, "dir": str(tmp_path / "moved")})


@pytest.mark.slow
def test_a_run_cannot_go_on_with_other_classes(folder, tmp_path, toy_networks):
    of_data = dict(name="folder", dir=str(folder), image_size=8)
    train(tmp_path / "run", **of_data)
    for split in ("train", "test"):
        (folder / split / "dog").rename(folder / split / "eel")
    with pytest.raises(
        UserError, match="has the classes bee, cat, eel, but the run in .* bee, cat, dog"
    ):
        train(tmp_path / "run", **of_data)


def test_progress_is_in_the_log(folder, monkeypatch, caplog):
    monkeypatch.setattr("lossattn_jax.data.decoding._LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        runs.spec_of(options(folder))
    assert f"read 18 of 18 files in {folder}" in caplog.text and "left" in caplog.text


def test_refusals_name_files_of_both_splits(folder):
    damage(folder, "test/cat/000.jpg")
    own = options(folder)
    (clause,) = image_folder.refusals(own, runs.spec_of(own))
    assert clause.startswith(f"1 of 9 test images in {folder} cannot be read")


def test_sums_of_pixels_are_exact_in_any_order(folder):
    spec = runs.spec_of(options(folder))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    facts = file_survey.survey(folder, names, spec.view, folder / ".lossattn")
    forward, backward = (file_survey.add_sums(some, spec.view) for some in (facts, facts[::-1]))
    assert forward == backward and forward.pixels == 27 * 64
