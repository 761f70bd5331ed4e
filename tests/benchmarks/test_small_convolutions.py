"""The benchmark of small convolutions."""

import json

import pytest

from benchmarks import small_convolutions


@pytest.mark.slow
def test_both_ways_agree_and_are_timed(tmp_path, capsys):
    path = tmp_path / "x" / "small.json"
    record = small_convolutions.run(str(path), bags=2, length=2, repeats=2)
    assert json.loads(path.read_text()) == record
    assert 0 <= record["difference"] < 1e-4
    ours, theirs = (record["ms_per_bag"][way] for way in small_convolutions.WAYS)
    assert len(ours["all"]) == 2 and 0 < ours["min"] <= ours["median"]
    assert record["speedup"] == pytest.approx(theirs["median"] / ours["median"])
    assert "ms a bag" in capsys.readouterr().out
