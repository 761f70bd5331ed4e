"""Runs of toys."""

import pytest

from lossattn_jax.checkpoint import runs
from tests.support import toys


@pytest.fixture
def toy_runs(monkeypatch):
    """`loop.train` on toys; the dictionary takes what is bad of the training set."""
    bad = {}
    monkeypatch.setattr(runs, "build_model", lambda *_, **__: toys.Toy())
    monkeypatch.setattr(runs, "spec_of", lambda config: toys.SPEC)
    monkeypatch.setattr(
        runs,
        "open_split",
        lambda config, spec, split, *_: toys.train_set(bad if split == "train" else {}),
    )
    return bad
