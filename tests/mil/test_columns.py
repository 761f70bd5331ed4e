"""Which columns of a table are labels, ids and features, and what the log says of them."""

import logging

import numpy as np
import pytest

from lossattn_jax.data.bags.bag_files import read, read_csv, write_csv
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.columns import ROLES, Choice
from lossattn_jax.errors import UserError

HEADER = ("bag_label", "bag_id", "area")


def table(header, rows, mark=","):
    return "\n".join(mark.join(map(str, line)) for line in (header, *rows)) + "\n"


def rows(*more, bags=4):
    """Two rows for each bag, of the classes 0 and 1 by turns, and what `more` gives for (bag, row)."""
    return [
        (n // 2 % 2, f"b{n // 2}", n * n % 7, *(cell(n // 2, n) for cell in more))
        for n in range(2 * bags)
    ]


def written(folder, text, name="own.csv"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("role", sorted(ROLES - {"bag_label", "bag_id", "instance_label"}))
@pytest.mark.parametrize("change", [str, str.upper, "  {} ".format])
def test_a_column_with_a_role_is_no_feature(tmp_path, role, change):
    text = table((*HEADER, change(role)), rows(lambda bag, row: bag % 2))
    dataset = read_csv(written(tmp_path, text))
    assert dataset.features == ("area",)
    np.testing.assert_array_equal(dataset.instances[:, 0], [n * n % 7 for n in range(8)])


@pytest.mark.parametrize(
    ("names", "label", "bag_id"),
    [
        (("label", "bag"), "label", "bag"),
        (("Label", "Slide_ID"), "Label", "Slide_ID"),
        (("label", "bag_label", "bag", "slide_id"), "bag_label", "bag"),
        (("BAG_LABEL", "label", "slide_id", "bag", "bag_id"), "BAG_LABEL", "bag_id"),
    ],
)
def test_labels_and_ids_are_in_the_first_of_their_columns(tmp_path, names, label, bag_id, caplog):
    caplog.set_level(logging.INFO)
    # Every other column would give one class, or one bag.
    cells = [
        {label: n // 2 % 2, bag_id: f"b{n // 2}"}.get(name, 7) for n in range(8) for name in names
    ]
    lines = [(*cells[n * len(names) : (n + 1) * len(names)], n) for n in range(8)]
    dataset = read_csv(written(tmp_path, table((*names, "area"), lines)))
    assert dataset.ids == ("b0", "b1", "b2", "b3") and dataset.features == ("area",)
    np.testing.assert_array_equal(dataset.labels, [0, 1, 0, 1])
    assert f"labels in {label!r}, ids in {bag_id!r}" in caplog.text


def test_the_log_says_what_is_taken_and_what_is_not(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    more = (lambda b, n: n + 1, lambda b, n: b, lambda b, n: "HE", lambda b, n: "a/b.png")
    header = (*HEADER, "colour", "patient", "stain", "path")
    read_csv(written(tmp_path, table(header, rows(*more))))
    assert (
        "own.csv: 2 features, from 'area' to 'colour'; labels in 'bag_label', ids in 'bag_id'; columns of "
        "numbers not taken: 'patient'; columns of text not taken: 'stain'\n" in caplog.text
    )
    caplog.clear()
    read_csv(written(tmp_path, table(header, rows(*more))), Choice(ignore=("area",)))
    assert "1 feature, 'colour'; " in caplog.text and "not taken: 'area', 'patient'" in caplog.text


@pytest.mark.parametrize(
    ("choice", "features"),
    [
        (Choice(("x",)), ("x",)),
        (Choice(("x", "area")), ("area", "x")),
        (Choice(("f*",)), ("f0", "f1")),
        (Choice(("f[1-9]", "label")), ("label", "f1")),
        (Choice(ignore=("f*",)), ("area",)),
        (Choice(("*",), ("x", "f1")), ("area", "label", "f0")),
        (Choice(("*",)), ("area", "label", "x", "f0", "f1")),
    ],
)
def test_names_and_patterns_win_over_roles(tmp_path, choice, features):
    more = (lambda b, n: b % 2, lambda b, n: n % 5, lambda b, n: n % 3, lambda b, n: n % 4)
    header = (*HEADER, "label", "x", "f0", "f1")
    dataset = read_csv(written(tmp_path, table(header, rows(*more))), choice)
    assert dataset.features == features
    column = {"label": 0, "x": 1, "f0": 2, "f1": 3}
    for name, values in zip(dataset.features, dataset.instances.T, strict=True):
        if name in column:
            np.testing.assert_array_equal(values, [more[column[name]](n // 2, n) for n in range(8)])


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (Choice(("aera",)), "--features has 'aera', which is no column of .*; near are area"),
        (Choice(ignore=("colour*",)), "--ignore has 'colour.*; its columns are bag_label, bag_id"),
        (Choice(("bag_label",)), "--features has 'bag_label', but bags .* labels or ids from that"),
        (Choice(("area", "bag_id")), "--features has 'bag_id', but bags"),
        (Choice(ignore=("bag_*",)), "--ignore has 'bag_.', but bags"),
        (Choice(("stain",)), "line 2 of .* has 'HE', which is not a number, in the column 'stain'"),
        (Choice(ignore=("area",)), "no column of numbers that is a feature: line 2 has 'HE' in"),
        (
            Choice(ignore=("area", "stain")),
            "has no column but .* so no feature .*--features=x takes",
        ),
    ],
)
def test_choices_that_cannot_be(tmp_path, choice, sentence):
    text = table((*HEADER, "x", "stain"), rows(lambda b, n: n, lambda b, n: "HE"))
    with pytest.raises(UserError, match=sentence):
        read_csv(written(tmp_path, text), choice)


def test_a_choice_where_columns_have_no_names(tmp_path):
    path = written(tmp_path, "m1,c1,5,1.\nm2,c2,6,0.\n", "own.data")
    with pytest.raises(UserError, match="choose columns by their names, but those of .* have none"):
        read(path, Choice(("f0",)))
    assert read(path, Choice()).features is None


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ("1 2 3 x 5 6 7 8", "line 5 of .* has 'x', .* in the column 'colour'; .*--ignore=colour"),
        ("x 2 3 4 5 6 7 8", "line 2 of .* has 'x'"),
        ("NA 2 3 4 5 6 7 8", "line 2 of .* has 'NA', .*; fill it in"),
        ("a b c 4 e f g h", "line 2 of .* has 'a'"),
        ("NA NA NA NA NA NA NA NA", "line 2 of .* has 'NA', .*; fill it in"),
        (
            "nan nan nan nan nan nan nan nan",
            "line 2 of .* the value nan, .* in the column 'colour'",
        ),
        (
            "1 2 1e200 4 5 6 7 8",
            r"line 4 of .* the value 1e\+200, .* 'colour'; correct it, .* --ignore=colour",
        ),
        ('"1,5" "2,5" 3 4 5 6 7 8', "line 2 of .* has '1,5', .*; write decimals with a point"),
        ('a b c "4,5" e f g h', "line 5 of .* has '4,5', .*; write decimals with a point"),
        ('"1,234.5" a b c d e f g', "line 2 of .* has '1,234.5', .*; write decimals with a point"),
    ],
)
def test_one_wrong_cell_takes_no_feature_away_unnoticed(tmp_path, cells, sentence):
    values = cells.split()
    text = table((*HEADER, "colour"), rows(lambda b, n: values[n]))
    with pytest.raises(UserError, match=sentence):
        read_csv(written(tmp_path, text))


def test_text_may_be_missing_in_places(tmp_path):
    values = ["", "HE", "NA", "IHC", "a b", "2020-01-01", "5%", "?"]
    text = table((*HEADER, "notes"), rows(lambda b, n: values[n]))
    assert read_csv(written(tmp_path, text)).features == ("area",)


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_semicolons_and_tabs(tmp_path, mark, start):
    plain = read_csv(written(tmp_path, table(HEADER, rows())))
    other = read_csv(written(tmp_path, start + table(HEADER, rows(), mark)))
    np.testing.assert_array_equal(other.instances, plain.instances)
    assert other.ids == plain.ids and other.features == plain.features


def test_a_name_may_have_another_mark_in_it(tmp_path):
    quoted = '"bag_label";"bag_id";"area, in mm, or so"\n1;a;2\n0;b;3\n'
    assert read_csv(written(tmp_path, quoted)).features == ("area, in mm, or so",)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_decimal_commas_are_read(tmp_path, mark, caplog):
    caplog.set_level(logging.INFO)
    cells = ["0,5", "-1,25e2", "1,234", ",5", "7", "+3,", "1e3", "nothing"]
    lines = [(n % 2, f"b{n}", cell, n, "a, b") for n, cell in enumerate(cells[:-1])]
    text = table((*HEADER, "colour", "note"), lines, mark)
    dataset = read_csv(written(tmp_path, text))
    np.testing.assert_array_equal(
        dataset.instances[:, 0], np.float32([0.5, -125, 1.234, 0.5, 7, 3, 1e3])
    )
    assert dataset.features == ("area", "colour")
    assert "columns of text not taken: 'note'; decimals are written with a comma" in caplog.text


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        # A comma that may be of thousands; the same beside a sure one is a decimal one.
        (
            "1,234 999 5",
            "line 2 of .* has '1,234', which is not a number, in the column 'area'; write decim",
        ),
        (
            "0,5 1.5 2",
            "line 2 of .* has '0,5' and line 3 has '1.5': write decimals with a point or with a c",
        ),
        (
            "1.5 2 1,234",
            "line 4 of .* has '1,234' and line 2 has '1.5': write decimals with a point or with",
        ),
        (
            "0,5 1,234,567 2",
            "line 3 of .* has '1,234,567', which is not a number, in the column 'area'; wri",
        ),
        (
            "0,5 1.234,5 2",
            "line 3 of .* has '1.234,5', which is not a number, in the column 'area'; write d",
        ),
    ],
)
def test_other_commas_are_refused_with_the_way_out(tmp_path, cells, sentence):
    lines = [(n % 2, f"b{n}", cell) for n, cell in enumerate(cells.split())]
    with pytest.raises(UserError, match=sentence):
        read_csv(written(tmp_path, table(HEADER, lines, ";")))


def test_decimal_commas_between_commas_are_refused(tmp_path):
    text = 'bag_label,bag_id,area\n1,a,"0,5"\n0,b,"1,5"\n'
    with pytest.raises(UserError, match="line 2 of .* '0,5', .* write decimals with a point"):
        read_csv(written(tmp_path, text))


@pytest.mark.parametrize("mark", [",", "\t"])
@pytest.mark.parametrize("order", ["utf-16", "utf-16-be"])
def test_utf_16_with_a_mark_is_read(tmp_path, mark, order):
    """As spreadsheets write "Unicode text"."""
    lines = [(label, bag.replace("b", "\xe4"), area) for label, bag, area in rows()]
    plain = read_csv(written(tmp_path, table(HEADER, lines)))
    start = "" if order == "utf-16" else "\ufeff"
    path = tmp_path / "other.csv"
    path.write_bytes((start + table(HEADER, lines, mark)).encode(order))
    other = read_csv(path)
    assert other.ids == plain.ids == ("\xe40", "\xe41", "\xe42", "\xe43")
    np.testing.assert_array_equal(other.instances, plain.instances)


@pytest.mark.parametrize(("name", "start"), [("", 0), ('""', 1), ("Unnamed: 0", 0)])
def test_an_index_is_left_out(tmp_path, name, start, caplog):
    caplog.set_level(logging.INFO)
    lines = [(n + start, *row) for n, row in enumerate(rows())]
    dataset = read_csv(written(tmp_path, table((name, *HEADER), lines)))
    assert dataset.features == ("area",) and "index of the rows not taken: " in caplog.text


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
@pytest.mark.parametrize("numbers", [[0, 1, 2, 4, 5, 6, 7, 8], [5, *range(7)], ["a"] * 8])
def test_a_column_without_a_name_that_is_no_index(tmp_path, name, numbers):
    lines = [(number, *row) for number, row in zip(numbers, rows(), strict=True)]
    path = written(tmp_path, table((name, *HEADER), lines))
    with pytest.raises(UserError, match="column 1 of .* has no name and does not .*index=False"):
        read_csv(path)
    if name:
        assert read_csv(path, Choice(ignore=("Unnamed*",))).features == ("area",)


def test_two_columns_for_the_same(tmp_path):
    with pytest.raises(UserError, match="has two columns 'bag_label', but names must differ"):
        read_csv(written(tmp_path, table((*HEADER, "BAG_Label"), rows(lambda b, n: 1))))


def test_names_are_written_and_read_back(tmp_path):
    features = ("area", "x", "colour, or hue")
    dataset = BagDataset.from_bags(
        [[[1, 2, 3]], [[4, 5, 6]]], ["b", "a"], positive="a", features=features
    )
    write_csv(dataset, tmp_path / "again.csv")
    again = read_csv(tmp_path / "again.csv", Choice(features=features))
    assert again.features == features and again.positive is None
    np.testing.assert_array_equal(again.instances, dataset.instances)
    assert read_csv(tmp_path / "again.csv").features == ("area", "colour, or hue")
    taken = BagDataset.from_bags([[[1, 2]], [[3, 4]]], [0, 1], features=("f", "Bag_ID"))
    with pytest.raises(UserError, match="has a feature 'Bag_ID', but a file has a column of that"):
        write_csv(taken, tmp_path / "no.csv")
