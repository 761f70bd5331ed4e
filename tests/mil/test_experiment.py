"""The command's own work: files, resuming, rules, generated bags."""

import csv
import json
import pathlib

import numpy as np
import pytest

from benchmarks import shipped_configs
from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import bag_files, sources
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.columns import Choice
from lossattn_jax.data.bags.splits import cross_validation
from lossattn_jax.errors import UserError
from lossattn_jax.files import records
from lossattn_jax.mil import experiment, lambda_sweep, network_folds
from lossattn_jax.mil.selection import RULES, Validation
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags.settings import Settings
from reliability import in_process


def toy(bags=12, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(bags) % 2
    made = [random.normal(label, 1.0, (1 + i % 3, 3)) for i, label in enumerate(labels)]
    return BagDataset.from_bags(made, labels, name="toy")


@pytest.fixture
def own_csv(tmp_path):
    path = tmp_path / "own.csv"
    bag_files.write_csv(toy(), path)
    return str(path)


def small(**changes):
    config = config_lib.default_config()
    config.folds, config.repeats = 2, 1
    config.train.epochs = 2
    config.model.hidden = (4, 4, 4)
    config.train.max_waste = 3.0
    for key, value in changes.items():
        config[key] = value
    return config


@pytest.mark.slow
def test_a_run_writes_every_fold_and_goes_on_where_it_stopped(own_csv, tmp_path):
    names, workdir = ("mi_kernel", "loss_attention"), tmp_path / "run"
    first = experiment.run([own_csv], names, ["all"], small(), str(workdir), "nowhere")
    assert [(s.method, s.rule) for s in first] == [(n, r) for n in names for r in RULES]
    folder = workdir / "own" / "loss_attention"
    fold = folder / "final" / "repeat0_fold1.json"
    record = json.loads(fold.read_text())
    assert record["epoch"] == 2 and not record["optimistic"]
    assert len(record["bags"]) == 6 and len(record["test_accuracies"]) == 2
    right = [bag["prediction"] == bag["label"] for bag in record["bags"]]
    assert record["accuracy"] == np.mean(right)
    for bag in record["bags"]:
        assert abs(sum(bag["weights"]) - 1) < 1e-5 and abs(sum(bag["probabilities"]) - 1) < 1e-5
    assert json.loads((folder / "best_test_epoch" / "summary.json").read_text())["optimistic"]
    with (folder / "final" / "instance_weights.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and {row["fold"] for row in rows} == {"0", "1"}
    table = (workdir / "table.md").read_text()
    assert table.count("(optimistic)") == 2 and "OPTIMISTIC" in table

    kept = folder / "final" / "repeat0_fold0.json"
    before, stamp, text = kept.read_text(), kept.stat().st_mtime_ns, fold.read_text()
    fold.unlink()
    again = experiment.run([own_csv], names, ["final"], small(), str(workdir), "nowhere")
    assert json.loads(fold.read_text())["bags"] == json.loads(text)["bags"]
    assert kept.read_text() == before and kept.stat().st_mtime_ns == stamp
    assert again[1].accuracies == first[3].accuracies


def test_a_classical_run_goes_on_where_it_stopped(own_csv, tmp_path):
    def run():
        return experiment.run([own_csv], ["mi_graph"], ["all"], small(), str(tmp_path), "nowhere")

    first, folder = run(), tmp_path / "own" / "mi_graph" / "validation"
    kept, lost = folder / "repeat0_fold0.json", folder / "repeat0_fold1.json"
    stamp, record = kept.stat().st_mtime_ns, json.loads(lost.read_text())
    lost.unlink()
    assert [s.accuracies for s in run()] == [s.accuracies for s in first]
    assert kept.stat().st_mtime_ns == stamp
    again = json.loads(lost.read_text())
    times = {key: again[key] for key in ("seconds", "digest")}  # the digest is of the times as well
    assert again == {**record, **times}
    table = (tmp_path / "table.md").read_text()
    assert table.count("(optimistic)") == 1 and "OPTIMISTIC" in table


def test_another_config_is_refused_in_the_same_workdir(own_csv, tmp_path):
    experiment.run([own_csv], ["mi_kernel"], ["final"], small(), str(tmp_path), "nowhere")
    with pytest.raises(UserError, match="config.seed is 1, but the run in .* has 0"):
        experiment.run([own_csv], ["mi_kernel"], ["final"], small(seed=1), str(tmp_path), "nowhere")
    more = experiment.run(
        [own_csv], ["mi_kernel"], ["final"], small(repeats=2), str(tmp_path), "nowhere"
    )
    assert more[0].folds == 4


@pytest.mark.slow
def test_test_bags_choose_nothing_but_under_the_optimistic_rule():
    dataset, settings = toy(), Settings(epochs=4, learning_rate=0.05, max_waste=3.0)
    network = BagNetwork(2, hidden=(4, 4, 4))
    splits = cross_validation(dataset, 2, 1, seed=0)[:1]
    test = splits[0].test
    other = BagDataset.from_bags(
        dataset.bags, np.where(test, 1 - dataset.labels, dataset.labels), name="toy"
    )
    validation = Validation(0.4, 1, {"learning_rate": (0.001,)})
    results = [
        network_folds.run(
            data, splits, network, settings, rules=tuple(RULES), validation=validation
        )
        for data in (dataset, other)
    ]
    for one, two in zip(*results, strict=True):
        if one.rule != "best_test_epoch":
            assert (one.epoch, one.settings) == (two.epoch, two.settings)
            np.testing.assert_array_equal(one.probabilities, two.probabilities)
        np.testing.assert_allclose(one.accuracies, 1 - two.accuracies)
    best = results[0][list(RULES).index("best_test_epoch")]
    labels = dataset.labels[test]
    assert np.mean(best.probabilities.argmax(1) == labels) == best.accuracies.max()


@pytest.mark.parametrize(
    ("dataset", "names", "rules", "sentence"),
    [
        ("musk3", ["mi_kernel"], ["final"], "the data set of bags 'musk3' is not known"),
        ("musk1", ["svm"], ["final"], "method is 'svm', but must be one of"),
        ("musk1", ["mi_kernel"], ["best"], "the rule 'best' is not known"),
        ("musk1", ["mi_kernel"], ["final"], "musk1 is not in nowhere"),
    ],
)
def test_mistakes_are_named(tmp_path, dataset, names, rules, sentence):
    with pytest.raises(UserError, match=sentence):
        experiment.run([dataset], names, rules, small(), str(tmp_path), "nowhere")


def worded(folder, name, words):
    """A file of the toy's bags with words for the two classes."""
    plain = toy()
    path = folder / f"{name}.csv"
    made = BagDataset.from_bags(plain.bags, np.array(list(words))[plain.labels])
    bag_files.write_csv(made, path)
    return str(path)


def test_unequal_methods_are_refused_before_the_first_fold(own_csv, tmp_path):
    files = [own_csv, worded(tmp_path, "a", ("healthy", "cancer"))]
    files.append(worded(tmp_path, "b", ("b", "a")))
    names, workdir = ["mi_kernel", "mi_svm", "em_dd"], tmp_path / "run"
    with pytest.raises(UserError) as caught:
        experiment.run(files, names, ["final"], small(), str(workdir), "nowhere")
    assert str(caught.value) == (
        "which class is positive is not known of a ('cancer' or 'healthy'), b ('a' or 'b'), but mi_svm, "
        "em_dd treat the positive class unlike the other; name it with --positive=WORD[,WORD...], one word "
        "for each data set, or leave these methods out"
    )
    assert not workdir.exists()
    for words, sentence in (
        (["cancer", "a"], "positive names 'cancer', 'a', of which none is a class of own, '0' or"),
        (["1", "cancer", "healthy", "a"], "of which both are a class of a, 'cancer' or 'healthy'"),
    ):
        with pytest.raises(UserError, match=sentence):
            experiment.run(
                files, names, ["final"], small(), str(workdir), "nowhere", positive=words
            )
    found = experiment.run(files[1:], names[:1], ["final"], small(), str(workdir), "nowhere")
    assert [one.dataset for one in found] == ["a", "b"]


@pytest.mark.slow
def test_class_words_change_no_result_once_positive_is_known(own_csv, tmp_path, caplog):
    caplog.set_level("INFO")
    files = [own_csv, *(worded(tmp_path, n, w) for n, w in (("ab", "ab"), ("ba", "ba")))]
    names = ["mi_svm", "mi_svm_bag", "em_dd", "mi_graph"]
    summaries = []
    for path, words in zip(files, ([], ["b"], ["x", "a"]), strict=True):
        folder = str(tmp_path / pathlib.Path(path).stem)
        summaries += experiment.run(
            [path], names, ["all"], small(), folder, "nowhere", positive=words
        )
        record = pathlib.Path(folder, pathlib.Path(path).stem, "mi_svm/final/repeat0_fold0.json")
        assert json.loads(record.read_text())["classes"][1] == (words or ["1"])[-1]
    count = len(summaries) // 3
    for place, one in enumerate(summaries[:count]):
        for other in summaries[place + count :: count]:
            assert (one.method, one.accuracies) == (other.method, other.accuracies)
            assert one.auc == other.auc
    assert "ba: 12 bags of 1 to 3 instances, 24 in all, 2 classes (positive: a)" in caplog.text


def test_words_for_more_than_two_classes_are_not_used_silently(tmp_path, caplog):
    path = tmp_path / "grades.csv"
    bags = [np.full((1, 1), number, float) for number in range(6)]
    bag_files.write_csv(BagDataset.from_bags(bags, ["low", "middle", "high"] * 2), path)
    experiments = sources.experiments(str(path), "nowhere", small(), positive=["high"])
    assert next(iter(experiments)).dataset.positive is None
    assert "grades: --positive names no class of it, for it has 3 classes" in caplog.text


@pytest.mark.slow
def test_words_for_classes_change_no_result_of_equal_methods(own_csv, tmp_path):
    files = [own_csv, *(worded(tmp_path, n, w) for n, w in (("ab", "ab"), ("ba", "ba")))]
    names = ["mi_kernel", "mi_vlad"]
    config = small(folds=3)
    summaries = experiment.run(files, names, ["all"], config, str(tmp_path / "run"), "nowhere")
    count = len(summaries) // 3
    assert count == len(names) * len(RULES)
    for place, one in enumerate(summaries[:count]):
        for other in summaries[place + count :: count]:
            assert (one.method, one.rule) == (other.method, other.rule)
            assert (one.accuracies, one.settings, one.auc) == (
                other.accuracies,
                other.settings,
                other.auc,
            )
    weights = [
        (tmp_path / "run" / name / "mi_kernel/validation/instance_weights.csv").read_text()
        for name in ("ab", "ba")
    ]
    swapped = str.maketrans("ab", "ba")
    rows = [text.splitlines()[1:] for text in weights]
    assert [row.translate(swapped) for row in rows[0]] == rows[1]


def test_choices_of_features_reach_the_files(own_csv, digits, tmp_path):
    def run(dataset, choice):
        return experiment.run(
            [dataset], ["mi_graph"], ["final"], small(), str(tmp_path / "x"), digits, choice=choice
        )

    with pytest.raises(UserError, match="--ignore has 'g', which is no column of .*own.csv"):
        run(own_csv, Choice(ignore=("g",)))
    for name in ("musk1", "mnist_bags"):
        with pytest.raises(UserError, match=f"choose columns of files of bags, but {name} is none"):
            run(name, Choice(("f0",)))
    with pytest.raises(UserError, match="positive names '2', of which none is a class of mnist_b"):
        next(iter(sources.experiments("mnist_bags", digits, small(), positive=["2"])))


@pytest.fixture
def digits(tmp_path):
    random = np.random.default_rng(0)
    labels = np.arange(140) % 10
    images = random.integers(0, 60, (140, 28, 28), np.uint8)
    images[labels == 9, 8:20, 8:20] = 250
    path = tmp_path / "digits.npz"
    np.savez(path, image=images, label=labels)
    return str(path)


@pytest.mark.slow
def test_lambdas_are_measured_on_generated_bags(digits, tmp_path):
    config = shipped_configs.load("mil_mnist.py").get_config("multi")
    config.repeats, config.train.epochs, config.model.hidden = 2, 2, (8,)
    config.bags.train, config.bags.test, config.bags.mean_length = (6,), 6, 3
    told = lambda_sweep.run(config, str(tmp_path / "run"), digits, lambdas=(0.0, 1.0))
    folder = tmp_path / "run" / "mnist_bags_6"
    assert records.read(folder / "lambdas.json").content == told["mnist_bags_6"]
    measured = told["mnist_bags_6"]["lambdas"]
    assert list(measured) == ["0", "1"]
    assert measured["1"]["scaled"]["recall"]["runs"] == [2] * 9
    assert 0 <= measured["0"]["bag"]["accuracy"]["mean"] <= 1
    for name in ("thresholds", "thresholds_scaled", "lambdas", "bag"):
        assert (folder / f"{name}.png").stat().st_size > 1000
    with pytest.raises(UserError, match="mi_kernel takes vectors"):
        experiment.run(
            ["mnist_bags"], ["mi_kernel"], ["final"], config, str(tmp_path / "x"), digits
        )


@pytest.mark.usefixtures("drawn_curves")
def test_the_command_runs_from_flags_to_table(own_csv, tmp_path):
    flags = ["-m", "lossattn_jax.mil", f"--dataset={own_csv}", "--method=mi_graph"]
    flags += [f"--workdir={tmp_path / 'run'}"]
    more = ["--folds=3", "--repeats=1", "--config.validation.share=0.3"]
    finished = in_process.run([*flags, *more, "--select=final,validation"], tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "| own | mi-Graph | " in finished.stdout and "optimistic" not in finished.stdout
    stored = config_lib.read(tmp_path / "run" / "config.json")
    assert (stored.folds, stored.repeats, stored.validation.share) == (3, 1, 0.3)
    wrong = in_process.run([*flags, "--config.epochs=3"], tmp_path)
    assert wrong.returncode == 2 and "config.epochs is not a config key" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_the_command_takes_words_and_columns(run_python, tmp_path):
    path = worded(tmp_path, "own", ("healthy", "cancer"))
    flags = ["-m", "lossattn_jax.mil", f"--dataset={path}", "--method=mi_svm", "--folds=2"]
    flags += ["--repeats=1", f"--workdir={tmp_path / 'run'}"]
    finished = run_python(*flags, "--positive=tumor,cancer", "--features=f*", "--ignore=f1")
    assert finished.returncode == 0, finished.stderr
    assert "2 features, from 'f0' to 'f2'" in finished.stderr
    assert "columns of numbers not taken: 'f1'" in finished.stderr
    assert "2 classes (positive: cancer)" in finished.stderr
    wrong = run_python(*flags)
    assert wrong.returncode == 2 and "--positive=WORD" in wrong.stderr
