"""`mil train` and `mil predict`: what stays of a model, and what predicting goes on with."""

import csv
import dataclasses
import json
import pathlib
import shutil

import h5py
import numpy as np
import pytest

import lossattn_jax.mil as mil
from lossattn_jax.data.bags.bag_folder import open_bags
from lossattn_jax.data.bags.bag_survey import digest_bag, survey_bags
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.errors import Incomplete
from lossattn_jax.files import records
from lossattn_jax.mil import methods, prediction_files, prediction_run
from lossattn_jax.mil.prediction_files import BagRow
from reliability import in_process
from tests.support import stored_model

WIDTH = 4
SMALL = ("--config.train.epochs=2", "--config.model.hidden=(4,)", "--positive=tumour")
SLIDES = ("--bags=slides", "--labels=labels.csv")


def train(world, *arguments):
    return in_process.run(["-m", "lossattn_jax.mil.train", *arguments], world)


def predict(world, *arguments):
    return in_process.run(["-m", "lossattn_jax.mil.predict", *arguments], world)


def assert_refused(finished, sentence):
    assert (finished.returncode, finished.stdout) == (2, ""), finished
    assert sentence in finished.stderr and finished.stderr.count("error: ") == 1
    assert "Traceback" not in finished.stderr


def read_table(path):
    with open(path, newline="") as file:
        return {row["bag"]: row for row in csv.DictReader(file)}


def contents(folder):
    """Every file of a folder, but for locks, with its bytes and its time."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(pathlib.Path(folder).rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def write_world(folder):
    """Bags of vectors, one of whose instances shows a tumour, with coordinates and a split."""
    (folder / "slides").mkdir()
    random = np.random.default_rng(0)
    lines = ["slide_id,label,split"]
    for number in range(12):
        features = random.normal(size=(3 + number, WIDTH)).astype(np.float32)
        features[0] += 3 * (number % 2)
        with h5py.File(folder / "slides" / f"s{number:02}.h5", "w") as file:
            file["features"] = features
            file["coords"] = random.integers(0, 9000, (len(features), 2))
        word, part = ("normal", "tumour")[number % 2], ("train", "train", "test")[number // 2 % 3]
        lines.append(f"s{number:02},{word},{part}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    rows = ["bag_label,bag_id,a,b,c"]
    for number, (bag, label) in enumerate(zip(*stored_model.bags(), strict=True)):
        rows += [f"{label},b{number},{','.join(map(repr, values.tolist()))}" for values in bag]
    (folder / "own.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with bags, and the models `net` and `svm` of them; what the training of `net` printed."""
    world = tmp_path_factory.mktemp("world")
    write_world(world)
    ends = {
        "net": train(world, *SLIDES, *SMALL, "--workdir=net"),
        "svm": train(world, *SLIDES, "--method=mi_svm", "--positive=tumour", "--workdir=svm"),
    }
    assert all(end.returncode == 0 for end in ends.values()), ends
    return world, ends


@pytest.fixture
def world(trained, tmp_path):
    """A copy, which a test may change."""
    return pathlib.Path(shutil.copytree(trained[0], tmp_path / "world"))


def test_training_says_what_it_does_and_tests(trained):
    world, ends = trained
    end = ends["net"]
    table = read_table(world / "net" / "predictions.csv")
    right = np.mean([row["label"] == row["predicted"] for row in table.values()])
    assert sorted(table) == ["s04", "s05", "s10", "s11"]
    assert end.stdout.startswith(f"test: accuracy {right:.4f}, AUC ")
    assert (
        "Loss-Attention on slides: 8 bags of 3 to 12 instances, 60 in all, 4 features; classes "
        in (end.stderr)
    )
    assert "classes normal, tumour (positive: tumour); 4 tested" in end.stderr
    assert "epoch 2 of 2" in end.stderr
    record = records.read(world / "net" / "test.json")
    assert record.content["accuracy"] == right and record.content["nonfinite"] == []
    model = mil.load(world / "net")
    assert (model.memory_gib, model.dump_dir, model.positive_) == (None, None, "tumour")


@pytest.mark.slow
def test_a_model_predicts_in_its_own_process_what_it_did(trained, run_python, tmp_path):
    world, _ = trained
    for name in ("net", "svm"):
        arguments = (
            f"--model={world / name}",
            f"--bags={world / 'slides'}",
            f"--out={tmp_path / name}",
        )
        finished = run_python("-m", "lossattn_jax.mil.predict", *arguments)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout == ""
        there = read_table(tmp_path / name / "predictions.csv")
        for bag, row in read_table(world / name / "predictions.csv").items():
            assert there[bag] == {**row, "label": ""}
        assert len(there) == 12
        model = mil.load(world / name)
        for one in model.predict_bags(open_bags(world / "slides")):
            row = there[f"s{one.row:02}"]
            assert [float(row["p_normal"]), float(row["p_tumour"])] == one.probabilities.tolist()
            assert int(row["n_instances"]) == 3 + one.row and (row["repeat"], row["fold"]) == (
                "",
                "",
            )


def test_a_finished_model_is_read_and_left(world, trained):
    before = contents(world / "net")
    end = train(world, *SLIDES, *SMALL, "--workdir=net")
    assert (end.returncode, end.stdout) == (0, trained[1]["net"].stdout)
    assert "net has this model already: it is read, and left as it is" in end.stderr
    assert contents(world / "net") == before
    (world / "net" / "test.json").write_text("{")
    end = train(world, *SLIDES, *SMALL, "--workdir=net")
    assert end.stdout == trained[1]["net"].stdout and "test.json" in end.stderr
    path = world / "net" / "test.json"
    assert path.read_bytes() == before[path][0]
    table = world / "net" / "predictions.csv"
    table.write_bytes(before[table][0].replace(b"0.", b"1.", 1))
    end = train(world, *SLIDES, *SMALL, "--workdir=net")
    assert "predictions.csv is not as it was written; it is made again" in end.stderr
    assert table.read_bytes() == before[table][0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((*SMALL, "--config.seed=1"), "(setting seed 0 instead of 1); use another workdir"),
        ((*SMALL, "--class_weight=balanced"), "(setting class_weight None instead of 'balanced')"),
        (("--method=mi_svm", "--positive=tumour"), "(method 'loss_attention' instead of 'mi_svm'"),
        ((*SMALL[:2], "--positive=normal"), "(setting positive 'tumour' instead of 'normal')"),
    ],
)
def test_a_workdir_of_other_settings_is_refused(world, arguments, sentence):
    before = contents(world / "net")
    assert_refused(train(world, *SLIDES, *arguments, "--workdir=net"), sentence)
    assert contents(world / "net") == before


def test_a_workdir_of_other_data_is_refused(world):
    with h5py.File(world / "slides" / "s00.h5", "r+") as file:
        file["features"][1, 2] += 1e-3
    before = contents(world / "net")
    end = train(world, *SLIDES, *SMALL, "--workdir=net")
    assert_refused(end, "was made from other inputs (other bags); use another workdir")
    text = (world / "labels.csv").read_text()
    (world / "labels.csv").write_text(text.replace("s00,normal", "s00,tumour"))
    end = train(world, *SLIDES, *SMALL, "--workdir=net")
    assert_refused(
        end, "was made from other inputs (other bags, other labels); use another workdir"
    )
    assert contents(world / "net") == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (SLIDES, "--workdir"),
        (("--bags=slides", "--workdir=new"), "need labels: --labels=TABLE names a table"),
        (("--workdir=new",), "--bags=FOLDER or --dataset=NAME says what to train on"),
        ((*SLIDES, "--dataset=own.csv", "--workdir=new"), "name one of the two"),
        (("--bags=absent", "--workdir=new"), "'absent'"),
        ((*SLIDES, "--method=magic", "--workdir=new"), "method is 'magic'"),
        (
            (*SLIDES, "--method=mi_svm", "--workdir=new"),
            "which class of slides is positive is not known, 'normal' or 'tumour', but mi_svm treats",
        ),
        (
            (*SLIDES, "--method=em_dd", "--class_weight=balanced", "--workdir=new"),
            "--class_weight is balanced, but em_dd weighs no classes; leave it out",
        ),
        (
            (*SLIDES, "--method=mi_fv", "--max_instances=5", "--workdir=new"),
            "config.train.max_instances is 5, but mi_fv sees all instances at once",
        ),
        (
            (*SLIDES, "--max_instances=-1", "--workdir=new"),
            "config.train.max_instances is -1, but must be",
        ),
        (
            (*SLIDES, "--select=best_test_epoch", "--workdir=new"),
            "--select=best_test_epoch is not for models",
        ),
        (
            (*SLIDES, "--method=mi_fv", "--select=validation", "--workdir=new"),
            "--select=validation chooses epochs of networks, but mi_fv has none",
        ),
        (
            (*SLIDES, "--patience=3", "--workdir=new"),
            "--patience is 3, but only held-out bags can say when a training is to end",
        ),
        ((*SLIDES, "--select=luck", "--workdir=new"), "'luck'"),
        ((*SLIDES, "--memory=0", "--workdir=new"), "memory is 0.0, but must be a number of GiB"),
        ((*SLIDES, "--positive=cancer", "--workdir=new"), "positive"),
        ((*SLIDES, "--config.train.epochs=0", "--workdir=new"), "config.train.epochs is 0"),
        (("--dataset=mnist_bags", "--workdir=new"), "bags that are drawn are for cross-validation"),
        (
            ("--dataset=own.csv", "--labels=labels.csv", "--workdir=new"),
            "--labels is for a folder of feature files",
        ),
        ((*SLIDES, "--split_column=label", "--workdir=new"), "has the split 'normal'"),
        ((*SLIDES, "--workdir=cv"), "has a config.json, and so is another command's"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(world, arguments, sentence):
    (world / "cv").mkdir()
    (world / "cv" / "config.json").write_text("{}")
    end = train(world, *arguments)
    assert end.returncode == 2 and sentence in end.stderr and "Traceback" not in end.stderr
    assert not (world / "new").exists()


def test_a_killed_training_is_begun_anew(world, trained):
    (world / "net" / "model.json").unlink()  # which is written last
    before = read_table(world / "net" / "predictions.csv")
    end = train(world, *SLIDES, *SMALL, "--workdir=net")
    assert (end.returncode, end.stdout) == (0, trained[1]["net"].stdout), end.stderr
    assert read_table(world / "net" / "predictions.csv") == before


def test_bags_are_read_one_by_one_where_few_instances_are_seen(world):
    end = train(world, *SLIDES, *SMALL, "--max_instances=4", "--memory=0.5", "--workdir=few")
    assert end.returncode == 0, end.stderr
    assert "steps a second" in end.stderr  # of what is read one by one
    assert mil.load(world / "few").max_instances == 4
    lines = (world / "few" / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(0 <= of["waiting_seconds"] <= of["seconds"] for of in map(json.loads, lines))
    end = train(world, *SLIDES, *SMALL, "--max_instances=4", "--memory=1e-9", "--workdir=less")
    assert end.returncode == 2 and "give more by --memory" in end.stderr
    assert not (world / "less" / "model.json").exists()


def test_a_file_of_bags_is_trained_on_whole(world):
    arguments = ("--dataset=own.csv", "--method=mi_kernel", "--positive=tumour", "--workdir=m")
    end = train(world, *arguments, "--ignore=b")
    assert (end.returncode, end.stdout) == (0, ""), end.stderr
    assert (
        "2 features (a to c); classes healthy, tumour (positive: tumour); none tested" in end.stderr
    )
    model = mil.load(world / "m")
    assert model.feature_names_ == ("a", "c") and not (world / "m" / "test.json").exists()
    bags, labels = stored_model.bags()
    parts = [bag[:, ::2].astype(np.float32) for bag in bags]
    own = methods.make("mi_kernel", positive="tumour").fit(parts, labels)
    np.testing.assert_array_equal(model.predict_proba(parts), own.predict_proba(parts))
    end = predict(world, "--model=m", "--bags=slides", "--out=p")
    assert_refused(
        end, "m: the instances of slides have 4 features, but the model was trained on 2"
    )
    assert not (world / "p").exists()


def test_predictions_go_on_where_they_stopped(world):
    arguments = ("--model=svm", *SLIDES, "--out=p")
    first = predict(world, *arguments)
    assert first.returncode == 0 and " of 12 bags with labels" in first.stdout
    before = contents(world / "p")
    (world / "p" / "bags" / "s03.json").unlink()
    (world / "p" / "bags" / "s07.json").write_text("{")
    (world / "p" / "predictions.csv").unlink()
    again = predict(world, *arguments)
    assert again.stdout == first.stdout and "10 of 12 bags are there" in again.stderr
    assert "s07.json cannot be read" in again.stderr and "it is made again" in again.stderr
    after = contents(world / "p")
    assert {path: content for path, (content, _) in after.items()} == {
        path: content for path, (content, _) in before.items()
    }
    fresh = {path.name for path in after if after[path][1] != before[path][1]}
    assert fresh == {"s03.json", "s07.json", "predictions.csv"}


def test_predictions_of_other_inputs_are_refused(world):
    predict(world, "--model=svm", "--bags=slides", "--out=p")
    before = contents(world / "p")
    end = predict(world, "--model=net", "--bags=slides", "--out=p")
    assert_refused(end, "s00.json was made from other inputs (models [")
    assert "use another --out" in end.stderr
    with h5py.File(world / "slides" / "s05.h5", "r+") as file:
        file["features"][0] = 0
    (world / "p" / "bags" / "s01.json").unlink()
    end = predict(world, "--model=svm", "--bags=slides", "--out=p")
    assert_refused(end, "s05.json was made from other inputs (other bag); use another --out")
    del before[world / "p" / "bags" / "s01.json"]
    assert contents(world / "p") == before


def test_several_models_predict_their_mean(world):
    for number, name in enumerate(("net", "svm", "net,svm")):
        end = predict(world, f"--model={name}", *SLIDES, f"--out=p{number}")
        assert end.returncode == 0, end.stderr
    tables = [read_table(world / name / "predictions.csv") for name in ("p0", "p1", "p2")]
    net, svm, both = tables
    for bag, row in both.items():
        mean = (float(net[bag]["p_tumour"]) + float(svm[bag]["p_tumour"])) / 2
        assert float(row["p_tumour"]) == mean
        assert row["predicted"] == ("tumour" if mean > 0.5 else "normal")
    end = train(world, "--dataset=own.csv", "--method=mi_svm", "--positive=tumour", "--workdir=own")
    assert end.returncode == 0, end.stderr
    end = predict(world, "--model=svm,own", "--bags=slides", "--out=p")
    assert_refused(end, "own has the classes 'healthy', 'tumour', but svm has 'normal', 'tumour'")


def test_instances_are_written_for_each_bag(world):
    end = predict(world, "--model=net", *SLIDES, "--out=p", "--instances")
    assert end.returncode == 0, end.stderr
    bags = open_bags(world / "slides")
    model = mil.load(world / "net")
    for one in model.predict_bags(bags):
        with h5py.File(world / "p" / "instances" / f"s{one.row:02}.h5") as file:
            np.testing.assert_array_equal(file["attention"][:], one.attention, strict=True)
            np.testing.assert_array_equal(file["logits"][:], one.logits, strict=True)
            np.testing.assert_array_equal(file["scores"][:], one.scores, strict=True)
            np.testing.assert_array_equal(file["coords"][:], bags.read_coords(one.row))
            assert file.attrs["bag"] == f"s{one.row:02}"
            assert file.attrs["classes"].tolist() == ["normal", "tumour"]
            assert file.attrs["model"].tolist() == [
                json.loads((world / "net" / "model.json").read_text())["digest"]
            ]
        np.testing.assert_allclose(one.attention.sum(), 1, rtol=1e-5)
    (world / "p" / "instances" / "s02.h5").write_bytes(b"")
    before = contents(world / "p")
    end = predict(world, "--model=net", *SLIDES, "--out=p", "--instances")
    assert "11 of 12 bags are there" in end.stderr
    after = contents(world / "p")
    fresh = {path.name for path in after if after[path][1] != before[path][1]}
    assert fresh == {"s02.h5", "s02.json", "predictions.csv"}
    end = predict(world, "--model=svm", "--bags=slides", "--out=q", "--instances")
    with h5py.File(world / "q" / "instances" / "s00.h5") as file:
        assert sorted(file) == ["coords", "scores"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--bags=slides", "--out=p"), "model"),
        (("--model=", "--bags=slides", "--out=p"), "model"),
        (
            ("--model=slides", "--bags=slides", "--out=p"),
            "slides has no model.json, and so is no model",
        ),
        (("--model=svm", "--bags=absent", "--out=p"), "there is no folder absent"),
        (
            ("--model=svm", "--bags=slides", "--out=labels.csv"),
            "--out=labels.csv cannot be written",
        ),
        (
            ("--model=svm", "--bags=slides", "--labels=other.csv", "--out=p"),
            "has the label 'benign'",
        ),
        (("--model=svm", "--bags=slides", "--memory=-1", "--out=p"), "memory is -1.0"),
    ],
)
def test_what_cannot_be_predicted_is_a_sentence(world, arguments, sentence):
    text = (world / "labels.csv").read_text()
    (world / "other.csv").write_text(text.replace("normal", "benign"))
    assert_refused(predict(world, *arguments), sentence)
    assert not (world / "p").exists()


def test_labels_of_one_class_are_enough_to_predict(world):
    text = (world / "labels.csv").read_text()
    (world / "labels.csv").write_text(text.replace("normal", "tumour"))
    end = predict(world, "--model=svm", *SLIDES, "--out=p")
    assert end.returncode == 0 and "AUC unknown of 12 bags with labels" in end.stdout, end


def test_a_bag_has_the_same_bits_among_any_others(trained):
    world, _ = trained
    bags = open_bags(world / "slides")
    for name in ("net", "svm"):
        model = mil.load(world / name)
        whole = list(model.predict_bags(bags))
        for rows in ([11], [0, 11], [3, 11, 2]):
            for one in model.predict_bags(bags.select(rows)):
                np.testing.assert_array_equal(
                    one.probabilities, whole[rows[one.row]].probabilities, strict=True
                )


def test_the_digest_of_a_bag_is_that_of_a_survey(trained, monkeypatch):
    bags = open_bags(trained[0] / "slides")
    monkeypatch.setattr("lossattn_jax.data.bags.bag_survey._DIGESTED_AT_ONCE", 2 * WIDTH)
    assert [digest_bag(bags, row) for row in range(len(bags))] == list(survey_bags(bags).digests)


def test_predictions_are_scored_as_by_hand():
    rows = [
        BagRow("a", "n", "n", [0.9, 0.1], 1),
        BagRow("b", "n", "t", [0.4, 0.6], 1),
        BagRow("c", "t", "t", [0.3, 0.7], 1),
        BagRow("d", "t", "n", [0.6, 0.4], 1),
        BagRow("e", None, "n", [0.6, 0.4], 1),
    ]
    scores = prediction_files.score(rows, ["n", "t"])
    # Of the four pairs of a tumour and a normal bag, (d, b) alone is in the wrong order.
    assert (scores.bags, scores.accuracy, scores.auc, scores.nonfinite) == (4, 0.5, 0.75, ())
    prediction_run.refuse_nonfinite(scores)
    rows.append(BagRow("f", "t", None, [None, None], 1))
    scores = prediction_files.score(rows, ["n", "t"])
    assert np.isnan(scores.accuracy) and np.isnan(scores.auc) and scores.nonfinite == ("f",)
    with pytest.raises(Incomplete, match="outputs for 1 bags are not finite.*: f$"):
        prediction_run.refuse_nonfinite(scores)


def test_a_table_has_all_digits_and_no_formulas(tmp_path):
    rows = [
        BagRow("=a", "n", "t", [1 / 3, 2 / 3], 7, 1, 2),
        BagRow("b,c", None, None, [None, None], 1),
    ]
    prediction_files.write_table(tmp_path / "t.csv", rows, ["n", "t"])
    assert (tmp_path / "t.csv").read_bytes().decode().splitlines() == [
        "bag,label,predicted,p_n,p_t,n_instances,repeat,fold",
        "'=a,n,t,0.3333333333333333,0.6666666666666666,7,1,2",
        '"b,c",,,,,1,,',
    ]


def test_outputs_that_are_not_finite_are_named(trained, tmp_path):
    world, _ = trained
    ensemble = prediction_run.Ensemble.load([str(world / "net")])
    networks = ensemble.methods[0].networks_
    broken = dataclasses.replace(networks, scale=networks.scale * 1e-45)
    ensemble.methods[0].networks_ = broken
    bags = Bags.from_arrays([np.full((2, WIDTH), 1e30), np.zeros((2, WIDTH))])
    scores = prediction_run.run(ensemble, bags, str(tmp_path / "p"))
    table = read_table(tmp_path / "p" / "predictions.csv")
    assert "0" in scores.nonfinite and (table["0"]["predicted"], table["0"]["p_tumour"]) == ("", "")


def test_a_column_that_is_not_to_be_taken_is_named_empty(world):
    """`--split_column=` takes no column of splits, whatever the table has: all bags are trained on.

    Nor does a column of folds leave bags out, which is said.
    """
    header, *lines = (world / "labels.csv").read_text().splitlines()
    lines = [f"{header},fold", *(f"{line},{number % 2}" for number, line in enumerate(lines))]
    (world / "labels.csv").write_text("\n".join(lines) + "\n")
    end = train(world, *SLIDES, "--method=mi_kernel", "--split_column=", "--workdir=no_split")
    assert end.returncode == 0 and "none tested" in end.stderr, end
    assert "slides: the folds of its table are for lossattn mil cv, and not looked at" in end.stderr
    assert mil.load(world / "no_split").trained_on_["count"] == 12
    assert_refused(train(world, *SLIDES, "--bag_column=", "--workdir=x"), "--bag_column is empty")


def test_a_patient_training_keeps_its_choice(world):
    flags = (*SLIDES, *SMALL, "--select=validation", "--patience=1", "--workdir=patient")
    end = train(world, *flags)
    assert end.returncode == 0 and "was chosen by the loss of" in end.stderr, end
    chosen = json.loads((world / "patient" / "model.json").read_text())["chosen"]
    assert chosen["patience"] == 1 and 1 <= chosen["epoch"] <= len(chosen["loss"]) <= 2
