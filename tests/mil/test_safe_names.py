"""Names of data sets, bags and classes that a file system, Markdown or a spreadsheet would take otherwise."""

import csv
import os

import numpy as np
import pytest

from lossattn_jax.errors import UserError
from lossattn_jax.mil import paper_table, report
from lossattn_jax.mil.workdir import Workdir
from lossattn_jax.train import dumps
from tests.support import damages

# Of a file of bags without `.csv`, with the folder and how tables show it.
NAMES = {
    "..": ("__-5ec1f7e7", ".."),
    "config.json": ("config.json-587cb980", "config.json"),
    "table.md": ("table.md-2ab70e25", "table.md"),
    "workdir.lock": ("workdir.lock-15b72a19", "workdir.lock"),
    "x|y": ("x_y-791a886d", r"x\|y"),
    "<img src=x onerror=alert(1)>": (
        "_img src=x onerror=alert(1)_-63b586b4",
        "&lt;img src=x onerror=alert(1)&gt;",
    ),
    "a\nb": ("a_b-7e18f737", "a b"),
    "\x1b[31m": ("_[31m-83a73878", r"\\x1b\[31m"),
    "\udcff": ("_-8f1d0f9c", r"\\udcff"),
    "n" * 200: ("n" * 150 + "-", "n" * 200),
    "own.v2": ("own.v2", "own.v2"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_of_any_name_stays_in_workdir_and_row(tmp_path, name):
    path, workdir = damages.write_bags(tmp_path / "data" / f"{name}.csv"), tmp_path / "run"
    first = damages.run([path], workdir, ["mi_kernel"])
    assert damages.run([path], workdir, ["mi_kernel"]) == first and first[0].dataset == name
    assert sorted(os.listdir(tmp_path)) == ["data", "run"]
    own = {entry.name for entry in os.scandir(workdir) if entry.is_file()}
    assert own == {"config.json", "table.md", "workdir.lock"}
    (folder,) = (entry.name for entry in os.scandir(workdir) if entry.is_dir())
    beginning, shown = NAMES[name]
    assert folder.startswith(beginning) and len(folder) <= max(len(beginning), 159)
    rows = [line for line in report.table(first).splitlines() if "MI-Kernel" in line]
    assert len(rows) == 2 and all(row.startswith(f"| {shown} | MI-Kernel | ") for row in rows)
    assert f"Positive class: 1 of {shown}.\n" in (workdir / "table.md").read_text()
    entries = paper_table.collect([str(workdir)])
    assert entries == first
    assert "<img" not in paper_table.markdown(entries).lower()


def test_a_file_named_like_its_ending_has_a_row_of_its_name(tmp_path):
    path = damages.write_bags(tmp_path / "data" / ".csv")
    results = damages.run([path], tmp_path / "run", ["mi_kernel"])
    assert "| .csv | MI-Kernel | " in report.table(results)


def test_names_in_the_layout_of_the_paper_are_escaped(tmp_path):
    path = damages.write_bags(tmp_path / "data" / "x|y<b>.csv")
    damages.run([path], tmp_path / "run", ["mi_kernel"])
    text = paper_table.markdown(paper_table.collect([str(tmp_path / "run")]))
    assert r"| method | X\|Y&lt;B&gt; |" in text


def test_a_spreadsheet_runs_no_id_and_no_class(tmp_path):
    ids = ["=cmd|' /C calc'!A0", "@sum", "-1", "+2.5e3", "-x", *"abcdefg"]
    path = damages.write_bags(tmp_path / "own.csv", words=("=H(1)", "+p"), id_of=ids.__getitem__)
    damages.run([path], tmp_path / "run", ["mi_kernel"])
    weights = tmp_path / "run/own/mi_kernel/final/instance_weights.csv"
    with weights.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["bag_id"] for row in rows} == {
        f"'{ids[0]}",
        "'@sum",
        "-1",
        "+2.5e3",
        "'-x",
        *ids[5:],
    }
    assert {row["bag_label"] for row in rows} == {"'=H(1)", "'+p"}
    assert {row["prediction"] for row in rows} <= {"'=H(1)", "'+p"}
    assert any(float(row["weight"]) < 0 for row in rows)  # a number, and left as one


@pytest.mark.parametrize("place", ["own", "own/mi_kernel", "own/mi_kernel/final"])
@pytest.mark.parametrize("what", ["symbolic link", "file"])
def test_folders_of_results_lead_nowhere_else(tmp_path, place, what):
    path, workdir = damages.write_bags(tmp_path / "own.csv"), tmp_path / "run"
    (tmp_path / "elsewhere").mkdir()
    planted = workdir / place
    planted.parent.mkdir(parents=True)
    if what == "file":
        planted.write_text("mine")
    else:
        planted.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{place} is a {what}, but must be a folder for results"):
        damages.run([path], workdir, ["mi_kernel"])
    assert os.listdir(tmp_path / "elsewhere") == []


def test_planted_links_are_replaced_and_the_workdir_may_be_one(tmp_path):
    path, folder = damages.write_bags(tmp_path / "own.csv"), tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "run").symlink_to(folder)
    for name in ("config.json", "table.md"):
        (folder / name).symlink_to(tmp_path / "elsewhere")
    damages.run([path], tmp_path / "run", ["mi_kernel"])
    assert not (tmp_path / "elsewhere").exists()
    assert (folder / "table.md").read_text().count("MI-Kernel") == 2


def test_a_workdir_makes_folders_only_in_itself(tmp_path):
    with Workdir(tmp_path / "run") as workdir:
        assert workdir.make() and not workdir.make()
        folder = workdir.make_folder(workdir.folder_of(".."), "mi_svm", "final")
        assert folder == tmp_path / "run" / "__-5ec1f7e7" / "mi_svm" / "final" and folder.is_dir()


@pytest.mark.parametrize("place", ["nonfinite", "nonfinite/model_0"])
def test_a_dump_is_not_written_through_a_link(tmp_path, place):
    (tmp_path / "elsewhere").mkdir()
    planted = tmp_path / place
    planted.parent.mkdir(exist_ok=True)
    planted.symlink_to(tmp_path / "elsewhere")
    trees = {"state": {"params": np.zeros(1)}, "batch": {"x": np.zeros((1, 3, 2), np.float32)}}
    with pytest.raises(
        UserError, match="cannot be written: it is a symbolic link, which is not followed"
    ):
        dumps.write(tmp_path / "nonfinite" / "model_0", "bags", {}, trees, "")
    assert os.listdir(tmp_path / "elsewhere") == []
