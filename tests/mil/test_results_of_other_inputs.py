"""Results are gone on with only where they were made from the same data, split, method and config."""

import gzip
import json
import pathlib
import shutil

import numpy as np
import pytest

from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import benchmarks, sources
from lossattn_jax.data.bags.benchmarks import Benchmark, feature_moments, lengths_digest
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.files import records
from lossattn_jax.mil import experiment, lambda_sweep, paper_table

CASES = pathlib.Path(__file__).parents[3] / "shared" / "cases"


def write_bags(path, bags=12, seed=0, shift=3.0):
    """CSV of bags that are told apart easily with a shift, and not at all without; returns the path."""
    random = np.random.default_rng(seed)
    lines = ["bag_label,bag_id,f0,f1"]
    for bag in range(bags):
        for _ in range(1 + bag % 3):
            first, second = random.normal(shift * (bag % 2), 1.0, 2)
            lines.append(f"{bag % 2},b{bag:02d},{first:.4f},{second:.4f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def run(paths, workdir, method="mi_kernel", rules=("final",), data_dir="nowhere", **changes):
    config = config_lib.default_config()
    config.folds, config.repeats = 3, 1
    for key, value in changes.items():
        config[key] = value
    names = [str(path) for path in paths]
    return experiment.run(names, [method], rules, config, str(workdir), data_dir)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def own(tmp_path):
    """A file of bags, and a workdir with its results."""
    path, workdir = write_bags(tmp_path / "own.csv"), tmp_path / "run"
    run([path], workdir)
    return path, workdir


def refused(sentence, paths, workdir, **options):
    """Nothing is computed or written where a run is refused."""
    before = files(workdir)
    with pytest.raises(UserError, match=sentence):
        run(paths, workdir, **options)
    assert files(workdir) == before


def test_two_files_of_one_name_have_their_own_numbers(tmp_path):
    paths = [
        write_bags(tmp_path / "a" / "own.csv"),
        write_bags(tmp_path / "b" / "own.csv", shift=0.0),
    ]
    alone = [run([path], tmp_path / str(place))[0] for place, path in enumerate(paths)]
    both = run(paths, tmp_path / "both")
    assert [one.accuracies for one in both] == [one.accuracies for one in alone]
    assert both[0].accuracies != both[1].accuracies
    folders = {path.name for path in (tmp_path / "both").iterdir() if path.is_dir()}
    assert len(folders) == 2 and folders == {one.dataset for one in both}
    config = config_lib.default_config()
    config.folds = 2
    digests = [sources.experiments(str(path), "", config)[0].digest for path in paths]
    assert [one.dataset for one in both] == [f"own-{digest[:8]}" for digest in digests]
    table = (tmp_path / "both" / "table.md").read_text()
    assert all(f"| {one.dataset} |" in table for one in both)
    # In the other order, each finds its own again.
    stamps = files(tmp_path / "both")
    again = run(paths[::-1], tmp_path / "both")
    assert [one.accuracies for one in again] == [one.accuracies for one in both[::-1]]
    same = [name for name in stamps if "fold" in name]
    assert [stamps[name] for name in same] == [files(tmp_path / "both")[name] for name in same]


def test_the_same_bags_twice_are_computed_once(own, tmp_path, caplog):
    path, _ = own
    packed = tmp_path / "own.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with caplog.at_level("INFO", logger="lossattn_jax"):
        (summary,) = run([path, packed, path], tmp_path / "once")
    assert summary.dataset == "own" and (tmp_path / "once" / "own").is_dir()
    assert "own.csv.gz has the bags that own has already: computed once" in caplog.text
    # One after the other they are the same data as well.
    assert run([packed], tmp_path / "once")[0].seconds == summary.seconds


@pytest.mark.parametrize("ending", ["own.csv", "own.csv.gz"])
def test_other_bags_of_the_name_are_refused(own, tmp_path, ending):
    _, workdir = own
    other = write_bags(tmp_path / "b" / "own.csv", seed=1)
    if ending.endswith(".gz"):
        packed = other.with_name(ending)
        packed.write_bytes(gzip.compress(other.read_bytes()))
        other = packed
    refused(f"{workdir}/own/mi_kernel/final/.*other instances.*another workdir", [other], workdir)


def without_data_record(workdir):
    """As workdirs were before folders of data sets said of which bags they are."""
    (workdir / "own" / "data.json").unlink()


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda workdir: None, "own/data.json was made from other inputs .*other instances"),
        (lambda workdir: shutil.rmtree(workdir / "own" / "mi_kernel"), "own/data.json was made"),
        (without_data_record, "mi_kernel/final/repeat0_fold0.json was made .*other instances"),
        (
            lambda workdir: (workdir / "own" / "data.json").write_text("{"),
            "mi_kernel/final/repeat0_fold0.json was made .*other instances",
        ),
    ],
)
def test_other_methods_and_rules_are_for_the_same_bags(own, tmp_path, prepare, sentence):
    _, workdir = own
    other = write_bags(tmp_path / "b" / "own.csv", seed=1)
    prepare(workdir)
    refused(sentence, [other], workdir, method="mi_graph")
    refused(sentence, [other], workdir, rules=("best_test_epoch",), method="mi_graph", repeats=2)


def test_a_summary_alone_says_which_bags_a_folder_is_of(own, tmp_path):
    path, workdir = own
    without_data_record(workdir)
    for fold in (workdir / "own").rglob("repeat*.json"):
        fold.unlink()
    other = write_bags(tmp_path / "b" / "own.csv", seed=1)
    refused("summary.json was made from other inputs .*other bags", [other], workdir)
    assert run([path], workdir, method="mi_graph")[0].folds == 3


def test_bags_may_change_where_a_run_stopped_before_any_fold(tmp_path, monkeypatch):
    first, workdir = write_bags(tmp_path / "a" / "own.csv"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(experiment.cross_validation, "run", lambda *_, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run([first], workdir)
    assert run([write_bags(tmp_path / "own.csv", seed=1)], workdir)[0].folds == 3
    refused("own/data.json was made", [first], workdir, method="mi_graph")


@pytest.mark.parametrize("prepare", [lambda workdir: None, without_data_record])
def test_other_methods_rules_and_repeats_resume_on_the_same_bags(own, prepare):
    path, workdir = own
    prepare(workdir)
    before = files(workdir / "own" / "mi_kernel")
    assert run([path], workdir, method="mi_graph", rules=("final", "best_test_epoch"))[1].folds == 3
    assert files(workdir / "own" / "mi_kernel") == before
    assert records.read(workdir / "own" / "data.json").content == {"dataset": "own"}
    assert run([path], workdir, repeats=2)[0].folds == 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("b03,", "b03,9"), "other instances"),
        (lambda text: text.replace("1,b03,", "0,b03,"), "other bag labels"),
        (lambda text: text.replace("b03", "c03"), "other bag ids"),
        (lambda text: text.replace("\n1,", "\nyes,").replace("\n0,", "\nno,"), "classes"),
        (lambda text: text + "".join(f"{n % 2},z{n},1,{n}\n" for n in range(6)), "other instances"),
    ],
)
def test_an_edited_file_is_refused_also_half_done(own, change, reason):
    path, workdir = own
    folder = workdir / "own" / "mi_kernel" / "final"
    for name in ("repeat0_fold0.json", "repeat0_fold2.json", "summary.json"):
        (folder / name).unlink()
    path.write_text(change(path.read_text()))
    refused(f"repeat0_fold1.json was made from other inputs .*{reason}", [path], workdir)


def test_refusals_come_before_other_data_sets_are_computed(own, tmp_path):
    path, workdir = own
    new = write_bags(tmp_path / "new.csv")
    write_bags(path, seed=1)
    refused("/own/mi_kernel/final/", [new, path], workdir)
    refused("cannot be read|does not exist", [new, tmp_path / "absent.csv"], workdir)


def test_other_configs_and_splits_are_refused_without_the_config(own):
    path, workdir = own
    (workdir / "config.json").unlink()
    refused("config.folds 3 instead of 4", [path], workdir, folds=4)
    refused("config.seed 0 instead of 1", [path], workdir, seed=1)
    assert run([path], workdir, repeats=2)[0].folds == 6


def test_a_run_resumes_at_absent_folds_and_takes_more_repeats(own):
    path, workdir = own
    folder = workdir / "own" / "mi_kernel" / "final"
    first, before = run([path], workdir), files(folder)
    (folder / "repeat0_fold1.json").unlink()
    (folder / "summary.json").unlink()
    assert run([path], workdir)[0].accuracies == first[0].accuracies
    more = run([path], workdir, repeats=2)
    assert more[0].accuracies[:3] == first[0].accuracies
    after = files(folder)
    assert after["repeat0_fold0.json"] == before["repeat0_fold0.json"]
    made_from = records.read(folder / "summary.json").made_from
    folds = [f"repeat{repeat}_fold{fold}" for repeat in range(2) for fold in range(3)]
    assert list(made_from) == ["bags", *folds]
    for name in folds:
        assert made_from[name] == json.loads((folder / f"{name}.json").read_text())["digest"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"accuracy": ', '"accuracy": 0', 1),
        lambda text: text.replace('"prediction": 1', '"prediction": 0', 1),
        lambda text: "[]",
    ],
)
def test_a_damaged_fold_is_made_again_with_a_warning(own, damage, caplog):
    path, workdir = own
    fold = workdir / "own" / "mi_kernel" / "final" / "repeat0_fold1.json"
    before = json.loads(fold.read_text())
    fold.write_text(damage(fold.read_text()))
    run([path], workdir)
    assert json.loads(fold.read_text())["bags"] == before["bags"]
    assert f"{fold} " in caplog.text and "it is made again" in caplog.text


def test_a_fold_that_lacks_a_part_is_made_again(own, caplog):
    path, workdir = own
    fold = workdir / "own" / "mi_kernel" / "final" / "repeat0_fold1.json"
    whole = records.read(fold)
    for content in (
        {key: value for key, value in whole.content.items() if key != "accuracy"},
        {**whole.content, "bags": whole.content["bags"][:-1]},
    ):
        records.write(fold, content, whole.made_from)
        run([path], workdir)
        assert records.read(fold).content["bags"] == whole.content["bags"]
    assert caplog.text.count(f"{fold} lacks a part of a fold; it is made again") == 2


def as_before_digests(path):
    content = json.loads(path.read_text())
    for key in ("made_from", "digest", "benchmark", "positive", "nonfinite", "nonfinite_folds"):
        content.pop(key, None)
    path.write_text(json.dumps(content))


def test_what_has_no_digest_is_reported_but_not_resumed(own, caplog):
    path, workdir = own
    expected = paper_table.collect([str(workdir)])
    assert not caplog.records
    for file in (workdir / "own").rglob("*.json"):
        as_before_digests(file)
    assert paper_table.collect([str(workdir)])[0].accuracies == expected[0].accuracies
    assert "1 of 1 summaries from before there were digests" in caplog.text
    refused("repeat0_fold0.json was written before results carried digests", [path], workdir)


def test_a_damaged_summary_is_no_report(own, tmp_path):
    _, workdir = own
    summary = workdir / "own" / "mi_kernel" / "final" / "summary.json"
    changed = json.loads(summary.read_text()) | {"accuracy": 0.999}
    summary.write_text(json.dumps(changed))
    with pytest.raises(UserError, match=f"{summary} is not as it was written"):
        paper_table.collect([str(workdir)])
    table = tmp_path / "t.json"
    table.write_text(json.dumps([changed]))
    with pytest.raises(UserError, match=f"a summary in {table} is not as it was written"):
        paper_table.collect([str(table)])


def test_reports_tell_data_sets_of_one_name_apart(own, tmp_path):
    write_bags(tmp_path / "b" / "own.csv", shift=0.0)
    run([tmp_path / "b" / "own.csv"], tmp_path / "other", method="mi_graph")
    runs = [str(own[1]), str(tmp_path / "other")]
    found = paper_table.write(runs, str(tmp_path / "t.md"), str(tmp_path / "t.json"))
    names = {summary.method: summary.dataset for summary in found}
    assert len(set(names.values())) == 2 and all(len(name) == 12 for name in names.values())
    assert paper_table.collect([str(tmp_path / "t.json")]) == found


def toy_benchmark(path):
    """The fox of these tests: the bags of a file."""
    dataset = sources.experiments(str(path), "", config_lib.default_config())[0].dataset
    return Benchmark(
        *("fox", 20, len(dataset.instances), 2, 10, "", (), lengths_digest(dataset)),
        moments=tuple(feature_moments(dataset)),
    )


@pytest.fixture
def fox(tmp_path, monkeypatch):
    """The folder of a benchmark."""
    path = write_bags(tmp_path / "data" / "fox.csv", bags=20)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "fox", toy_benchmark(path))
    return path.parent


def test_papers_figures_belong_to_a_benchmark_not_to_its_name(fox, tmp_path):
    (named,) = run(["fox"], tmp_path / "named", data_dir=str(fox))
    assert (named.benchmark, named.paper) == ("fox", 0.603)
    folder = tmp_path / "named" / "fox" / "mi_kernel" / "final"
    assert json.loads((folder / "summary.json").read_text())["paper"] == 0.603
    assert json.loads((folder / "repeat0_fold0.json").read_text())["benchmark"] == "fox"

    own = write_bags(tmp_path / "own" / "fox.csv", bags=20, shift=1.0)
    (other,) = run([own], tmp_path / "own")
    assert (other.benchmark, other.paper) == (None, None)
    stored = json.loads((tmp_path / "own" / "fox" / "mi_kernel/final/summary.json").read_text())
    assert stored["paper"] is None and stored["benchmark"] is None
    assert "| fox | MI-Kernel | " in (tmp_path / "own" / "table.md").read_text()
    assert "0.603" not in (tmp_path / "own" / "table.md").read_text()
    assert "0.603" not in paper_table.markdown([other])
    refused("benchmark 'fox' instead of None", [fox / "fox.csv"], tmp_path / "named")


def test_a_benchmark_and_an_own_file_of_its_name_are_two(fox, tmp_path):
    both = run(["fox", fox / "fox.csv"], tmp_path / "both", data_dir=str(fox))
    assert both[0].accuracies == both[1].accuracies
    assert [one.paper for one in both] == [0.603, None]
    assert both[0].dataset != both[1].dataset
    found = paper_table.collect([str(tmp_path / "both")])
    assert {one.dataset: one.paper for one in found} == {one.dataset: one.paper for one in both}


def test_own_bags_without_digests_are_in_no_benchmarks_column(fox, tmp_path):
    run(["fox"], tmp_path / "old", data_dir=str(fox))
    for file in (tmp_path / "old" / "fox").rglob("*.json"):
        as_before_digests(file)
    own = write_bags(tmp_path / "own" / "fox.csv", bags=20, shift=1.0)
    run([own], tmp_path / "own", method="mi_graph")
    runs = [str(tmp_path / "old"), str(tmp_path / "own")]
    for order in (runs, runs[::-1]):
        of_method = {one.method: one for one in paper_table.collect(order)}
        assert of_method["mi_kernel"].dataset == "fox"
        assert of_method["mi_graph"].dataset.startswith("fox-")
        text = paper_table.markdown(list(of_method.values()))
        number = of_method["mi_graph"].accuracy
        assert f"| mi-Graph | - / 0.620 | {number:.3f} (-) |" in text


def test_other_bags_in_the_place_of_a_benchmark_have_no_figures(fox, tmp_path, caplog):
    write_bags(fox / "fox.csv", bags=18)
    (summary,) = run(["fox"], tmp_path / "run", data_dir=str(fox))
    assert summary.paper is None and "is not fox as published" in caplog.text


def test_a_benchmark_in_another_folder_is_other_data(fox, tmp_path):
    run(["fox"], tmp_path / "run", data_dir=str(fox))
    write_bags(tmp_path / "data2" / "fox.csv", bags=20, seed=1)
    refused("other instances", ["fox"], tmp_path / "run", data_dir=str(tmp_path / "data2"))


def digits(path, seed=0):
    random = np.random.default_rng(seed)
    np.savez(path, image=random.integers(0, 255, (60, 28, 28), np.uint8), label=np.arange(60) % 10)
    return str(path)


def generated(path, **changes):
    config = config_lib.default_config()
    config.bags.train, config.bags.test, config.bags.mean_length = (6,), 6, 3
    for key, value in changes.items():
        config[key] = value
    return list(sources.experiments("mnist_bags", path, config))


def test_generated_bags_are_known_by_their_draw(tmp_path):
    path = digits(tmp_path / "a.npz")
    (one,), (more,) = generated(path, repeats=1), generated(path, repeats=3)
    assert one.made_from[0] == more.made_from[0] and one.digest == more.digest
    assert len({json.dumps(made_from) for made_from in more.made_from}) == 3
    (other,) = generated(digits(tmp_path / "b.npz", seed=1), repeats=1)
    reason = records.difference(one.made_from[0], other.made_from[0])
    assert "other instances" in reason


def test_a_sweep_of_lambdas_is_not_written_over_by_another(tmp_path, monkeypatch):
    def measured(experiment, config, lambdas, folder):
        return {"lambdas": {str(value): {"nonfinite": 0} for value in lambdas}}

    monkeypatch.setattr(lambda_sweep, "_measure", measured)
    config = config_lib.default_config()
    config.repeats = 1
    config.bags.train, config.bags.test, config.bags.mean_length = (6,), 6, 3
    first, path = digits(tmp_path / "a.npz"), tmp_path / "run" / "mnist_bags_6" / "lambdas.json"
    lambda_sweep.run(config, str(tmp_path / "run"), first, lambdas=(0.0,))
    config.repeats = 2
    lambda_sweep.run(config, str(tmp_path / "run"), first, lambdas=(0.0, 1.0))
    before = path.read_bytes()
    with pytest.raises(UserError, match="lambdas.json was made from other inputs .*bags of draw 0"):
        lambda_sweep.run(config, str(tmp_path / "run"), digits(tmp_path / "b.npz", 1))
    config.train.epochs = 7
    with pytest.raises(UserError, match="config.train.epochs 100 instead of 7"):
        lambda_sweep.run(config, str(tmp_path / "run"), first)
    assert path.read_bytes() == before
    path.unlink()  # no sweep, but results of another method may be there
    with pytest.raises(UserError, match="mnist_bags_6/data.json was made .*other instances"):
        lambda_sweep.run(config, str(tmp_path / "run"), digits(tmp_path / "b.npz", 1))


def test_a_sweep_is_refused_before_any_experiment_is_computed(tmp_path, monkeypatch):
    computed = []

    def measured(experiment, config, lambdas, folder):
        computed.append(experiment.dataset.name)
        return {"lambdas": {}}

    monkeypatch.setattr(lambda_sweep, "_measure", measured)
    config = config_lib.default_config()
    config.repeats = 1
    config.bags.train, config.bags.test, config.bags.mean_length = (6,), 6, 3
    lambda_sweep.run(config, str(tmp_path / "run"), digits(tmp_path / "a.npz"))
    config.bags.train = (4, 6)
    with pytest.raises(UserError, match="mnist_bags_6/lambdas.json was made from other inputs"):
        lambda_sweep.run(config, str(tmp_path / "run"), digits(tmp_path / "b.npz", 1))
    assert computed == ["mnist_bags_6"] and not (tmp_path / "run" / "mnist_bags_4").exists()


@pytest.mark.parametrize("case", ["stale_results", "own_name"])
def test_the_shared_cases_have_the_right_values(case, tmp_path):
    if not CASES.is_dir():
        pytest.skip("needs ../shared/cases")
    if case == "own_name":
        (summary,) = run([CASES / case / "tiger.csv"], tmp_path, method="mi_svm", folds=4)
        assert summary.dataset == "tiger" and summary.paper is None
        return
    paths = [CASES / case / folder / "own.csv" for folder in "ab"]
    found = run(paths, tmp_path, method="mi_svm", folds=4)
    numbers = [(round(one.accuracy, 3), round(one.auc, 3)) for one in found]
    assert numbers == [(0.975, 0.997), (0.5, 0.625)]
    copied = tmp_path / "own.csv"
    shutil.copy(paths[0], copied)
    workdir = tmp_path / "edited"
    run([copied], workdir, method="mi_svm", folds=4)
    shutil.copy(paths[1], copied)
    refused("other instances", [copied], workdir, method="mi_svm", folds=4)


def test_a_sweep_names_the_lambdas_whose_outputs_are_not_finite():
    fine = {"lambdas": {"0": {"nonfinite": 0}, "0.1": {"nonfinite": 0}}}
    lambda_sweep.refuse_nonfinite({"mnist_bags_6": fine})
    lost = {"lambdas": {"0": {"nonfinite": 0}, "10": {"nonfinite": 3}}}
    with pytest.raises(Incomplete, match="mnist_bags_8: lambda 10$"):
        lambda_sweep.refuse_nonfinite({"mnist_bags_6": fine, "mnist_bags_8": lost})


def test_a_sweep_counts_tested_bags_with_nonfinite_outputs():
    lengths, held = np.array([2, 1, 1]), np.array([[False, True, True], [True, True, True]])
    attention, logits = np.ones((2, 4)), np.zeros((2, 3, 2))
    attention[0, :2] = np.nan  # not tested
    attention[1, 1] = np.inf
    logits[0, 2, 0] = logits[1, 0, 1] = np.nan
    assert lambda_sweep._count_nonfinite(lengths, attention, logits, held) == 2


def test_lambdas_are_called_by_all_their_digits():
    values = {0.0: "0", 1e-4: "0.0001", 0.1: "0.1", 100.0: "100", 0.12345678: "0.12345678"}
    assert {value: lambda_sweep._key(value) for value in values} == values
