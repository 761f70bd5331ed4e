"""What a program takes of a device's memory, and what is said about it."""

import logging
import types

import jax
import numpy as np
import pytest

from lossattn_jax import devices
from lossattn_jax.train.images import memory
from tests.support import compilations

KIB = 1024


def test_memory_analysis_counts_donated_once_and_calls_reuse_it():
    kept, given = (np.zeros((64, KIB), np.float32) for _ in range(2))
    arguments = [devices.replicate(array) for array in (kept, given)]
    donating = devices.pmap(lambda a, b: b + a.sum(), donate=(1,))
    keeping = devices.pmap(lambda a, b: b + a.sum())
    with compilations.counted() as compiled:
        usages = [memory.analyse(function, *arguments) for function in (keeping, donating)]
        assert len(compiled) == 2
        keeping(*arguments)
        donating(*arguments)
        assert len(compiled) == 2
    for usage in usages:
        assert usage.arguments == pytest.approx(2 * kept.nbytes, rel=0.01)
        assert usage.total == usage.arguments + usage.program
    # Without donation the result needs memory of its own.
    difference = usages[0].program - usages[1].program
    assert difference == pytest.approx(kept.nbytes, rel=0.05)


def test_a_backend_that_does_not_tell_is_no_obstacle(caplog):
    def program(analysis):
        compiled = types.SimpleNamespace(memory_analysis=analysis)
        lowered = types.SimpleNamespace(compile=lambda: compiled)
        return types.SimpleNamespace(lower=lambda *_: lowered)

    def unimplemented():
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: memory analysis")

    for analysis in (lambda: None, unimplemented):
        assert memory.analyse(program(analysis)) is None
        memory.describe(program(analysis))
    assert caplog.records == []


def test_a_step_that_does_not_fit_is_warned_of(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    usage = memory.Usage(arguments=2**26, program=3 * 2**30)
    monkeypatch.setattr(memory, "analyse", lambda *_: usage)
    said = "64.00 MiB of parameters, optimiser and images + 3.00 GiB of the step = 3.06 GiB"
    for there, warned in ((4 * 2**30, False), (3 * 2**30, True), (None, False)):
        caplog.clear()
        monkeypatch.setattr(memory, "limit", lambda there=there: there)
        memory.describe(None)
        known = f" of each device's {there / 2**30:.2f} GiB" if there else ""
        assert caplog.messages[0] == f"memory: {said}{known}"
        assert len(caplog.messages) == 1 + warned
        if warned:
            assert "config.train.remat=True" in caplog.messages[1]
            assert "config.train.accumulate" in caplog.messages[1]


def test_limits_are_the_devices_own_or_the_machines(monkeypatch):
    assert memory.free_bytes() is None or jax.default_backend() != "cpu"
    assert memory.limit() > 2**20
    stats = {"bytes_limit": 100, "bytes_in_use": 30}
    monkeypatch.setattr(memory, "_stats", lambda: stats)
    assert (memory.limit(), memory.free_bytes()) == (100, 70)
