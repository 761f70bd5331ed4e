"""The benchmark of the input pipeline."""

import itertools
import json

import pytest

from benchmarks import input_rate
from lossattn_jax.errors import UserError


def test_only_batches_after_the_first_ones_are_counted(monkeypatch):
    numbers = []
    batches = (numbers.append(number) for number in itertools.count())
    clock = itertools.count(step=2.0)  # seconds between its two readings
    monkeypatch.setattr(input_rate.time, "perf_counter", lambda: next(clock))
    rate = input_rate.host_rate(batches, batch_size=10, images=401)
    assert rate == 41 * 10 / 2.0
    assert len(numbers) == 8 + 41


def test_all_ways_are_measured_and_written(scenes_dir, tmp_path, capsys):
    path = tmp_path / "x" / "input.json"
    record = input_rate.run(
        str(path),
        batch_sizes=(8,),
        images=64,
        repeats=2,
        examples=100,
        data_dir=str(scenes_dir),
        stream_images=8,
    )
    assert json.loads(path.read_text()) == record
    assert [row["way"] for row in record["rows"]] == ["host", "devices", "indices", "stream"]
    for row in record["rows"]:
        rates = row["images_per_second"]
        assert len(rates["all"]) == 2 and 0 < rates["min"] <= rates["median"] <= rates["max"]
    assert record["copy_bound"] == pytest.approx(
        record["copy_gbytes_per_second"] * 1e9 / (2 * 32 * 32 * 3)
    )
    assert "target is 200,000 images/s" in capsys.readouterr().out


def test_a_data_set_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match="digit_scenes is not prepared"):
        input_rate.run(str(tmp_path / "input.json"), data_dir=str(tmp_path))
