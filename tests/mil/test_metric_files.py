"""Metrics, predictions and curves beside a method's summary: what is written, and made again when."""

import csv
import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
import sklearn.metrics

from lossattn_jax.config import bags as config_lib
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.mil import (
    classical_folds,
    curves,
    experiment,
    metric_files,
    out_of_fold,
    report,
)
from tests.support import damages
from tests.support.predicted_bags import draw, experiment_of, folds_of

FOLDER = pathlib.Path("own", "mi_kernel", "final")
NAMES = ("metrics.json", "predictions.csv", "curves.png")


def run(path, workdir, **options):
    config = config_lib.default_config()
    config.folds, config.repeats = 3, options.pop("repeats", 1)
    rules = options.pop("rules", ["final"])
    return experiment.run(
        [str(path)], ["mi_kernel"], rules, config, str(workdir), "nowhere", **options
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A file of bags and a workdir with its results."""
    root = tmp_path_factory.mktemp("metrics")
    path = damages.write_bags(root / "own.csv", words=("no", "=yes"))
    return path, root / "run", run(path, root / "run", repeats=2, positive=["=yes"])


@pytest.fixture
def workdir(world, tmp_path):
    return shutil.copytree(world[1], tmp_path / "run")


def again(world, workdir, **options):
    return run(world[0], workdir, repeats=2, positive=["=yes"], **options)


def contents(workdir):
    return {name: (workdir / FOLDER / name).read_bytes() for name in NAMES}


def test_the_table_of_predictions_gives_the_metrics_again(world):
    _, workdir, (summary,) = world
    metrics = json.loads((workdir / FOLDER / "metrics.json").read_text())
    with (workdir / FOLDER / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == "bag label predicted p_no p_=yes n_instances repeat fold".split()
    assert len(rows) == 24 and {row["label"] for row in rows} == {"no", "'=yes"}
    lengths = {f"b{bag:02d}": str(1 + bag % 3) for bag in range(12)}
    areas, losses = [], []
    for repeat in "01":
        own = [row for row in rows if row["repeat"] == repeat]
        assert {row["bag"]: row["n_instances"] for row in own} == lengths
        assert sorted({row["fold"] for row in own}) == ["0", "1", "2"]
        labels = [row["label"] == "'=yes" for row in own]
        chances = np.array([[float(row[f"p_{name}"]) for name in ("no", "=yes")] for row in own])
        assert [row["predicted"] == "'=yes" for row in own] == (chances.argmax(1) == 1).tolist()
        areas.append(sklearn.metrics.roc_auc_score(labels, chances[:, 1]))
        losses.append(sklearn.metrics.log_loss(labels, chances))
    assert metrics["metrics"]["auroc"]["value"] == pytest.approx(np.mean(areas), rel=1e-14)
    assert metrics["metrics"]["log_loss"]["per_repeat"] == pytest.approx(losses, rel=1e-14)
    assert metrics["metrics"]["auroc"]["of"] == metrics["positive"] == "=yes"
    assert summary.auc == pytest.approx(metrics["metrics"]["auroc"]["value"], rel=1e-14)
    folds = {name for name in metrics["made_from"] if name.startswith("repeat")}
    assert len(folds) == 6 and metrics["made_from"]["resamples"] == 2000


def test_the_second_table_has_numbers_and_intervals(world):
    _, workdir, (summary,) = world
    metrics = json.loads((workdir / FOLDER / "metrics.json").read_text())["metrics"]
    text = (workdir / "table.md").read_text()
    assert text == report.table([summary])
    first, second = text.split("Out-of-fold: ")
    assert first.count("| own | MI-Kernel |") == second.count("| own | MI-Kernel |") == 1
    assert second.startswith(
        "all predictions of a repeat together, mean over repeats, with 95 % intervals from 2,000 "
        "resamples of bags.\n\n| data set | method | AUROC | AUPRC | balanced accuracy | log loss |\n"
    )
    cells = [
        f"{metrics[name]['value']:.3f} ({metrics[name]['interval'][0]:.3f} to "
        f"{metrics[name]['interval'][1]:.3f})"
        for name in ("auroc", "auprc", "balanced_accuracy", "log_loss")
    ]
    assert f"| own | MI-Kernel | {' | '.join(cells)} |\n" in second
    left_out = max(metrics[name]["left_out"] for name in ("auroc", "auprc", "balanced_accuracy"))
    assert left_out > 0
    assert f"in which a metric is not defined: up to {left_out} of own.\n" in second


def test_the_optimistic_rule_is_named_in_the_second_table(world, tmp_path):
    summaries = run(world[0], tmp_path, rules=["best_test_epoch"], resamples=0)
    second = report.table(summaries).split("Out-of-fold")[1]
    assert second.startswith(" (OPTIMISTIC): ") and "resamples" not in second
    assert " to " not in second.split("| --- |")[1]


def test_metrics_of_the_same_folds_are_read_again(world, workdir, monkeypatch):
    before = contents(workdir)
    monkeypatch.setattr(out_of_fold, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(curves, "draw", lambda *_: pytest.fail("drawn"))
    assert report.table(again(world, workdir)) == report.table(world[2])
    assert contents(workdir) == before


def test_a_finished_workdir_of_before_gets_them_without_training(world, workdir, monkeypatch):
    before = contents(workdir)
    for name in NAMES:
        (workdir / FOLDER / name).unlink()
    monkeypatch.setattr(classical_folds, "run", lambda *_, **__: pytest.fail("trained"))
    again(world, workdir)
    assert contents(workdir) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_made_again(world, workdir, name, monkeypatch, caplog):
    before = contents(workdir)
    path = workdir / FOLDER / name
    path.write_bytes(path.read_bytes()[:-9])
    monkeypatch.setattr(classical_folds, "run", lambda *_, **__: pytest.fail("trained"))
    again(world, workdir)
    assert contents(workdir) == before
    assert ("metrics.json cannot be read" in caplog.text) == (name == "metrics.json")


def test_another_number_of_resamples_or_repeats_makes_them_again(world, workdir):
    before = json.loads((workdir / FOLDER / "metrics.json").read_text())
    again(world, workdir, resamples=300)
    now = json.loads((workdir / FOLDER / "metrics.json").read_text())
    assert now["bootstrap"]["resamples"] == 300
    old, new = before["metrics"]["auroc"], now["metrics"]["auroc"]
    assert new["interval"] != old["interval"] and new["per_repeat"] == old["per_repeat"]
    run(world[0], workdir, repeats=1, positive=["=yes"])
    assert json.loads((workdir / FOLDER / "metrics.json").read_text())["repeats"] == 1


def test_where_nothing_can_be_written_they_are_only_computed(world, tmp_path):
    labels = np.arange(12) % 2
    bags = experiment_of(labels)
    folds, keywords = folds_of(bags, draw(labels)), {"title": "t", "resamples": 100, "seed": 0}
    found = metric_files.measure(bags, folds, {"bags": "x"}, tmp_path, writable=False, **keywords)
    assert not list(tmp_path.iterdir())
    written = metric_files.measure(bags, folds, {"bags": "x"}, tmp_path, writable=True, **keywords)
    assert {path.name for path in tmp_path.iterdir()} == set(NAMES)
    assert {**found, "curves_sha256": written["curves_sha256"]} == written
    read = metric_files.measure(bags, folds, {"bags": "x"}, tmp_path, writable=False, **keywords)
    assert read == written


def test_an_impossible_number_of_resamples_is_refused_first(world, tmp_path):
    with pytest.raises(UserError, match="the number of resamples of the bootstrap is 7, but"):
        run(world[0], tmp_path / "new", resamples=7)
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("drawn_curves")
def test_predictions_that_are_not_finite_are_empty_and_counted(world, tmp_path, monkeypatch):
    compute = classical_folds.run

    def compute_nan(*arguments, **options):
        results = compute(*arguments, **options)
        results[0].probabilities[0] = np.nan
        return results

    monkeypatch.setattr(classical_folds, "run", compute_nan)
    summaries = run(world[0], tmp_path)
    with pytest.raises(Incomplete):
        report.refuse_nonfinite(summaries)
    metrics = json.loads((tmp_path / FOLDER / "metrics.json").read_text())
    assert metrics["nonfinite"] == 3 and metrics["metrics"]["accuracy"]["value"] is None
    with (tmp_path / FOLDER / "predictions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["predicted"] == ""]
    assert len(rows) == 3 and {row["p_no"] for row in rows} == {""}
    assert "| own | MI-Kernel | - | - | - | - |" in report.table(summaries)
    with PIL.Image.open(tmp_path / FOLDER / "curves.png") as curves:
        assert curves.size == (1300, 360)


@pytest.mark.usefixtures("drawn_curves")
@pytest.mark.parametrize(("count", "positive"), [(2, 1), (2, None), (3, None), (9, None)])
def test_curves_are_drawn_for_any_classes(count, positive):
    labels = np.arange(45) % count
    bags = experiment_of(labels, folds=4)
    predictions = out_of_fold.gather(bags.splits, folds_of(bags, draw(labels)))
    names = ["a$x$", "\u4e2d" * 40, "\udcff\n\0", *"defghi"][:count]
    first, second = (curves.draw(predictions, names, positive, "\udcff, $x$") for _ in range(2))
    assert first == second and first.startswith(b"\x89PNG")


@pytest.mark.usefixtures("drawn_curves")
def test_a_repeat_with_one_class_and_one_class_alone_are_drawn():
    labels = np.arange(12) % 2
    bags = experiment_of(labels)
    predictions = list(out_of_fold.gather(bags.splits, folds_of(bags, draw(labels))))
    predictions[0].labels[:] = 0
    whole = curves.draw(predictions, ["no", "yes"], 1, "own")
    predictions[0].labels[:] = np.arange(12) % 2
    assert curves.draw(predictions, ["no", "yes"], 1, "own") != whole
    for one in predictions:
        object.__setattr__(one, "probabilities", np.ones((12, 1)))
    assert curves.draw(predictions, ["no"], None, "own").startswith(b"\x89PNG")
