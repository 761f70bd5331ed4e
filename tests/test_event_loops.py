"""Event loops that end their tasks before they close."""

import asyncio
import errno
import gc
import sys

import pytest

from lossattn_jax.checkpoint import event_loops


async def fail_beside(task):
    asyncio.get_running_loop().create_task(task)
    await asyncio.sleep(0)
    raise ValueError("the first")


def close_after(task):
    with event_loops.ending_tasks():
        loop = asyncio.new_event_loop()
    with pytest.raises(ValueError, match="the first"):
        loop.run_until_complete(fail_beside(task))
    loop.close()
    assert loop.is_closed()


def test_a_loop_waits_for_its_tasks_before_it_closes(monkeypatch):
    reports, ends = [], []
    monkeypatch.setattr(sys, "unraisablehook", reports.append)

    async def end_later():
        await asyncio.sleep(0.01)
        ends.append("later")
        raise OSError("of which nobody hears")

    close_after(end_later())
    gc.collect()
    assert ends == ["later"] and reports == []


def test_errors_of_the_last_round_are_retrieved(caplog):
    async def fail():
        raise OSError("one of several")

    async def gather():
        await asyncio.gather(*(fail() for _ in range(5)))

    with event_loops.ending_tasks():
        loop = asyncio.new_event_loop()
    with pytest.raises(OSError, match="one of several"):
        loop.run_until_complete(gather())
    loop.close()
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_a_task_that_never_ends_is_cancelled(monkeypatch):
    monkeypatch.setattr(event_loops, "_WAIT_SECONDS", 0.01)
    ends = []

    async def wait_for_ever():
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    close_after(wait_for_ever())
    assert ends == ["cancelled"]


def test_a_loop_that_cannot_be_opened_is_closed_in_silence(monkeypatch):
    reports = []
    monkeypatch.setattr(sys, "unraisablehook", reports.append)

    def refuse():
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("socket.socketpair", refuse)
    with event_loops.ending_tasks(), pytest.raises(OSError, match="too many"):
        asyncio.new_event_loop()
    gc.collect()
    assert reports == []


def test_the_policy_of_before_comes_back():
    before = asyncio.get_event_loop_policy()
    with pytest.raises(KeyError), event_loops.ending_tasks():
        assert asyncio.get_event_loop_policy() is not before
        raise KeyError
    assert asyncio.get_event_loop_policy() is before
