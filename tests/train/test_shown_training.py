"""A training from Python: the loop's results, and a log that its caller can see."""

import logging

import pytest

import lossattn_jax
from lossattn_jax.train.images import shown_training


@pytest.fixture
def log(monkeypatch):
    """The package's log as in a process where nobody has set one up."""
    log = logging.getLogger("lossattn_jax")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    level = log.level
    log.setLevel(logging.WARNING)
    yield log
    log.setLevel(level)


def train(monkeypatch, log):
    calls = []

    def loop(config, workdir, *, trust_code):
        calls.append((config, workdir, trust_code))
        log.info("step 1 of 2")
        return {"accuracy": 0.5}

    monkeypatch.setattr(shown_training.loop, "train", loop)
    assert lossattn_jax.train_run("config", "runs/x", trust_code=True) == {"accuracy": 0.5}
    assert calls == [("config", "runs/x", True)]


def test_progress_is_shown_while_it_trains(log, monkeypatch, capsys):
    train(monkeypatch, log)
    assert capsys.readouterr().err.endswith(" step 1 of 2\n")
    assert log.handlers == [] and log.level == logging.WARNING and log.propagate


def test_a_callers_own_handler_is_enough(log, monkeypatch, capsys):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    train(monkeypatch, log)
    assert [record.getMessage() for record in records] == ["step 1 of 2"]
    assert capsys.readouterr().err == ""
