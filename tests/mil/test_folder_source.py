"""Cross-validation on a folder of feature files: the numbers of a table of instances, and its own splits."""

import gzip
import json
import pathlib

import h5py
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import bag_files, sources
from lossattn_jax.data.bags.bag_table import TableColumns
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.columns import Choice
from lossattn_jax.data.bags.feature_files import FeatureFormat
from lossattn_jax.data.bags.lazy_bags import ArrayReader
from lossattn_jax.errors import UserError
from lossattn_jax.mil import experiment
from reliability import in_process
from tests.support import tiny_bags

MUSK1 = pathlib.Path(__file__).parents[3] / "shared" / "data" / "mil"


def small(**changes):
    config = config_lib.default_config()
    config.folds, config.repeats = 3, 2
    config.train.epochs = 3
    config.model.hidden = (8, 4, 4)
    for key, value in changes.items():
        config[key] = value
    return config


def toy():
    bags, words = tiny_bags.toy(24)
    ids = [f"bag{n:02d}" for n in np.random.default_rng(1).permutation(24)]
    return BagDataset.from_bags(bags, words, ids)


def like_musk():
    """As MUSK1: 166 whole numbers of three digits, bags of 2 to 40 instances, 47 positive and 45 negative."""
    random = np.random.default_rng(3)
    labels = random.permutation([1] * 47 + [0] * 45)
    means = random.integers(-200, 200, 166)
    bags = [
        np.clip(
            np.rint(means + random.normal(9 * label, 60, (random.integers(2, 41), 166))), -348, 325
        )
        for label in labels
    ]
    return BagDataset.from_bags(bags, labels, [f"MUSK-{n}" for n in range(92)])


def write(dataset, folder, dtype=np.float64, **columns):
    """The data set as a table of instances and as a folder with a table of labels; both paths."""
    folder.mkdir(exist_ok=True)
    bag_files.write_csv(dataset, folder / "own.csv")
    slides = folder / "own"
    slides.mkdir()
    for bag_id, bag in zip(dataset.ids, dataset.bags, strict=True):
        with h5py.File(slides / f"{bag_id}.h5", "w") as file:
            file["features"] = bag.astype(dtype)
    lines = [",".join(("slide_id", "label", *columns))]
    for row, bag_id in enumerate(dataset.ids):
        cells = (bag_id, dataset.classes[dataset.labels[row]], *(c[row] for c in columns.values()))
        lines.append(",".join(map(str, cells)))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "own.csv"), str(slides), str(folder / "labels.csv")


def results(workdir, method):
    """What folds' files have of bags, epochs and settings, by their names."""
    return {
        path.relative_to(workdir).as_posix(): {
            key: value
            for key, value in json.loads(path.read_text()).items()
            if key
            in ("bags", "accuracy", "epoch", "settings", "classes", "positive", "test_accuracies")
        }
        for path in sorted(pathlib.Path(workdir).glob(f"*/{method}/*/repeat*.json"))
    }


def compare(tmp_path, dataset, method, rules=("final",), dtype=np.float64, **changes):
    csv, slides, labels = write(dataset, tmp_path / "data", dtype)
    shared = [method], list(rules), small(**changes)
    experiment.run([csv], *shared, str(tmp_path / "a"), "")
    experiment.run([slides], *shared, str(tmp_path / "b"), "", labels=labels)
    first, second = results(tmp_path / "a", method), results(tmp_path / "b", method)
    assert first and first == second


@pytest.mark.parametrize("method", ["mi_svm", "mi_kernel"])
def test_a_folder_gives_the_numbers_of_a_table(tmp_path, method):
    compare(tmp_path, toy(), method)


@pytest.mark.slow
def test_networks_on_a_folder_give_the_numbers_of_a_table(tmp_path):
    compare(tmp_path, toy(), "loss_attention", repeats=1)


@pytest.mark.slow
def test_epochs_chosen_on_a_folder_are_those_of_a_table(tmp_path):
    compare(tmp_path, toy(), "loss_attention", ("validation", "best_test_epoch"))


@pytest.mark.parametrize(
    "method", ["mi_svm_bag", pytest.param("attention", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_bags_like_musk_in_a_folder_give_the_same_numbers(tmp_path, method, dtype):
    compare(tmp_path, like_musk(), method, dtype=dtype, repeats=1)


@pytest.mark.slow
@pytest.mark.skipif(not MUSK1.exists(), reason="needs shared/data/mil")
def test_musk1_in_a_folder_gives_the_same_numbers(tmp_path):
    dataset = sources.experiments("musk1", str(MUSK1), config_lib.default_config())[0].dataset
    compare(tmp_path, dataset, "mi_svm_bag", repeats=1)


def test_an_offset_that_float32_lacks_is_kept(tmp_path):
    bags, words = tiny_bags.toy(24)
    csv, slides, labels = write(
        BagDataset.from_bags([bag + 1.7e9 for bag in bags], words), tmp_path
    )
    one = sources.experiments(csv, "", small())[0].dataset
    other = sources.experiments(slides, "", small(), labels=labels)[0].dataset
    assert one.instances.dtype == other.instances.dtype == np.float64
    np.testing.assert_array_equal(one.instances, other.instances)


def open_experiment(path, labels=None, *, columns=None, **more):
    return sources.experiments(
        path, "", small(**more.pop("config", {})), labels=labels, columns=columns, **more
    )[0]


GROUPS = [f"p{n % 9}" for n in range(24)]


def test_groups_of_a_table_are_not_divided(tmp_path):
    csv, slides, labels = write(toy(), tmp_path, patient=GROUPS)
    found = open_experiment(slides, labels)
    assert found.dataset.groups == tuple(GROUPS)
    for split in found.splits:
        train, test = (
            {GROUPS[row] for row in np.flatnonzero(rows)} for rows in (split.train, split.test)
        )
        assert not train & test and len(train | test) == 9
    plain = open_experiment(slides, labels, columns=TableColumns(group=""))
    assert plain.dataset.groups is None
    assert plain.made_from[0] != found.made_from[0] and found.made_from[0]["groups"]
    table = open_experiment(csv)
    for one, other in zip(plain.splits, table.splits, strict=True):
        np.testing.assert_array_equal(one.test, other.test)


def test_leave_one_group_out(tmp_path):
    groups = [f"p{n // 8}" for n in range(24)]
    _, slides, labels = write(toy(), tmp_path, site=groups)
    columns = TableColumns(group="site")
    found = open_experiment(slides, labels, columns=columns, folds="leave_one_group_out")
    assert [split.name for split in found.splits] == [
        f"repeat{repeat}_fold{fold}" for repeat in range(2) for fold in range(3)
    ]
    for split in found.splits:
        np.testing.assert_array_equal(split.test, [group == f"p{split.fold}" for group in groups])
        np.testing.assert_array_equal(split.train, ~split.test)
    with pytest.raises(
        UserError, match="--folds=leave_one_group_out tests each group of bags once, but t"
    ):
        open_experiment(slides, labels, folds="leave_one_group_out")
    sentence = "--folds is 'all', but must be a number of folds or leave_one_group_out"
    with pytest.raises(UserError, match=sentence):
        open_experiment(slides, labels, folds="all")


def test_own_folds_of_a_table(tmp_path):
    numbers = [(1, 4, 2)[n // 2 % 3] for n in range(24)]
    _, slides, labels = write(toy(), tmp_path, fold=numbers)
    found = open_experiment(slides, labels)
    assert [(split.repeat, split.fold) for split in found.splits] == [
        (repeat, fold) for repeat in range(2) for fold in (1, 2, 4)
    ]
    for split in found.splits:
        np.testing.assert_array_equal(split.test, np.array(numbers) == split.fold)
    with pytest.raises(
        UserError, match="says in its column of folds how bags are split, but --folds is 5; l"
    ):
        open_experiment(slides, labels, folds=5)
    drawn = open_experiment(slides, labels, folds=3, columns=TableColumns(fold=""))
    assert len(drawn.splits) == 6 and drawn.splits[0].test.sum() == 8


WORDS = ["train", "train", "train", "train", "val", "dev", "test", "testing"] * 3


@pytest.mark.parametrize("method", ["mi_svm", pytest.param("attention", marks=pytest.mark.slow)])
def test_an_own_split_of_a_table(tmp_path, method):
    dataset = toy()
    _, slides, labels = write(dataset, tmp_path, split=WORDS)
    found = open_experiment(slides, labels, config={"repeats": 1})
    (split,) = found.splits
    assert (split.repeat, split.fold, split.name) == (0, 0, "repeat0_fold0")
    np.testing.assert_array_equal(split.train, [word == "train" for word in WORDS])
    np.testing.assert_array_equal(split.validation, [word in ("val", "dev") for word in WORDS])
    np.testing.assert_array_equal(split.test, [word.startswith("test") for word in WORDS])

    def run():
        config = small(repeats=1)
        workdir = str(tmp_path / "run")
        return experiment.run(
            [slides], [method], ["validation"], config, workdir, "", labels=labels
        )

    (summary,) = run()
    assert summary.folds == 1
    path = tmp_path / "run" / "own" / method / "validation" / "repeat0_fold0.json"
    assert [bag["id"] for bag in json.loads(path.read_text())["bags"]] == [
        bag_id for bag_id, word in zip(dataset.ids, WORDS, strict=True) if word.startswith("test")
    ]
    pathlib.Path(labels).write_text(pathlib.Path(labels).read_text().replace("dev", "train"))
    with pytest.raises(UserError, match="other training and test bags"):
        run()


def test_a_split_and_folds_are_not_both_taken(tmp_path):
    _, slides, labels = write(toy(), tmp_path, split=["train", "test"] * 12, fold=[0, 1] * 12)
    with pytest.raises(
        UserError,
        match="in its column of splits how bags are split, but has folds too; leave one out .--spl",
    ):
        open_experiment(slides, labels)
    with pytest.raises(
        UserError, match="no bag that fold 0 of own is trained on has the label 'yes', but"
    ):
        open_experiment(slides, labels, columns=TableColumns(fold=""))


def test_a_table_of_instances_has_groups_where_they_are_named(tmp_path):
    dataset = toy()
    csv, _, _ = write(dataset, tmp_path)
    lines = pathlib.Path(csv).read_text().splitlines()
    group = dict(zip(dataset.ids, GROUPS, strict=True))
    fold = {bag_id: n // 2 % 2 for n, bag_id in enumerate(dataset.ids)}
    header, *rows = (line.split(",") for line in lines)
    text = [",".join((*header, "patient", "fold"))]
    text += [",".join((*row, group[row[1]], str(fold[row[1]]))) for row in rows]
    pathlib.Path(csv).write_text("\n".join(text) + "\n")
    plain = open_experiment(csv)
    assert plain.dataset.groups is None and len(plain.splits) == 6
    grouped = open_experiment(csv, columns=TableColumns(group="patient"))
    assert grouped.dataset.groups == tuple(GROUPS) and len(grouped.splits) == 6
    own = open_experiment(csv, columns=TableColumns(fold="Fold"))
    assert own.dataset.groups is None
    np.testing.assert_array_equal(own.splits[0].test, [fold[i] == 0 for i in dataset.ids])
    text[2] = text[2].replace(text[2].split(",")[-2], "p77")
    pathlib.Path(csv).write_text("\n".join(text) + "\n")
    first = rows[0][1] == rows[1][1]
    assert first  # the second line is of the same bag
    with pytest.raises(
        UserError, match=f"line 3 of .* has the group 'p77' for bag '{rows[0][1]}', which had"
    ):
        open_experiment(csv, columns=TableColumns(group="patient"))


@pytest.mark.parametrize("ending", ["tsv", "tsv.gz", "parquet"])
def test_tables_of_instances_in_other_forms(tmp_path, ending):
    csv, _, _ = write(toy(), tmp_path)
    plain = open_experiment(csv)
    text, path = pathlib.Path(csv).read_text(), tmp_path / f"other.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(csv), path)
    else:
        content = text.replace(",", "\t").encode()
        path.write_bytes(gzip.compress(content) if ending == "tsv.gz" else content)
    other = open_experiment(str(path))
    assert other.dataset.name == "other" and other.digest == plain.digest
    grouped = open_experiment(str(path), columns=TableColumns(group="bag_id"))
    assert grouped.dataset.groups == plain.dataset.ids


def test_what_does_not_go_with_a_data_set_is_refused(tmp_path):
    csv, slides, labels = write(toy(), tmp_path)
    with pytest.raises(
        UserError, match="the bags in the folder .*own need labels: --labels=TABLE names a"
    ):
        open_experiment(slides)
    with pytest.raises(
        UserError, match="--labels is for a folder of feature files, but .*csv is none: leave"
    ):
        open_experiment(csv, labels)
    with pytest.raises(
        UserError, match="--bag_column names a column of a table, but .*own.csv has none for i"
    ):
        open_experiment(csv, columns=TableColumns(bag="bag_id"))
    with pytest.raises(
        UserError, match="--fold_column names a column of a table, but musk1 has none for it"
    ):
        open_experiment("musk1", columns=TableColumns(fold="fold"))
    with pytest.raises(
        UserError, match="--features and --ignore choose columns of files of bags, but"
    ):
        open_experiment(slides, labels, choice=Choice(("f1",)))
    with pytest.raises(
        UserError, match="data set of bags '.*/none' is not known; .* a folder of feature files"
    ):
        open_experiment(str(tmp_path / "none"))


def _open_text(path):
    return ArrayReader(np.loadtxt(path, ndmin=2), place=path)


TEXT = FeatureFormat((".txt",), _open_text)


def test_files_of_one_format_are_taken(tmp_path):
    dataset = toy()
    _, slides, labels = write(dataset, tmp_path)
    for bag_id, bag in zip(dataset.ids, dataset.bags, strict=True):
        np.savetxt(f"{slides}/{bag_id}.txt", 2 * bag.astype(np.float64), "%.17g")
        np.save(f"{slides}/{bag_id}.npy", 3 * bag)
    for file_format, factor in (("hdf5", 1), (f"{__name__}:TEXT", 2), ("npy", 3)):
        found = open_experiment(slides, labels, file_format=file_format)
        np.testing.assert_array_equal(found.dataset.instances, factor * dataset.instances)
    with pytest.raises(UserError, match="the bag 'bag..' has 2 feature files"):
        open_experiment(slides, labels)
    with pytest.raises(
        UserError, match="--file_format is 'h5', but must be one of: hdf5, torch, npy"
    ):
        open_experiment(slides, labels, file_format="h5")
    with pytest.raises(
        UserError, match="--file_format is for a folder of feature files, but musk1 is none"
    ):
        open_experiment("musk1", file_format="npy")


def test_the_command_reads_a_folder(tmp_path):
    _, _, labels = write(toy(), tmp_path)
    text = pathlib.Path(labels).read_text().replace("slide_id,label", "id,kind")
    (tmp_path / "labels.tsv").write_text(text.replace(",", "\t"))
    arguments = [
        "-m",
        "lossattn_jax.mil",
        "--dataset=own/",
        "--labels=labels.tsv",
        "--bag_column=id",
    ]
    arguments += [
        "--label_column=kind",
        "--method=mi_kernel",
        "--folds=3",
        "--repeats=1",
        "--workdir=run",
    ]
    done = in_process.run(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| own |" in done.stdout
    assert len(results(tmp_path / "run", "mi_kernel")) == 3
    wrong = in_process.run([*arguments, "--label_column=kid"], tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1] == (
        "error: --label_column is 'kid', which is no column of labels.tsv; near are 'kind', 'id'."
    )


def test_an_empty_name_takes_no_column(tmp_path):
    _, _, labels = write(toy(), tmp_path)
    lines = pathlib.Path(labels).read_text().splitlines()
    parts = ["split", *("train" if row % 3 else "test" for row in range(len(lines) - 1))]
    split = [f"{line},{part}" for line, part in zip(lines, parts, strict=True)]
    (tmp_path / "split.csv").write_text("\n".join(split) + "\n")
    shared = ("--dataset=own/", "--labels=split.csv", "--method=mi_kernel", "--repeats=1")
    arguments = ("-m", "lossattn_jax.mil", *shared, "--split_column=", "--folds=3", "--workdir=run")
    done = in_process.run(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(results(tmp_path / "run", "mi_kernel")) == 3
    # With the column there is one test; and a bag's id cannot be left out.
    with_split = ("-m", "lossattn_jax.mil", *shared, "--workdir=split")
    assert in_process.run(with_split, tmp_path).returncode == 0
    assert len(results(tmp_path / "split", "mi_kernel")) == 1
    wrong = in_process.run((*arguments, "--bag_column="), tmp_path)
    assert wrong.returncode == 2
    assert "--bag_column is empty, but must have a value" in wrong.stderr


def test_positive_words_for_a_folder(tmp_path):
    _, slides, labels = write(toy(), tmp_path)
    found = open_experiment(slides, labels, positive=["no", "other"])
    assert (found.dataset.classes, found.dataset.positive) == (("yes", "no"), "no")
    with pytest.raises(UserError, match="positive names 'x', of which none is a class of own"):
        open_experiment(slides, labels, positive=["x"])
