"""Feature files: every format and type, the layouts of other programs, and files that are refused."""

import builtins
import json
import os
import pickle
import struct
import sys
import time
import tracemalloc

import h5py
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from lossattn_jax.data.bags import feature_files
from lossattn_jax.data.bags.feature_files import FORMATS, FeatureFormat, open_file, read_attributes
from lossattn_jax.data.bags.lazy_bags import ArrayReader
from lossattn_jax.errors import UnknownName, UserError
from tests.support import feature_files as written

# Numbers that all types have exactly, and that differ.
FEATURES = np.arange(-12, 9, dtype=np.float64).reshape(7, 3) / 2
COORDS = np.array([[0, 0], [512, 0], [1024, 0], [0, 512], [512, 512], [0, 1024], [64, 7]])
CASES = [
    pytest.param(name, dtype, id=f"{name} {dtype}")
    for name, (_, _, dtypes) in written.WRITERS.items()
    for dtype in dtypes
]


def needs(name):
    if name in ("pt", "pth"):
        pytest.importorskip("torch", reason="PyTorch is not installed")


def write(folder, name, features=FEATURES, coords=COORDS):
    """A file of a format, with the id s01."""
    needs(name)
    ending, writer, _ = written.WRITERS[name]
    path = folder / f"s01{ending}"
    writer(path, features, coords)
    return path


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_file_is_read_as_it_was_written(tmp_path, name, dtype):
    wanted = written.BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    path = write(tmp_path, name, FEATURES.astype(wanted))
    reader = open_file(path)
    assert (reader.shape, reader.dtype, reader.place) == ((7, 3), wanted, str(path))
    whole = reader.read()
    assert whole.dtype == wanted
    np.testing.assert_array_equal(whole.astype(np.float64), FEATURES)
    for start, stop in ((0, 2), (1, 6), (5, None), (6, 100), (3, 3), (-2, None)):
        rows = reader.read(start, stop)
        assert rows.dtype == wanted
        np.testing.assert_array_equal(rows.astype(np.float64), FEATURES[start:stop])
    coords = reader.read_coords()
    if name == "npy":
        assert coords is None
    else:
        assert coords.dtype == np.float64
        np.testing.assert_array_equal(coords, COORDS)


@pytest.mark.parametrize("name", [name for name in written.WRITERS if name != "parquet"])
def test_a_leading_axis_of_one_is_left_out(tmp_path, name):
    reader = open_file(write(tmp_path, name, FEATURES[None], COORDS[None]))
    assert reader.shape == (7, 3)
    np.testing.assert_array_equal(reader.read(), FEATURES)
    np.testing.assert_array_equal(reader.read(2, 4), FEATURES[2:4])
    if name != "npy":
        np.testing.assert_array_equal(reader.read_coords(), COORDS)


@pytest.mark.parametrize("name", written.WRITERS)
def test_a_reader_holds_no_file_open(tmp_path, name):
    needs(name)
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc")
    reader = open_file(write(tmp_path, name))
    assert reader.read(1, 3).shape == (2, 3)
    reader.read_coords()
    deadline = time.monotonic() + 20  # threads of TensorStore close what they have read
    while open_files(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not open_files(tmp_path)
    with open("/proc/self/maps") as maps:
        assert str(tmp_path) not in maps.read()


def open_files(folder):
    """Files below a folder that this process has open."""
    paths = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    return [path for path in paths if str(folder) in path]


@pytest.mark.parametrize("name", ["h5", "npy", "npz", "safetensors", "zarr 3", "parquet", "pt"])
def test_an_open_reads_no_instance(tmp_path, name):
    """Half a gigabyte of zeros that take no disk are opened within a few megabytes."""
    rows, width = 1 << 18, 512
    needs(name)
    path = tmp_path / f"s01{written.WRITERS[name][0]}"
    if name == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("features", (rows, width), np.float32)
    elif name == "zarr 3":
        path.mkdir()
        metadata = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [rows, width],
            "data_type": "float32",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows, width]}},
            "chunk_key_encoding": {"name": "default"},
            "fill_value": 0,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        }
        (path / "zarr.json").write_text(json.dumps(metadata))
    elif name == "npy":
        np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))
    elif name == "safetensors":
        header = {"features": {"dtype": "F32", "shape": [rows, width]}}
        header["features"]["data_offsets"] = [0, rows * width * 4]
        text = json.dumps(header).encode()
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + rows * width * 4)
    elif name == "parquet":
        written.write_parquet(path, np.zeros((rows // 32, width), np.float32), rows=1 << 10)
    else:
        written.WRITERS[name][1](path, np.zeros((rows // 32, width), np.float32))

    open_file(path)  # what is imported is not counted
    tracemalloc.start()
    reader = open_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reader.shape[1] == width and reader.shape[0] in (rows, rows // 32)
    assert peak < 4 << 20
    np.testing.assert_array_equal(reader.read(5, 8), np.zeros((3, width)))


def test_a_file_of_clam(tmp_path):
    path = tmp_path / "s01.h5"
    written.write_clam_h5(path, FEATURES.astype(np.float32), COORDS)
    reader = open_file(path)
    np.testing.assert_array_equal(reader.read(), FEATURES)
    np.testing.assert_array_equal(reader.read_coords(), COORDS)
    assert reader.dtype == np.float32 and read_attributes(path) == {}


def test_a_tensor_of_clam(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.save(torch.from_numpy(FEATURES.astype(np.float32)), tmp_path / "s01.pt")
    reader = open_file(tmp_path / "s01.pt")
    np.testing.assert_array_equal(reader.read(2, 5), FEATURES[2:5])
    assert reader.dtype == np.float32 and reader.read_coords() is None
    # As PyTorch wrote before its release 1.6.
    torch.save(
        torch.from_numpy(FEATURES), tmp_path / "old.pt", _use_new_zipfile_serialization=False
    )
    np.testing.assert_array_equal(open_file(tmp_path / "old.pt").read(), FEATURES)


def test_a_file_of_trident(tmp_path):
    path = tmp_path / "s01.h5"
    written.write_trident_h5(path, FEATURES.astype(np.float32), COORDS)
    reader = open_file(path)
    np.testing.assert_array_equal(reader.read(), FEATURES)
    np.testing.assert_array_equal(reader.read_coords(), COORDS)
    attributes = read_attributes(path)
    assert attributes["coords"] == written.TRIDENT
    assert type(attributes["coords"]["patch_size_level0"]) is int
    assert attributes["features"]["name"] == "s01" and "" not in attributes


def test_a_file_of_stamp(tmp_path):
    path = tmp_path / "s01.h5"
    written.write_stamp_h5(path, FEATURES, COORDS)
    reader = open_file(path)
    assert reader.dtype == np.float16
    np.testing.assert_array_equal(reader.read(), FEATURES)
    np.testing.assert_array_equal(reader.read_coords(), COORDS)
    assert read_attributes(path) == {"": written.STAMP}


@pytest.mark.parametrize("name", ["zarr 3", "zarr 2", "safetensors"])
def test_attributes_of_other_formats(tmp_path, name):
    assert read_attributes(write(tmp_path, name)) == {"": {"extractor": "uni2"}}


@pytest.mark.parametrize("name", ["npy", "parquet"])
def test_formats_without_attributes(tmp_path, name):
    assert read_attributes(write(tmp_path, name)) == {}


@pytest.mark.parametrize("version", [2, 3])
def test_a_zarr_array_without_a_group(tmp_path, version):
    written.write_zarr_array(tmp_path / "s01.zarr", FEATURES, version)
    reader = open_file(tmp_path / "s01.zarr")
    np.testing.assert_array_equal(reader.read(1, 4), FEATURES[1:4])
    assert reader.read_coords() is None and read_attributes(tmp_path / "s01.zarr") == {}


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "int64", ">f4"])
def test_whole_numbers_and_other_orders_of_bytes(tmp_path, dtype):
    values = np.arange(6).reshape(3, 2).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    written.write_h5(tmp_path / "a.h5", values)
    wanted = np.float64 if np.dtype(dtype).itemsize > 2 and dtype != ">f4" else np.float32
    for ending in ("npy", "h5"):
        reader = open_file(tmp_path / f"a.{ending}")
        assert reader.dtype == wanted and reader.dtype.isnative
        assert reader.read().dtype == wanted
        np.testing.assert_array_equal(reader.read(1), [[2, 3], [4, 5]])


def test_an_array_by_columns(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(FEATURES))
    np.savez(tmp_path / "a.npz", features=np.asfortranarray(FEATURES))
    for ending in ("npy", "npz"):
        np.testing.assert_array_equal(open_file(tmp_path / f"a.{ending}").read(2, 6), FEATURES[2:6])


@pytest.mark.parametrize("name", ["feats", "embedding", "arr_0"])
def test_the_array_of_features_is_found(tmp_path, name):
    np.savez(tmp_path / "a.npz", **{name: FEATURES, "coords": COORDS})
    np.testing.assert_array_equal(open_file(tmp_path / "a.npz").read(), FEATURES)


def test_arrays_beside_the_features(tmp_path):
    np.savez(tmp_path / "a.npz", feats=FEATURES, coords=COORDS, mask=np.ones(3))
    np.testing.assert_array_equal(open_file(tmp_path / "a.npz").read(), FEATURES)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (
            {"a": FEATURES, "b": COORDS},
            "has the arrays 'a', 'b', but must have one called 'features' or",
        ),
        (
            {"features": FEATURES, "feats": FEATURES},
            "has the arrays 'feat.*s', 'feat.*s', but must have on",
        ),
        (
            {"coords": COORDS},
            "has the arrays 'coords', but must have one called 'features' or 'feats'",
        ),
        ({}, "has no array, but must have one called 'features' or 'feats'"),
        (
            {"features": np.ones(3)},
            r"\(3,\), but must have \[instances, features\], not one vector for",
        ),
        ({"features": np.ones((2, 3, 4))}, r"\(2, 3, 4\), but must have \[instances, features\]$"),
        (
            {"features": np.ones((2, 3), complex)},
            "of the type complex128, but must have one of float16",
        ),
        (
            {"features": np.ones((2, 3), bool)},
            "of the type bool, but must have one of float16, bfloat16",
        ),
        (
            {"features": FEATURES, "coords": COORDS[:5]},
            r"has 'coords' of the shape \(5, 2\), but must have \(7, 2\) for its 7 instances",
        ),
        (
            {"features": FEATURES, "coords": COORDS[:, :1]},
            r"has 'coords' of the shape \(7, 1\), but must have \(7, 2\)",
        ),
        (
            {"features": FEATURES, "coords": COORDS.astype("S4")},
            "has 'coords' of the type .S4, but they must be numbers",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["h5", "npz"])
def test_other_arrays_are_refused(tmp_path, ending, arrays, sentence):
    path = tmp_path / f"a.{ending}"
    if ending == "npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    with pytest.raises(UserError, match=f"^{path} .*{sentence}"):
        open_file(path)


@pytest.mark.parametrize("name", written.WRITERS)
def test_a_file_that_changes_is_refused(tmp_path, name):
    path = write(tmp_path, name)
    reader = open_file(path)
    if path.is_dir():
        path.rename(tmp_path / "old")
    write(tmp_path, name, FEATURES[:5], COORDS[:5])
    with pytest.raises(
        UserError, match=f"^{path} is not what it was when it was opened: it had 'f"
    ):
        reader.read()
    path.rename(tmp_path / "gone")
    with pytest.raises(UserError, match=f"^there is no file {path}$"):
        reader.read()
    with pytest.raises(UserError, match=f"^there is no file {path}$"):
        open_file(path)


@pytest.mark.parametrize("name", [name for name in written.WRITERS if "zarr" not in name])
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "flipped"])
def test_a_damaged_file_is_a_sentence(tmp_path, name, damage):
    path = write(tmp_path, name)
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "garbage": b"features\n" * 100,
        "flipped": bytes(255 - byte for byte in whole[:200]) + whole[200:],
    }
    if name == "parquet":  # whose header is at its end
        damaged["flipped"] = whole[:-200] + bytes(255 - byte for byte in whole[-200:])
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=f"^{path}.* damaged"):
        open_file(path)


@pytest.mark.parametrize("name", ["zarr 2", "zarr 3"])
@pytest.mark.parametrize("damage", ["garbage", "chunk", "no metadata"])
def test_a_damaged_store_is_a_sentence(tmp_path, name, damage):
    path = write(tmp_path, name)
    metadata = "zarr.json" if name == "zarr 3" else ".zarray"
    if damage == "garbage":
        (path / "features" / metadata).write_text('{"node_type": "array"')
    elif damage == "chunk":
        for chunk in path.glob("features/**/[0-9]*"):
            if chunk.is_file():
                chunk.write_bytes(b"x")
    else:
        (path / (metadata if name == "zarr 3" else ".zgroup")).unlink()
    with pytest.raises(
        UserError, match=f"^{path} (cannot be read: it is damaged|is no Zarr store)"
    ):
        open_file(path).read()


def test_a_packed_array_whose_content_is_damaged(tmp_path):
    path = write(tmp_path, "npz")
    whole = bytearray(path.read_bytes())
    place = bytes(whole).index(FEATURES.tobytes())
    whole[place + 3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match=f"^{path} cannot be read: it is damaged .*CRC"):
        open_file(path).read()


@pytest.mark.parametrize("ending", feature_files.list_endings())
def test_what_is_no_regular_file_is_refused(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"^{path}|^there is no file {path}"):
        open_file(path)
    if ending != ".zarr":
        path.unlink()
        path.mkdir()
        with pytest.raises(UserError, match=f"^{path} "):
            open_file(path)
    else:
        path.unlink()
        written.write_zarr(path, FEATURES)
        os.mkfifo(path / "features" / "c" / "0" / "9")
        with pytest.raises(UserError, match="9 is no regular file"):
            open_file(path)


def test_hdf5_does_not_lead_elsewhere(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(range(48)))
    written.write_h5(tmp_path / "other.h5", FEATURES)
    for how in ("external", "link", "soft", "virtual"):
        path = tmp_path / f"{how}.h5"
        with h5py.File(path, "w") as file:
            if how == "external":
                place = [(str(secret), 0, 48)]
                file.create_dataset("features", (4, 3), np.float32, external=place)
            elif how == "link":
                file["features"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "features")
            elif how == "soft":
                file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
                file["features"] = h5py.SoftLink("/link/features")
            else:
                layout = h5py.VirtualLayout((7, 3), np.float64)
                layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "features", (7, 3))
                file.create_virtual_dataset("features", layout)
        with pytest.raises(UserError, match=f"^{path} has ('features' in other files|no array)"):
            open_file(path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("ending", [".npy", ".npz", ".pt"])
def test_nothing_in_a_file_is_run(tmp_path, ending):
    proof, path = tmp_path / "proof", tmp_path / f"a{ending}"
    value = np.array([Malicious(proof)], object)
    if ending == ".npy":
        np.save(path, value)
    elif ending == ".npz":
        np.savez(path, features=value)
    else:
        pytest.importorskip("torch", reason="PyTorch is not installed")
        path.write_bytes(pickle.dumps(Malicious(proof)))
    with pytest.raises(UserError, match=f"^{path}.* damaged"):
        open_file(path)
    assert not proof.exists()


def test_without_pytorch_its_files_are_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(b"PK")
    original = builtins.__import__

    def refuse(name, *rest, **more):
        if name == "torch":
            raise ImportError("no torch")
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(
        UserError,
        match=r"a.pt: it can be read only where PyTorch is installed \(pip install 'lossattn_jax\[torch",
    ):
        open_file(tmp_path / "a.pt")


def test_columns_of_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    table = {
        "Slide_ID": ["a"] * 3,
        "label": [1] * 3,
        "area": pyarrow.array([1, None, 3], pyarrow.int32()),
        "note": ["p", "q", "r"],
        "coord_x": [5, 6, 7],
        "Coord_Y": [8.5, 9.5, 10.5],
        "red": pyarrow.array([0.5, 1.5, 2.5], pyarrow.float32()),
    }
    parquet.write_table(pyarrow.table(table), path, row_group_size=1)
    reader = open_file(path)
    assert reader.features == ("area", "red") and reader.dtype == np.float64
    np.testing.assert_array_equal(reader.read(), [[1, 0.5], [np.nan, 1.5], [3, 2.5]])
    np.testing.assert_array_equal(reader.read(2), [[3, 2.5]])
    np.testing.assert_array_equal(reader.read_coords(), [[5, 8.5], [6, 9.5], [7, 10.5]])


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            {"x": [1], "label": [2], "note": ["a"]},
            "no column of numbers that is a feature, but 'x', 'l",
        ),
        ({}, "has no column of numbers that is a feature, but no column at all"),
    ],
)
def test_parquet_without_features_is_refused(tmp_path, table, sentence):
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=sentence):
        open_file(tmp_path / "a.parquet")


def test_two_columns_of_a_name_are_refused(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array([1.0]), pyarrow.array([2.0])], ["f", "f"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has two columns 'f', but names must differ"):
        open_file(tmp_path / "a.parquet")


def test_the_name_says_the_format():
    for path, bag_id, name in (
        ("x/s01.h5", "s01", "hdf5"),
        ("s.01.HDF5", "s.01", "hdf5"),
        ("s01.zarr/", "s01", "zarr"),
        ("s01.safetensors", "s01", "safetensors"),
    ):
        assert feature_files.split_name(path) == (bag_id, FORMATS[name])
    for path in ("s01.csv", "h5", ".h5", "s01.h5.part"):
        assert feature_files.split_name(path) is None
    with pytest.raises(
        UserError, match="s01.csv is no feature file: its name must end in one of .h5, "
    ):
        open_file("s01.csv")


def test_no_two_formats_share_an_ending():
    endings = feature_files.list_endings()
    assert len(set(endings)) == len(endings) >= 9
    assert len({entry.open for entry in FORMATS.values()}) == len(FORMATS)


def _open_text(path):
    return ArrayReader(np.loadtxt(path, ndmin=2), place=path)


TEXT = FeatureFormat((".txt",), _open_text)


def test_a_format_of_ones_own(tmp_path):
    (tmp_path / "a.txt").write_text("1 2\n3 4\n")
    entry = FORMATS.find(f"{__name__}:TEXT")
    reader = open_file(tmp_path / "a.txt", {"text": entry})
    np.testing.assert_array_equal(reader.read(1), [[3, 4]])
    with pytest.raises(UserError, match="must end in one of .txt$"):
        open_file(tmp_path / "a.h5", {"text": entry})
    with pytest.raises(
        UnknownName, match="format of feature files is 'h6', but must be one of: hdf5"
    ):
        FORMATS.find("h6")
    with pytest.raises(
        UserError, match="which is a function, but must be a lossattn_jax.*FeatureFo"
    ):
        FORMATS.find(f"{__name__}:_open_text")
