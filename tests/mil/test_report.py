"""Summaries of folds, their records, and the tables that are made of them."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.files import records
from lossattn_jax.mil import methods, paper_table, report


def record(repeat, fold, labels, probabilities, rule="final", **values):
    """What `fold_results.read` gives of one fold with two classes."""
    predictions = [int(p > 0.5) for p in probabilities]
    right = [a == b for a, b in zip(labels, predictions, strict=True)]
    return {
        "dataset": "fox",
        "benchmark": "fox",
        "method": "mi_net",
        "rule": rule,
        "repeat": repeat,
        "fold": fold,
        "accuracy": sum(right) / len(right),
        "nonfinite": 0,
        "positive": "yes",
        "epoch": 3,
        "settings": {},
        "seconds": 2.0,
        "classes": ["no", "yes"],
        "bags": [
            {
                "id": f"b{place}",
                "label": label,
                "prediction": prediction,
                "probabilities": [1 - p, p],
                "weights": [0.25, 0.75],
            }
            for place, (label, prediction, p) in enumerate(
                zip(labels, predictions, probabilities, strict=True)
            )
        ],
        **values,
    }


# Accuracies 1/2, 1 | 1/2, 0; areas: of four pairs of repeat 0 four are in order, of repeat 1 one.
FOLDS = (
    record(0, 0, [0, 1], [0.6, 0.7]),
    record(0, 1, [0, 1], [0.1, 0.9], epoch=5),
    record(1, 0, [0, 1], [0.2, 0.3]),
    record(1, 1, [0, 1], [0.8, 0.1]),
)


def summary(dataset="fox", method="mi_net", rule="final", accuracy=0.5, spread=0.1):
    """Of a benchmark where the data set is called like one."""
    return report.Summary(
        *(dataset, method, rule, 4, accuracy, spread, 0.02, 0.6, 8.0, (0.5, 0.5), {"{}": 4}, {}),
        benchmark=dataset if dataset in methods.PAPER_BENCHMARKS else None,
    )


def test_the_positive_class_is_named():
    folds = [record(0, n, [0, 1], [0.6, 0.7], positive="yes") for n in range(2)]
    found = report.summarise(folds)
    assert found.positive == "yes" and report.as_record(found)["positive"] == "yes"
    assert report.from_record(json.loads(json.dumps(report.as_record(found)))).positive == "yes"
    of_numbers = report.summarise([record(0, 0, [0, 1], [0.6, 0.7], dataset="own", positive=1)])
    unknown = summary("toy")
    assert unknown.positive is None and report.as_record(unknown)["positive"] is None
    text = report.table([found, of_numbers, unknown])
    assert "Positive class: yes of fox, 1 of own.\n" in text
    assert "Positive" not in report.table([unknown])
    before = {k: v for k, v in report.as_record(unknown).items() if k != "positive"}
    assert report.from_record(before).positive is None


def test_folds_are_summed_up():
    found = report.summarise(FOLDS)
    assert (found.dataset, found.method, found.rule, found.folds) == ("fox", "mi_net", "final", 4)
    assert found.accuracy == 0.5
    assert found.over_folds == pytest.approx(math.sqrt(0.5 / 3))
    assert found.over_repeats == pytest.approx(math.sqrt(2 * 0.25**2))  # of 0.75 and 0.25
    assert found.standard_error == pytest.approx(math.sqrt(0.5 / 3) / 2)
    assert found.auc == pytest.approx((4 / 4 + 1 / 4) / 2)
    assert found.seconds == 8.0
    assert found.accuracies == (0.5, 1.0, 0.5, 0.0)
    assert found.settings == {"{}": 4}
    assert found.epochs == {"3": 3, "5": 1}


def test_one_repeat_has_no_spread_and_one_class_no_area(tmp_path):
    found = report.summarise([record(0, 0, [1, 1], [0.6, 0.7])])
    assert math.isnan(found.over_repeats) and math.isnan(found.auc)
    report.write_summary(found, tmp_path / "summary.json", {})
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["auc"] is None and stored["over_folds"] is None
    assert stored["standard_error"] is None
    assert "| fox | mi-Net | 1.000 | - | - | - | 0.613 | 2 s |" in report.table([found])


def test_a_record_is_read_as_it_was_written():
    found = report.summarise(FOLDS)
    stored = report.as_record(found)
    assert stored["paper"] == 0.613 and stored["optimistic"] is False
    again = report.from_record(json.loads(json.dumps(stored)))
    assert report.as_record(again) == stored
    with pytest.raises(KeyError):
        report.from_record({"dataset": "fox"})


def test_the_optimistic_rule_is_marked_wherever_it_is_printed():
    text = report.table([summary(), summary(rule="best_test_epoch", accuracy=0.75)])
    assert "| fox | mi-Net | 0.500 | " in text
    assert "| fox | mi-Net | 0.750 (optimistic) | " in text
    assert "Rule best_test_epoch: OPTIMISTIC" in text
    assert report.as_record(summary(rule="best_test_epoch"))["optimistic"] is True
    assert "OPTIMISTIC" in paper_table.markdown([summary(rule="best_test_epoch")])


def test_weights_have_a_row_for_each_instance(tmp_path):
    report.write_weights(FOLDS[:1], tmp_path / "weights.csv")
    with (tmp_path / "weights.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert rows[1] == {
        "repeat": "0",
        "fold": "0",
        "bag_id": "b0",
        "bag_label": "no",
        "prediction": "yes",
        "instance": "1",
        "weight": "0.75",
    }


def test_an_area_is_of_all_digits():
    """Three of four pairs are in order; with six digits all are ties, and the area is 1/2."""
    labels, chances = [0, 0, 1, 1], [0.99999991, 0.99999993, 0.99999992, 0.99999994]
    found = report.summarise([record(0, 0, labels, chances)])
    assert found.auc == roc_auc_score(labels, chances) == 0.75
    assert roc_auc_score(labels, np.round(chances, 6)) == 0.5


def test_an_area_of_three_classes_is_scikit_learns():
    random = np.random.default_rng(0)
    labels, chances = np.arange(12) % 3, random.dirichlet(np.ones(3) * 0.01, 12)
    fold = record(0, 0, labels.tolist(), [0.0] * 12)
    for bag, own in zip(fold["bags"], chances.tolist(), strict=True):
        bag["probabilities"] = own
    assert report.summarise([fold]).auc == roc_auc_score(labels, chances, multi_class="ovr")


def test_no_mean_is_taken_over_the_rest(tmp_path):
    lost = record(1, 0, [0, 1], [0.2, 0.3], accuracy=None, nonfinite=1)
    lost["bags"][1] |= {"probabilities": [None, None], "prediction": None, "weights": [None, 0.5]}
    folds = [*FOLDS[:2], lost, FOLDS[3]]
    found = report.summarise(folds)
    report.write_summary(found, tmp_path / "summary.json", {})
    stored = records.read(tmp_path / "summary.json").content
    for name in ("accuracy", "over_folds", "over_repeats", "standard_error", "auc"):
        assert stored[name] is None, name
    assert stored["accuracies"] == [0.5, 1.0, None, 0.0]
    assert (stored["nonfinite"], stored["nonfinite_folds"]) == (1, ["repeat1_fold0"])
    assert "| fox | mi-Net | - | - | - | - | 0.613 | 8 s |" in report.table([found])
    assert "| mi-Net | - / 0.613 |" in paper_table.markdown([found])
    assert report.as_record(report.from_record(stored)) == stored
    sentence = r"mi-Net on fox under the rule final, repeat1_fold0 \(1 bag\)"
    with pytest.raises(Incomplete, match=sentence):
        report.refuse_nonfinite([report.summarise(FOLDS), found])
    report.refuse_nonfinite([report.summarise(FOLDS)])
    report.write_weights([lost], tmp_path / "weights.csv")
    with (tmp_path / "weights.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["prediction"], row["weight"]) for row in rows[1:3]] == [("no", "0.75"), ("", "")]


def test_a_summary_has_all_digits_and_the_positive_class(tmp_path):
    found = report.summarise(FOLDS)
    report.write_summary(found, tmp_path / "summary.json", {})
    stored = records.read(tmp_path / "summary.json").content
    assert stored["over_folds"] == np.std([0.5, 1, 0.5, 0], ddof=1)
    assert stored["standard_error"] == stored["over_folds"] / 2
    assert stored["positive"] == "yes" and stored["benchmark"] == "fox"


def test_the_papers_layout_and_what_differs_from_it():
    text = paper_table.markdown(
        [
            summary("musk1", "mi_svm", accuracy=0.874),
            summary("fox", "mi_svm", accuracy=0.482),  # 2 standard errors of 0.05 below .582
            summary("fox", "loss_attention", accuracy=0.611),  # 2.02 below .712
            summary("own", "loss_attention", accuracy=0.9),
            summary("fox", "loss_attention", "best_test_epoch", accuracy=0.9),
        ]
    )
    final, optimistic = text.split("\n## Rule `best_test_epoch`")
    assert final == (
        "## Rule `final`: the last epoch, and default settings\n\n"
        "| method | MUSK1 | FOX | OWN |\n"
        "| --- | --- | --- | --- |\n"
        "| mi-SVM | 0.874 (0.020) / 0.874 | 0.482 (0.020) / 0.582 | - |\n"
        "| Loss-Attention | - / 0.917 | 0.611 (0.020) / 0.712 | 0.900 (0.020) |\n\n"
        "Cells further than 2 standard errors from the paper: 1, 0 of them above.\n\n"
        "- Loss-Attention on FOX: -0.101, 0.611 with a standard error of 0.050; "
        "0.900 under `best_test_epoch` (optimistic).\n"
    )
    # Of the optimistic rule no cell is explained, only counted.
    assert optimistic.endswith("from the paper: 1, 1 of them above.\n")
    close = paper_table.markdown([summary("musk1", "mi_svm", accuracy=0.874)])
    assert "from the paper: 0, 0 of them above." in close


def test_other_data_sets_follow_the_papers_in_order_of_numbers():
    names = ("mnist_bags_100", "own", "mnist_bags_50", "7", "fox")
    header = paper_table.markdown([summary(name) for name in names]).splitlines()[2]
    assert header == "| method | FOX | 7 | MNIST_BAGS_50 | MNIST_BAGS_100 | OWN |"


def test_runs_are_put_together_in_the_papers_order(tmp_path):
    for folder, one in (
        ("a/fox/attention/final", summary("fox", "attention")),
        ("a/fox/attention/best", summary("fox", "attention", "best_test_epoch")),
        ("b/musk1/attention/final", summary("musk1", "attention")),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        report.write_summary(one, tmp_path / folder / "summary.json", {})
    old = tmp_path / "old.json"
    old.write_text(json.dumps([report.as_record(summary("fox", "em_dd"))]))
    runs = [str(tmp_path / name) for name in ("a", "b", "old.json")]
    table, stored = tmp_path / "out" / "t.md", tmp_path / "out" / "t.json"
    found = paper_table.write(runs, str(table), str(stored))
    assert [(s.dataset, s.method, s.rule) for s in found] == [
        ("musk1", "attention", "final"),
        ("fox", "em_dd", "final"),
        ("fox", "attention", "final"),
        ("fox", "attention", "best_test_epoch"),
    ]
    assert table.read_text() == paper_table.markdown(found)
    marked = [paper_table.AUC_ROUNDED in entry for entry in json.loads(stored.read_text())]
    assert marked == [False, True, False, False]
    # What it wrote is a run again, and the same one.
    assert paper_table.collect([str(stored)]) == found
    with pytest.raises(UserError, match="attention on musk1 under the rule final, which another"):
        paper_table.collect([runs[1], str(stored)])


def area(value, interval):
    """What `metrics.json` has of areas under the ROC curve."""
    metric = {
        "value": value,
        "undefined": None,
        "interval": interval,
        "left_out": 0,
        "title": "AUROC",
    }
    return {
        "bootstrap": {"resamples": 20, "of": "groups", "groups": 9},
        "metrics": {"auroc": metric | {"per_repeat": [value]}},
    }


def test_tables_have_intervals_of_areas(tmp_path, caplog):
    inputs = {"bags": "b", "repeat0_fold0": "f"}
    for method, inputs_of_metrics in (
        ("attention", {**inputs, "resamples": 20}),
        ("mi_net", {"bags": "b", "repeat0_fold0": "another"}),
    ):
        folder = tmp_path / "run" / method
        folder.mkdir(parents=True)
        report.write_summary(summary("fox", method), folder / "summary.json", inputs)
        records.write(folder / "metrics.json", area(0.9, [0.8, 0.95]), inputs_of_metrics)
    table, stored = tmp_path / "t.md", tmp_path / "t.json"
    paper_table.write([str(tmp_path / "run")], str(table), str(stored))
    # Metrics of other folds are left out, with a warning.
    assert "mi_net/metrics.json is of other folds than summary.json" in caplog.text
    text = table.read_text()
    assert "(95 % interval of a bootstrap over groups)" in text
    assert text.count("| Attention | 0.900 (0.800 to 0.950) |") == 1
    assert text.count("| mi-Net |") == 1
    # The record has them without repeats, and gives the same table again.
    of_attention = json.loads(stored.read_text())[1]["out_of_fold"]["metrics"]["auroc"]
    assert of_attention == {"value": 0.9, "undefined": None, "interval": [0.8, 0.95], "left_out": 0}
    again = tmp_path / "again.json"
    paper_table.write([str(stored)], str(tmp_path / "again.md"), str(again))
    assert (tmp_path / "again.md").read_text() == text
    assert again.read_text() == stored.read_text()
    # A damaged file is named, and the summary stays.
    (tmp_path / "run" / "attention" / "metrics.json").write_text("{")
    caplog.clear()
    summaries = paper_table.collect([str(tmp_path / "run")])
    assert "attention/metrics.json" in caplog.text and not any(one.out_of_fold for one in summaries)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist"),
        ("{", "cannot be read"),
        ("3", "cannot be read"),
        ('[{"dataset": "fox"}]', "cannot be read"),
        ("[]", "is not a workdir of lossattn_jax.mil"),
    ],
)
def test_what_is_no_run_is_named(tmp_path, content, sentence):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"run.json .*{sentence}"):
        paper_table.collect([str(path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no summary.json"):
        paper_table.collect([str(tmp_path / "empty")])


@pytest.mark.parametrize(
    ("paper", "cells"),
    [
        ((), ("0.500 (0.020) / -", "0.500 (0.020) / -", "0.500 (0.020)")),
        ((0.9,), ("0.500 (0.020) / 0.900", "0.500 (0.020) / -", "0.500 (0.020)")),
        ((0.9, None, 0.6), ("0.500 (0.020) / 0.900", "0.500 (0.020) / 0.600", "0.500 (0.020)")),
    ],
)
def test_a_method_without_figures_of_the_paper_has_a_dash(monkeypatch, tmp_path, paper, cells):
    row = dataclasses.replace(methods.get("mi_net"), title="Ours", paper=paper)
    monkeypatch.setitem(methods.METHODS._parts, "mi_net", row)
    own = [summary(dataset) for dataset in ("musk1", "fox", "mnist_bags_50")]
    assert f"| Ours | {' | '.join(cells)} |" in paper_table.markdown(own)
    printed = "-" if len(paper) < 3 else "0.600"
    assert f"| fox | Ours | 0.500 | 0.100 | 0.020 | 0.600 | {printed} | 8 s |" in report.table(own)
    report.write_summary(own[1], tmp_path / "summary.json", {})
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["paper"] == (None if len(paper) < 3 else 0.6)


def test_more_figures_than_data_sets_are_refused():
    with pytest.raises(
        ValueError, match="Ours has 6 accuracies of the paper, but may have one for"
    ):
        methods.Method("Ours", None, (0.5,) * 6)
    assert methods.Method("Ours", None).paper_accuracy("fox") is None
