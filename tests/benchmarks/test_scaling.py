"""The estimate of many devices, by hand and from a measurement."""

import json

import pytest

from benchmarks import scaling, throughput
from lossattn_jax.errors import UserError

NETWORK = scaling.Network(seconds=0.1, batch=32, gradient_bytes=100_000_000, normalisations=20)
LINK = scaling.Link(bandwidth=10e9, latency=1e-5)
ROW = {
    "backbone": "small",
    "head": "conv",
    "pooling": "loss_attention",
    "width": 0.05,
    "dtype": "float32",
    "batch_size": 2,
    "seconds_per_step": {"median": 0.5},
}


def written(path, **changes):
    record = {"command": "c", "machine": {}, "device": "d", "devices": 1, "memory_limit": None}
    path.write_text(json.dumps({**record, "rows": [ROW], **changes}))
    return str(path)


def test_a_step_by_hand():
    step = scaling.estimate(NETWORK, LINK, 4)
    # 2 * 3 / 4 * 100 MB at 10 GB/s, and 2 * 3 messages.
    assert step["gradients"] == pytest.approx(0.015 + 6e-5)
    # 20 layers, 2 passes, 2 levels up and 2 down.
    assert step["statistics"] == pytest.approx(20 * 2 * 4 * 1e-5)
    assert step["seconds"] == pytest.approx(0.1 + 0.01506 + 0.0016)
    assert step["images_per_second"] == pytest.approx(4 * 32 / 0.11666)
    assert step["efficiency"] == pytest.approx(0.1 / 0.11666)
    alone = scaling.estimate(NETWORK, LINK, 1)
    assert alone["seconds"] == 0.1 and alone["efficiency"] == 1 and alone["gradients"] == 0


def test_the_most_useful_number_of_devices():
    most = scaling.most_useful(NETWORK, LINK)
    assert scaling.estimate(NETWORK, LINK, most)["efficiency"] >= 0.8
    assert scaling.estimate(NETWORK, LINK, most + 1)["efficiency"] < 0.8
    # 20 ms of gradients at most, without latency: 0.1 / 0.12 is above 0.8 for ever.
    assert scaling.most_useful(NETWORK, scaling.Link(10e9, 0.0)) is None
    assert scaling.most_useful(NETWORK, scaling.Link(1e6, 0.0)) == 1


def test_the_largest_batch():
    # 100 bytes without an image, 10 for each.
    assert scaling.largest_batch([(4, 140), (8, 180)], limit=1005) == 90
    assert scaling.largest_batch([(4, 140), (8, 180)], limit=99) == 0


def test_the_papers_network():
    row = {**ROW, "backbone": "resnet18", "width": 1.0, "dtype": "bfloat16"}
    network = scaling.describe(row)
    assert network.gradient_bytes == pytest.approx(4 * 32.67e6, rel=1e-3)
    # 17 convolutions of the residual network, 3 shortcuts and the patch convolution.
    assert network.normalisations == 21
    assert (network.seconds, network.batch) == (0.5, 2)


@pytest.mark.slow
def test_memory_grows_with_the_batch():
    (few, low), (many, high) = scaling.memory_points(throughput.row_config(ROW))
    assert (few, many) == (1, 2) and 0 < low < high


def test_a_measured_step_is_read_and_scaled(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "memory_points", lambda config: [(1, 110), (2, 120)])
    out = tmp_path / "scaling.json"
    steps = written(tmp_path / "steps.json")
    record = scaling.run(steps, LINK, counts=(1, 8), out=str(out), memory=1000)
    assert json.loads(json.dumps(record)) == json.loads(out.read_text())
    (row,) = record["rows"]
    assert [each["devices"] for each in row["estimates"]] == [1, 8]
    assert row["estimates"][0]["images_per_second"] == pytest.approx(2 / 0.5)
    assert row["memory"]["largest_batch"] == 90
    useful = row["useful"]
    assert useful["global_batch"] == 2 * useful["devices"]
    assert "link of 10 GB/s and 10 us" in capsys.readouterr().out


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        scaling.run(str(tmp_path / "none.json"), LINK)
    several = written(tmp_path / "several.json", devices=4)
    with pytest.raises(UserError, match="measured on 4 devices, but must be of one"):
        scaling.run(several, LINK)
    empty = written(tmp_path / "empty.json", rows=[])
    with pytest.raises(UserError, match="must be a file of python -m benchmarks.throughput"):
        scaling.run(empty, LINK)
