"""The judgement of long runs on samples, and a short run."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from lossattn_jax.errors import UserError
from lossattn_jax.train.images.tensorboard import TensorBoard
from reliability import event_files, long_run, process_watch, run_growth, trend


def noise(epochs, seed):
    return np.random.default_rng(seed).normal(0, 5, len(epochs))


def test_a_slope_that_is_there_is_found():
    epochs = np.linspace(100, 3000, 500)
    slope = trend.fit(epochs, 400 + 0.02 * epochs + noise(epochs, 0))
    assert slope.verdict == "grows"
    assert slope.low < 0.02 < slope.high
    assert trend.fit(epochs, 400 - 0.02 * epochs + noise(epochs, 0)).verdict == "shrinks"


def test_flat_noise_is_no_slope():
    epochs = np.linspace(100, 3000, 500)
    verdicts = [trend.fit(epochs, 400 + noise(epochs, seed)).verdict for seed in range(40)]
    assert verdicts.count("within noise") >= 36
    steady = trend.fit(epochs, np.full(500, 10.0))
    assert (steady.slope, steady.verdict) == (0, "within noise")


def test_a_step_made_once_is_no_slope_and_many_are_one():
    epochs = np.linspace(0, 1000, 400)
    assert trend.fit(epochs, 400.0 + 20 * (epochs > 430)).verdict == "within noise"
    assert trend.fit(epochs, 400.0 + 20 * (epochs // 90)).verdict == "grows"


def test_bursts_do_not_hide_a_slope():
    epochs = np.linspace(0, 1000, 400)
    bursts = 200.0 * (np.random.default_rng(0).random(400) < 0.3)
    slope = trend.fit(epochs, 0.01 * epochs + bursts)
    assert slope.verdict == "grows"
    assert slope.slope == pytest.approx(0.01, rel=0.1)


def test_too_few_samples_have_no_slope():
    assert trend.fit([], []) is None
    assert trend.fit([5, 5, 5], [1, 2, 3]) is None
    assert trend.fit(range(29), range(29)) is None
    assert trend.fit(range(30), range(30)).slope == pytest.approx(1, rel=0.05)


def sample(epoch, **values):
    return {"epoch": epoch, **dict.fromkeys(process_watch.PROCESS_FIELDS, 7), **values}


def test_levels_and_slopes_leave_the_start_out():
    # The second process begins at epoch 50, with the last line of the one before at 53.
    samples = [sample(53, anonymous=9e8), *(sample(50 + n, anonymous=1e6 * n) for n in range(101))]
    late = run_growth.drop_start(samples, 40)
    assert [late[0]["epoch"], late[-1]["epoch"]] == [90, 150]
    assert run_growth.levels(late)["anonymous"] == [40, 70, 100]
    slopes = run_growth.slopes(late)
    assert slopes["anonymous"]["slope"] == pytest.approx(1000, rel=0.05)  # MB in 1,000 epochs
    assert slopes["descriptors"]["verdict"] == "within noise"
    assert run_growth.drop_start([], 40) == [] and run_growth.slopes(late[:9]) is None


def test_a_process_is_seen_from_outside(tmp_path):
    code = "x = bytearray(b'x') * 50_000_000; print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        process.stdout.readline()
        sizes = process_watch.measure_process(process.pid)
        process.communicate(b"\n")
        assert process_watch.measure_process(process.pid) is None
    assert 50e6 < sizes["anonymous"] <= sizes["private"] <= sizes["rss"] < 200e6
    assert (sizes["threads"], sizes["descriptors"]) == (1, 3)
    assert process_watch.measure_process(os.getpid())["mappings"] > sizes["mappings"] > 10


def test_a_workdir_is_measured_by_kind(tmp_path):
    assert process_watch.last_epoch(tmp_path) == 0
    for name, size in {"checkpoints/6/a": 5, "checkpoints/12/d/b": 6, "tensorboard/e": 7}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    lines = '{"epoch": 1.0}\n{"epoch": 2.5}\n{"epo'
    (tmp_path / "metrics.jsonl").write_text(lines)
    expected = (11, len(lines), 7, 0, 2, 1)
    assert process_watch.measure_workdir(tmp_path) == dict(
        zip(process_watch.WORKDIR_FIELDS, expected, strict=True)
    )
    assert process_watch.last_epoch(tmp_path) == 2.5


def test_tensorboard_forgets_what_comes_again(tmp_path, monkeypatch):
    boards = []
    for start, steps in ((1, (2, 4, 6)), (5, (6, 8))):
        monkeypatch.setattr("time.time", lambda now=start: 1_700_000_000.0 + now)
        boards.append(board := TensorBoard(tmp_path, start))
        for step in steps:
            board.scalars(step, {"train/loss": 0.5})
            assert event_files.points(tmp_path)["train/loss"][-1][0] == step  # whatever ends it now
    for board in boards:
        board.close()
    last = max(tmp_path.iterdir())
    last.write_bytes(last.read_bytes()[:-3])  # killed in the middle of an event
    shown = event_files.points(tmp_path)
    assert [step for step, _ in shown["train/loss"]] == [2, 4, 6]


def test_the_ends_leave_one_long_stretch():
    places = long_run.ends(3000, 20, seed=3)
    stretches = np.diff([0, *(epoch for epoch, _ in places), 3000])
    assert len(places) == 20
    assert sorted(stretches)[-1] > 940 and sorted(stretches)[-2] < 200 and min(stretches) > 40
    assert [how for _, how in places].count(signal.SIGKILL) == 4


@pytest.mark.slow
def test_a_training_that_fails_is_told_of(tmp_path):
    run = long_run.Run(tmp_path / "run", str(tmp_path / "nowhere"), epochs=3)
    with pytest.raises(UserError, match="a training ended with 2: .*is not prepared"):
        run.process()


@pytest.mark.slow
def test_a_short_one_from_end_to_end(tmp_path, scenes_dir):
    out = tmp_path / "long_run.json"
    record = long_run.run(str(out), str(scenes_dir), epochs=60, resumes=2)
    assert json.loads(out.read_text()) == json.loads(json.dumps(record))
    assert record["same"] == {"bits": True, "tests": True}
    assert [p["ended_by"] for p in record["parts"]["processes"]] == ["SIGTERM", "SIGTERM", "itself"]
    for kind in ("whole", "parts"):
        result = record[kind]
        assert result["metrics_whole"] and result["tensorboard"]["rising"]
        assert (
            result["tensorboard"]["missing"]["train"]
            == result["tensorboard"]["missing"]["test"]
            == 0
        )
        assert result["workdir"]["event_files"] == len(result["processes"])
