"""Bags of a folder of feature files with a table: what is found, and what is refused."""

import logging
import shutil

import h5py
import numpy as np
import pyarrow
import pytest

from lossattn_jax.data.bags import bag_folder
from lossattn_jax.data.bags.bag_folder import open_bags
from lossattn_jax.data.bags.bag_table import BagTable, TableColumns
from lossattn_jax.data.bags.feature_files import FORMATS, FeatureFormat
from lossattn_jax.data.bags.lazy_bags import ArrayReader, Bags, check_finite
from lossattn_jax.errors import UserError
from tests.support import feature_files as written

# A number of instances for each bag, and values that say which bag and instance they are of.
LENGTHS = {"s1": 3, "s2": 1, "s3": 4}


def features(bag_id, width=2, dtype=np.float32):
    number, length = int(bag_id[1:]), LENGTHS[bag_id]
    values = 100 * number + np.arange(length)[:, None] + np.arange(width) / 4
    return values.astype(dtype)


def slides(folder, form="h5", bags=LENGTHS):
    ending, write, _ = written.WRITERS[form]
    folder.mkdir(parents=True, exist_ok=True)
    for bag_id in bags:
        write(folder / f"{bag_id}{ending}", features(bag_id))
    return folder


def labels(folder, lines="s2,normal\ns1,tumor\ns3,tumor\n", header="slide_id,label"):
    path = folder / "labels.csv"
    path.write_text(f"{header}\n{lines}")
    return path


def check_bags(bags, ids):
    assert bags.ids == ids
    np.testing.assert_array_equal(bags.lengths, [LENGTHS[bag_id] for bag_id in ids])
    for bag_id, bag in zip(ids, bags, strict=True):
        np.testing.assert_array_equal(bag, features(bag_id))


@pytest.mark.parametrize("form", [name for name in written.WRITERS if not name.startswith("pt")])
def test_bags_of_a_folder(tmp_path, form):
    bags = open_bags(slides(tmp_path / "slides", form), labels(tmp_path), positive=["tumor"])
    check_bags(bags, ("s2", "s1", "s3"))
    assert (bags.name, bags.classes, bags.positive) == ("slides", ("normal", "tumor"), "tumor")
    np.testing.assert_array_equal(bags.labels, [0, 1, 1])
    dataset = bags.load()
    np.testing.assert_array_equal(dataset.bag(1), features("s1"))
    assert (dataset.classes, dataset.positive) == (("normal", "tumor"), "tumor")


def test_bags_without_a_table_are_in_the_order_of_their_ids(tmp_path):
    folder = slides(tmp_path / "slides", bags=("s3", "s1", "s2"))
    (folder / "readme.txt").write_text("no bag")
    (folder / ".s4.h5").write_text("hidden")
    bags = open_bags(folder, name="mine")
    check_bags(bags, ("s1", "s2", "s3"))
    assert (bags.labels, bags.classes, bags.name) == (None, (), "mine")
    with pytest.raises(UserError, match="the bags of mine have no labels, but training needs them"):
        bags.load()


def test_files_of_several_formats_and_folders(tmp_path):
    folder = slides(tmp_path / "slides", "npy", ["s1"])
    slides(folder / "more", "zarr 3", ["s2"])
    slides(folder / "rest", "npz", ["s3"])
    check_bags(open_bags(folder, labels(tmp_path)), ("s2", "s1", "s3"))
    slides(folder / "rest" / "deeper", "h5", ["s1"])  # is not looked for
    check_bags(open_bags(folder, labels(tmp_path)), ("s2", "s1", "s3"))


def test_a_folder_of_clam(tmp_path):
    """The same features lie in two folders; those with coordinates are read."""
    slides(tmp_path / "h5_files")
    (tmp_path / "pt_files").mkdir()
    for bag_id in LENGTHS:
        (tmp_path / "pt_files" / f"{bag_id}.pt").write_bytes(b"")
        coords = np.full((LENGTHS[bag_id], 2), int(bag_id[1:]))
        written.write_clam_h5(tmp_path / "h5_files" / f"{bag_id}.h5", features(bag_id), coords)
    bags = open_bags(tmp_path)
    check_bags(bags, ("s1", "s2", "s3"))
    np.testing.assert_array_equal(bags.read_coords(2), [[3, 3]] * 4)


def test_ids_with_the_ending_of_their_files(tmp_path):
    folder = slides(tmp_path / "slides")
    bags = open_bags(folder, labels(tmp_path, "s2.h5,0\ns1.h5,1\ns3.h5,1\n"))
    assert bags.ids == ("s2.h5", "s1.h5", "s3.h5")
    np.testing.assert_array_equal(bags[1], features("s1"))


def test_a_column_of_paths(tmp_path):
    folder = slides(tmp_path / "slides" / "a" / "b")
    slides(tmp_path / "slides", bags=["s1"])  # is no bag of the table
    lines = f"x,1,a/b/s3.h5\ny,0,{folder}/s2.h5\n"
    bags = open_bags(tmp_path / "slides", labels(tmp_path, lines, "bag,label,path"))
    assert bags.ids == ("x", "y")
    np.testing.assert_array_equal(bags[0], features("s3"))
    np.testing.assert_array_equal(bags[1], features("s2"))
    twice = labels(tmp_path, "x,1,a/b/s3.h5\ny,0,a/../a/b/s3.h5\n", "bag,label,path")
    with pytest.raises(
        UserError, match="has the file a/../a/b/s3.h5 for the bags 'x' and 'y', but each"
    ):
        open_bags(tmp_path / "slides", twice)
    absent = labels(tmp_path, "x,1,a/s3.h5\ny,0,a/b/s3.h5\n", "bag,label,path")
    with pytest.raises(UserError, match="^bag 'x': there is no file .*/slides/a/s3.h5$"):
        open_bags(tmp_path / "slides", absent)


def test_groups_splits_and_folds_of_the_table(tmp_path):
    table = pyarrow.table(
        {
            "bag": ["s3", "s1", "s2"],
            "kind": [1, 0, 1],
            "patient": ["p", "q", "p"],
            "split": ["dev", "Training", "test"],
            "fold": [2, 0, 1],
        }
    )
    bags = open_bags(slides(tmp_path), table, TableColumns(label="kind"))
    assert bags.groups == ("p", "q", "p") and bags.splits == ("validation", "train", "test")
    np.testing.assert_array_equal(bags.folds, [2, 0, 1])
    chosen = bags.select([2, 0])
    assert chosen.groups == ("p", "p") and chosen.folds.tolist() == [1, 2]


def test_a_table_that_has_been_read(tmp_path):
    bags = open_bags(slides(tmp_path), BagTable("t", ("s3", "s2", "s1"), ("b", "a", "b")))
    check_bags(bags, ("s3", "s2", "s1"))
    np.testing.assert_array_equal(bags.labels, [1, 0, 1])


@pytest.mark.parametrize(
    ("words", "positive", "classes", "encoded"),
    [
        (("a", "b", "a"), [], ("a", "b"), [0, 1, 0]),
        (("a", "b", "a"), ["a", "x"], ("b", "a"), [1, 0, 1]),
        (("a", "b", "a"), ["b"], ("a", "b"), [0, 1, 0]),
        (("pos", "neg", "pos"), [], ("neg", "pos"), [1, 0, 1]),
        (("0", "1", "0"), ["0"], (1, 0), [1, 0, 1]),
        (("a", "b", "c"), ["b"], ("a", "b", "c"), [0, 1, 2]),
    ],
)
def test_the_positive_class_is_the_last(tmp_path, words, positive, classes, encoded):
    lines = "".join(f"s{n + 1},{word}\n" for n, word in enumerate(words))
    bags = open_bags(slides(tmp_path / "slides"), labels(tmp_path, lines), positive=positive)
    assert bags.classes == classes
    np.testing.assert_array_equal(bags.labels, encoded)
    dataset = bags.load()
    assert dataset.classes == classes and dataset.positive == bags.positive
    np.testing.assert_array_equal(dataset.labels, encoded)


def refused(tmp_path, sentence, folder="slides", lines=None, **more):
    table = labels(tmp_path) if lines is None else labels(tmp_path, lines)
    with pytest.raises(UserError, match=sentence) as caught:
        open_bags(tmp_path / folder, table, **more)
    assert "\n" not in str(caught.value)


def test_folders_that_are_refused(tmp_path):
    refused(tmp_path, "there is no folder .*/slides$")
    (tmp_path / "file").write_text("")
    refused(tmp_path, "there is no folder .*/file$", "file")
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "s1.csv").write_text("")
    refused(tmp_path, "the folder .*/slides has no feature file, whose name ends in one of .h5, ")


def test_labels_without_bags_and_bags_without_labels(tmp_path):
    slides(tmp_path / "slides")
    lines = "".join(
        f"{bag_id},{n % 2}\n" for n, bag_id in enumerate(["a", "s1", "b", "s2", "c", "d", "s3"])
    )
    refused(
        tmp_path,
        "^4 of 7 bags of .*labels.csv have no feature file in .*/slides: 'a', 'b', 'c' and 1 more; files",
        lines=lines,
    )
    refused(
        tmp_path,
        "^1 of 3 feature files in .*/slides have no line in .*labels.csv: 's2'; give them one, put them",
        lines="s1,0\ns3,1\n",
    )


def test_two_files_of_a_bag(tmp_path):
    slides(tmp_path / "slides")
    slides(tmp_path / "slides" / "more", "npy", ["s3"])
    pattern = (
        "the bag 's3' has 2 feature files, .*/more/s3.npy, .*/slides/s3.h5, but must have one; take"
    )
    refused(tmp_path, pattern)
    with pytest.raises(UserError, match=pattern):
        open_bags(tmp_path / "slides")


def test_files_that_are_refused(tmp_path):
    folder = slides(tmp_path / "slides")
    with h5py.File(folder / "s3.h5", "w") as file:
        file["other"], file["else"] = np.ones(3), np.ones(3)
    refused(
        tmp_path,
        "^bag 's3': .*/slides/s3.h5 has the arrays 'else', 'other', but must have one called",
    )
    written.write_h5(folder / "s3.h5", features("s3"), np.ones((3, 2)))
    refused(
        tmp_path, r"^bag 's3': .*/s3.h5 has 'coords' of the shape \(3, 2\), but must have \(4, 2\)"
    )
    written.write_h5(folder / "s3.h5", np.ones((0, 2)))
    refused(tmp_path, "^bag 's3' in .*/s3.h5 has no instance$")
    written.write_h5(folder / "s3.h5", features("s3", 3))
    refused(
        tmp_path,
        r"the instances of bag 's3' in .*s3.h5 have the shape \(3,\), but must have \(2,\) as those of bag "
        "'s2' in .*s2.h5$",
    )
    (folder / "s3.h5").write_bytes(b"")
    refused(tmp_path, "^bag 's3': .*/s3.h5 cannot be read: it is damaged")


def test_labels_that_are_refused(tmp_path):
    slides(tmp_path / "slides")
    refused(
        tmp_path,
        "all bags of .*labels.csv have the label 'a', but there",
        lines="s1,a\ns2,a\ns3,a\n",
    )
    refused(tmp_path, "positive names 'x', of which none is a class of slides", positive=["x"])
    refused(tmp_path, "1 of 3 bags of .* have no label", lines="s1,a\ns2,\ns3,b\n")


def test_a_table_without_labels(tmp_path):
    slides(tmp_path / "slides")
    table = labels(tmp_path, "s1,p\ns2,q\ns3,p\n", "bag,patient")
    with pytest.raises(UserError, match="has no column 'bag_label' or 'label' of the labels"):
        open_bags(tmp_path / "slides", table)
    bags = open_bags(tmp_path / "slides", table, labelled=False)
    assert bags.labels is None and bags.groups == ("p", "q", "p")


def test_features_have_the_same_names_in_all_files(tmp_path):
    folder = slides(tmp_path / "slides", "parquet")
    assert open_bags(folder).features == ("f0", "f1")
    table = pyarrow.table({"f1": [1.0], "f0": [2.0]})
    pyarrow.parquet.write_table(table, folder / "s3.parquet")
    with pytest.raises(
        UserError,
        match="bag 's3' in .* has the features 'f1', 'f0', but bag 's1' in .* has 'f0', 'f1'; all",
    ):
        open_bags(folder)
    written.write_npy(folder / "s3.npy", features("s3"))
    (folder / "s3.parquet").unlink()
    assert open_bags(folder).features is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("form", ["h5", "npy"])
def test_values_that_are_not_finite(tmp_path, monkeypatch, value, form):
    monkeypatch.setattr(bag_folder, "_BLOCK", 4)  # two instances at a time
    folder = slides(tmp_path / "slides", form)
    wrong = features("s3", dtype=np.float64)
    wrong[2, 1] = value
    path = folder / f"s3{written.WRITERS[form][0]}"
    written.WRITERS[form][1](path, wrong)
    sentence = f"^bag 's3' in {path} has the value {value:g} in feature 1 of instance 2 .counted from 0., but"
    sentence = sentence.replace("+", r"\+")
    bags = open_bags(folder, labels(tmp_path))
    np.testing.assert_array_equal(bags[0], features("s2"))
    for read in (lambda: bags[2], lambda: bags.read(2, 1), bags.load):
        with pytest.raises(UserError, match=sentence):
            read()
    np.testing.assert_array_equal(bags.read(2, 0, 2), wrong[:2])
    with pytest.raises(UserError, match=sentence):
        open_bags(folder, labels(tmp_path), check_values=True)


def test_values_that_are_finite_are_checked_too(tmp_path):
    check_bags(open_bags(slides(tmp_path), check_values=True), ("s1", "s2", "s3"))


def test_half_precision_is_checked():
    values = np.array([[1, 2], [np.inf, 4]])
    for dtype in (np.float16, written.BFLOAT16):
        check_finite("a", "memory", values[:1].astype(dtype))
        with pytest.raises(
            UserError, match="bag 'a' in memory has the value inf in feature 0 of instance 8"
        ):
            check_finite("a", "memory", values.astype(dtype), 7)
    with pytest.raises(UserError, match="the value nan in feature 1, 0 of instance 0"):
        check_finite("a", "memory", np.array([[[1.0], [np.nan]]]))


def test_types_of_half_precision_are_loaded_together(tmp_path):
    for bag_id, dtype in {"s1": np.float16, "s2": written.BFLOAT16, "s3": np.float32}.items():
        written.write_safetensors(tmp_path / f"{bag_id}.safetensors", features(bag_id, 1, dtype))
    table = BagTable("t", ("s1", "s2", "s3"), (0, 1, 0))
    dataset = open_bags(tmp_path, table).load()
    assert dataset.instances.dtype == np.float32
    wanted = [100, 101, 102, 200, 300, 301, 302, 303]  # bfloat16 has 200 exactly
    np.testing.assert_array_equal(dataset.instances[:, 0], wanted)


def test_bags_of_arrays_are_checked_when_they_are_read():
    bags = Bags.from_arrays([np.ones((2, 2)), np.full((1, 2), np.nan)], [0, 1])
    assert bags[0].shape == (2, 2)
    with pytest.raises(
        UserError, match="bag '1' in memory has the value nan in feature 0 of instance 0"
    ):
        bags[1]


def _open_text(path):
    return ArrayReader(np.loadtxt(path, ndmin=2), place=path)


def test_a_format_of_ones_own(tmp_path):
    for bag_id in LENGTHS:
        np.savetxt(tmp_path / f"{bag_id}.txt", features(bag_id))
    formats = {**FORMATS, "text": FeatureFormat((".txt",), _open_text)}
    check_bags(open_bags(tmp_path, formats=formats), ("s1", "s2", "s3"))


def test_the_log_says_which_columns_were_taken(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    open_bags(slides(tmp_path / "slides"), labels(tmp_path))
    assert "labels.csv: 3 bags; bag in 'slide_id', label in 'label'" in caplog.text


def test_a_job_of_trident_is_answered_with_its_features(tmp_path):
    inside = tmp_path / "20x_512px_0px_overlap"
    for name in ("features_uni_v2", "features_conch", "patches"):
        slides(inside / name)
    with pytest.raises(UserError) as caught:
        open_bags(tmp_path)
    sentence = str(caught.value)
    assert sentence.endswith(
        f"name one of its folders that has some: {inside}/features_conch, {inside}/features_uni_v2"
    )
    shutil.rmtree(inside)
    with pytest.raises(UserError, match=r"whose name ends in one of [^;]*$"):
        open_bags(tmp_path)


def test_labels_that_differ_in_capitals_are_warned_of(tmp_path, caplog):
    folder = slides(tmp_path / "slides")
    ids = open_bags(folder).ids
    table = BagTable("labels.csv", ids, ("Tumor", *["tumor"] * (len(ids) - 1)))
    assert open_bags(folder, table).classes == ("Tumor", "tumor")
    assert "labels.csv has the classes 'Tumor' and 'tumor', which differ in cap" in caplog.text
