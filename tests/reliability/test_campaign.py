"""The campaign over every command: damage, judgement, short campaigns."""

import dataclasses
import hashlib
import itertools
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import models
from lossattn_jax.checkpoint import conversion, weight_files
from lossattn_jax.errors import UserError
from reliability import (
    campaign,
    campaign_table,
    damage,
    in_process,
    outcomes,
    subject_inputs,
    trials,
)
from reliability.processes import End
from reliability.subject import KINDS, Subject, Unseen
from reliability.subjects import SUBJECTS
from reliability.worlds import Bench, Worker

RECORD = b'{"accuracy": 0.25, "bags": 12}\n'
FLOATS = bytes.fromhex("0000803f 00000040 00004040 0000a0c0")  # 1, 2, 3, -5
ERROR = "error: the fold is damaged.\n"


def bench_of(subject, tmp_path):
    return Bench(subject, tmp_path / "bench", tmp_path / "inputs", None, in_process)


@pytest.mark.parametrize("content", [RECORD, FLOATS], ids=["json", "floats"])
@pytest.mark.parametrize("way", damage.WAYS)
def test_each_way_of_damage_leaves_another_file(tmp_path, way, content):
    ending = "json" if content is RECORD else "bin"
    file, sibling = (tmp_path / f"fold_{number}.{ending}" for number in (1, 2))
    file.write_bytes(content)
    sibling.write_bytes(content[::-1])
    assert damage.WAYS[way](file, tmp_path, random.Random(1))
    if way == "removed":
        assert not file.exists()
    elif way == "folder":
        assert file.is_dir()
    else:
        damaged = file.read_bytes()
        assert damaged != content
        assert (way == "swapped") == (sibling.read_bytes() == content)
        size = {"empty": 0, "doubled": 2 * len(content)}.get(way, len(content))
        assert len(damaged) == size or way in ("cut", "edited") and len(damaged) < size + 9


def test_an_edited_record_is_json_with_one_other_number(tmp_path):
    file = tmp_path / "fold.json"
    for seed in range(9):
        file.write_bytes(RECORD)
        assert damage.WAYS["edited"](file, tmp_path, random.Random(seed))
        edited = json.loads(file.read_bytes())
        assert edited in [{"accuracy": 0.75, "bags": 12}] + [
            {"accuracy": 0.25, "bags": bags} for bags in (11, 13)
        ]


def test_damage_that_would_change_nothing_is_not_counted(tmp_path):
    file = tmp_path / "lone.json"
    file.write_bytes(RECORD)
    assert not damage.WAYS["swapped"](file, tmp_path, random.Random(0))
    file.write_bytes(b"")
    assert not damage.WAYS["empty"](file, tmp_path, random.Random(0))


@pytest.mark.parametrize(
    ("end", "results", "outcome"),
    [
        (End(0, "", ""), {"t": 1}, outcomes.RIGHT),
        (End(0, "", "12:00:00 warning: f is damaged"), {"t": 1}, outcomes.RIGHT),
        (End(0, "", ""), {"t": 2}, outcomes.WRONG),
        (End(0, "", ""), {}, outcomes.WRONG),
        (End(0, "", ""), None, outcomes.WRONG),
        (End(0, "", "12:00:00 warning: attention is uniform"), {"t": 2}, outcomes.WRONG),
        (End(0, "", "12:00:00 warning: f is damaged"), {"t": 2}, outcomes.WARNING),
        (End(2, "", ERROR), {"t": 2}, outcomes.REFUSAL),
        (End(3, "", ERROR), {"t": 2}, outcomes.REFUSAL),
        (End(2, "", ""), {"t": 1}, outcomes.UNCLEAR),
        (End(2, "", 2 * ERROR), {"t": 1}, outcomes.UNCLEAR),
        (End(1, "", "Traceback (most recent"), {"t": 1}, outcomes.TRACEBACK),
        (End(0, "", "Traceback (most recent"), {"t": 1}, outcomes.TRACEBACK),
        (End(-11, "", ""), {"t": 1}, outcomes.CRASH),
        (End(None, "", ""), {"t": 1}, outcomes.HANG),
    ],
)
def test_each_end_has_its_outcome(end, results, outcome):
    assert outcomes.judge(end, results, {"t": 1}) == outcome
    rerun = outcomes.judge_rerun(end, results, {"t": 1})
    assert rerun == (outcomes.DEAD_END if outcome == outcomes.REFUSAL else outcome)


def test_a_rerun_may_refuse_where_its_results_are_there_already():
    end = End(2, "", ERROR)
    assert outcomes.judge_rerun(end, {"t": 1}, {"t": 1}) == outcomes.RIGHT
    assert outcomes.judge_rerun(end, None, {"t": 1}) == outcomes.DEAD_END


def test_results_are_compared_without_times_and_folders(tmp_path):
    worlds = [tmp_path / "a", tmp_path / "b"]
    for number, world in enumerate(worlds):
        world.mkdir()
        record = {"accuracy": 0.5, "seconds": number, "digest": str(number)}
        (world / "r.json").write_text(json.dumps(record))
        (world / "t.md").write_text(f"{world}: 0.5 | {number + 8} s |\n")
        (world / ".r.part").write_text(str(number))
    first, second = (outcomes.read_results(world, ["*"]) for world in worlds)
    assert first == second and set(first) == {"r.json", "t.md"}
    (worlds[1] / "t.md").write_text(f"{worlds[1]}: 0.6 | 9 s |\n")
    again = outcomes.read_results(worlds[1], ["*"])
    assert outcomes.differences(again, first) == ["t.md"]


TRUSTING = """
import json, pathlib
value = json.loads(pathlib.Path("fold.json").read_text())["accuracy"]
pathlib.Path("mean.json").write_text(json.dumps({"mean": value}))
"""
CAREFUL = """
import hashlib, pathlib, sys
if hashlib.sha256(pathlib.Path("fold.json").read_bytes()).hexdigest() != DIGEST:
    print("error: fold.json is damaged.", file=sys.stderr)
    sys.exit(2)
"""


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ("", {outcomes.WRONG, outcomes.TRACEBACK}),
        (CAREFUL, {outcomes.REFUSAL, outcomes.TRACEBACK}),
    ],
)
def test_a_command_that_trusts_its_files_is_silently_wrong(tmp_path, checks, expected):
    (tmp_path / "inputs").mkdir()
    record = b'{"accuracy": 0.25}'
    (tmp_path / "inputs" / "fold.json").write_bytes(record)
    program = tmp_path / "trusting.py"
    program.write_text(
        checks.replace("DIGEST", repr(hashlib.sha256(record).hexdigest())) + TRUSTING
    )
    subject = Subject(
        *("planted", (str(program),), ("fold.json",)),
        results=("mean.json",),
        damages=("fold.json",),
        unseen=(Unseen("fold.json", ("swapped",), "it is alone"),),
    )
    results = list(trials.damage_files(bench_of(subject, tmp_path), 1.0, random.Random(0)))
    assert {trial.what.partition(":")[0] for trial in results} == set(damage.WAYS) - {"swapped"}
    edited = next(trial for trial in results if trial.what.startswith("edited"))
    assert edited.outcome == (outcomes.REFUSAL if checks else outcomes.WRONG)
    assert {trial.outcome for trial in results} == expected
    row = campaign_table.rows_of((subject, trial) for trial in results)[0]
    assert row["tried"] == 9 and (row["silently_wrong"] == 0) == bool(checks)
    assert row["survived"] == (7 if checks else 0)


def test_the_table_counts_by_command_and_kind():
    trial = trials.Trial("kill", "", outcomes.RIGHT, 0, "")
    wrong = dataclasses.replace(trial, outcome=outcomes.WRONG)
    train, mil = (next(s for s in SUBJECTS if s.command == name) for name in ("train", "mil"))
    rows = campaign_table.rows_of([(train, trial), (mil, trial), (mil, wrong)])
    assert campaign_table.markdown({"table": rows}).splitlines()[2:] == [
        "| train | kill | 1 | 1 | 0 |",
        "| mil | kill | 2 | 1 | 1 |",
        "| all | | 3 | 2 | 1 |",
    ]


def test_a_record_fills_its_place_in_a_file_and_nothing_else(tmp_path):
    file = tmp_path / "README.md"
    begin, end = campaign_table.BEGIN, campaign_table.END
    file.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    row = {"command": "mil", "kind": "kill", "tried": 6, "survived": 5, "silently_wrong": 0}
    unseen = {"command": "explain", "files": "own/*", "ways": ["removed"], "why": "a choice"}
    record = {
        **{"command": "python -m x", "date": "2026-11-29T01:00:00", "commit": "abc", "seconds": 60},
        **{"machine": {"cpu": "fast", "cores": 2, "load_before": 0.5}, "versions": {"jax": "1"}},
        **{"table": [row], "out_of_scope": [unseen], "not_possible_here": []},
    }
    campaign_table.fill(file, record)
    text = file.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| mil | kill | 6 | 5 | 0 |\n" in text
    assert "- explain, `own/*` removed: a choice\n" in text
    assert "2026-11-29, commit abc, 2 cores of fast, load 0.5 before; jax 1; 1 minutes." in text
    file.write_text("no place")
    with pytest.raises(UserError, match="has no lines"):
        campaign_table.fill(file, record)


@pytest.mark.slow
def test_an_end_that_never_comes_and_a_crash_are_told_apart(tmp_path):
    for text, outcome in (
        ("import time; time.sleep(60)", outcomes.HANG),
        ("import os; os._exit(7)", outcomes.CRASH),
    ):
        (tmp_path / "program.py").write_text(text)
        worker = Worker({}, seconds=20 if outcome == outcomes.CRASH else 8)
        end = worker.run([str(tmp_path / "program.py")], tmp_path)
        worker.end()
        assert outcomes.judge(end, None, {}) == outcome, end


def subject_of(command, **changes):
    """The campaign's subject, without what takes a training."""
    subject = next(s for s in SUBJECTS if s.command == command)
    return dataclasses.replace(subject, before=(), **changes)


def some_weights():
    """A state dict of the small network, without compiling its initialisation."""
    model = models.build("small", "conv", "loss_attention", num_classes=10, width=0.125)
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: draw.uniform(0, 0.3, s.shape).astype(s.dtype), shapes)
    return conversion.to_torch_state_dict(variables, model)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, scenes_dir):
    """A data set, a run that is not trained, and bags."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(scenes_dir, folder / "data")
    weight_files.write(some_weights(), folder / "weights.npz")
    arguments = subject_of("convert --from").arguments
    finished = in_process.run([word.replace("=new", "=run") for word in arguments], folder)
    assert finished.returncode == 0, finished.stderr
    subject_inputs.INPUTS["bags.csv"](folder)
    return folder


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        pytest.param("evaluate", {"inputs": ("data", "run")}, marks=pytest.mark.slow),
        pytest.param("export_maps", {"inputs": ("data", "run")}, marks=pytest.mark.slow),
        ("mil", {"inputs": ("bags.csv",)}),
    ],
)
def test_damaged_files_are_no_silent_error(command, changes, inputs, tmp_path):
    """In short what `campaign` does often."""
    subject = subject_of(command, **changes)
    if command == "mil":
        arguments = [w for w in subject.arguments if not w.startswith("--method")]
        subject = dataclasses.replace(subject, arguments=(*arguments, "--method=mi_kernel"))
    (tmp_path / "inputs").symlink_to(inputs)
    results = trials.damage_files(bench_of(subject, tmp_path), 0.1, random.Random(5))
    for trial in itertools.islice(results, 4 if command == "mil" else 2):
        assert trial.outcome in outcomes.GOOD, trial


@pytest.mark.slow
def test_every_command_survives_a_campaign_of_every_kind(tmp_path):
    out = tmp_path / "results.json"
    record = campaign.run(str(out), kills=1, disks=1, pairs=1, share=0.1, seed=1, jobs=2)
    rows = {(row["command"], row["kind"]): row for row in record["table"]}
    assert out.exists()
    tried = {(s.command, kind) for s in SUBJECTS for kind in s.kinds}
    if not record["not_possible_here"]:
        assert set(rows) == tried
    assert sum(row["silently_wrong"] for row in rows.values()) == 0
    assert record["not_survived"] == []
    assert {kind for _, kind in rows} <= set(KINDS)
