"""The table of finished runs, from files written by hand."""

import json
import pathlib
import statistics

import numpy as np
import pytest

from lossattn_jax.checkpoint import provenance, run_folder
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.config.images import default_config
from lossattn_jax.errors import UserError
from lossattn_jax.explain import explanation_table
from lossattn_jax.files import records

WORDS = "100 images of digit_scenes (test), accuracy on 2000 of digit_scenes (test)"


@pytest.fixture
def make_run(tmp_path):
    """Writes a workdir with what the commands leave there; returns its name."""

    def make(name, pooling, seed, recall, accuracy=0.9, compared=(), explainer=(), **config):
        workdir = tmp_path / name
        workdir.mkdir()
        stored = default_config()
        stored.seed, stored.model.pooling = seed, pooling
        for key, value in config.items():
            section, _, leaf = key.rpartition("__")
            stored[section][leaf] = value
        run_folder.write_config(stored, workdir)
        measured = {
            "patch_recall": recall,
            "deletion": 1 - recall,
            "localised": 1.0,
            "ms_per_image": 3.0,
            "patch_f_best_threshold": 0.3,
            "curves": {"threshold": [0.5], "f": [0.1]},
        }
        files = {
            "compare_explainers.json": {
                "dataset": "digit_scenes",
                "split": "test",
                "step": 7,
                "images": 100,
                "explainers": {"attention": measured | dict(explainer)},
            }
            | dict(compared),
            "evaluation_test.json": {
                "dataset": "digit_scenes",
                "split": "test",
                "step": 7,
                "num_examples": 2000,
                "accuracy": accuracy,
            },
        }
        for file, content in files.items():
            (workdir / file).write_text(json.dumps(content))
        return str(workdir)

    return make


@pytest.fixture
def write(tmp_path):
    """Writes the table of some runs; returns its lines and the record."""

    def written(runs, **options):
        table, record = tmp_path / "made" / "t.md", tmp_path / "made" / "t.json"
        text = explanation_table.write(runs, str(table), str(record), **options)
        assert table.read_text() == text
        return text.splitlines(), json.loads(record.read_text())

    return written


def test_means_and_deviations_over_seeds_by_hand(make_run, write):
    lines, record = write(
        [
            make_run("a0", "loss_attention", 0, 0.5),
            make_run("b0", "attention", 0, 0.25, accuracy=0.75),
            make_run("a2", "loss_attention", 2, 0.75),
            make_run("a1", "loss_attention", 1, 1.0),
        ]
    )
    assert lines == [
        f"Explainer `attention`, {WORDS}.",
        "",
        "| mean ± sample standard deviation | conv + loss_attention, t = 0.1 | conv + attention |",
        "| --- | --- | --- |",
        "| seeds | 3 | 1 |",
        "| accuracy ↑ | 0.900 ± 0.000 | 0.750 |",
        "| patch_recall ↑ | 0.750 ± 0.250 | 0.250 |",
        "| deletion ↓ | 0.250 ± 0.250 | 0.750 |",
        "",
        "- `patch_recall` (higher is better): conv + loss_attention, t = 0.1 has 0.750 and conv + "
        "attention 0.250, a difference of +0.500; of the one seed in common (0) the first is ahead in 1.",
    ]
    first, second = record["systems"]
    assert first["seeds"] == [0, 1, 2]
    assert [workdir[-2:] for workdir in first["workdirs"]] == ["a0", "a1", "a2"]
    assert first["metrics"]["deletion"]["values"] == [0.5, 0.0, 0.25]
    assert first["metrics"]["deletion"]["deviation"] == pytest.approx(
        statistics.stdev([0.5, 0.0, 0.25])
    )
    assert second["metrics"]["accuracy"] == {"mean": 0.75, "deviation": None, "values": [0.75]}
    (difference,) = record["differences"]
    assert (difference["difference"], difference["seeds"], difference["ahead"]) == (0.5, [0], 1)


def test_pairs_of_seeds_are_counted_in_the_better_direction(make_run, write):
    ours, theirs = (0.5, 0.6, 0.9), {1: 0.4, 2: 0.9, 5: 0.1}
    runs = [make_run(f"a{seed}", "mean", seed, value) for seed, value in enumerate(ours)]
    runs += [make_run(f"b{seed}", "max", seed, value) for seed, value in theirs.items()]
    runs.append(make_run("c7", "attention", 7, 0.9))
    lines, record = write(runs, compare=["patch_recall", "deletion"])
    told = [(d["metric"], d["second"], d["seeds"], d["ahead"]) for d in record["differences"]]
    # Seed 2 is a draw, and a draw is not ahead.
    assert told == [
        ("patch_recall", "conv + max", [1, 2], 1),
        ("patch_recall", "conv + attention", [], 0),
        ("deletion", "conv + max", [1, 2], 1),
        ("deletion", "conv + attention", [], 0),
    ]
    assert lines[-2].startswith(
        "- `deletion` (lower is better): conv + mean has 0.333 and conv + max 0.533"
    )
    assert lines[-2].endswith("of the 2 seeds in common (1, 2) the first is ahead in 1.")
    assert lines[-1].endswith("a difference of +0.233; they have no seed in common.")


def test_systems_of_one_name_are_told_apart_by_what_differs(make_run, write):
    runs = [
        make_run("a", "loss_attention", 0, 0.5),
        make_run("b", "loss_attention", 0, 0.5, train__epochs=20),
        make_run("c", "loss_attention", 1, 0.5, train__epochs=20),
        make_run("d", "loss_attention", 0, 0.5, model__threshold=1.0),
    ]
    _, record = write(runs)
    assert [(s["name"], s["seeds"]) for s in record["systems"]] == [
        ("conv + loss_attention, t = 0.1 (train.epochs = 200)", [0]),
        ("conv + loss_attention, t = 0.1 (train.epochs = 20)", [0, 1]),
        ("conv + loss_attention, t = 1", [0]),
    ]


def test_names_stay_in_their_cells(make_run, write):
    runs = [
        make_run("a", "mean", 0, 0.5),
        make_run("b", "mean", 0, 0.5, data__dir="x|y <img src=z>"),
    ]
    lines, record = write(runs)
    assert record["systems"][1]["name"] == "conv + mean (data.dir = x|y <img src=z>)"
    assert "(data.dir = x\\|y &lt;img src=z&gt;) |" in lines[2]
    assert "<img" not in "\n".join(lines)
    assert lines[2].replace("\\|", "").count("|") == lines[4].count("|") == 4


def test_a_value_that_is_not_finite_is_a_dash(make_run, write):
    runs = [make_run("a", "mean", 0, 0.5), make_run("b", "mean", 1, 0.5, accuracy=None)]
    lines, record = write(runs)
    assert "| accuracy ↑ | - |" in lines
    assert record["systems"][0]["metrics"]["accuracy"]["values"] == [0.9, None]


def refused(write, runs, sentence, **options):
    with pytest.raises(UserError, match=sentence) as caught:
        write(runs, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (
            "compare_explainers.json",
            "python -m lossattn_jax.compare_explainers --workdir=.*/a makes it",
        ),
        ("evaluation_test.json", "python -m lossattn_jax.evaluate --workdir=.*/a makes it"),
        ("config.json", "is not a workdir of a run"),
    ],
)
def test_a_run_without_a_file_is_refused(make_run, write, tmp_path, file, sentence):
    run = make_run("a", "mean", 0, 0.5)
    (tmp_path / "a" / file).unlink()
    refused(write, [run], sentence)


@pytest.mark.parametrize(
    "content", ["[", "{}", "[]", '{"step": 7, "explainers": {"attention": 3}}']
)
def test_a_broken_file_is_refused(make_run, write, tmp_path, content):
    run = make_run("a", "mean", 0, 0.5)
    (tmp_path / "a" / "compare_explainers.json").write_text(content)
    refused(write, [run], "compare_explainers.json in .*/a cannot be read")


@pytest.mark.parametrize(
    ("compared", "sentence"),
    [
        (
            {"split": "train"},
            r"was measured on 100 images of digit_scenes \(test\).* on 100 .*train",
        ),
        ({"dataset": "coco"}, "but .*/b on 100 images of coco"),
        ({"images": 99}, "but .*/b on 99 images"),
        ({"step": 8}, "b was evaluated at step 7 and compared at step 8"),
        (
            {"explainers": {"occlusion": {}}},
            "compare_explainers --workdir=.*/b --explainers=attention",
        ),
        ({"explainers": {"attention": {"deletion": 0.1}}}, "b has no patch_recall, which .*/a has"),
    ],
)
def test_runs_that_were_measured_otherwise_are_refused(make_run, write, compared, sentence):
    runs = [make_run("a", "mean", 0, 0.5), make_run("b", "mean", 1, 0.5, compared=compared)]
    refused(write, runs, sentence)


INPUTS = {"split": "test", "config.model.threshold": 0.1, "data": "a" * 64, "parameters": "b" * 64}


def recorded(workdir, **changes):
    """The files of a run as records that say what they were made from."""
    for name in (explanation_table.EVALUATION_NAME, explanation_table.COMPARISON_NAME):
        path = pathlib.Path(workdir) / name
        made_from = INPUTS | {"num_images": 9} | changes.get(name, {})
        records.write(path, records.read(path).content, made_from)
    return workdir


def test_records_make_the_same_table_and_old_files_warn(make_run, write, caplog):
    run = make_run("a", "mean", 0, 0.5)
    lines, _ = write([run])
    assert caplog.text.count("was written before results carried digests") == 2
    caplog.clear()
    again, record = write([recorded(run)])
    assert again == lines and not caplog.text
    assert record["made_from"].keys() == {"explainer", run}


@pytest.mark.parametrize(
    "name", [explanation_table.EVALUATION_NAME, explanation_table.COMPARISON_NAME]
)
def test_an_edited_record_is_refused(make_run, write, name):
    run = recorded(make_run("a", "mean", 0, 0.5))
    path = pathlib.Path(run) / name
    path.write_text(path.read_text().replace("0.5", "0.6").replace("0.9", "0.8"))
    refused(write, [run], rf"{name} in .*/a cannot be read \(.* is not as it was written\)")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": "c" * 64}, r"in .*/a were made from others \(other data\); python -m"),
        ({"parameters": "c" * 64}, r"were made from others \(other parameters\)"),
        (
            {"config.model.threshold": 1.0},
            r"is there now \(config.model.threshold 1.0 instead of 0.1\)",
        ),
        # As where the whole files of two runs are exchanged, of which each is intact.
        ({"config.json": "c" * 64}, r"is there now \(other config.json\)"),
    ],
)
def test_files_of_different_inputs_are_refused(make_run, write, changes, sentence):
    run = make_run("a", "mean", 0, 0.5)
    refused(write, [recorded(run, **{explanation_table.COMPARISON_NAME: changes})], sentence)


def test_files_of_another_checkpoint_than_is_there_are_refused(make_run, write):
    run = recorded(make_run("a", "mean", 0, 0.5))
    variables = {"params": {"a": np.zeros(2, np.float32)}, "batch_stats": {}}
    with checkpoint_lib.Checkpoints(run) as checkpoints:
        checkpoints.save(7, {"variables": variables}, None)
    refused(write, [run], r"evaluation_test.json in .* is there now \(other parameters\)")
    digest = {"parameters": provenance.of_variables(variables)}
    files = (explanation_table.EVALUATION_NAME, explanation_table.COMPARISON_NAME)
    write([recorded(run, **dict.fromkeys(files, digest))])


def test_runs_measured_on_other_images_of_one_name_are_refused(make_run, write):
    other = {"data": "c" * 64}
    files = (explanation_table.EVALUATION_NAME, explanation_table.COMPARISON_NAME)
    runs = [
        recorded(make_run("a", "mean", 0, 0.5)),
        recorded(make_run("b", "mean", 1, 0.5), **dict.fromkeys(files, other)),
    ]
    refused(write, runs, "in .*/b was measured on other images than in .*/a, though the data set")


def test_the_same_run_twice_and_unmeasured_metrics_are_refused(make_run, write):
    run, again = make_run("a", "mean", 0, 0.5), make_run("b", "mean", 0, 0.6)
    refused(write, [run, again], "b has the config and the seed of .*/a")
    refused(
        write,
        [run],
        "'pointing', but must be of: accuracy, patch_recall, del",
        compare=["pointing"],
    )
    refused(write, [], "at least one workdir")
