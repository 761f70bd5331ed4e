"""Headers of `.npz` files: right, cheap, and refused where the file is not what it says."""

import io
import os
import zipfile

import numpy as np
import pytest

from lossattn_jax.files import npz


def npy(array, allow_pickle=False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_headers_are_those_of_the_arrays(tmp_path, save):
    arrays = {
        "a": np.zeros((2, 3), np.float32),
        "b/c": np.asfortranarray(np.arange(6, dtype=">i2").reshape(3, 2)),
        "none": np.zeros((0, 5), np.uint8),
        "one": np.array(1.5),
    }
    save(tmp_path / "a.npz", **arrays)
    expected = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    assert npz.read_headers(tmp_path / "a.npz") == expected
    with (tmp_path / "a.npz").open("rb") as file:
        assert npz.read_headers(file) == expected


def test_content_is_not_read(tmp_path):
    path = tmp_path / "zeros.npz"
    write_zip(path, {"a.npy": npy(np.zeros(1 << 20, np.uint8))}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[500] ^= 1  # within the compressed zeros
    path.write_bytes(content)
    assert npz.read_headers(path) == {"a": ((1 << 20,), np.dtype(np.uint8))}
    with pytest.raises(Exception, match="CRC|decompress"), np.load(path) as arrays:
        arrays["a"]


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"a.txt": b"a"}, "'a.txt' is no array"),
        ({"a.npy": b""}, "EOF"),
        ({"a.npy": b"\x00" * 200}, "magic"),
        ({"a.npy": npy(np.array([{}]), allow_pickle=True)}, "'a' holds Python objects"),
        ({"a.npy": npy(np.zeros(9, np.uint8))[:-1]}, "'a' has 136 bytes, but .* tells of 137"),
        ({"a.npy": npy(np.zeros(9, np.uint8)) + b"0"}, "'a' has 138 bytes, but .* tells of 137"),
        ({"a.npy": npy(np.zeros(1)).replace(b"(1,)", b"(-1,)", 1)}, "'a' has|EOF|header"),
        ({"a.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 40_000}, "EOF"),
        ({"a.npy": b"\x93NUMPY\x03\x00" + npy(np.zeros(1))[8:]}, "'a' has a header of version 3.0"),
    ],
)
def test_what_is_not_as_it_says_is_a_value_error(tmp_path, members, sentence):
    with pytest.raises(ValueError, match=sentence):
        npz.read_headers(write_zip(tmp_path / "a.npz", members))


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip file" * 40])
def test_no_archive_is_a_value_error(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="zip"):
        npz.read_headers(tmp_path / "a.npz")


def test_only_a_regular_file_is_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.npz")
    with pytest.raises(OSError, match="not a regular file"):
        npz.read_headers(tmp_path / "fifo.npz")
    with pytest.raises(FileNotFoundError):
        npz.read_headers(tmp_path / "absent.npz")
