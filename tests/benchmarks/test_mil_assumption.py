"""The benchmark of what methods have learned: areas, a table, the same trainings as the command, resuming."""

import json

import numpy as np
import pytest

from benchmarks import mil_assumption
from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import sources
from lossattn_jax.errors import UserError


def fold(training, shifted):
    """Two positive and two negative bags of each distribution, with these probabilities."""
    return {
        "bags": [
            {"id": f"{word}_{row}", "label": row % 2, "probabilities": [1 - p, p]}
            for word, values in (("training", training), ("shifted", shifted))
            for row, p in enumerate(values)
        ]
    }


def test_areas_of_each_distribution_by_hand():
    # Pairs of a negative and a positive bag in the right order: 4 of 4 and 3 of 4; 0 and 2 of 4.
    folds = [fold([0.1, 0.8, 0.2, 0.9], [0.9, 0.2, 0.8, 0.1])]
    folds.append(fold([0.1, 0.8, 0.5, 0.4], [0.3, 0.4, 0.6, 0.5]))
    measured = mil_assumption.measure(folds)
    assert measured["training"]["runs"] == [1.0, 0.75]
    assert measured["training"]["mean"] == pytest.approx(0.875)
    assert measured["training"]["std"] == pytest.approx(0.125 * 2**0.5)
    assert measured["shifted"]["runs"] == [0.0, 0.5]
    text = mil_assumption.markdown({"a": {"clam": measured}, "b": {}})
    assert text.splitlines() == [
        "| method | a, training | a, shifted | b, training | b, shifted |",
        "| --- | --- | --- | --- | --- |",
        "| CLAM-SB | 0.875 (0.177) | 0.250 (0.354) | - | - |",
    ]
    lost = mil_assumption.measure([fold([0.1, np.nan, 0.2, 0.9], [0.9, 0.2, 0.8, 0.1])])
    assert lost["training"]["mean"] is None and lost["shifted"]["mean"] == 0


def test_its_trainings_are_those_of_the_command():
    config = config_lib.default_config()
    config.repeats, config.bags.train, config.bags.test = 2, (6,), 8
    options = config_lib.resolve(config)
    both = mil_assumption.draw_experiment("multi_concept", options)
    for word, other in zip(
        mil_assumption.DISTRIBUTIONS,
        sources.experiments("multi_concept", "nowhere", options),
        strict=True,
    ):
        for own, split in zip(both.splits, other.splits, strict=True):
            parts = both.dataset.select(own.train), other.dataset.select(split.train)
            np.testing.assert_array_equal(parts[0].instances, parts[1].instances)
        tested = [row for row, name in enumerate(both.dataset.ids) if name.startswith(word)]
        assert both.splits[0].test[tested].all() and len(tested) == 8
        part = other.dataset.select(other.splits[0].test)
        np.testing.assert_array_equal(both.dataset.select(tested).instances, part.instances)


def test_a_measured_method_is_not_measured_again(tmp_path, capsys, monkeypatch):
    arguments = (str(tmp_path / "work"), str(tmp_path / "out.json"))
    settings = {"datasets": ["single_concept"], "train": 40, "test": 40, "seeds": 2}
    settings["table"] = str(tmp_path / "table.md")
    first = mil_assumption.run(*arguments, method=["mi_kernel"], **settings)
    areas = first["results"]["single_concept"]["mi_kernel"]
    assert areas["training"]["mean"] > 0.9 and areas["shifted"]["mean"] < 0.1
    assert json.loads((tmp_path / "out.json").read_text()) == first
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    monkeypatch.setattr(mil_assumption.cross_validation, "run", None)
    assert mil_assumption.run(*arguments, method=["mi_kernel"], **settings) == first


def test_unknown_sets_and_methods_are_refused_first(tmp_path):
    arguments = (str(tmp_path / "work"), str(tmp_path / "out.json"))
    with pytest.raises(UserError, match="--datasets has 'fox', but allowed are single_concept, "):
        mil_assumption.run(*arguments, datasets=["fox"])
    with pytest.raises(UserError, match="clamp"):
        mil_assumption.run(*arguments, method=["clamp"])
    assert not (tmp_path / "work").exists()
