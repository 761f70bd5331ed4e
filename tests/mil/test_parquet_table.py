"""Tables of instances in Parquet files: the bags of the same CSV file, and what is refused."""

import logging

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from lossattn_jax.data.bags.bag_files import read, read_csv
from lossattn_jax.data.bags.columns import Choice
from lossattn_jax.errors import UserError

# Rows of the bags a and b by turns.
COLUMNS = {
    "Bag_Label": [1, 0, 1, 0],
    "slide_id": ["a", "b", "a", "b"],
    "area": [0.5, 1.5, 0.1, 2.5],
    "note": ["p", None, "q", "r"],
    "count": pyarrow.array([3, 2, 1, 0], pyarrow.uint8()),
    "x": [7, 7, 8, 8],
    "instance_label": [1, 0, 0, 0],
}


def write(folder, rows=3, **changes):
    table = {name: value for name, value in {**COLUMNS, **changes}.items() if value is not None}
    parquet.write_table(pyarrow.table(table), folder / "own.parquet", row_group_size=rows)
    return folder / "own.parquet"


def as_csv(folder):
    lines = [",".join(COLUMNS)]
    for row in zip(*COLUMNS.values(), strict=True):
        lines.append(",".join("" if cell is None else str(cell) for cell in row))
    (folder / "own.csv").write_text("\n".join(lines) + "\n")
    return folder / "own.csv"


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_bags_are_those_of_a_csv_file(tmp_path, rows, caplog):
    caplog.set_level(logging.INFO)
    path = write(tmp_path, rows)
    one, other = read(path), read_csv(as_csv(tmp_path))
    assert one.features == other.features == ("area", "count")
    assert (one.ids, one.classes, one.name) == (other.ids, other.classes, other.name)
    np.testing.assert_array_equal(
        one.instances, np.float32([[0.5, 3], [0.1, 1], [1.5, 2], [2.5, 0]])
    )
    for field in ("instances", "lengths", "labels", "instance_labels"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    words = (
        "2 features, from 'area' to 'count'; labels in 'Bag_Label', ids in 'slide_id', labels of "
        "instances in 'instance_label'; columns of numbers not taken: 'x'; columns of text not taken: "
        "'note'"
    )
    assert f"{path}: {words}" in caplog.text and f"own.csv: {words}" in caplog.text


def test_features_are_chosen(tmp_path):
    path = write(tmp_path)
    assert read(path, Choice(features=("x", "c*"))).features == ("count", "x")
    assert read(path, Choice(ignore=("area",))).features == ("count",)
    with pytest.raises(
        UserError, match="the column 'note' of .* has the type string, but a feature must"
    ):
        read(path, Choice(features=("note",)))


def test_an_index_of_pandas_is_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert read(write(tmp_path, __index_level_0__=[5, 6, 7, 8])).features == ("area", "count")
    counting = {"Unnamed: 0": [0, 1, 2, 3]}
    assert read(write(tmp_path, **counting)).features == ("area", "count")
    assert "index of the rows not taken: 'Unnamed: 0'" in caplog.text
    with pytest.raises(
        UserError, match="column 8 of .* has no name and does not count the rows; name it"
    ):
        read(write(tmp_path, **{"Unnamed: 0": [0, 1, 2, 4]}))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_numbers_of_any_type_are_exact(tmp_path, dtype):
    values = np.array([1, 3, 1000, 0]).astype(dtype)
    dataset = read(write(tmp_path, area=values, count=None))
    np.testing.assert_array_equal(dataset.instances[:, 0], [1, 1000, 3, 0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"slide_id": None}, "names no column 'bag_id'"),
        (
            {"area": ["l", "m", "n", "o"], "count": None},
            "no column of numbers that is a feature, but 'Bag_L",
        ),
        (
            {"area": [1.0, None, 2.0, 3.0]},
            "row 2 of .* has the value nan, but values must be finite numbers",
        ),
        (
            {"area": [1.0, 2.0, 3.0, 1e39]},
            r"row 4 of .* has the value 1e\+39, but .* in the column 'area'; ",
        ),
        (
            {"Bag_Label": [1, 0, 0, 0]},
            "row 3 of .* has the label '0' for bag 'a', which had '1' before",
        ),
        ({"Bag_Label": ["y", None, "y", "n"]}, "row 2 of .* has an empty label"),
        (
            {"Bag_Label": [1.0, np.nan, 1.0, 0.0]},
            "row 2 of .* has the label 'nan', which stands for a miss",
        ),
        (
            {"slide_id": ["a", "?", "a", "b"]},
            "row 2 of .* has the bag id '.', which stands for a missing",
        ),
        (
            {"instance_label": [2, 0, 0, 0]},
            "row 1 of .* has the instance_label '2', but allowed are those",
        ),
        (
            {"AREA": COLUMNS["area"], "area": None, "Slide_ID": ["a"] * 4},
            "has two columns 'slide_id', but",
        ),
    ],
)
def test_a_sentence_for_what_is_wrong(tmp_path, changes, sentence):
    path = write(tmp_path, **changes)
    with pytest.raises(UserError, match=sentence) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="there is no file .*none.parquet"):
        read(tmp_path / "none.parquet")
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="own.parquet cannot be read: it is damaged"):
        read(path)
    parquet.write_table(pyarrow.table(COLUMNS).slice(0, 0), path)
    with pytest.raises(
        UserError, match="own.parquet has no instance, but must have one in each row"
    ):
        read(path)
