"""Findings of `reliability.fuzzer` by their inputs, and a short run."""

import io
import json
import struct
import warnings
import zipfile

import numpy as np
import pyarrow
import pytest
import scipy.io
import scipy.sparse
from PIL import Image
from pyarrow import parquet

from lossattn_jax import mil
from lossattn_jax.data import own_images
from lossattn_jax.data.bags import bag_files, bag_table, feature_files, image_bags, matlab_files
from lossattn_jax.data.views import View
from lossattn_jax.errors import UserError
from lossattn_jax.files import records
from lossattn_jax.mil import methods
from reliability import fuzz_inputs, fuzzer
from tests.support.feature_files import write_zarr_2

MATRIX = np.array([[0, 1.5, 0], [2, 0, -3]])


def matlab(**options):
    file = io.BytesIO()
    scipy.io.savemat(
        file, {"m": MATRIX, "s": scipy.sparse.csc_array(MATRIX), "t": "text"}, **options
    )
    return file.getvalue()


@pytest.mark.parametrize("options", [{"format": "4"}, {}, {"do_compression": True}])
def test_matrices_of_every_version_are_read(options):
    matrices = matlab_files.read(matlab(**options), ("m", "s", "absent"))
    assert sorted(matrices) == ["m", "s"]
    for matrix in matrices.values():
        assert matrix.dtype == np.float64
        np.testing.assert_array_equal(matrix, MATRIX)


def test_a_file_with_the_other_order_of_bytes_is_read():
    def element(kind, data):
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    parts = [(6, struct.pack(">II", 6, 0)), (5, struct.pack(">ii", 1, 2)), (1, b"m")]
    parts.append((9, struct.pack(">dd", 1, 2)))
    content = b"MATLAB 5.0".ljust(124) + b"\1\0MI"
    content += element(14, b"".join(element(*part) for part in parts))
    np.testing.assert_array_equal(matlab_files.read(content, ("m",))["m"], [[1, 2]])


# Of a sparse matrix [2, 3] with two numbers in it: rows, starts of columns, and what is said of others.
@pytest.mark.parametrize(
    ("rows", "starts"),
    [([0, 9], [0, 0, 1, 2]), ([0, -1], [0, 0, 1, 2]), ([0, 1], [0, 5, 1, 2]), ([0, 1], [0, 2**30])],
)
def test_sparse_matrices_that_ended_the_process(rows, starts):
    def element(kind, data):
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    parts = [(6, struct.pack("<II", 5, 2)), (5, struct.pack("<ii", 2, 3)), (1, b"s")]
    parts += [(5, np.array(rows, "<i4").tobytes()), (5, np.array(starts, "<i4").tobytes())]
    parts.append((9, np.ones(2).tobytes()))
    content = b"MATLAB 5.0".ljust(124) + b"\0\1IM"
    content += element(14, b"".join(element(*part) for part in parts))
    with pytest.raises(ValueError, match="'s'"):
        matlab_files.read(content, ("s",))


def test_a_label_of_more_digits_than_python_converts(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(f"bag_label,bag_id,area\n{'9' * 5000},a,1\n1,b,2\n")
    assert set(bag_files.read(path).classes) == {"9" * 5000, "1"}


def test_a_member_without_the_ending_of_an_array(tmp_path):
    path = tmp_path / "digits.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image", b"bytes")
        archive.writestr("label", b"bytes")
    with pytest.raises(UserError, match="digits.npz cannot be read .*'image' is no array"):
        image_bags.load_digits(path, "train")
    np.savez(path, image=np.zeros((3, 28, 28), np.uint8), label=np.float32(3))
    with pytest.raises(UserError, match=r"digits.npz holds images .* labels float32 \(\)"):
        image_bags.load_digits(path, "train")


def test_an_image_whose_sizes_are_no_integers(tmp_path):
    path = tmp_path / "image.tif"
    Image.new("L", (5, 4)).save(path)
    content = bytearray(path.read_bytes())
    # Makes the width's type, the first tag's, a float of the same four bytes.
    at = content.index(struct.pack("<HH", 256, 4) if b"II" == content[:2] else b"\1\0\0\4")
    content[at + 2] = 11
    path.write_bytes(content)
    with pytest.raises(UserError, match="image.tif cannot be read as an image"):
        own_images.read_image(path, View((8, 8, 3)))


def test_a_narrow_image_of_many_rows_is_not_cut_into_tiles(tmp_path, monkeypatch):
    Image.new("L", (3, 70_000)).save(tmp_path / "narrow.png")
    monkeypatch.setattr(own_images, "tiles", None)
    with pytest.raises(UserError, match="2188x1 tiles of .*narrow.png would make more than 1000"):
        own_images.read([tmp_path / "narrow.png"], View((32, 32, 3)), "tile")


def test_a_chunk_far_larger_than_its_array(tmp_path):
    """TensorStore would end the process."""
    write_zarr_2(tmp_path / "s1.zarr", np.zeros((6, 4), np.float32))
    array = tmp_path / "s1.zarr" / "features" / ".zarray"
    metadata = json.loads(array.read_text())
    array.write_text(json.dumps(metadata | {"chunks": [4, 2**31]}))
    sentence = "a chunk of 'features' has 34359738368 bytes, but the array has 96"
    with pytest.raises(UserError, match=sentence):
        feature_files.open_file(tmp_path / "s1.zarr").read(0, 1)


def test_a_parquet_file_whose_text_is_none(tmp_path):
    table = pyarrow.table({"slide_id": ["s1", "s2"], "label": ["tumour", "normal"]})
    parquet.write_table(table, tmp_path / "t.parquet", use_dictionary=False, compression="none")
    content = (tmp_path / "t.parquet").read_bytes().replace(b"tumour", b"tum\xffur")
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(UserError, match="t.parquet cannot be read"):
        bag_table.read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize("number", [14579, 14896, 25480])
def test_parquet_files_with_columns_of_other_lengths(tmp_path, number):
    files, read = fuzzer.READERS["labels"]()
    name, content = fuzz_inputs.change_file(files, 0, number)
    (tmp_path / name).write_bytes(content)
    assert fuzzer.outcome(read, tmp_path / name) in ("refused", "result")


def store_model(folder):
    """Stores mi-SVM on a few bags; returns its record without digest, and its inputs."""
    bags = [np.full((2, 3), place, float) for place in range(6)]
    methods.make("mi_svm").fit(bags, np.arange(6) % 2).save(folder)
    record = records.read(folder / "model.json")
    return record.content, record.made_from


@pytest.mark.parametrize("key", ["method", "settings", "classes", "arrays", "checkpoint"])
def test_a_model_without_a_part_of_its_record(tmp_path, key):
    content, made_from = store_model(tmp_path / "m")
    del content[key]
    records.write(tmp_path / "m" / "model.json", content, made_from)
    sentence = f"model.json does not say as it must what its '{key}' is; train the model again"
    with pytest.raises(UserError, match=sentence):
        mil.load(tmp_path / "m")


def test_a_model_with_a_kernel_that_there_is_not(tmp_path):
    content, made_from = store_model(tmp_path / "m")
    content["settings"]["kernel"] = "rbg"
    records.write(tmp_path / "m" / "model.json", content, made_from)
    with pytest.raises(UserError, match="kernel is 'rbg', but must be one of linear, rbf"):
        mil.load(tmp_path / "m")


@pytest.mark.parametrize(
    "header", [b"{'descr': '<f8'", b"{'descr': '<f8',\n 'shape': (((", b"\n ("]
)
def test_arrays_of_a_model_with_a_damaged_header(tmp_path, header):
    store_model(tmp_path / "m")
    with zipfile.ZipFile(tmp_path / "m" / "arrays.npz", "w") as archive:
        archive.writestr(
            "gamma.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 64) + header.ljust(64)
        )
    with pytest.raises(UserError, match="arrays.npz cannot be read .*train the model again"):
        mil.load(tmp_path / "m")


def test_a_change_is_a_function_of_its_numbers():
    files = fuzz_inputs.bag_files()
    assert files == fuzz_inputs.bag_files()
    first = [fuzz_inputs.change_file(files, 0, number) for number in range(50)]
    assert first == [fuzz_inputs.change_file(files, 0, number) for number in range(50)]
    assert first != [fuzz_inputs.change_file(files, 1, number) for number in range(50)]
    assert {name for name, _ in first} <= set(files)
    assert sum(content != files[name] for name, content in first) > 40


@pytest.mark.parametrize(
    ("reader", "count"),
    [
        ("csv", 300),
        ("image", 300),
        ("labels", 300),
        ("features", 60),
        pytest.param("bag_model", 200, marks=pytest.mark.slow),
    ],
)
def test_some_changed_files_are_read_or_refused(tmp_path, reader, count):
    files, read = fuzzer.READERS[reader]()
    kinds = set()
    for number in range(count):
        name, content = fuzz_inputs.change_file(files, 7, number)
        (tmp_path / name).write_bytes(content)
        kinds.add(fuzzer.outcome(read, tmp_path / name))
    assert kinds == {"result", "refused"}


def test_what_is_a_finding(tmp_path):
    def broken(path):
        raise KeyError("no sentence")

    def warned(path):
        warnings.warn("a warning is none", stacklevel=1)

    assert fuzzer.outcome(broken, tmp_path).startswith("KeyError below broken")
    assert fuzzer.outcome(warned, tmp_path) == "result"
    with pytest.raises(
        UserError,
        match="reader is 'x', but must be one of: bag_model, csv, features, image, labels, state_dict",
    ):
        fuzzer.run("x", 1, str(tmp_path / "out.json"))


@pytest.mark.slow
def test_a_crash_and_an_endless_reader_are_noticed(tmp_path, run_python):
    script = f"""
import os
from reliability import fuzzer

def planted():
    def read(path):
        content = path.read_bytes()
        if len(content) > 12:
            os.abort()
        while len(content) < 9:
            pass
    return {{"a.csv": b"1,2,3,4,5\\n"}}, read

fuzzer.READERS = {{"planted": planted}}
fuzzer._SECONDS = 0.2
if __name__ == "__main__":
    fuzzer.run("planted", 0.5, {str(tmp_path / "out.json")!r})
"""
    (tmp_path / "run.py").write_text(script)
    finished = run_python(tmp_path / "run.py")
    assert finished.returncode == 0, finished.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    crash, endless = "the process ended (SIGABRT, -6)", "more than 0.2 s"
    assert set(record["outcomes"]) == {"result", crash, endless}
    assert record["inputs"] == sum(record["outcomes"].values())
    sizes = {
        kind: {len((tmp_path / "out" / f"{number}-a.csv").read_bytes()) for number in numbers[:20]}
        for kind, numbers in record["findings"].items()
    }
    assert min(sizes[crash]) > 12 and max(sizes[endless]) < 9
