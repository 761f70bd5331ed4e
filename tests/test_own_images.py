"""The user's own images: every mode and size, folders, tiles, and files that are none."""

import numpy as np
import PIL
import pytest
from PIL import Image

from lossattn_jax.data import own_images
from lossattn_jax.data.views import View
from lossattn_jax.errors import UserError

SHAPE = (8, 8, 3)
VIEW = View(SHAPE)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (200, 100)])
def test_every_mode_and_size_becomes_the_networks(tmp_path, mode, size):
    suffix = "tif" if mode in ("CMYK", "YCbCr", "F") else "png"
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, size).save(path)
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip(
            "Pillow before 13 cannot read such a file of its own: it takes it for a truncated one"
        )
    image = own_images.read_image(path, VIEW)
    assert image.shape == SHAPE and image.dtype == np.uint8
    own = own_images.read_image(path, None)
    assert own.shape == (size[1], size[0], 3)


def test_colours_survive_and_transparent_parts_become_white(tmp_path):
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[..., :3] = (200, 10, 30)
    picture[:, :4, 3] = 255
    Image.fromarray(picture).save(tmp_path / "half.png")
    image = own_images.read_image(tmp_path / "half.png", VIEW)
    assert (image[:, :4] == (200, 10, 30)).all() and (image[:, 4:] == 255).all()


def test_an_image_is_turned_as_its_camera_was(tmp_path):
    picture = Image.new("RGB", (4, 8), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned: the top left corner belongs at the top right
    picture.save(tmp_path / "turned.png", exif=exif)
    image = own_images.read_image(tmp_path / "turned.png", None)
    assert image.shape == (4, 8, 3) and image[0, -1].tolist() == [255] * 3


@pytest.fixture
def folder(tmp_path):
    Image.new("L", (20, 9), 100).save(tmp_path / "b.PNG")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.jpg")
    (tmp_path / "broken.png").write_bytes(b"no image")
    whole = (tmp_path / "b.PNG").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpeg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not asked for")
    (tmp_path / "more.png").mkdir()
    return tmp_path


def test_a_folders_broken_files_are_named_and_the_rest_is_read(folder):
    own = own_images.read([folder, folder / "absent.png"], VIEW)
    assert own.names == own.files == ("a.jpg", "b.PNG")
    assert own.images.shape == (2, *SHAPE)
    assert own.places == ((0, 0, 0), (1, 0, 0))
    wrong = "broken.png cut.png empty.jpeg more.png absent.png".split()
    assert len(own.refusals) == len(wrong)
    for name, sentence in zip(wrong, own.refusals, strict=True):
        assert name in sentence and "\n" not in sentence


def test_nothing_that_can_be_read_is_an_error(folder, tmp_path):
    with pytest.raises(UserError, match="no image could be read: .*broken.png cannot be read"):
        own_images.read([folder / "broken.png"], VIEW)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none has no image file"):
        own_images.read([tmp_path / "none"], VIEW)
    with pytest.raises(UserError, match="fit is 'crop', but must be one of: resize, tile"):
        own_images.read([folder], VIEW, fit="crop")


def test_tiles_hold_every_pixel_in_place():
    image = np.arange(19 * 20 * 3, dtype=np.uint8).reshape(19, 20, 3)
    rows = own_images.tiles(image, (8, 8))
    assert [len(row) for row in rows] == [3, 3, 3]
    for row, top in zip(rows, (0, 8, 11), strict=True):
        for tile, left in zip(row, (0, 8, 12), strict=True):
            np.testing.assert_array_equal(tile, image[top : top + 8, left : left + 8])


def test_a_small_image_is_one_tile_padded_with_its_edge():
    image = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    ((tile,),) = own_images.tiles(image, (8, 8))
    assert tile.shape == SHAPE
    assert (tile[:, 0] == [1, 2, 3]).all() and (tile[:, 1:] == [4, 5, 6]).all()


def test_tiles_are_named_by_place_and_not_without_number(folder):
    own = own_images.read([folder / "b.PNG", folder / "a.jpg"], VIEW, fit="tile")
    assert own.names[0] == "b.PNG, tile 1, 1" and own.names[5] == "b.PNG, tile 2, 3"
    assert own.names[6:] == ("a.jpg",)
    assert own.places[5] == (0, 1, 2) and own.places[6] == (1, 0, 0)
    with pytest.raises(UserError, match="2x3 tiles of .*b.PNG would make more than 5 images"):
        own_images.read([folder / "b.PNG"], VIEW, fit="tile", most=5)


def test_subfolders_are_gone_into_and_links_to_folders_are_not(tmp_path, caplog):
    for place in ("c.png", "b/c.png", "b/deep/a.PNG", "empty/notes.txt"):
        path = tmp_path / "in" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("")
        else:
            Image.new("L", (2, 2)).save(path)
    (tmp_path / "in" / "b" / "loop").symlink_to(tmp_path / "in")
    Image.new("L", (2, 2)).save(tmp_path / "elsewhere.png")
    (tmp_path / "in" / "z.png").symlink_to(tmp_path / "elsewhere.png")
    with caplog.at_level("INFO", logger="lossattn_jax"):
        own = own_images.read([tmp_path / "in"], VIEW)
    assert own.names == ("b/c.png", "a.PNG", "in/c.png", "z.png") and not own.refusals
    assert "not looked into, as links to folders: loop" in caplog.text


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.png", "b/x.png"], ["a/x.png", "b/x.png"]),
        (["a/x.png", "b/y.png"], ["x.png", "y.png"]),
        (["p/a/x.png", "q/a/x.png", "b/x.png"], ["p/a/x.png", "q/a/x.png", "b/x.png"]),
        (["x.png", "a/x.png", "a/a/x.png"], None),
        (["/x.png", "/a/x.png"], ["/x.png", "a/x.png"]),
    ],
)
def test_files_of_one_name_differ_by_the_end_of_their_paths(tmp_path, paths, names):
    found = own_images.short_names([tmp_path / path for path in paths])
    expected = names or [f"{tmp_path.name}/x.png", f"{tmp_path.name}/a/x.png", "a/a/x.png"]
    assert found == expected


def test_a_file_that_is_named_twice_is_there_once(folder):
    found = own_images.find([folder / "a.jpg", folder, folder / ".." / folder.name / "a.jpg"])
    assert [path.name for path in found].count("a.jpg") == 1
