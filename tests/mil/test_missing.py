"""Labels and ids that stand for missing ones are no classes."""

import math

import numpy as np
import pytest

from lossattn_jax.data.bags.bag_files import read_csv
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.missing import is_missing
from lossattn_jax.errors import UserError

# pandas' default list, written down from its documentation of `read_csv`.
PANDAS = [
    *(" ", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", ""),
]


# Of databases, of spreadsheets and of other languages.
OTHERS = [r"\N", "#DIV/0!", "#VALUE!", "#REF!", "(null)", "<null>", "nil", "+nan", "undefined"]


@pytest.mark.parametrize("word", [*PANDAS, *OTHERS, "?", "-", "none", "NONE", "NaT"])
def test_words_for_what_is_missing(word):
    assert is_missing(word)


@pytest.mark.parametrize("value", [None, math.nan, np.float32("nan"), np.datetime64("NaT")])
def test_values_for_what_is_missing(value):
    assert is_missing(value)


@pytest.mark.parametrize("value", ["0", "no", "normal", "nano", "n", "-1", 0, False, 1.5, np.inf])
def test_what_is_not_missing(value):
    assert not is_missing(value)


@pytest.mark.parametrize("word", PANDAS)
@pytest.mark.parametrize(
    ("cells", "what"),
    [("{},c,0,5", "label"), ("1,{},1,5", "bag id"), ("1,c,{},5", "instance label")],
)
def test_a_missing_label_or_id_is_refused_with_its_line(tmp_path, word, cells, what):
    path = tmp_path / "own.csv"
    lines = ["bag_label,bag_id,instance_label,area", "1,a,1,2", "0,b,0,3", cells.format(word)]
    path.write_text("\n".join([*lines, "0,d,0,4", ""]))
    with pytest.raises(UserError, match=f"line 4 of .* has (an empty|the) {what}") as caught:
        read_csv(path)
    if word.strip():
        assert repr(word) in str(caught.value) and "leave such rows out" in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [
        ["normal", None, "tumor"],
        ["normal", math.nan, "tumor"],
        [0.0, math.nan, 1.0],
        np.array([0, np.nan, 1]),
        np.array(["normal", "nan", "tumor"]),
        np.array([0, None, 1], object),
        np.ma.array([0, 0, 1], mask=[False, True, False]),
    ],
    ids=range(7),
)
def test_a_missing_label_is_refused_in_python(labels):
    with pytest.raises(
        UserError, match="bag '1' of some has the label .*, which stands for a miss"
    ):
        BagDataset.from_bags([np.ones((1, 2))] * 3, labels, name="some")
