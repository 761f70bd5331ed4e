"""Fitted methods in folders: what is read is what was written, and what is damaged is refused."""

import dataclasses
import json
import math
import pathlib
import pickle
import shutil
import sys

import numpy as np
import pytest

import lossattn_jax.mil as mil
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.errors import UntrustedCode, UserError
from lossattn_jax.files import records
from lossattn_jax.mil import methods, stored_models
from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.svm import MiSVM
from tests.support import own_parts, stored_model

NETWORKS = [name for name in methods.NAMES if methods.get(name).network]
STORED = sorted((pathlib.Path(__file__).parents[1] / "stored_models").iterdir())
ALONE = [name for name in methods.NAMES if name not in NETWORKS] + ["loss_attention"]


# Networks that are stored as these are: with one classifier, and with one for each layer.
LATER = [name for name in NETWORKS if name not in ("loss_attention", "mi_net_ds")]


class Fitted(dict):
    """Methods by name, each fitted when it is first asked for."""

    def __missing__(self, name):
        changes = stored_model.SMALL if name in NETWORKS else {}
        return self.setdefault(name, stored_model.fit(name, **changes))


@pytest.fixture(scope="module")
def fitted():
    """Every method, fitted once; networks on the bags of each process' devices."""
    return Fitted()


def predictions(method):
    """All that a method says of bags."""
    bags = stored_model.bags()[0]
    one_by_one = list(method.predict_bags(Bags.from_arrays(bags)))
    return [
        method.predict(bags),
        method.predict_proba(bags),
        *method.instance_scores(bags),
        *(bag.probabilities for bag in one_by_one),
        *(bag.scores for bag in one_by_one),
    ]


def assert_same_bits(one, other):
    for before, after in zip(one, other, strict=True):
        np.testing.assert_array_equal(before, after, strict=True)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LATER else name
        for name in methods.NAMES
    ],
)
def test_a_method_is_read_as_it_was_written(fitted, name, tmp_path, caplog):
    method = fitted[name]
    method.save(tmp_path / "model")
    assert "metric" not in caplog.text  # Orbax warned of those that a model does not have
    loaded = mil.load(tmp_path / "model")
    assert type(loaded) is type(method) and loaded.trained_on_ == method.trained_on_
    assert repr(loaded.get_params()) == repr(method.get_params())
    assert (loaded.positive_, loaded.n_features_in_) == ("tumour", 3)
    expected = predictions(method)
    assert_same_bits(predictions(loaded), expected)
    assert_same_bits(predictions(pickle.loads(pickle.dumps(method))), expected)
    assert np.ptp(expected[1]) > 0.01
    loaded.save(tmp_path / "again")
    first, second = (stored_models.read(tmp_path / folder) for folder in ("model", "again"))
    assert first.content["arrays"] == second.content["arrays"]
    assert first.content["parameters"] == second.content["parameters"]


def test_the_same_training_makes_the_same_files(fitted, tmp_path):
    """Nothing of when it was, or of what a killed process has left, is in them."""
    fitted["loss_attention"].save(tmp_path / "m")
    shutil.copytree(tmp_path / "m", tmp_path / "killed")
    (tmp_path / "killed" / "model.json").unlink()
    again = stored_model.fit("loss_attention", **stored_model.SMALL)
    again.save(tmp_path / "killed")
    for name in ("model.json", "arrays.npz"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()
    assert math.isnan(mil.load(tmp_path / "m").networks_.seconds)


READER = """
import sys
import numpy as np
import lossattn_jax.mil as mil
from tests.mil.test_stored_models import predictions
for folder in sys.argv[1:]:
    said = predictions(mil.load(folder))
    np.savez(folder + "/said.npz", *said)
"""


def test_another_process_predicts_the_same_bits(fitted, run_python, tmp_path):
    for name in ALONE:
        fitted[name].save(tmp_path / name)
    folders = [str(tmp_path / name) for name in ALONE]
    finished = run_python("-c", READER, *folders)
    assert finished.returncode == 0, finished.stderr
    for name in ALONE:
        with np.load(tmp_path / name / "said.npz") as said:
            assert_same_bits(said.values(), predictions(fitted[name]))


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
def test_models_of_other_versions_are_read(folder):
    expected = json.loads((folder / "probabilities.json").read_text())
    assert len(expected) == len(stored_model.METHODS)
    for name, probabilities in expected.items():
        said = mil.load(folder / name).predict_proba(stored_model.bags()[0])
        np.testing.assert_allclose(said, probabilities, rtol=1e-4, atol=1e-5)
        assert np.ptp(probabilities) > 0.01


def test_a_restored_svm_decides_as_computed_by_hand():
    method = MiSVM(kernel="rbf", standardise=True)
    state = {
        "classes": np.array(["a", "b"]),
        "order": np.array([1, 0]),
        "positive": np.array(0),
        "shape": np.array([2]),
        "mean": np.array([1.0, 0.0]),
        "scale": np.array([2.0, 1.0]),
        "fitted.gamma": np.array(0.5),
        "fitted.points": np.array([[0.0, 0.0], [1.0, 1.0]]),
        "fitted.coefficients": np.array([[2.0], [-1.0]]),
        "fitted.biases": np.array([0.25]),
        "fitted.rounds": np.array([3]),
    }
    method.restore(state, {})
    # Standardised, the instance is (1, 1): at distance 2 (squared) from the first point, 0 from the other.
    decision = 2 * math.exp(-0.5 * 2) - 1 + 0.25
    (scores,) = method.instance_scores([np.array([[3.0, 1.0]])])
    np.testing.assert_allclose(scores, [decision])
    probability = 1 / (1 + math.exp(-decision))
    said = method.predict_proba([np.array([[3.0, 1.0]])])
    np.testing.assert_allclose(said, [[probability, 1 - probability]])  # "a" is the positive one
    assert (method.positive_, method.rounds_) == ("a", [3])


def test_the_record_says_what_the_model_is(fitted, tmp_path):
    fitted["loss_attention"].save(tmp_path / "m")
    record = stored_models.read(tmp_path / "m")
    content = record.content
    assert content["kind"] == "model of bags" and content["method"] == "loss_attention"
    assert content["classes"] == ["healthy", "tumour"] and content["positive"] == "tumour"
    assert content["instance_shape"] == [3] and content["features"] is None
    assert content["settings"]["settings"]["epochs"] == 3 and content["settings"]["hidden"] == [4]
    assert record.made_from["count"] == 12 and len(record.made_from["bags"]) == 64
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "arrays.npz",
        "checkpoints",
        "model.json",
    ]


def test_the_digest_of_data_is_that_of_their_bytes(fitted):
    bags, labels = stored_model.bags()
    lazy = Bags.from_arrays(bags, labels)
    method = methods.make("mi_kernel").fit(lazy)
    assert method.trained_on_ == fitted["mi_kernel"].trained_on_
    bags[3] = bags[3] + 1e-9
    assert (
        methods.make("mi_kernel").fit(bags, labels).trained_on_["bags"]
        != (method.trained_on_["bags"])
    )


def test_labels_and_weights_of_any_type_come_back(tmp_path):
    bags = stored_model.bags()[0]
    for number, classes in enumerate([(3, -7), (True, False), (0.5e1, 2.0), ("a:b", "c")]):
        labels = [classes[place % 2] for place in range(len(bags))]
        weights = {classes[0]: 2.0, classes[1]: 1}
        method = methods.make("mi_svm", positive=classes[0], class_weight=weights)
        method.fit(bags, labels).save(tmp_path / str(number))
        loaded = mil.load(tmp_path / str(number))
        assert loaded.get_params() == method.get_params()
        assert_same_bits([loaded.predict(bags)], [method.predict(bags)])
        assert loaded.positive_ == classes[0] and type(loaded.positive_) is type(classes[0])


def test_features_are_matched_by_their_names(tmp_path):
    bags, labels = stored_model.bags()

    def lazy(order, names):
        columns = Bags.from_arrays([bag[:, order] for bag in bags], labels)
        return dataclasses.replace(columns, features=names)

    method = methods.make("mi_kernel").fit(lazy([0, 1, 2], ("x", "y", "z")))
    method.save(tmp_path / "m")
    loaded = mil.load(tmp_path / "m")
    assert loaded.feature_names_ == ("x", "y", "z")
    expected = method.predict_proba(bags)
    other = lazy([2, 0, 1], ("z", "x", "y"))
    assert_same_bits([loaded.predict_proba(other)], [expected])
    wider = lazy([2, 2, 0, 1], ("w", "z", "x", "y"))
    one_by_one = [bag.probabilities for bag in loaded.predict_bags(wider)]
    np.testing.assert_allclose(one_by_one, expected, rtol=1e-9)
    with pytest.raises(UserError, match="lack 1 of 3 features that were trained on: 'x'"):
        loaded.predict_proba(lazy([2, 0, 1], ("z", "u", "y")))
    with pytest.raises(UserError, match="have 2 features, but the model was trained on 3"):
        next(iter(loaded.predict_bags(Bags.from_arrays([bag[:, :2] for bag in bags]))))


def change(path, key, value):
    """Writes a record anew with another value."""
    record = records.read(path)
    records.write(path, {**record.content, key: value}, record.made_from)


DAMAGES = {
    "no record": (lambda m: (m / "model.json").unlink(), "has no model.json, and so is no model"),
    "cut record": (
        lambda m: (m / "model.json").write_text("{"),
        "model.json cannot be read .*; train it again",
    ),
    "changed record": (
        lambda m: (m / "model.json").write_text(
            (m / "model.json").read_text().replace("tumour", "tumor")
        ),
        "model.json is not as it was written",
    ),
    "another kind": (
        lambda m: change(m / "model.json", "kind", "fold"),
        "is a record of 'fold', but must be one of 'model of bags'",
    ),
    "later schema": (
        lambda m: change(m / "model.json", "schema", 2),
        "has the schema 2, but this version reads 1: it was written by lossattn_jax ",
    ),
    "unknown method": (
        lambda m: change(m / "model.json", "method", "magic"),
        "the method in .*model.json is 'magic', but must be one of",
    ),
    "other settings": (
        lambda m: change(m / "model.json", "settings", {"depth": 3}),
        "does not hold what this version of .* is made of .*depth",
    ),
    "no arrays": (lambda m: (m / "arrays.npz").unlink(), "has lost its arrays.npz"),
    "cut arrays": (
        lambda m: (m / "arrays.npz").write_bytes((m / "arrays.npz").read_bytes()[:200]),
        "arrays.npz cannot be read",
    ),
    "other arrays": (
        lambda m: records.write_arrays(m / "arrays.npz", {"mean": np.zeros(3)}),
        "arrays.npz is not as it was written",
    ),
}
OF_NETWORKS = {
    "no checkpoints": (
        lambda m: shutil.rmtree(m / "checkpoints"),
        "has lost its checkpoint 0, and so its parameters",
    ),
    "other parameters": (
        lambda m: change(m / "model.json", "parameters", "0" * 64),
        "has the parameters of another model",
    ),
    "other widths": (
        lambda m: change(
            m / "model.json",
            "settings",
            {**stored_models.read(m).content["settings"], "hidden": [5]},
        ),
        "checkpoint 0 in .* is of another model: its array .* is float32",
    ),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in ("mi_fv", "loss_attention") for damage in DAMAGES),
        *(("loss_attention", damage) for damage in OF_NETWORKS),
    ],
)
def test_a_damaged_model_is_refused_in_one_sentence(fitted, name, damage, tmp_path):
    fitted[name].save(tmp_path / "m")
    spoil, sentence = {**DAMAGES, **OF_NETWORKS}[damage]
    spoil(tmp_path / "m")
    with pytest.raises(UserError, match=sentence) as caught:
        mil.load(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_a_folder_with_a_model_is_not_written_over(fitted, tmp_path):
    fitted["mi_fv"].save(tmp_path / "m")
    with pytest.raises(UserError, match="has a model already; use another one"):
        fitted["mi_svm"].save(tmp_path / "m")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written"):
        fitted["mi_svm"].save(tmp_path / "file")
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    with pytest.raises(UserError, match="run has checkpoints of something else; use another one"):
        fitted["loss_attention"].save(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").rglob("*")] == ["checkpoints", "7"]
    with pytest.raises(UserError, match="was not fitted"):
        methods.make("mi_svm").save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_a_killed_process_has_left_is_written_over(fitted, tmp_path):
    fitted["mi_net_ds"].save(tmp_path / "m")
    (tmp_path / "m" / "model.json").unlink()  # which is written last
    fitted["loss_attention"].save(tmp_path / "m")
    expected = predictions(fitted["loss_attention"])
    assert_same_bits(predictions(mil.load(tmp_path / "m")), expected)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    own_parts.write(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield own_parts.NAME
    sys.modules.pop(own_parts.NAME, None)


def test_a_class_of_ones_own_needs_trust(own_module, tmp_path):
    own = f"{own_module}:Threshold"
    bags, labels = stored_model.bags()
    method = methods.make(own)
    kind = type(method)
    method.positive = "tumour"
    method.fit(bags, labels)
    with pytest.raises(UserError, match="Threshold cannot be saved: it has no _state and _restore"):
        method.save(tmp_path / "m")
    kind._state = lambda self: {"sign": np.array(self.sign_)}
    kind._restore = lambda self, state: setattr(self, "sign_", float(state["sign"]))
    method.save(tmp_path / "m")
    with pytest.raises(UntrustedCode, match=f"is '{own}', which is code that this command"):
        mil.load(tmp_path / "m")
    for trusted in (True, [own]):
        loaded = mil.load(tmp_path / "m", trust_code=trusted)
        assert_same_bits([loaded.predict_proba(bags)], [method.predict_proba(bags)])


def test_a_class_of_a_function_cannot_be_saved(tmp_path):
    class Local(MiSVM):
        pass

    bags, labels = stored_model.bags()
    method = Local(positive="tumour").fit(bags, labels)
    with pytest.raises(UserError, match="Local cannot be saved, for it cannot be imported again"):
        method.save(tmp_path / "m")
    assert issubclass(Local, BagClassifier) and not (tmp_path / "m").exists()
