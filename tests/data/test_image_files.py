"""Layouts of users' image files, and tables of them."""

import logging
import os
import pathlib

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from lossattn_jax.data import file_source, image_files, own_images
from lossattn_jax.errors import UserError

NAMES = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")
CASES = ("Tumor", "normal", "tumor")
CORNERS = ("ymin", "xmin", "ymax", "xmax")


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def classes(files):
    return [name for (name,) in files.labels]


def table(root, text, names=NAMES):
    touch(root, *names)
    (root / "images.csv").write_text(text)
    return root


def test_files_in_splits_are_in_order_of_class_and_path(tmp_path):
    touch(
        tmp_path,
        *("train/dog/b.jpg", "train/dog/a.PNG", "train/cat/more/x.jpeg", "test/cat/1.jpg"),
        *("test/dog/2.webp", "train/cat/z.jpg"),
    )
    files = image_files.find(tmp_path)
    assert files.names == (
        *("train/cat/more/x.jpeg", "train/cat/z.jpg", "train/dog/a.PNG", "train/dog/b.jpg"),
        *("test/cat/1.jpg", "test/dog/2.webp"),
    )
    assert classes(files) == ["cat", "cat", "dog", "dog", "cat", "dog"]
    assert files.splits == ("train",) * 4 + ("test",) * 2
    assert files.class_names() == ("cat", "dog")


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    touch(tmp_path, "10/a.jpg", "2/a.jpg", "-1/a.jpg")
    assert image_files.find(tmp_path).class_names() == ("-1", "2", "10")
    touch(tmp_path, "x/a.jpg")
    assert image_files.find(tmp_path).class_names() == ("-1", "10", "2", "x")


@pytest.mark.parametrize("name", ["val", "validation", "valid", "TEST"])
def test_other_names_of_the_test_split(tmp_path, name):
    touch(tmp_path, "Training/a/1.jpg", "Training/b/1.jpg", f"{name}/a/2.jpg", f"{name}/b/2.jpg")
    assert image_files.find(tmp_path).of_split("test").names == (
        f"{name}/a/2.jpg",
        f"{name}/b/2.jpg",
    )


def test_validation_is_not_used_beside_a_test_folder(tmp_path, caplog):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "test/a/3.jpg", "test/b/3.jpg")
    with caplog.at_level(logging.INFO):
        files = image_files.find(tmp_path)
    assert files.of_split("test").names == ("test/a/3.jpg", "test/b/3.jpg")
    assert f"not used, since there is a test folder: {tmp_path / 'val'}" in caplog.text


def test_hidden_files_are_no_images_and_links_are_followed(tmp_path):
    touch(tmp_path, "elsewhere/1.jpg", "d/a/1.jpg", "d/a/._1.jpg", "d/a/.thumbs/1.jpg")
    touch(tmp_path, "d/.lossattn/x.npz", "d/a/notes.txt")
    os.symlink(tmp_path / "elsewhere", tmp_path / "d/b")
    os.symlink(tmp_path / "elsewhere/1.jpg", tmp_path / "d/a/2.jpg")
    os.symlink(tmp_path / "d", tmp_path / "d/a/around")
    assert image_files.find(tmp_path / "d").names == ("a/1.jpg", "a/2.jpg", "b/1.jpg")


def test_tests_alone_are_found_for_a_trained_network(tmp_path):
    touch(tmp_path, "test/a/1.jpg", "test/b/1.jpg")
    assert image_files.find(tmp_path).splits == ("test", "test")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "has no folder of a class, but must have one for each"),
        (["1.jpg"], "has no folder of a class"),
        (
            ["a/1.jpg", "b/notes.txt"],
            "the folder .*b of a class has no image .*add some, or remove it",
        ),
        (
            ["train/a/1.jpg"],
            "has the folder 'train' but none of test, validation; add one, or give .*train",
        ),
        (["train/a/1.jpg", "training/a/1.jpg", "test/a/1.jpg"], "one for train"),
        (["a/1.jpg", "b;c/1.jpg"], "the folder .*b;c of a class has ';' in its name, .*rename it"),
    ],
)
def test_other_layouts_are_refused(tmp_path, names, sentence):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=sentence) as caught:
        image_files.find(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_absent_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere is not there; config.data.dir, or --data_dir"):
        image_files.find(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["train/a/1.jpg", "test/a/2.jpg"], "has the one class 'a', but must have two"),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg", "test/c/2.jpg"],
            "class 'c' is in the test split of .* and not in its training split",
        ),
    ],
)
def test_classes_that_cannot_be_learned_are_refused(tmp_path, names, sentence):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=sentence):
        image_files.check_classes(image_files.find(tmp_path))


def test_a_class_without_tests_is_warned_of(tmp_path, caplog):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg")
    image_files.check_classes(image_files.find(tmp_path))
    assert "class 'b' is in the training split of" in caplog.text


def test_the_rows_of_a_table(tmp_path):
    text = "Path;Label;Split;patient;ymin;xmin;ymax;xmax\nb.jpg;2.0;val;p;1;2;3;4.5\n"
    text += "a.jpg;10.0;train;q;;;;\nc.jpg;2.0;train;q;0;0;1;1\n"
    files = image_files.find(table(tmp_path, text))
    assert files.names == ("b.jpg", "a.jpg", "c.jpg")
    assert classes(files) == ["2", "10", "2"] and files.class_names() == ("2", "10")
    assert files.splits == ("test", "train", "train") and files.groups == ("p", "q", "q")
    assert files.boxes == ((1.0, 2.0, 3.0, 4.5), None, (0.0, 0.0, 1.0, 1.0))


def test_a_parquet_table_is_read_as_its_text(tmp_path):
    touch(tmp_path, *NAMES)
    columns = {
        "path": ["b.jpg", "a.jpg"],
        "Label": [2, 10],  # numbers, as a data frame has them
        "split": ["val", "train"],
        **{name: [value, None] for name, value in zip(CORNERS, (1.0, 2.0, 3.0, 4.5), strict=True)},
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "images.parquet")
    files = image_files.find(tmp_path)
    assert files.names == ("b.jpg", "a.jpg") and classes(files) == ["2", "10"]
    assert files.splits == ("test", "train") and files.boxes == ((1.0, 2.0, 3.0, 4.5), None)
    columns["split"] = ["val", "dunno"]
    parquet.write_table(pyarrow.table(columns), tmp_path / "images.parquet")
    with pytest.raises(UserError, match="row 2 of .*images.parquet has the split 'dunno'"):
        image_files.find(tmp_path)
    (tmp_path / "images.csv").write_text("path,label\na.jpg,x\n")
    with pytest.raises(UserError, match="has the tables images.csv and images.parquet; say which"):
        image_files.find(tmp_path)
    assert classes(image_files.find(tmp_path, "images.csv")) == ["x"]


def test_several_labels_of_an_image_are_a_multi_hot_row(tmp_path):
    text = "path,label,split\na.jpg,dog; cat,train\nb.jpg,;,train\nc.jpg,cat,test\nd.jpg,10,train\n"
    files = image_files.find(table(tmp_path, text))
    assert files.labels == (("dog", "cat"), (), ("cat",), ("10",)) and files.has_several
    assert files.class_names() == ("10", "cat", "dog")
    encoded = files.of_split("train").encode(files.class_names(), several=True)
    assert encoded.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]] and encoded.dtype == np.uint8


def test_a_share_of_each_of_several_labels_is_drawn(tmp_path):
    names = [f"{number}.jpg" for number in range(40)]
    rows = [
        f"{name},{'a;' if n % 2 else ''}{'b' if n % 4 < 2 else ';'}" for n, name in enumerate(names)
    ]
    files = image_files.find(table(tmp_path, "\n".join(["path,label", *rows]), names))
    tested = image_files.divide(files, 0.2, seed=3).of_split("test")
    assert len(tested) == 8  # a fifth of the images, and of the 20 with each label
    assert tested.encode(("a", "b"), several=True).sum(axis=0).tolist() == [4, 4]


def test_a_box_of_several_labels_is_refused(tmp_path):
    text = "path,label,ymin,xmin,ymax,xmax\na.jpg,x;y,0,0,1,1\n"
    with pytest.raises(UserError, match="a box is around what one label names; take the columns"):
        image_files.find(table(tmp_path, text))


def test_images_that_all_have_no_label_are_refused(tmp_path):
    files = image_files.find(table(tmp_path, "path,label\na.jpg,;\nb.jpg,;\n"))
    with pytest.raises(UserError, match="has no class, but must have two at least"):
        image_files.check_classes(image_files.divide(files, 0.5, 0))


def test_rows_for_validation_are_not_used_beside_tests(tmp_path):
    text = "path,label,split\na.jpg,x,train\nb.jpg,y,val\nc.jpg,x,test\n"
    assert image_files.find(table(tmp_path, text)).names == ("a.jpg", "c.jpg")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,label\n", "has no image, but must have one in each line"),
        ("name,label\na.jpg,x\n", "has no column 'path' or 'file' .*, but 'name', 'label'"),
        ("path,kind\na.jpg,x\n", "has no column 'label' or 'class'"),
        ("path,label\na.jpg,x\nb.jpg,\n", "1 of 2 images of .* have no label, the first in line 3"),
        ("path,label\na.jpg,x\na.jpg,y\n", "has the image 'a.jpg' twice, in line 2 and in line 3"),
        (
            "path,label\na.jpg,x\ne.jpg,y\n",
            "1 of 2 images of .* do not exist in .*: e.jpg; correct",
        ),
        (
            "path,label,split\na.jpg,x,dunno\n",
            "line 2 of .* has the split 'dunno', but allowed are",
        ),
        ("path,label,ymin\na.jpg,x,1\n", "must have all of ymin, xmin, ymax, xmax"),
        ("path,label,ymin,xmin,ymax,xmax\na.jpg,x,1,2,1,3\n", "has the box 1, 2, 1, 3, but must"),
        (
            "path,label,ymin,xmin,ymax,xmax\na.jpg,x,1,2,nix,3\n",
            "has the box 1, 2, nix, 3, but must",
        ),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        image_files.find(table(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_share_of_each_class_is_drawn(tmp_path):
    touch(
        tmp_path,
        *(f"{name}/{n}.jpg" for name, count in (("a", 10), ("b", 5)) for n in range(count)),
    )
    files = image_files.find(tmp_path)
    drawn = image_files.divide(files, 0.2, seed=3)
    tested = drawn.of_split("test")
    assert classes(tested) == ["a", "a", "b"] and len(drawn.of_split("train")) == 12
    assert image_files.divide(files, 0.2, seed=3) == drawn != image_files.divide(files, 0.2, seed=4)


def test_groups_are_not_divided(tmp_path):
    names = [f"{number}.jpg" for number in range(40)]
    rows = [f"{name},{'ab'[n % 2]},p{n // 4}" for n, name in enumerate(names)]
    files = image_files.find(table(tmp_path, "\n".join(["path,label,group", *rows]), names))
    drawn = image_files.divide(files, 0.2, seed=0)
    test, train = (set(drawn.of_split(split).groups) for split in ("test", "train"))
    assert len(test) == 2 and len(train) == 8 and not test & train
    assert set(classes(drawn.of_split("test"))) == {"a", "b"}


def test_splits_that_divide_a_group_are_refused(tmp_path):
    text = "path,label,split,group\na.jpg,x,train,p\nb.jpg,y,train,q\nc.jpg,x,test,q\n"
    with pytest.raises(UserError, match="the group 'q' has images to train on and images to test"):
        image_files.divide(image_files.find(table(tmp_path, text)), 0.2, 0)


def test_a_class_of_one_image_cannot_be_divided(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    with pytest.raises(UserError, match="the class 'b' has one image in"):
        image_files.divide(image_files.find(tmp_path), 0.2, 0)


def test_files_are_taken_with_all_that_is_known_of_them(tmp_path):
    text = "path,label,ymin,xmin,ymax,xmax\na.jpg,x,0,0,1,1\nb.jpg,y,,,,\nc.jpg,x,0,0,2,2\n"
    files = image_files.find(table(tmp_path, text)).take(np.array([2, 1]))
    assert files.names == ("c.jpg", "b.jpg") and classes(files) == ["x", "y"]
    assert files.boxes == ((0.0, 0.0, 2.0, 2.0), None) and files.groups is None


def test_classes_that_differ_in_capitals_are_warned_of(tmp_path, caplog):
    touch(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "test") for name in CASES))
    image_files.check_classes(image_files.find(tmp_path))
    assert "has the classes 'Tumor' and 'tumor', which differ in capitals alone" in caplog.text
    assert caplog.text.count("capitals") == 1


@pytest.mark.parametrize("name", ["images.xlsx", "images.ODS"])
def test_a_spreadsheet_is_refused(tmp_path, name):
    touch(tmp_path, name)
    with pytest.raises(UserError, match=f"{name} is a spreadsheet, which is not read; save it as"):
        image_files.find(tmp_path, name)


def test_an_address_is_shown_unbroken(tmp_path, monkeypatch):
    address = "https://example.org/a/pictures"
    sentence = f"is {address}, but must be on this machine: download it"
    for path in (address, pathlib.Path(address)):
        with pytest.raises(UserError, match=f"the image {sentence}"):
            own_images.find([path])
    with pytest.raises(UserError, match=f"the folder of images {sentence}"):
        file_source.folder_of(address)
    touch(tmp_path, "ab:/c.png")  # a folder of that name
    monkeypatch.chdir(tmp_path)
    assert own_images.find(["ab:/c.png"]) == [pathlib.Path("ab:/c.png")]
