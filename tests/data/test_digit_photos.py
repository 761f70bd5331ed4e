"""The photographs of digit_photos."""

import csv

import numpy as np
import pytest
from PIL import Image

from lossattn_jax.config.options import DataOptions
from lossattn_jax.data import own_images
from lossattn_jax.data.digit_photos import Options, Photo, draw_photos, write_photos
from lossattn_jax.data.origins import make_spec
from lossattn_jax.data.prepare import prepare
from lossattn_jax.data.prepared_split import open_dataset
from lossattn_jax.errors import UserError

OPTIONS = Options(train=100, test=10, sides=(48, 80))


@pytest.fixture(scope="module")
def photos():
    return list(draw_photos(OPTIONS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, OPTIONS)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return list(csv.DictReader((folder / "images.csv").read_text().splitlines()))


def test_a_photo_depends_on_its_split_and_number_alone(photos):
    fewer = list(draw_photos(Options(train=10, test=10, sides=(48, 80))))
    for one in fewer:
        (other,) = [p for p in photos if (p.split, p.number) == (one.split, one.number)]
        np.testing.assert_array_equal(one.image, other.image)
        assert (one.label, one.box) == (other.label, other.box)


def test_sizes_and_boxes(photos: list[Photo]):
    for photo in photos:
        height, width, _ = photo.image.shape
        assert 48 <= height <= 80 and 48 <= width <= 80
        top, left, bottom, right = photo.box
        assert 0 <= top < bottom <= height and 0 <= left < right <= width
        # A digit is 0.3 to 0.5 of the shorter side high, before it is turned.
        assert 0.2 < (bottom - top) / min(height, width) < 0.65


def test_the_digit_stands_out_in_its_box(photos: list[Photo]):
    """Edges in the box are stronger than outside it, in nearly all photographs."""
    stronger = 0
    for photo in photos:
        grey = photo.image.astype(float).mean(-1)
        edges = np.abs(np.diff(grey, axis=1))
        inside = np.zeros(edges.shape, bool)
        top, left, bottom, right = photo.box
        inside[top:bottom, left:right] = True
        stronger += edges[inside].mean() > edges[~inside].mean()
    assert stronger > 0.9 * len(photos)


def test_files_have_many_modes_and_every_class_all_of_them(folder, rows):
    kinds = {}
    for row in rows:
        if row["split"] == "train":
            with Image.open(folder / row["path"]) as image:
                turned = image.getexif().get(0x0112, 1) != 1
                kinds.setdefault(row["label"], set()).add((image.format, image.mode, turned))
    assert all(len(of_class) == 10 for of_class in kinds.values())
    modes = {mode for _, mode, _ in kinds["0"]}
    assert modes == {"RGB", "L", "P", "CMYK", "RGBA", "I;16"}


def test_files_read_upright_are_the_photographs(folder, rows, photos):
    by_path = dict(zip([row["path"] for row in rows], photos, strict=True))
    for path, photo in list(by_path.items())[:100]:
        image = own_images.read_image(folder / path, None)
        assert image.shape == photo.image.shape
        difference = luma(image) - luma(photo.image)
        assert np.abs(difference[4:-4]).mean() < 6  # palettes and JPEG; the rim may be white


def luma(image):
    return np.asarray(Image.fromarray(image).convert("L")).astype(int)


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match="the largest side of digit_photos is 40, but must be 64"):
        Options(sides=(64, 40))


def test_they_are_prepared_once_and_opened_as_own_images(tmp_path, photos):
    settings = {"train": 100, "test": 10, "sides": (48, 80)}
    folder = prepare("digit_photos", str(tmp_path), builder_kwargs=settings)
    assert prepare("digit_photos", str(tmp_path)) == folder
    with pytest.raises(UserError, match="made with other settings .train 100 instead of 20"):
        prepare("digit_photos", str(tmp_path), builder_kwargs={"train": 20})
    options = DataOptions(name="folder", dir=folder, image_size=32)
    spec = make_spec(options)
    assert spec.class_names == tuple("0123456789")
    train = open_dataset(spec, "train", folder)
    assert len(train) == 100
    batch = train.read(np.array([13]), with_boxes=True)
    # Whole and centred: the picture's shorter side is the image's.
    photo = photos[13]
    height, width, _ = photo.image.shape
    side = min(height, width)
    top, left = (height - side) / 2, (width - side) / 2
    expected = (np.array(photo.box) - [top, left, top, left]) / side
    np.testing.assert_allclose(batch["box"][0], np.clip(expected, 0, 1), atol=1e-6)
    assert batch["label"][0] == photo.label
