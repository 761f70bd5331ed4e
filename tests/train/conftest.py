"""Runs of toys."""

import pytest
import toys

from lossattn_jax.checkpoint import runs


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
