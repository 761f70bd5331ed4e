"""Progress and metrics files, with a clock of the test's own."""

import json
import os

import numpy as np
import pytest

from lossattn_jax.commands.progress import Progress
from lossattn_jax.errors import UserError
from lossattn_jax.train.images import reporting


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    return now


def test_rate_and_time_left_leave_pauses_out(clock):
    progress = Progress(10, 1010, 32)
    assert progress.time_left(10) == "?"
    clock[0] += 10
    assert progress.measure(60) == pytest.approx(50 * 32 / 10)
    # 950 steps at 5 steps a second.
    assert progress.time_left(60) == "0:03:10"
    clock[0] += 4
    with progress.pause():
        clock[0] += 1000
    clock[0] += 6
    assert progress.measure(160) == pytest.approx(100 * 32 / 10)
    assert progress.seconds == pytest.approx(10)
    # The mean of 5 and 10 steps a second.
    assert progress.time_left(160) == "0:01:53"


def test_a_progress_line_says_what_a_person_would_ask():
    values = {"loss": 1.5, "accuracy": 0.25, "patch_loss": 2.0, "learning_rate": 0.1, "epoch": 1.25}
    values |= {"images_per_second": 1234.5, "input_wait": 0.034}
    line = reporting.progress_line(50, 200, values, "0:00:09")
    for part in ("step 50/200", "epoch 1.25", "loss 1.5000", "accuracy 0.2500", "1,234 images/s"):
        assert part in line
    assert "input wait 3.4 %" in line
    assert line.endswith("0:00:09 left")


class Computed:
    """What a device is to have computed at some time of the test's clock."""

    def __init__(self, clock, when):
        self.clock, self.when = clock, when

    def is_ready(self):
        return self.clock[0] >= self.when


def test_a_wait_counts_only_if_the_devices_have_nothing_to_do(clock):
    def taking(seconds):
        clock[0] += seconds
        yield "batch"

    wait = reporting.InputWait()
    assert wait.next(taking(3), {"a": Computed(clock, 100), "b": Computed(clock, 102)}) == "batch"
    assert wait.next(taking(5), {"a": Computed(clock, 100), "b": Computed(clock, 109)}) == "batch"
    assert wait.share(12) == pytest.approx(3 / 12)
    wait.next(taking(2), {"a": Computed(clock, 110)})
    assert wait.share(8) == pytest.approx(2 / 8)
    assert wait.share(8) == 0


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_resuming_removes_what_comes_again(tmp_path):
    with reporting.Reporter(tmp_path, start_step=0) as reporter:
        for step in (10, 20, 30):
            reporter.scalars("train", step, {"loss": 1 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 40, "lo')  # killed while writing
    with reporting.Reporter(tmp_path, start_step=20) as reporter:
        reporter.scalars("train", 30, {"loss": 7.0})
    found = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found] == [10, 20, 30]
    assert found[-1]["loss"] == 7.0


def test_damaged_lines_are_left_out_and_told_of(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"kind": "train", "step": 1}\n'
    damaged = [b"[" * 100_000, b"\xff\xfe\n", b"[]", b'{"step": "one"}', b'{"kind": "test"}', b"5"]
    path.write_bytes(whole + b"\n".join([*damaged, b""]) + whole)
    assert not reporting.tells_of(tmp_path, "test", 1)
    with reporting.Reporter(tmp_path, start_step=5):
        pass
    assert path.read_bytes() == 2 * whole
    assert f"left out of {path}: a broken line" in caplog.text


def test_a_whole_log_is_not_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "test", "step": 1}\n')
    before = path.stat().st_ino
    reporting.remove_broken_lines(tmp_path, step=1)
    assert path.stat().st_ino == before


@pytest.mark.parametrize("kind", ["fifo", "folder", "lost"])
def test_a_log_that_cannot_be_read_begins_anew_or_is_a_sentence(tmp_path, kind):
    path = tmp_path / "metrics.jsonl"
    {"fifo": os.mkfifo, "folder": os.mkdir, "lost": lambda path: None}[kind](path)
    if kind == "folder":
        with pytest.raises(UserError, match="metrics.jsonl cannot be written: Is a directory"):
            reporting.Reporter(tmp_path, start_step=5)
        return
    with reporting.Reporter(tmp_path, start_step=5) as reporter:
        reporter.scalars("train", 6, {"loss": 1.0})
    assert lines(path) == [{"kind": "train", "step": 6, "loss": 1.0}]


def test_links_are_not_followed(tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.write_text("of somebody else\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").symlink_to(other)
    for _ in range(2):  # within a second, and still each in a file of its own
        with reporting.Reporter(run, start_step=0) as reporter:
            reporter.scalars("train", 1, {"loss": 1.0})
    assert other.read_text() == "of somebody else\n"
    assert len(lines(run / "metrics.jsonl")) == 1
    assert len(list((run / "tensorboard").iterdir())) == 2

    write = reporting.files.write

    def write_and_swap(path, content):
        write(path, content)
        path.unlink()
        path.symlink_to(other)

    monkeypatch.setattr(reporting.files, "write", write_and_swap)
    with pytest.raises(UserError, match="metrics.jsonl cannot be written: Too many levels"):
        reporting.Reporter(run, start_step=0)
    assert other.read_text() == "of somebody else\n"


def test_a_value_that_is_not_finite_is_null(tmp_path):
    with reporting.Reporter(tmp_path, start_step=0) as reporter:
        reporter.scalars("train", 1, {"loss": float("nan")})
    assert lines(tmp_path / "metrics.jsonl") == [
        {"kind": "train", "step": 1, "loss": None, "nonfinite": 1}
    ]


def test_numbers_have_all_their_digits(tmp_path):
    values = {"loss": 0.1 + 0.2, "accuracy": np.float32(0.1), "images": 3}
    with reporting.Reporter(tmp_path, start_step=0) as reporter:
        reporter.scalars("train", 1, values)
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["loss"] == 0.1 + 0.2 and line["images"] == 3
    assert line["accuracy"] == float(np.float32(0.1))


def test_an_inactive_reporter_writes_and_draws_nothing(tmp_path):
    def draw():
        raise AssertionError("drawn for nobody")

    with reporting.Reporter(tmp_path, start_step=0, active=False) as reporter:
        reporter.scalars("train", 1, {"loss": 1.0})
        reporter.figure("attention", 1, draw)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("imported", [False, True])
def test_pytorch_is_not_imported_for_tensorboard_but_can_be(tmp_path, run_python, imported):
    """One of our own stands for PyTorch, which takes a second or more."""
    (tmp_path / "torch.py").write_text("class Tensor: pass\n")
    script = f"""
import pathlib, sys
if {imported}:
    import torch
from lossattn_jax.train.images.tensorboard import TensorBoard
board = TensorBoard(pathlib.Path({str(tmp_path / "events")!r}), 1)
board.scalars(1, {{"loss": 2.0}})
board.close()
assert ("torch" in sys.modules) == {imported}
import torch
assert torch.Tensor
"""
    (tmp_path / "run.py").write_text(script)
    finished = run_python(tmp_path / "run.py")  # whose folder Python searches first
    assert finished.returncode == 0, finished.stderr
    assert list((tmp_path / "events").iterdir())
