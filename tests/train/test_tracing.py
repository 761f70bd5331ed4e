"""Traces of some updates, and the files that they leave."""

import gzip
import json
import logging

import jax
import jax.numpy as jnp
import pytest

from lossattn_jax.config.rules import parse_span
from lossattn_jax.errors import UserError
from lossattn_jax.train.images import loop, tracing
from tests.support import shrunk


def events(workdir):
    """What the one trace of a run holds."""
    (path,) = (workdir / "profile").glob("plugins/profile/*/perfetto_trace.json.gz")
    assert list(path.parent.glob("*.xplane.pb"))  # what TensorBoard opens
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


@pytest.fixture
def spans(monkeypatch):
    """The updates at which tracing begins and ends, without a profiler."""
    seen = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: seen.append("begin"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("end"))
    return seen


def run(tracer, seen, sizes, step=0):
    for size in sizes:
        tracer.before(step, size, jnp.zeros(1))
        seen.append((step, size))
        step += size
        tracer.after(step, jnp.zeros(1))


@pytest.mark.parametrize(
    ("span", "sizes", "start", "expected"),
    [
        ("1:3", [1] * 4, 0, [(0, 1), "begin", (1, 1), (2, 1), "end", (3, 1)]),
        ("0:1", [1] * 2, 0, ["begin", (0, 1), "end", (1, 1)]),
        # To whole dispatches, outwards.
        ("5:9", [4] * 4, 0, [(0, 4), "begin", (4, 4), (8, 4), "end", (12, 4)]),
        ("4:8", [4] * 3, 0, [(0, 4), "begin", (4, 4), "end", (8, 4)]),
        # A run that goes on within the span, and one from after it.
        ("1:4", [1] * 3, 2, ["begin", (2, 1), (3, 1), "end", (4, 1)]),
        ("1:4", [1], 4, [(4, 1)]),
        # A run that stops before the span ends.
        ("1:9", [1] * 2, 0, [(0, 1), "begin", (1, 1), "end"]),
        ("", [1], 0, [(0, 1)]),
    ],
)
def test_whole_dispatches_are_traced(spans, tmp_path, span, sizes, start, expected):
    folder = tmp_path / "profile" / "plugins" / "profile" / "now"
    folder.mkdir(parents=True)
    (folder / "perfetto_trace.json.gz").touch()
    with tracing.Tracer(parse_span(span), tmp_path, start) as tracer:
        run(tracer, spans, sizes, start)
    assert spans == expected


def test_an_error_leaves_the_trace_of_what_there_was(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger=tracing.log.name)
    with (
        pytest.raises(UserError, match="diverged"),
        tracing.Tracer(parse_span("0:9"), tmp_path, 0) as tracer,
    ):
        run(tracer, [], [1, 1])
        raise UserError("diverged")
    assert len(events(tmp_path)) > 0
    (told,) = caplog.messages
    assert told.startswith("profile of the updates after 0 until 2: open ")
    assert f"tensorboard --logdir {tmp_path / 'profile'}" in told


def test_other_processes_trace_nothing(spans, tmp_path):
    with tracing.Tracer(parse_span("0:1"), tmp_path, 0, active=False) as tracer:
        run(tracer, spans, [1])
    assert spans == [(0, 1)]


@pytest.mark.slow
def test_a_run_traces_its_updates(scenes_dir, tmp_path):
    options = {"train__epochs": 1, "optimizer__warmup_epochs": 0.0, "model__width": 0.0625}
    loop.train(shrunk.config(scenes_dir, profile="2:5", **options), tmp_path)
    names = {event.get("name", "") for event in events(tmp_path)}
    assert any("convolution" in name or "PjitFunction" in name for name in names)
