"""Bags in files: every format read back, and a sentence for everything that can be wrong with one."""

import gzip
import os
import shutil
import subprocess
import time

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from lossattn_jax.data.bags import unix_compress
from lossattn_jax.data.bags.bag_files import read, read_csv, read_matlab, read_uci, write_csv
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.errors import UserError

CSV = "bag_label,bag_id,area,colour\n1,a,0.5,3\n0,b,1.5,2\n1,a,0.25,1\n"


def written(folder, text, name="mine.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def assert_is_example(dataset):
    assert dataset.ids == ("a", "b") and dataset.classes == (0, 1) and dataset.name == "mine"
    np.testing.assert_array_equal(dataset.labels, [1, 0])
    np.testing.assert_array_equal(dataset.instances, [[0.5, 3], [0.25, 1], [1.5, 2]])
    np.testing.assert_array_equal(dataset.lengths, [2, 1])
    assert dataset.instance_labels is None


@pytest.mark.parametrize(
    "text",
    [
        CSV,
        CSV.replace("\n", "\r\n"),
        CSV.removesuffix("\n"),
        CSV + "\n  \n\n",
        "\ufeff" + CSV,
        CSV.replace("colour", '"colour, or hue"').replace(",a,", ',"a",'),
        CSV.replace("0.25", " 2.5e-1 ").replace(",a,", ", a ,"),
        CSV.replace("1,a", "1.0,a").replace("0,b", "0.,b"),
        "area,bag_id,colour,bag_label\n.5,a,3,1\n1.5,b,2,0\n.25,a,1,+1\n",
        gzip.compress(CSV.encode()),
    ],
    ids=range(10),
)
def test_ways_to_write_a_csv_file(tmp_path, text):
    assert_is_example(read_csv(written(tmp_path, text)))


def test_a_compressed_csv_file(tmp_path):
    assert_is_example(read(written(tmp_path, gzip.compress(CSV.encode()), "mine.csv.gz")))
    assert_is_example(read(str(written(tmp_path, CSV, "mine.txt"))))


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["-1", "1", "-1"], (-1, 1), [0, 1, 0]),
        (["10", "9", "9"], (9, 10), [1, 0, 0]),
        (["10", "9", "b"], ("10", "9", "b"), [0, 1, 2]),
        (["yes", "no", "yes"], ("no", "yes"), [1, 0, 1]),
        (["0.5", "1", "1"], ("0.5", "1"), [0, 1, 1]),
        (["1_0", "1", "1"], ("1", "1_0"), [1, 0, 0]),
    ],
)
def test_labels_are_integers_or_text(tmp_path, labels, classes, expected):
    lines = [f"{label},{number},1" for number, label in enumerate(labels)]
    path = written(tmp_path, "\n".join(["bag_label,bag_id,f", *lines]))
    dataset = read_csv(path)
    assert dataset.classes == classes and list(map(type, dataset.classes)) == list(
        map(type, classes)
    )
    np.testing.assert_array_equal(dataset.labels, expected)


def test_instance_labels_are_named_as_those_of_bags(tmp_path):
    text = "bag_label,instance_label,bag_id,f\n1,-1,a,1\n-1,-1,b,2\n1,1,a,3\n"
    dataset = read_csv(written(tmp_path, text))
    np.testing.assert_array_equal(dataset.instance_labels, [0, 1, 0])
    np.testing.assert_array_equal(dataset.instances, [[1], [3], [2]])


WRONG = {
    "empty": ("", "is empty or its first line is"),
    "blank first line": ("\n" + CSV, "is empty or its first line is"),
    "only a header": (CSV.split("\n")[0], "has no instance"),
    "no bag_label": (CSV.replace("bag_label", "kind"), "names no column 'bag_label'"),
    "no bag_id": (CSV.replace("bag_id", "sack"), "names no column 'bag_id'"),
    "bars": (CSV.replace(",", "|"), "'bag_label' .*names are separated by commas, semicolons or"),
    "no feature": (
        "bag_label,bag_id\n1,a\n0,b\n",
        "no column but bag_label, bag_id, so no feature",
    ),
    "two columns of a name": (CSV.replace("colour", "area"), "has two columns 'area'"),
    "a column without a name": (CSV.replace("colour", ""), "column 4 of .* has no name"),
    "too few fields": (CSV.replace("1.5,2", "1.5"), "line 3 of .* has 3 fields, but .* has 4"),
    "too many fields": (CSV.replace("1.5,2", "1.5,2,"), "line 3 of .* has 5 fields, but .* has 4"),
    "text": (CSV.replace("1.5", "large"), "line 3 of .* has 'large', which is not a number"),
    "nothing": (CSV.replace("1.5", ""), "line 3 of .* has '', which is not a number"),
    "underscore": (CSV.replace("1.5", "1_5"), "line 3 of .* has '1_5', which is not a number"),
    "nan": (CSV.replace("1.5", "NaN"), "line 3 of .* has the value nan, but .* finite"),
    "inf": (CSV.replace("0.25", "-inf"), "line 4 of .* has the value -inf, but .* finite"),
    "too large": (CSV.replace("0.25", "1e40"), r"line 4 of .* has the value 1e\+40, but .* finite"),
    "another label": (CSV.replace("1,a,0.25", "0,a,0.25"), "line 4 of .* '0' for bag 'a', .* '1'"),
    "no id": (CSV.replace("b,1.5", " ,1.5"), "line 3 of .* has an empty bag id"),
    "no label": (CSV.replace("0,b", ",b"), "line 3 of .* has an empty label"),
    "one class": (CSV.replace("0,b", "1,b"), "all bags of .* have the label 1, but"),
    "open quote": (CSV.replace("0,b", '0,"b'), "line 4 of .* is not CSV"),
    "UTF-16 without a mark": (CSV.encode("utf-16-le"), "names no column 'bag_label'"),
    "UTF-16 that is cut": (CSV.encode("utf-16")[:-1], "is not text in UTF-8"),
    "UTF-32": (CSV.encode("utf-32"), "is not text in UTF-8"),
    "Latin-1": (CSV.replace("b,", "\xe4,").encode("latin-1"), "is not text in UTF-8"),
    "cut gzip": (gzip.compress(CSV.encode())[:40], "is damaged"),
    "changed gzip": (gzip.compress(CSV.encode())[:-8] + bytes(8), "is damaged"),
    "instance label": (
        "bag_label,instance_label,bag_id,f\n1,0,a,1\n0,2,b,2\n",
        "line 3 of .* has the instance_label '2', but allowed are those of the bags, 0, 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_sentence_for_what_is_wrong(tmp_path, name):
    content, sentence = WRONG[name]
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_csv(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_lines_are_counted_in_the_file(tmp_path):
    text = 'bag_label,bag_id,f\n1,"a\nb",1\n\n0,c,x\n'  # an id of two lines, and an empty line
    with pytest.raises(UserError, match="line 5 of .* has 'x'"):
        read_csv(written(tmp_path, text))


def test_files_that_are_not_there_or_not_compressed(tmp_path):
    with pytest.raises(UserError, match="the file .*none.csv does not exist"):
        read(tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot be read .*directory"):
        read_csv(tmp_path)
    with pytest.raises(UserError, match="mine.csv.gz is not compressed as its name says"):
        read(written(tmp_path, CSV, "mine.csv.gz"))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 2),
            min_size=1,
            max_size=3,
        ),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from([(0, 1), (-1, 1), ("a, b", 'say "c"')]),
    st.booleans(),
    st.sampled_from(["again.csv", "again.csv.gz"]),
)
def test_written_bags_are_read_back(tmp_path_factory, bags, classes, with_own, name):
    labels = [classes[number % 2] for number in range(len(bags))]
    own = [[number % 2] * len(bag) for number, bag in enumerate(bags)] if with_own else None
    ids = [f"bag, {number}" for number in range(len(bags))]
    bags = [np.array(bag, np.float32) for bag in bags]
    dataset = BagDataset.from_bags(bags, labels, ids, own)
    path = tmp_path_factory.getbasetemp() / name
    write_csv(dataset, path)
    again = read_csv(path)
    assert again.ids == dataset.ids and again.classes == classes and again.name == "again"
    for field in ("instances", "lengths", "labels", "instance_labels"):
        np.testing.assert_array_equal(getattr(again, field), getattr(dataset, field))
    assert os.listdir(path.parent).count(name) == 1 and not list(path.parent.glob("*.part"))


def test_the_same_data_make_the_same_file(tmp_path):
    dataset = read_csv(written(tmp_path, CSV))
    for name in ("one.csv.gz", "two.csv.gz"):
        write_csv(dataset, tmp_path / name)
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()
    write_csv(dataset, tmp_path / "three.csv")
    expected = "bag_label,bag_id,area,colour\n1,a,0.5,3\n1,a,0.25,1\n0,b,1.5,2\n"
    assert (tmp_path / "three.csv").read_text() == expected


def test_what_no_csv_file_can_hold(tmp_path):
    with pytest.raises(UserError, match=r"have the shape \(4, 4\), but a CSV file holds one row"):
        write_csv(BagDataset.from_bags([np.zeros((1, 4, 4))], [0]), tmp_path / "no.csv")
    twice = read_csv(written(tmp_path, CSV)).select([0, 1, 1])
    with pytest.raises(UserError, match="mine has several bags 'b'"):
        write_csv(twice, tmp_path / "no.csv")
    with pytest.raises(UserError, match="no.csv cannot be written .*No such file"):
        write_csv(read_csv(tmp_path / "mine.csv"), tmp_path / "none" / "no.csv")
    assert os.listdir(tmp_path) == ["mine.csv"]


UCI = (
    "MUSK-188,188_1+1,42,-198,-109,1.\n"
    "MUSK-188,188_1+2,42,-191,-142,1.\n"
    "NON-MUSK-199,199_1+1,-3,17,5,0.\n"
)


def assert_is_musk(dataset):
    assert dataset.ids == ("MUSK-188", "NON-MUSK-199") and dataset.classes == (0, 1)
    np.testing.assert_array_equal(dataset.labels, [1, 0])
    np.testing.assert_array_equal(dataset.lengths, [2, 1])
    expected = [[42, -198, -109], [42, -191, -142], [-3, 17, 5]]
    np.testing.assert_array_equal(dataset.instances, expected)


def test_uci_files(tmp_path):
    assert_is_musk(read(written(tmp_path, UCI, "clean1.data")))
    assert_is_musk(read(written(tmp_path, UCI.replace("\n", "\r\n") + "\r\n", "clean2.data")))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (UCI.replace(",-109", ""), "line 2 of .* has 6 fields, but must .*5 fields"),
        (UCI.replace(",5,", ",five,"), "line 3 of .* has 'five', which is not a number"),
        ("MUSK-188,1.\n", "line 1 of .* has 2 fields"),
        (UCI.replace("142,1.", "142,0."), "line 2 of .* has the label '0.' for bag 'MUSK-188'"),
        ("", "has no instance"),
    ],
)
def test_wrong_uci_files(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        read_uci(written(tmp_path, text, "clean1.data"))


def compressed(content, largest=16, clear_at=(), clearing=True):
    """What Unix' compress makes of `content`; the code table is also cleared before these bytes."""
    bits, width, run = [], 9, []  # run: codes of the present width

    def flush(fill):
        nonlocal run
        filled = run + [0] * (-len(run) % 8 if fill else 0)
        for code in filled:
            bits.extend(code >> bit & 1 for bit in range(width))
        run = []

    first = 257 if clearing else 256
    table, entries, word = {bytes([b]): b for b in range(256)}, first, b""

    def put(code):
        nonlocal width
        # The reader knows one entry less than the writer, and widens before it reads a code.
        if min(entries, 1 << largest) > 1 << width and width < largest:
            flush(fill=True)
            width += 1
        run.append(code)

    for number, byte in enumerate(content):
        longer = word + bytes([byte])
        if number in clear_at and word:
            put(table[word])
            entries += entries < 1 << largest
            put(256)
            flush(fill=True)
            table, entries, width = {bytes([b]): b for b in range(256)}, first, 9
            word = bytes([byte])
        elif longer in table:
            word = longer
        else:
            put(table[word])
            if entries < 1 << largest:
                table[longer] = entries
                entries += 1
            word = bytes([byte])
    if word:
        put(table[word])
    flush(fill=False)
    packed = np.packbits(bits, bitorder="little").tobytes() if bits else b""
    return bytes([0x1F, 0x9D, largest | 128 * clearing]) + packed


@pytest.mark.parametrize("largest", [10, 12, 16])
@pytest.mark.parametrize("clear_at", [(), (7, 300, 301, 2500)])
def test_uncompress(largest, clear_at):
    generator = np.random.default_rng(0)
    text = "".join(f"{value}," for value in generator.integers(-300, 300, 6000)).encode()
    noise = generator.bytes(3000)
    for content in (b"", b"a", b"a" * 1000, text, noise):
        packed = compressed(content, largest, clear_at)
        assert unix_compress.uncompress(packed) == content
        if not clear_at:
            assert unix_compress.uncompress(compressed(content, largest, clearing=False)) == content
    assert len(compressed(text)) < 0.6 * len(text)


@pytest.mark.skipif(shutil.which("gzip") is None, reason="there is no gzip to compare with")
def test_uncompress_as_gzip_does():
    content = UCI.encode() * 400
    for packed in (compressed(content), compressed(content, 10, clear_at=(900,))):
        run = subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True)
        assert unix_compress.uncompress(packed) == run.stdout == content


def test_compressed_uci_files(tmp_path):
    packed = compressed(UCI.encode())
    assert_is_musk(read(written(tmp_path, packed, "clean1.data.Z")))
    damaged = packed[:3] + b"\xff" * 20
    for content in (packed[:2], damaged):
        with pytest.raises(UserError, match="clean1.data.Z is damaged"):
            read_uci(written(tmp_path, content, "clean1.data.Z"))


FEATURES = np.array([[0, 1.5], [2, 0], [0, 0], [-1, 3]])


@pytest.mark.parametrize("sparse", [True, False])
def test_matlab_files(tmp_path, sparse):
    pack = scipy.sparse.csc_matrix if sparse else np.asarray
    content = {
        "features": pack(FEATURES),
        "labels": pack([[1.0, -1, 1, -1]]),
        "bag_ids": np.array([[7, 1000001, 7, 3]], np.float64),
        "note": "more than is needed",
    }
    path = tmp_path / "fox_100x100_matlab.mat"
    scipy.io.savemat(path, content)
    dataset = read(path)
    assert dataset.ids == ("7", "1000001", "3") and dataset.classes == (-1, 1)
    np.testing.assert_array_equal(dataset.labels, [1, 0, 0])
    np.testing.assert_array_equal(dataset.instances, FEATURES[[0, 2, 1, 3]])
    np.testing.assert_array_equal(dataset.lengths, [2, 1, 1])


def test_a_matlab_bag_with_different_labels_has_the_largest(tmp_path):
    path = tmp_path / "some.mat"
    content = {"features": FEATURES, "labels": [[0, 0, 1, 0]], "bag_ids": [[1, 1, 2, 2]]}
    scipy.io.savemat(path, content)
    dataset = read_matlab(path)
    np.testing.assert_array_equal(dataset.labels, [0, 1])
    assert dataset.classes == (0, 1) and list(map(type, dataset.classes)) == [int, int]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": None}, "has no variable 'labels', but must have features, bag_ids, labels"),
        ({"labels": [[1, -1, 1]]}, r"shape \(4, 2\), 4 bag_ids and 3 labels"),
        ({"labels": [[1, np.nan, 1, 0]]}, "a label or a bag id that is not a finite number"),
        ({"labels": [[1, 1, 1, 1]]}, "all bags of .* have the label 1"),
        ({"labels": np.array([["a", "b"]], object)}, "cannot be read as a MATLAB file"),
        (
            {"features": [[0], [1], [2], [np.nan]]},
            "bag '2' of some holds a value that is not finite",
        ),
    ],
)
def test_wrong_matlab_files(tmp_path, changes, sentence):
    content = {"features": FEATURES, "labels": [[1, 1, -1, -1]], "bag_ids": [[1, 1, 2, 2]]}
    content = {name: v for name, v in {**content, **changes}.items() if v is not None}
    path = tmp_path / "some.mat"
    scipy.io.savemat(path, content)
    with pytest.raises(UserError, match=sentence):
        read(path)


def test_files_that_are_not_matlab(tmp_path):
    with pytest.raises(UserError, match="cannot be read as a MATLAB file"):
        read(written(tmp_path, CSV, "some.mat"))
    with pytest.raises(UserError, match="cannot be read as a MATLAB file"):
        read(written(tmp_path, b"", "some.mat"))
    hdf5 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)
    with pytest.raises(UserError, match="is of MATLAB's version 7.3; save it with the flag -v7"):
        read(written(tmp_path, hdf5, "some.mat"))


def test_reading_is_quick_enough_for_musk2(tmp_path):
    """6,598 rows of 166 integers; a third of this time on a slow machine."""
    values = np.random.default_rng(0).integers(-300, 300, (50, 166))
    endings = [",".join(map(str, row)) for row in values]
    rows = [f"{row % 102 % 2},{row % 102},{endings[row % 50]}" for row in range(6598)]
    header = ",".join(["bag_label", "bag_id", *(f"f{n}" for n in range(166))])
    path = written(tmp_path, gzip.compress("\n".join([header, *rows]).encode(), 1), "large.csv.gz")
    started = time.process_time()
    dataset = read_csv(path)
    assert time.process_time() - started < 1.5
    assert dataset.instances.shape == (6598, 166) and len(dataset) == 102
    np.testing.assert_array_equal(dataset.bag(7), values[np.arange(7, 6598, 102) % 50])
