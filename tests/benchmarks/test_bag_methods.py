"""The comparison of methods for bags: processes, rows, a table, resuming."""

import json

import pytest

from benchmarks import bag_methods
from lossattn_jax.data.bags import bag_files
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.errors import UserError
from tests.support.tiny_bags import toy

ROW = {
    "code": 0,
    "seconds": 61.2,
    "cpu_seconds": 100.7,
    "peak_bytes": 3 << 29,
    "metrics": {
        "auroc": {"value": 0.91, "interval": [0.8, 0.95], "per_repeat": [0.91]},
        "accuracy": {"value": 0.85, "interval": None, "per_repeat": [0.85]},
    },
    "instances": {"bag_auc": {"mean": 0.7}, "pointing": {"mean": 0.5}},
}


def test_a_process_is_measured():
    code = "import sys; x = bytes(200 << 20); print('a\\nwhy', file=sys.stderr); sys.exit(2)"
    process = bag_methods.measure(("-c", code), 60)
    assert (process.code, process.last_line) == (2, "why")
    assert process.peak_bytes > 200 << 20
    assert 0 < process.cpu_seconds and 0 < process.seconds < 60


def test_a_process_that_takes_too_long_is_ended(tmp_path):
    process = bag_methods.measure(("-c", "while True: pass"), 0.3)
    row = bag_methods.describe(process, tmp_path, 0.005)
    assert row["reason"] == "not done in 0.005 minutes" and 0.3 <= row["seconds"] < 5


def test_rows_of_a_table():
    text = bag_methods.markdown({"clam": ROW, "mi_svm": ROW | {"reason": "too large | no"}})
    assert text.splitlines()[2:] == [
        "| CLAM-SB | 0.910 (0.800 to 0.950) | 0.850 | 0.700 | 0.500 | 61 s | 101 s | 1.50 GiB |",
        "| mi-SVM | too large / no | - | - | - | 61 s | 101 s | 1.50 GiB |",
    ]


def test_an_unknown_method_is_refused_first(tmp_path):
    with pytest.raises(UserError, match="clamp"):
        bag_methods.run("x", ["clamp"], str(tmp_path / "w"), str(tmp_path / "o.json"))


@pytest.mark.slow
def test_methods_are_measured_and_not_again(tmp_path, capsys):
    bag_files.write_csv(BagDataset.from_bags(*toy()), tmp_path / "own.csv")
    arguments = (str(tmp_path / "own.csv"), ["mi_kernel"], str(tmp_path / "w"))
    out = tmp_path / "o.json"
    record = bag_methods.run(*arguments, str(out), repeats=1, table=str(tmp_path / "t.md"))
    assert record["methods"]["mi_kernel"]["code"] == 0
    assert record["methods"]["mi_kernel"]["metrics"]["auroc"]["value"] > 0.5
    assert (tmp_path / "t.md").read_text() == capsys.readouterr().out
    before = out.read_text()
    assert bag_methods.run(*arguments, str(out), repeats=1) == json.loads(before)
    assert out.read_text() == before
