"""The campaign of kills: damage, counts, and a short one."""

import random
import signal

import pytest

from reliability import crash_campaign, small_training


def checkpoint_of(workdir, step, content=b"twelve bytes"):
    file = workdir / "checkpoints" / str(step) / "variables" / "d" / ("0123456789abcdef" * 2)
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("way", ["bit", "cut", "removed"])
def test_damage_is_done_to_the_newest_checkpoint_alone(tmp_path, way):
    older, newest = checkpoint_of(tmp_path, 9), checkpoint_of(tmp_path, 10)
    damage = small_training.damage_checkpoint(way, tmp_path, random.Random(3))
    assert damage == {"way": way, "step": 10, "file": "variables/d/*"}
    assert older.read_bytes() == b"twelve bytes"
    if way == "removed":
        assert not newest.exists()
    elif way == "cut":
        assert newest.read_bytes() != b"twelve bytes"
        assert b"twelve bytes".startswith(newest.read_bytes())
    else:
        pairs = zip(b"twelve bytes", newest.read_bytes(), strict=True)
        assert sum((a ^ b).bit_count() for a, b in pairs) == 1


def test_without_a_checkpoint_nothing_is_damaged(tmp_path):
    assert small_training.damage_checkpoint("removed", tmp_path, random.Random(0)) is None


@pytest.mark.parametrize(
    ("lines", "whole"),
    [
        ("train 2, test 2, train 4, test 4", True),
        ("train 2, test 2, train 4", False),
        ("test 2, train 4, test 4", False),
        ("train 2, test 2, test 2, train 4, test 4", False),
        ("train 4, test 2, train 2, test 4", False),
    ],
)
def test_metrics_are_whole_with_every_step_once_and_in_order(tmp_path, lines, whole):
    pairs = [line.split() for line in lines.split(", ")]
    text = "".join(f'{{"kind": "{kind}", "step": {step}}}\n' for kind, step in pairs)
    (tmp_path / "metrics.jsonl").write_text(text)
    overrides = {"train.epochs": 2, "eval.every_epochs": 1, "log.every_steps": 2}
    assert small_training.metrics_are_whole(tmp_path, overrides, 4) is whole


def test_the_summary_counts_what_is_not_as_it_should_be():
    ended = {"code": 0, "warnings": [], "traceback": False}
    moved = {**ended, "warnings": ["warning: checkpoint 3 ... was moved to x"]}
    kill = {**moved, "code": -9, "saving": True, "damage": {}}
    term = {**ended, "code": 1, "seconds_until_exit": 3.0, "traceback": True}
    good = {"last": ended, "same_bits": True, "metrics_whole": True}
    full = {**good, "first": {**ended, "code": 2}}
    summary = crash_campaign.summary(
        [{**good, "signals": [kill, {**kill, "saving": False, "damage": None}]}],
        [{**good, "signals": [term], "same_bits": False}],
        [full],
        [{**good, "second": {**ended, "code": 0}, "metrics_whole": False}],
    )
    assert summary == {
        "SIGKILLs": 2,
        "of them in the middle of a save": 1,
        "checkpoints damaged": 1,
        "damaged checkpoints moved aside": 2,
        "runs back at the beginning": 0,
        "SIGTERMs": 1,
        "of them ended with 0": 0,
        "longest until exit (s)": 3.0,
        "full disks": 1,
        "of them ended with 2": 1,
        "second trainings": 1,
        "of them refused": 0,
        "runs": 4,
        "with the bits of the undisturbed one": 3,
        "with whole metrics": 3,
        "tracebacks": 1,
    }


@pytest.mark.slow
def test_a_short_campaign(scenes_dir, tmp_path):
    out = tmp_path / "results.json"
    record = crash_campaign.run(
        str(out), str(scenes_dir), kills=4, terms=2, disks=1, pairs=1, seed=1
    )
    summary = record["summary"]
    assert out.exists() and (summary["SIGKILLs"], summary["SIGTERMs"]) == (4, 2)
    assert all(event["code"] == -signal.SIGKILL for r in record["killed"] for event in r["signals"])
    assert (
        summary["with the bits of the undisturbed one"]
        == summary["with whole metrics"]
        == summary["runs"]
    )
    assert summary["of them refused"] == 1 and summary["tracebacks"] == 0
    assert summary["longest until exit (s)"] < 10
