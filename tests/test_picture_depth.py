"""Pictures of every depth become the same picture with 8 bits, or are left out with the reason."""

import logging
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lossattn_jax.data import own_images
from lossattn_jax.data.views import View
from lossattn_jax.errors import UserError

DRAW = np.random.default_rng(0)
GREY = DRAW.integers(0, 256, (5, 7, 1)).astype(np.uint8)
COLOURS = DRAW.integers(0, 256, (5, 7, 3)).astype(np.uint8)
GREY[0, 0], COLOURS[0, 0] = 255, 255
CASES = pathlib.Path(__file__).parents[2] / "shared" / "cases" / "image_depth"
KINDS = {0: 1, 2: 3, 4: 2, 6: 4}  # samples by a PNG's kind of colour


def scaled(levels, full):
    """8 bits as 16, white being `full`."""
    return (levels / 255 * full).round().astype(np.uint16)


def write_png(path, values, kind, *chunks):
    """A PNG of 16 bits, values `[H, W, samples]`, with more chunks before its pixels."""
    height, width, samples = values.shape
    assert samples == KINDS[kind]
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    # Each row as its difference from the pixel before ("Sub"), which has to know a pixel's size.
    step = 2 * samples
    before = np.concatenate([np.zeros((height, step), np.uint8), rows[:, :-step]], axis=1)
    filtered = np.concatenate([np.ones((height, 1), np.uint8), rows - before], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    pixels = zlib.compress(filtered.tobytes())
    for name, data in [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]:
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)
    return path


def write_tiff(path, values, order="<", photometric=1, form=1, bits=None, **more):
    """An uncompressed TIFF of values `[H, W, samples]` in their own type; `more` tags by number."""
    height, width, samples = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    bits = bits or 8 * values.dtype.itemsize
    end = 8 + len(data)
    tags = {256: width, 257: height, 259: 1, 262: photometric, 273: 8, 277: samples, 278: height}
    tags |= {279: len(data), 339: form} | {int(tag[1:]): value for tag, value in more.items()}
    shorts = bits if samples < 3 else end + 2 + 12 * (len(tags) + 1) + 4
    entries = [(258, 3, samples, shorts), *((tag, 4, 1, value) for tag, value in tags.items())]
    content = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, end) + data
    content += struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in sorted(entries):
        short = kind == 3 and count == 1
        packed = struct.pack(
            f"{order}HH" if short else f"{order}I", *([value, 0] if short else [value])
        )
        content += struct.pack(f"{order}HHI", tag, kind, count) + packed
    content += struct.pack(f"{order}I", 0) + struct.pack(f"{order}{samples}H", *[bits] * samples)
    path.write_bytes(content)
    return path


def assert_shows(path, levels):
    read = own_images.read_image(path, None).astype(int)
    np.testing.assert_array_less(np.abs(read - levels.astype(int)), 2)


@pytest.mark.parametrize("full", [1023, 4095, 65535])
@pytest.mark.parametrize("colours", [False, True])
def test_16_bits_are_read_by_how_far_their_values_go(tmp_path, caplog, full, colours):
    levels = COLOURS if colours else GREY
    values = scaled(levels, full)
    with caplog.at_level(logging.INFO):
        assert_shows(write_png(tmp_path / "x.png", values, 2 if colours else 0), levels)
        for order in "<>":
            kind = 2 if colours else 1
            assert_shows(write_tiff(tmp_path / "x.tif", values, order, kind), levels)
    told = [r.getMessage() for r in caplog.records if r.name.startswith("lossattn_jax")]
    assert len(told) == (0 if full == 65535 else 3)
    if told:
        assert told[0].startswith(f"{tmp_path / 'x.png'} has 16 bits a sample and no value above")
        assert told[0].endswith(f"white being {full}")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "raw"])
def test_pillows_own_16_bits_are_read(tmp_path, compression):
    values = scaled(GREY, 4095)[..., 0]
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    image.save(tmp_path / "x.tif", compression=compression)
    image.save(tmp_path / "x.png")
    assert_shows(tmp_path / "x.tif", GREY)
    assert_shows(tmp_path / "x.png", GREY)


def significant(*bits):
    return b"sBIT", bytes(bits)


@pytest.mark.parametrize(
    ("bits", "factor"),
    [
        (14, 1),  # as they are, which no guess would find
        (12, 1),
        (8, 1),
        (12, 16),  # multiplied up, as PNG has it
        (16, 1),
    ],
)
def test_a_png_may_declare_its_depth(tmp_path, caplog, bits, factor):
    full = 2**bits - 1
    with caplog.at_level(logging.INFO):
        grey = write_png(tmp_path / "g.png", scaled(GREY, full) * factor, 0, significant(bits))
        assert_shows(grey, GREY)
        rgb = write_png(
            tmp_path / "c.png", scaled(COLOURS, full) * factor, 2, significant(*[bits] * 3)
        )
        assert_shows(rgb, COLOURS)
    assert not caplog.text


def test_a_declared_16_bits_are_not_guessed_at(tmp_path):
    dark = scaled(GREY, 4095)
    path = write_png(tmp_path / "dark.png", dark, 0, significant(16))
    assert own_images.read_image(path, None).max() == 16  # 4095 / 257
    height, width, _ = GREY.shape
    header = f"P5\n{width} {height}\n65535\n".encode()
    (tmp_path / "dark.pgm").write_bytes(header + dark.astype(">u2").tobytes())
    assert own_images.read_image(tmp_path / "dark.pgm", None).max() == 16


@pytest.mark.parametrize("full", [300, 1023, 4095, 65535])
def test_a_ppm_is_read_by_its_maxval(tmp_path, caplog, full):
    for magic, levels in (("P5", GREY), ("P6", COLOURS)):
        header = f"{magic}\n7 5\n{full}\n".encode()
        path = tmp_path / "x.ppm"
        path.write_bytes(header + scaled(levels, full).astype(">u2").tobytes())
        assert_shows(path, levels)
    plain = " ".join(str(value) for value in scaled(GREY, full).ravel())
    path.write_text(f"P2\n7 5\n{full}\n{plain}\n")
    assert_shows(path, GREY)
    assert not caplog.text


def test_a_tiff_of_12_bits_is_read(tmp_path):
    values = scaled(GREY[:, :6], 4095).reshape(5, 3, 2)
    first, second = values[..., 0], values[..., 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1)
    bytes_of_rows = packed.astype(np.uint8).reshape(5, 9, 1)
    assert_shows(write_tiff(tmp_path / "x.tif", bytes_of_rows, bits=12, t256=6), GREY[:, :6])


def test_white_may_be_zero(tmp_path):
    path = write_tiff(tmp_path / "x.tif", 65535 - scaled(GREY, 65535), photometric=0)
    assert_shows(path, GREY)
    assert_shows(write_tiff(tmp_path / "x.tif", 1 - GREY / np.float32(255), "<", 0, 3), GREY)


def test_transparent_parts_of_16_bits_become_white(tmp_path):
    alpha = np.full((5, 7, 1), 65535, np.uint16)
    alpha[2:, :3] = 0
    hidden = (alpha == 0)[..., 0]
    for kind, levels in ((4, GREY), (6, COLOURS)):
        values = np.concatenate([scaled(levels, 4095), alpha], axis=-1)
        path = write_png(tmp_path / "x.png", values, kind)
        assert_shows(path, np.where(hidden[..., None], 255, levels))
    # One value, or colour, may stand for transparency.
    path = write_png(
        tmp_path / "x.png", scaled(GREY, 65535), 0, (b"tRNS", struct.pack(">H", 257 * 9))
    )
    values = scaled(GREY, 65535)
    values[1, 1] = 257 * 9
    write_png(path, values, 0, (b"tRNS", struct.pack(">H", 257 * 9)))
    assert own_images.read_image(path, None)[1, 1].tolist() == [255] * 3
    key = struct.pack(">HHH", *scaled(COLOURS, 65535)[2, 2].tolist())
    write_png(path, scaled(COLOURS, 65535), 2, (b"tRNS", key))
    expected = COLOURS.copy()
    expected[2, 2] = 255
    assert_shows(path, expected)


def test_deep_pictures_are_turned_upright(tmp_path):
    turned = {"t274": 6}
    for levels, photometric in ((GREY, 1), (COLOURS, 2)):
        path = write_tiff(tmp_path / "x.tif", scaled(levels, 65535), ">", photometric, **turned)
        assert_shows(path, np.rot90(levels, -1))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scaled(GREY, 65535)[..., 0]).save(tmp_path / "x.png", exif=exif)
    assert_shows(tmp_path / "x.png", np.rot90(GREY, -1))


def test_32_bits_with_a_known_meaning_are_read(tmp_path):
    path = tmp_path / "x.tif"
    assert_shows(write_tiff(path, GREY / np.float32(255), form=3), GREY)
    assert_shows(write_tiff(path, GREY.astype(np.uint32)), GREY)
    assert_shows(write_tiff(path, GREY.astype(np.int32), ">", form=2), GREY)
    assert_shows(write_tiff(path, scaled(GREY, 32767).astype(np.int16), form=2), GREY)
    assert_shows(write_tiff(path, scaled(GREY, 4095).astype(np.int16), form=2), GREY)


@pytest.mark.parametrize(
    ("change", "form", "sentence"),
    [
        (lambda x: np.where(x > 0.9, np.nan, x), 3, "values that are not finite"),
        (lambda x: np.where(x > 0.9, np.inf, x), 3, "values that are not finite"),
        (
            lambda x: 255 * x,
            3,
            "has floats from .* to 255, of which only 0 to 1 have a known meani",
        ),
        (lambda x: x - 0.5, 3, "has floats from -0.5.* to 0.5, of which only 0 to 1"),
        (
            lambda x: (257 * x).astype(np.uint32),
            1,
            "has integers of 32 bits from .* to 257, of which",
        ),
        (lambda x: (99 * x - 50).astype(np.int32), 2, "has integers of 32 bits from -"),
        (lambda x: (99 * x - 50).astype(np.int16), 2, "has negative values, down to -"),
    ],
)
def test_values_without_a_known_meaning_are_left_out_by_name(tmp_path, change, form, sentence):
    values = change(GREY / np.float32(255))
    write_tiff(tmp_path / "bad.tif", values, form=form)
    Image.fromarray(GREY[..., 0]).save(tmp_path / "good.png")
    own = own_images.read([tmp_path], View((8, 8, 3)))
    assert own.names == ("good.png",)
    assert len(own.refusals) == 1 and own.refusals[0].startswith(str(tmp_path / "bad.tif"))
    with pytest.raises(UserError, match=sentence):
        own_images.read_image(tmp_path / "bad.tif", None)


@pytest.mark.parametrize("more", [{"t284": 2}, {"t338": 1, "t277": 4}, {"t339": 3}])
def test_what_pillow_would_misread_is_refused(tmp_path, more):
    values = scaled(COLOURS, 4095)
    if "t338" in more:
        values = np.concatenate([values, values[..., :1]], axis=-1)
    write_tiff(tmp_path / "x.tif", values, "<", 2, **more)
    with pytest.raises(UserError, match="x.tif"):
        own_images.read_image(tmp_path / "x.tif", None)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK"])
def test_8_bits_and_fewer_are_as_they_are(tmp_path, mode):
    levels = np.where(GREY > 127, 255, 0).astype(np.uint8) if mode == "1" else GREY
    image = Image.fromarray(levels[..., 0]).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    assert_shows(path, levels)


def test_the_shared_examples_are_one_picture():
    if not CASES.exists():
        pytest.skip("needs ../shared/cases")
    expected = np.asarray(Image.open(CASES / "grey8.png"))[..., None]
    for name in ("grey8.png", "twelve_bit.png", "float01.tif"):
        assert_shows(CASES / name, expected)
