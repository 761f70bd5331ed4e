"""The benchmark of starts."""

import json
import sys
import time

import pytest

from benchmarks import start
from lossattn_jax.errors import UserError

# Stands for the command: with its programs it is at its first step sooner, and then it goes on.
TRAIN = """
import os, pathlib, sys, time

def say(line):
    print("12:00:00", line, file=sys.stderr, flush=True)

(config,) = (a.partition("=")[2] for a in sys.argv if a.startswith("--config="))
if config.endswith("bad.py"):
    say("error: config.seed is bad")
    sys.exit(2)
programs = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "program"
say("devices: 1")
time.sleep(0.0 if programs.exists() else 0.5)
programs.touch()
say("memory: 1 MiB")
say("step 1/20  loss 2.0")
time.sleep(60)
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A repository with `TRAIN` for its training and a small package."""
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setattr(start, "_ROOT", tmp_path)
    monkeypatch.setattr(start, "_IMPORT", "import math")


def test_starts_are_measured_until_the_first_step(commands, tmp_path, capsys):
    out = tmp_path / "start.json"
    began = time.monotonic()
    record = start.run(str(out), data_dir="data", config="config.py", repeats=3)
    assert time.monotonic() - began < 30  # no training was waited for
    assert json.loads(out.read_text()) == record
    assert [len(record[name]["step"]["all"]) for name in ("first", "second")] == [1, 3]
    assert len(record["import"]["all"]) == 3
    first, second = record["first"], record["second"]
    assert second["step"]["max"] < first["step"]["min"]
    for name in ("first", "second"):
        marks = [record[name][mark]["all"] for mark in ("devices", "program", "step")]
        for row in zip(*marks, strict=True):
            assert 0 < row[0] <= row[1] <= row[2]
    assert first["program"]["min"] - first["devices"]["min"] > 0.4
    assert "5.0 s a second start, 1.5 s an import" in capsys.readouterr().out


def test_a_training_that_ends_before_says_why(commands, tmp_path):
    with pytest.raises(UserError, match="before its first step: .* config.seed is bad"):
        start.start_once("bad.py", "data", str(tmp_path))


@pytest.mark.slow
def test_a_training_is_started(scenes_dir, tmp_path):
    out = tmp_path / "start.json"
    record = start.run(str(out), data_dir=str(scenes_dir), repeats=1)
    assert record["second"]["step"]["max"] < record["first"]["step"]["max"]
    assert record["versions"]["python"].startswith(f"{sys.version_info[0]}.")
