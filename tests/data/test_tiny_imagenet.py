"""The data set `tiny_imagenet`, from an archive of our own in the published format."""

import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from lossattn_jax import data
from lossattn_jax.data import archives, tiny_imagenet, tiny_imagenet_classes
from lossattn_jax.data.prepare import prepare
from lossattn_jax.errors import UserError
from tests.support import tiny_tiny_imagenet as tiny

SPEC = tiny.SPEC


@pytest.fixture(scope="module")
def examples(tiny_imagenet_dir):
    """The decoded examples of both splits by file name."""
    found = {}
    for split in ("train", "test"):
        source = data.open_source(SPEC, split, tiny_imagenet_dir)
        for index in range(len(source)):
            found[source.records[index]["file_name"].decode()] = source[index]
    return found


def test_the_published_classes():
    wnids, names = tiny_imagenet_classes.WNIDS, tiny_imagenet_classes.NAMES
    assert len(set(wnids)) == len(set(names)) == 200
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids)
    assert names[0] == "Egyptian cat" and names[-1] == "African elephant"
    assert (SPEC.num_train, SPEC.num_test, SPEC.max_boxes) == (100_000, 10_000, 1)


def test_every_image_is_there_with_its_class_and_box(examples):
    content = tiny.files()
    jpegs = {name.split("/")[-1] for name in content if name.endswith(".JPEG")}
    assert set(examples) == jpegs - {"test_0.JPEG"}
    seeds = range(len(tiny.WNIDS) * tiny.PER_CLASS)
    train = [f"{tiny.WNIDS[k // tiny.PER_CLASS]}_{k % tiny.PER_CLASS}.JPEG" for k in seeds]
    validation = [f"val_{k}.JPEG" for k in range(tiny.VALIDATION)]
    for names in (train, validation):
        for seed, name in enumerate(names):
            found = examples[name]
            place = seed // tiny.PER_CLASS if names is train else seed % 3
            assert SPEC.class_names[found["label"]] == ("acorn", "Egyptian cat", "reel")[place]
            x1, y1, x2, y2 = tiny.corners(seed)
            expected = np.array([y1, x1, y2 + 1, min(x2 + 1, 64)]) / 64
            assert found["box"].dtype == np.float32
            np.testing.assert_allclose(found["box"], expected, rtol=1e-6)


def test_pixels_are_those_of_the_files_and_grey_ones_get_colours(examples):
    grey = 0
    for name, content in tiny.files().items():
        if not name.endswith(".JPEG") or name.startswith("test"):
            continue
        stored = Image.open(io.BytesIO(content))
        grey += stored.mode == "L"
        pixels = examples[name.split("/")[-1]]["image"]
        assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)
        np.testing.assert_array_equal(pixels, np.asarray(stored.convert("RGB")))
    assert grey == 5


def test_both_modes_give_the_same_batches(tiny_imagenet_dir):
    for split, count in (("train", 12), ("test", 5)):
        memory, stream = (
            data.open_dataset(SPEC, split, tiny_imagenet_dir, mode=mode)
            for mode in ("memory", "stream")
        )
        assert len(memory) == len(stream) == count
        options = {"batch_size": 4}
        for one, other in zip(
            memory.eval_batches(**options), stream.eval_batches(**options), strict=True
        ):
            assert one.keys() == other.keys() and one["box"].shape == (4, 4)
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


def _examples(content, function=tiny_imagenet.train_examples):
    file = io.BytesIO()
    tiny.write(file, content)
    with zipfile.ZipFile(file) as archive:
        return list(function(archive))


def test_an_image_without_an_annotation_has_no_box():
    content = tiny.files()
    boxes = "train/n02124075/n02124075_boxes.txt"
    content[boxes] = content[boxes].split("\n", 1)[1]
    found = {one["file_name"]: one["bbox"] for one in _examples(content)}
    np.testing.assert_array_equal(found["n02124075_0.JPEG"], data.NO_BOX)
    assert found["n02124075_1.JPEG"].max() <= 1


def _without(name):
    return lambda content: content.pop(name)


def _with(name, text):
    return lambda content: content.update({name: text})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without("wnids.txt"), "no item named 'tiny-imagenet-200/wnids.txt'"),
        (_without("val/images/val_2.JPEG"), "no item named .*val_2.JPEG"),
        (_with("wnids.txt", "n00000001\n"), "n00000001 is not one of the 200 published"),
        (_with("val/val_annotations.txt", "val_0.JPEG\tn02124075\t0\t1\n"), "line 1 .* 4 columns"),
        (_with("train/n02124075/n02124075_boxes.txt", "a\t0\t1\tx\t2\n"), "invalid literal .*'x'"),
    ],
)
def test_what_is_malformed_ends_in_a_sentence(change, reason, tmp_path):
    content = tiny.files()
    change(content)
    with pytest.raises(
        UserError, match=f"archive {tmp_path} cannot be used .*{reason}.*--archives"
    ):
        with archives.reading(tmp_path):
            _examples(content)
            _examples(content, tiny_imagenet.validation_examples)


def test_a_damaged_archive_leaves_nothing_behind(tmp_path):
    (tmp_path / "archives").mkdir()
    path = tmp_path / "archives" / tiny.NAME
    tiny.write(path, tiny.files())
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=f"the archive {path} cannot be used .File is not a zip"):
        prepare("tiny_imagenet", str(tmp_path / "data"), archives=str(tmp_path / "archives"))
    with pytest.raises(data.DatasetNotFound):
        data.open_source(SPEC, "train", str(tmp_path / "data"))


def test_a_folder_of_archives_has_to_be_one(tmp_path):
    with pytest.raises(UserError, match="archives is '/nowhere', but must be a folder"):
        prepare("tiny_imagenet", str(tmp_path), archives="/nowhere")


def test_what_is_not_in_the_folder_is_downloaded(tmp_path):
    class Manager:
        manual_dir = tmp_path

        def download(self, urls):
            return {name: f"downloaded {url}" for name, url in urls.items()}

    urls = {"train": "http://far.org/train.tar.gz", "test": "http://far.org/test.tar.gz"}
    (tmp_path / "test.tar.gz").touch()
    assert archives.locate(Manager(), urls) == {
        "train": "downloaded http://far.org/train.tar.gz",
        "test": tmp_path / "test.tar.gz",
    }
    (tmp_path / "train.tar.gz").touch()
    assert archives.locate(Manager(), urls)["train"] == tmp_path / "train.tar.gz"
