"""Models of folds that stay: they predict what their folds say, alone and together."""

import json
import shutil

import numpy as np
import pytest

import lossattn_jax.mil as mil
from lossattn_jax.data.bags import bag_files
from lossattn_jax.errors import UserError
from lossattn_jax.mil import stored_models
from reliability import in_process
from tests.mil.test_model_commands import contents, predict, read_table
from tests.support import own_parts, stored_model

METHODS = ("mi_svm", "mi_kernel", "mi_fv", "em_dd", "loss_attention")
RULES = ("final", "validation")


def cross_validate(folder, *arguments):
    return in_process.run(
        [
            *("-m", "lossattn_jax.mil", "--dataset=own.csv", "--folds=3", "--repeats=1"),
            *("--config.train.epochs=3", "--config.model.hidden=(4,)", "--config.model.ensemble=2"),
            *("--positive=tumour", f"--select={','.join(RULES)}", *arguments),
        ],
        folder,
    )


def write_bags(path, classes=stored_model.CLASSES):
    rows = ["bag_label,bag_id,a,b,c"]
    for number, (bag, label) in enumerate(zip(*stored_model.bags(), strict=True)):
        word = classes[stored_model.CLASSES.index(label)]
        rows += [f"{word},b{number},{','.join(map(repr, values.tolist()))}" for values in bag]
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    write_bags(folder / "own.csv")
    end = cross_validate(folder, f"--method={','.join(METHODS)}", "--workdir=run", "--keep_models")
    assert end.returncode == 0, end.stderr
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_model_predicts_what_its_fold_says(run, method):
    dataset = bag_files.read(run / "own.csv")
    for rule in RULES:
        for number in range(3):
            path = run / "run" / "own" / method / rule / f"repeat0_fold{number}"
            fold = json.loads(path.with_suffix(".json").read_text())
            model = mil.load(path)
            assert model.classes_.tolist() == ["healthy", "tumour"]
            assert (model.positive_, model.feature_names_) == ("tumour", ("a", "b", "c"))
            assert model.trained_on_["count"] == 8
            rows = [dataset.ids.index(bag["id"]) for bag in fold["bags"]]
            bags = [dataset.bags[row] for row in rows]
            places = [fold["classes"].index(word) for word in model.classes_]
            expected = [np.array(bag["probabilities"])[places] for bag in fold["bags"]]
            tolerance = 1e-5 if method == "loss_attention" else 1e-12
            np.testing.assert_allclose(model.predict_proba(bags), expected, atol=tolerance)
            for bag, scores in zip(fold["bags"], model.instance_scores(bags), strict=True):
                np.testing.assert_allclose(scores, bag["weights"], rtol=1e-4, atol=tolerance)
            said = [fold["classes"][bag["prediction"]] for bag in fold["bags"]]
            assert model.predict(bags).tolist() == said


def test_settings_that_a_fold_chose_are_its_models(run):
    settings = set()
    for path in sorted((run / "run" / "own").glob("*/validation/repeat0_fold?.json")):
        fold = json.loads(path.read_text())
        stored = stored_models.read(path.with_suffix("")).content["settings"]
        assert {name: stored[name] for name in fold["settings"]} == fold["settings"]
        settings.update(fold["settings"])
    assert settings  # or nothing was compared


def test_folds_predict_together(run, tmp_path):
    (tmp_path / "bags").mkdir()
    for number, bag in enumerate(stored_model.bags()[0]):
        np.save(tmp_path / "bags" / f"b{number}.npy", bag)
    for method in ("mi_kernel", "loss_attention"):
        parts = [run / "run" / "own" / method / "final" / f"repeat0_fold{n}" for n in range(3)]
        end = predict(
            tmp_path, f"--model={','.join(map(str, parts))}", "--bags=bags", f"--out={method}"
        )
        assert end.returncode == 0, end.stderr
        table = read_table(tmp_path / method / "predictions.csv")
        models = [mil.load(part) for part in parts]
        for number, bag in enumerate(stored_model.bags()[0]):
            expected = np.mean([model.predict_proba([bag])[0] for model in models], axis=0)
            row = table[f"b{number}"]
            said = [float(row["p_healthy"]), float(row["p_tumour"])]
            np.testing.assert_allclose(said, expected, atol=1e-6)


@pytest.mark.slow
def test_models_that_are_not_there_are_made_again(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    before = contents(folder)
    lost = folder / "run" / "own" / "mi_svm" / "final" / "repeat0_fold1"
    shutil.rmtree(lost)
    half = folder / "run" / "own" / "loss_attention" / "validation" / "repeat0_fold2"
    half.with_suffix(".json").unlink()
    names = "--method=mi_svm,loss_attention"
    assert cross_validate(folder, names, "--workdir=run").returncode == 0
    assert not lost.exists()  # without the flag no model is missing
    half.with_suffix(".json").unlink()
    end = cross_validate(folder, names, "--workdir=run", "--keep_models")
    assert end.returncode == 0, end.stderr
    model = mil.load(lost)
    expected = mil.load(run / lost.relative_to(folder))
    bags = stored_model.bags()[0]
    np.testing.assert_array_equal(model.predict_proba(bags), expected.predict_proba(bags))
    one, other = (
        mil.load(root / half.relative_to(folder)).predict_proba(bags) for root in (folder, run)
    )
    np.testing.assert_array_equal(one, other)
    after = contents(folder)
    kept = folder / "run" / "own" / "mi_svm" / "validation" / "repeat0_fold0" / "model.json"
    assert after[kept] == before[kept]


def test_classes_whose_meaning_is_not_known_keep_their_words(tmp_path):
    write_bags(tmp_path / "own.csv", ("b_first", "a_other"))
    end = in_process.run(
        [
            *("-m", "lossattn_jax.mil", "--dataset=own.csv", "--folds=3", "--repeats=1"),
            *("--method=mi_kernel", "--workdir=run", "--keep_models"),
        ],
        tmp_path,
    )
    assert end.returncode == 0, end.stderr
    dataset = bag_files.read(tmp_path / "own.csv")
    path = tmp_path / "run" / "own" / "mi_kernel" / "final" / "repeat0_fold0"
    model, fold = mil.load(path), json.loads(path.with_suffix(".json").read_text())
    assert model.classes_.tolist() == ["a_other", "b_first"] and model.positive_ is None
    assert fold["classes"] == ["b_first", "a_other"]
    bags = [dataset.bags[dataset.ids.index(bag["id"])] for bag in fold["bags"]]
    expected = [bag["probabilities"][::-1] for bag in fold["bags"]]
    np.testing.assert_allclose(model.predict_proba(bags), expected, atol=1e-12)


def test_a_class_that_cannot_be_saved_is_refused_first(tmp_path, monkeypatch):
    own_parts.write(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_bags(tmp_path / "own.csv")
    own = f"--method={own_parts.NAME}:Threshold"
    end = cross_validate(tmp_path, own, "--workdir=run", "--keep_models")
    assert end.returncode == 2 and "Threshold cannot be saved: it has no _state" in end.stderr
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="has no model.json"):
        mil.load(tmp_path / "run")
