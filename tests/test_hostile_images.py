"""Pictures that would keep a command waiting or take all memory: refused by name, not decoded."""

import os
import socket
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from lossattn_jax.data import own_images, picture_depth
from lossattn_jax.data.views import View
from lossattn_jax.errors import UserError

SHAPE = (8, 8, 3)
VIEW = View(SHAPE)
_FRAME = b"," + struct.pack("<HHHHB", 0, 0, 8, 8, 0) + b"\x02\x02\x4c\x01\0;"  # of a GIF


def _png(width, height, depth=8, colours=2, pixels=b"", before=b""):
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    text = chunk(b"zTXt", b"Comment\0\0" + before) if before else b""
    body = chunk(b"IHDR", header) + text + chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def _refuse(path, words, fit="resize"):
    """Reads a file beside a good one; the sentence about it has these words."""
    good = path.with_name("good.png")
    Image.new("RGB", (8, 8)).save(good)
    tracemalloc.start()
    own = own_images.read([path, good], VIEW, fit=fit)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert own.files == ("good.png",) and own.images.shape == (1, *SHAPE)
    (sentence,) = own.refusals
    assert str(path) in sentence and words in sentence and "\n" not in sentence
    assert peak < 1 << 22, f"{peak >> 20} MiB"
    with pytest.raises(UserError, match="no image could be read"):
        own_images.read([path], VIEW, fit=fit)


def test_what_is_no_regular_file_keeps_nobody_waiting(tmp_path):
    for name in ("fifo.png", "socket.png", "endless.png", "link.png"):
        path = tmp_path / name
        if name == "fifo.png":
            os.mkfifo(path)
        elif name == "socket.png":
            listener = socket.socket(socket.AF_UNIX)
            with listener:
                listener.bind(str(path))
            _refuse(path, "cannot be read as an image: No such device or address")
            continue
        elif name == "endless.png":
            path.symlink_to("/dev/zero")
        else:
            path.symlink_to(tmp_path / "fifo.png")
        for fit in own_images.FITS:
            _refuse(path, "cannot be read as an image: it is not a regular file", fit)


@pytest.mark.parametrize("fit", own_images.FITS)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", _png(60000, 60000)),
        ("a.png", _png(2**31 - 1, 2**31 - 1)),
        ("b.ppm", b"P6 100000 100000 255\n" + bytes(99)),
        (
            "c.bmp",
            b"BM" + struct.pack("<IIIIiiHHI", 154, 0, 54, 40, 90000, 90000, 1, 24, 0) + bytes(99),
        ),
        ("d.gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + _FRAME),
    ],
)
def test_sizes_beyond_pillows_limit_are_refused(tmp_path, name, content, fit):
    (tmp_path / name).write_bytes(content)
    _refuse(tmp_path / name, "exceeds limit of 178956970 pixels", fit)


@pytest.mark.parametrize(
    ("content", "gigabytes"),
    [
        (_png(12000, 12000), "1.07"),
        (_png(8000, 8000, colours=6), "1.19"),
        (_png(7000, 7000, depth=16), "1.10"),
        (_png(10000, 10000, depth=16, colours=0), "1.49"),
    ],
)
def test_pictures_too_large_for_memory_are_refused_by_header(tmp_path, content, gigabytes):
    (tmp_path / "large.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own warning of large pictures is none of ours
        _refuse(
            tmp_path / "large.png", f"{gigabytes} GiB of memory are needed, of which it may take 1"
        )


def test_a_tile_that_is_larger_than_its_picture_counts(tmp_path):
    path = tmp_path / "tile.tif"
    tiles = {322: 16384, 323: 16384}
    entries = [
        *[(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)],
        *[(277, 3, 1, 1), (322, 4, 1, tiles[322]), (323, 4, 1, tiles[323])],
        *[(324, 4, 1, 8), (325, 4, 1, 64)],
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", *entry) for entry in entries
    )
    path.write_bytes(b"II*\0" + struct.pack("<I", 72) + bytes(64) + directory + bytes(4))
    _refuse(path, "64x64 pixels, for which 2.00 GiB of memory are needed")


def test_tiles_are_counted_before_a_picture_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(own_images, "read_image", lambda *_: pytest.fail("decoded"))
    (tmp_path / "long.png").write_bytes(_png(8, 8008))
    with pytest.raises(UserError, match="1001x1 tiles of .*long.png would make more than 1000"):
        own_images.read([tmp_path / "long.png"], VIEW, fit="tile")


def test_the_size_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[picture_depth.ORIENTATION] = orientation
        for name in ("a.jpg", "a.png", "a.tif", "a.webp"):
            Image.new("RGB", (4, 10)).save(tmp_path / name, exif=exif)
            height, width = own_images.read_size(tmp_path / name)
            image = own_images.read_image(tmp_path / name, None)
            assert image.shape == (height, width, 3), (name, orientation)


def test_a_text_that_unpacks_to_gigabytes_is_refused(tmp_path):
    bomb = _png(8, 8, pixels=bytes(8 * 25), before=zlib.compress(bytes(1 << 27)))
    (tmp_path / "bomb.png").write_bytes(bomb)
    _refuse(tmp_path / "bomb.png", "cannot be read as an image: ")


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.webp", "a.png"])
def test_of_several_frames_the_first_is_read(tmp_path, name):
    first, *others = (Image.new("RGB", (8, 8), colour) for colour in ("black", "white", "red"))
    first.save(tmp_path / name, save_all=True, append_images=others)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(own_images.read_image(tmp_path / name, VIEW), 0)


def test_wide_pictures_are_scaled_in_parts_as_in_one(monkeypatch):
    values = np.random.default_rng(0).integers(0, 65536, (50, 7, 3)).astype(np.uint16)
    whole = picture_depth._to_levels(values, np.float64(65535))
    np.testing.assert_array_equal(whole, (255 * (values / 65535)).round())
    monkeypatch.setattr(picture_depth, "_AT_ONCE", 60)  # less than three rows
    np.testing.assert_array_equal(picture_depth._to_levels(values, np.float64(65535)), whole)
