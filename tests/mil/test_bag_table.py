"""Tables with a row for each bag: forms of files, columns by name, and cells that are refused."""

import gzip
import logging

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from lossattn_jax.data.bags.bag_table import BagTable, TableColumns, read_table
from lossattn_jax.errors import UserError

HEADER = ("slide_id", "label", "patient", "split", "fold", "path", "age")
ROWS = (
    ("s1", "tumor", "p1", "Train", "0", "a/s1.h5", "61"),
    ("s2", "normal", "p2", "val", "1", "a/s2.h5", "44"),
    ("s3", "tumor", "p1", "TESTING", "2.0", "b/s3.h5", "61"),
)
READ = {
    "ids": ("s1", "s2", "s3"),
    "labels": ("tumor", "normal", "tumor"),
    "groups": ("p1", "p2", "p1"),
    "splits": ("train", "validation", "test"),
    "folds": (0, 1, 2),
    "paths": ("a/s1.h5", "a/s2.h5", "b/s3.h5"),
}


def text(rows=ROWS, header=HEADER, mark=",", end="\n"):
    return end.join(mark.join(cells) for cells in (header, *rows)) + end


def written(folder, content, name="labels.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def arrow(rows=ROWS, header=HEADER):
    return pyarrow.table({name: [row[n] for row in rows] for n, name in enumerate(header)})


def with_index(columns):
    return "\n".join(
        f"{'' if n == 0 else n - 1},{line}" for n, line in enumerate(columns.splitlines())
    )


FORMS = {
    "commas": ("labels.csv", text()),
    "semicolons": ("labels.csv", text(mark=";")),
    "tabs": ("labels.tsv", text(mark="\t")),
    "returns": ("labels.csv", text(end="\r\n")),
    "mark": ("labels.csv", b"\xef\xbb\xbf" + text().encode()),
    "UTF-16": ("labels.txt", text(mark="\t").encode("utf-16")),
    "gzip": ("labels.csv.gz", gzip.compress(text().encode())),
    "quotes": ("labels.csv", text().replace("s1,tumor", '" s1","tumor "')),
    "index": ("labels.csv", with_index(text())),
    "empty lines": ("labels.csv", text().replace("\ns2", "\n\n\ns2")),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_text(tmp_path, form):
    name, content = FORMS[form]
    path = written(tmp_path, content, name)
    assert read_table(path) == BagTable(str(path), **READ)


class Stream:
    """What is no table of pyarrow, but gives one."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


def test_tables_of_arrow(tmp_path):
    parquet.write_table(arrow(), tmp_path / "labels.parquet")
    path = tmp_path / "labels.parquet"
    assert read_table(path) == BagTable(str(path), **READ)
    for source in (arrow(), Stream(arrow())):
        assert read_table(source) == BagTable("the table", **READ)


def test_a_table_of_pandas():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(ROWS, columns=HEADER)
    assert read_table(frame) == BagTable("the table", **READ)
    shuffled = frame.iloc[[2, 0, 1]]  # has an index that is no range
    assert read_table(shuffled).ids == ("s3", "s1", "s2")
    assert read_table(frame.set_index("slide_id")) == BagTable("the table", **READ)
    frame["label"] = [1.0, None, 0.0]
    with pytest.raises(UserError, match="1 of 3 bags of the table have no label .* the first 's2'"):
        read_table(frame)


def test_types_of_arrow():
    table = pyarrow.table(
        {
            "bag": [12, 7],
            "label": pyarrow.array(["no", "yes"]).dictionary_encode(),
            "fold": [1.0, 0.0],
            "__index_level_0__": [5, 6],
        }
    )
    assert read_table(table) == BagTable("the table", ("12", "7"), ("no", "yes"), folds=(1, 0))
    assert read_table(pyarrow.table({"bag": ["a"], "label": [True]})).labels == ("True",)


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (("1", "0", "-1"), (1, 0, -1)),
        (("1.0", "0", "2."), (1, 0, 2)),
        (("1", "0.5", "2"), ("1", "0.5", "2")),
        (("0", "a", "1"), ("0", "a", "1")),
    ],
)
def test_labels_are_numbers_where_all_are(tmp_path, cells, labels):
    rows = [(f"s{n}", cell) for n, cell in enumerate(cells)]
    assert read_table(written(tmp_path, text(rows, ("bag", "label")))).labels == labels


@pytest.mark.parametrize(
    ("header", "part", "name"),
    [
        (("BAG_ID", "label"), "ids", "BAG_ID"),
        (("Bag", "Label"), "ids", "Bag"),
        (("slide_id", "bag", "label"), "ids", "bag"),
        (("bag", "bag_id", "label"), "ids", "bag_id"),
        (("bag", "label", "bag_label"), "labels", "bag_label"),
        (("bag", "label", "Patient_ID"), "groups", "Patient_ID"),
        (("bag", "label", "case_id", "PATIENT"), "groups", "PATIENT"),
        (("bag", "label", "patient", "Group"), "groups", "Group"),
        (("bag", "label", "Path"), "paths", "Path"),
    ],
)
def test_columns_are_found_by_their_usual_names(tmp_path, header, part, name, caplog):
    caplog.set_level(logging.INFO)
    rows = [tuple(f"{column}{row}" for column in header) for row in range(2)]
    table = read_table(written(tmp_path, text(rows, header)))
    assert getattr(table, part) == (f"{name}0", f"{name}1")
    assert f"in {name!r}" in caplog.text


def test_columns_by_name(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    header = ("label", "slide", "Kind", "who", "part", "number", "file")
    rows = [("9", "s1", "x", "p", "dev", "3", "f.h5"), ("9", "s2", "y", "q", "test", "4", "g.h5")]
    names = TableColumns("slide", "kind", "who", "part", "number", "file")
    path = written(tmp_path, text(rows, header))
    assert read_table(path, names) == BagTable(
        str(path),
        ("s1", "s2"),
        ("x", "y"),
        ("p", "q"),
        ("validation", "test"),
        (3, 4),
        ("f.h5", "g.h5"),
    )
    assert (
        f"{path}: 2 bags; bag in 'slide', label in 'Kind', group in 'who', split in 'part', "
        "fold in 'number', path in 'file'; not taken: 'label'" in caplog.text
    )


def test_tables_without_labels(tmp_path):
    path = written(tmp_path, text([("a", "p")], ("bag", "patient")))
    assert read_table(path, labelled=False) == BagTable(str(path), ("a",), groups=("p",))
    with pytest.raises(
        UserError,
        match="has no column 'bag_label' or 'label' of the labels, but 'bag', 'patient'; --lab",
    ):
        read_table(path)


def replaced(old, new):
    return text().replace(old, new)


WRONG = {
    "empty": ("", {}, "is empty or its first line is, but must be the header"),
    "header alone": (text(()), {}, "has no bag, but must have one in each line"),
    "no ids": (
        replaced("slide_id", "name"),
        {},
        "no column 'bag_id' or 'bag' or 'slide_id' of the bags",
    ),
    "twice": (
        replaced("s3", "s1"),
        {},
        "has the bag 's1' twice, in line 2 and in line 4, but must have a",
    ),
    "no id": (
        replaced("s2,", ","),
        {},
        "line 3 of .* has the bag id '', which stands for a missing one",
    ),
    "no label": (
        replaced("normal", "NaN").replace("s3,tumor", "s3,"),
        {},
        r"2 of 3 bags of .* have no label in the column 'label', the first 's2' \(line 3 has 'NaN'\)",
    ),
    "no patient": (
        replaced("p2", "n/a"),
        {},
        "1 of 3 bags of .* have no group in the column 'patient', the",
    ),
    "no fold": (
        replaced(",1,", ",,"),
        {},
        "1 of 3 bags of .* have no fold in the column 'fold', the first ",
    ),
    "split": (
        replaced("val", "holdout"),
        {},
        "line 3 of .* has the split 'holdout' for bag 's2', but allowed are train, training, validation, ",
    ),
    "fold": (
        replaced(",1,", ",b,"),
        {},
        "line 3 of .* has the fold 'b' for bag 's2', but must have a whole",
    ),
    "half a fold": (replaced("2.0", "2.5"), {}, "line 4 of .* has the fold '2.5' for bag 's3'"),
    "cells": (
        replaced("a/s1.h5,61", "a/s1.h5"),
        {},
        "line 2 of .* has 6 fields, but the header has 7",
    ),
    "two columns": (replaced("age", "split"), {}, "has two columns 'split', but names must differ"),
    "two named": (
        replaced("patient", "age"),
        {"group": "age"},
        "has two columns 'age', but names must",
    ),
    "unknown": (
        text(),
        {"label": "lable"},
        "--label_column is 'lable', which is no column of .*; near are",
    ),
    "unlike": (
        text(),
        {"fold": "?"},
        "--fold_column is '.', which is no column of .* 'slide_id', 'label'",
    ),
    "same": (text(), {"label": "slide_id"}, "the column 'slide_id' of .* cannot have both"),
    "several": (
        replaced("label", "label_tumor").replace("age", "Label_grade"),
        {},
        "has the columns 'label_tumor', 'Label_grade'; --label_column says which has the label, or which",
    ),
    "several named": (
        text(),
        {"label": "label,age"},
        "has 'tumor' for bag 's1' in the column 'label' of a label, but allowed are 0, ",
    ),
    "a list": (
        text(),
        {"label": ["label", "age"]},
        "has 'tumor' for bag 's1' in the column 'label' of a label, but allowed are 0, ",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_sentence_for_what_is_wrong(tmp_path, name):
    content, names, sentence = WRONG[name]
    with pytest.raises(UserError, match=sentence) as caught:
        read_table(written(tmp_path, content), TableColumns(**names))
    assert "\n" not in str(caught.value)


def test_what_is_no_table_is_a_sentence(tmp_path):
    with pytest.raises(
        UserError, match="the table of labels is a dict, but must be the path of a file"
    ):
        read_table({"bag": ["a"]})
    with pytest.raises(UserError, match="labels.csv does not exist"):
        read_table(tmp_path / "labels.csv")
    with pytest.raises(UserError, match="there is no file .*labels.parquet"):
        read_table(tmp_path / "labels.parquet")
    with pytest.raises(UserError, match="labels.parquet cannot be read: it is damaged"):
        read_table(written(tmp_path, text(), "labels.parquet"))


def test_missing_values_of_arrow():
    table = pyarrow.table({"bag": ["a", "b"], "label": [1.0, np.nan]})
    with pytest.raises(UserError, match=r"1 of 2 bags .* the first 'b' \(row 2 has 'nan'\)"):
        read_table(table)
    with pytest.raises(
        UserError, match=r"the first 'a' \(row 1 has ''\); give them one or leave these b"
    ):
        read_table(pyarrow.table({"bag": ["a"], "label": pyarrow.array([None], pyarrow.int64())}))
