"""The data set `coco`, on a few images of our own that TFDS' own builder has prepared."""

import dataclasses
import io
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lossattn_jax import data
from lossattn_jax.data.prepare import prepare
from lossattn_jax.errors import UserError
from tests.support.tiny_coco import IMAGES, SPEC, box


@pytest.fixture
def examples(coco_dir):
    """The decoded examples of both splits by file name."""
    found = {}
    for split in ("train", "test"):
        source = data.open_source(SPEC, split, coco_dir)
        for index in range(len(source)):
            found[source.records[index]["image/filename"].decode()] = source[index]
    return found


def test_what_is_published():
    assert (SPEC.num_train, SPEC.num_test) == (118_287, 5_000)
    assert SPEC.image_shape == (64, 64, 3)
    assert SPEC.multi_label
    assert len(SPEC.class_names) == 80
    assert [SPEC.class_names[k] for k in (0, 9, 11, 79)] == [
        "person",
        "traffic light",
        "stop sign",
        "toothbrush",
    ]


def test_every_file_is_there(examples):
    assert sorted(examples) == sorted([*IMAGES["train"], *IMAGES["val"]])


def test_labels_name_the_objects_of_an_image(examples, coco_dir):
    for images in (IMAGES["train"], IMAGES["val"]):
        for name, (_, objects) in images.items():
            label = examples[name]["label"]
            assert (label.shape, label.dtype) == ((80,), np.uint8)
            shown = [SPEC.class_names[k] for k in np.flatnonzero(label)]
            assert sorted(shown) == sorted(set(objects))
            assert label.max(initial=0) <= 1
    names = (Path(coco_dir) / "coco/2017/1.1.0/objects-label.labels.txt").read_text()
    assert tuple(names.splitlines()) == SPEC.class_names


def test_boxes_are_those_of_the_objects(examples):
    for images in (IMAGES["train"], IMAGES["val"]):
        for name, (image, objects) in images.items():
            boxes, labels = examples[name]["box"], examples[name]["box_label"]
            assert (boxes.shape, boxes.dtype) == ((SPEC.max_boxes, 4), np.float32)
            assert (labels.shape, labels.dtype) == ((SPEC.max_boxes,), np.int32)
            count = len(objects)
            assert [SPEC.class_names[k] for k in labels[:count]] == objects
            expected = np.array([box(image, k) for k in range(count)]).reshape(-1, 4)
            np.testing.assert_allclose(boxes[:count], expected, rtol=1e-6)
            np.testing.assert_array_equal(labels[count:], -1)
            assert (boxes[count:] == np.array(data.NO_BOX, np.float32)).all()


def test_images_of_all_sizes_become_colour_squares(examples):
    for example in examples.values():
        assert (example["image"].shape, example["image"].dtype) == ((64, 64, 3), np.uint8)


def _off(image, expected):
    return np.abs(image.astype(int) - np.asarray(expected)).max()


def test_resizing(examples):
    # JPEG moves a colour by a level or two.
    assert _off(examples["plain.jpg"]["image"], (200, 30, 90)) <= 2
    assert _off(examples["grey.jpg"]["image"], 128) == 0
    halves = examples["halves.jpg"]["image"]
    assert _off(halves[:, :30], 0) <= 2
    assert _off(halves[:, 34:], 255) <= 2
    # Every fourth pixel would be black only, or white only.
    assert _off(examples["chequers.jpg"]["image"], 127.5) <= 4


def test_what_jpeg_reduces_first_hardly_differs(examples):
    # Of 640 x 480 pixels the decoder hands out a quarter; the reference resizes all of them.
    file = io.BytesIO()
    Image.fromarray(IMAGES["val"]["large.jpg"][0]).save(file, "JPEG", quality=100)
    whole = Image.open(file).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
    difference = np.abs(examples["large.jpg"]["image"].astype(int) - np.asarray(whole))
    assert difference.mean() < 2
    assert np.asarray(whole).std() > 40


def test_both_modes_give_the_same_batches(coco_dir):
    for split, count in (("train", 5), ("test", 3)):
        memory, stream = (
            data.open_dataset(SPEC, split, coco_dir, mode=mode) for mode in ("memory", "stream")
        )
        assert len(memory) == len(stream) == count
        assert memory.labels.dtype == np.uint8
        np.testing.assert_array_equal(stream.source.labels(), memory.labels)
        options = {"batch_size": 2, "process_index": 1, "process_count": 2}
        train = stream.train_batches(**options, seed=4)
        pairs = [
            *itertools.islice(
                zip(memory.train_batches(**options, seed=4), train, strict=False), 2 * count
            ),
            *zip(memory.eval_batches(**options), stream.eval_batches(**options), strict=True),
        ]
        train.close()
        for one, other in pairs:
            assert one.keys() == other.keys()
            assert (one["label"].shape, one["label"].dtype) == ((1, 80), np.uint8)
            assert one["image"].shape == (1, 64, 64, 3)
            for name in one:
                assert one[name].dtype == other[name].dtype
                np.testing.assert_array_equal(one[name], other[name])
            np.testing.assert_array_equal(one["label"][0], memory.labels[one["index"][0]])
            assert ("box" in one) == ("box_label" in one) == ("mask" in one)
        kept = memory.take(np.array([2, 0]))
        (batch,) = kept.eval_batches(batch_size=2)
        np.testing.assert_array_equal(batch["box"], memory.boxes[[2, 0]])
        np.testing.assert_array_equal(batch["box_label"], memory.box_labels[[2, 0]])


def test_the_cache_is_read_and_follows_resizing_and_boxes(coco_dir, monkeypatch):
    from lossattn_jax.data import datasets, memory

    source = data.open_source(SPEC, "test", coco_dir)
    assert Path(memory.cache_path(source)).name == "cache_validation.npz"
    expected = data.load(SPEC, "test", coco_dir)
    before = source.digests()
    monkeypatch.setattr(datasets, "DRAFT", 3)
    assert source.digests() != before
    monkeypatch.undo()
    more = dataclasses.replace(SPEC, max_boxes=SPEC.max_boxes + 1)
    assert data.open_source(more, "test", coco_dir).digests() != before

    def decode(source):
        raise AssertionError("decoded again")

    monkeypatch.setattr(memory, "_decode", decode)
    cached = data.load(SPEC, "test", coco_dir)
    assert cached.labels.dtype == np.uint8
    assert cached.box_labels.dtype == np.int32
    for name in ("images", "labels", "boxes", "box_labels"):
        np.testing.assert_array_equal(getattr(cached, name), getattr(expected, name))


def test_a_number_of_labels_makes_no_sense_here(coco_dir):
    with pytest.raises(UserError, match="num_labels is 80, but must be 0 for coco"):
        data.open_dataset(SPEC, "train", coco_dir, num_labels=80)
    with pytest.raises(UserError, match="held_out is 80, but must be 0 for coco"):
        data.open_dataset(SPEC, "held_out", coco_dir, held_out=80)
    assert len(data.open_dataset(SPEC, "test", coco_dir, num_labels=80)) == 3


def test_messages_name_the_folder_of_2017(coco_dir, tmp_path):
    with pytest.raises(data.DatasetNotFound) as caught:
        data.open_source(SPEC, "train", str(tmp_path))
    assert str(caught.value) == (
        f"data set coco is not prepared (as array_record) in {tmp_path}/coco/2017; name the "
        "folder that has it, or prepare it with: "
        f"python -m lossattn_jax.data.prepare --dataset=coco --data_dir={tmp_path}"
    )
    copy = Path(shutil.copytree(coco_dir, tmp_path / "copy"))
    (shard,) = copy.glob("coco/2017/*/*-validation.array_record*")
    shard.unlink()
    with pytest.raises(UserError, match=f"remove the folder {copy}/coco/2017/1.1.0 and prepare"):
        prepare("coco", str(copy))


_READ = """
import sys
from lossattn_jax import data
for mode in ("memory", "stream"):
    dataset = data.open_dataset(data.get_spec("coco"), "train", sys.argv[1], mode=mode)
    (batch,) = dataset.eval_batches(batch_size=5)
    assert batch["label"].sum() == 7, batch["label"]
assert "tensorflow" not in sys.modules
"""


def test_reading_imports_no_tensorflow(coco_dir, tmp_path, run_python):
    # TFDS' own way to open the data set does, since its builder of COCO does.
    copy = shutil.copytree(coco_dir, tmp_path / "copy")
    for cache in Path(copy).glob("coco/2017/*/cache_*"):
        cache.unlink()
    done = run_python("-c", _READ, copy)
    assert done.returncode == 0, done.stderr
