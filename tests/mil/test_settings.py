"""The training's settings: the paper's values, and what is refused."""

import dataclasses

import numpy as np
import pytest

from lossattn_jax.errors import UserError
from lossattn_jax.train.bags.settings import PER_MODEL, Settings


def test_defaults_are_the_papers():
    # AAAI 2020, tables A2 to A4 of the supplement.
    found = Settings()
    assert (found.epochs, found.batch_size) == (100, 1)
    assert (found.learning_rate, found.weight_decay, found.patch_weight) == (1e-4, 5e-4, 0.1)
    assert (found.patch_ramp_epochs, found.patch_reduction) == (0, "sum")
    assert found.consistency_weight == 0


def test_settings_of_a_model_are_settings():
    assert set(PER_MODEL) <= {field.name for field in dataclasses.fields(Settings)}


def test_settings_can_stand_for_a_compiled_program():
    assert Settings(epochs=7) == Settings(epochs=7) != Settings(epochs=8)
    assert len({Settings(epochs=7), Settings(epochs=7), Settings(epochs=8)}) == 2


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("epochs", 0, "a whole number, at least 1"),
        ("epochs", 2.5, "a whole number, at least 1"),
        ("epochs", True, "a whole number, at least 1"),
        ("epochs", "3", "a whole number, at least 1"),
        ("batch_size", 0, "a whole number, at least 1"),
        ("learning_rate", 0, "a positive number"),
        ("learning_rate", float("nan"), "a positive number"),
        ("learning_rate", float("inf"), "a positive number"),
        ("weight_decay", -1e-9, "a number, at least 0"),
        ("patch_weight", -0.1, "a number, at least 0"),
        ("patch_weight", None, "a number, at least 0"),
        ("patch_ramp_epochs", -1, "a number, at least 0"),
        ("patch_reduction", "max", "sum or mean"),
        ("consistency_weight", float("nan"), "a number, at least 0"),
        ("consistency_ramp_epochs", -1, "a number, at least 0"),
        ("consistency_decay", 1, "at least 0 and below 1"),
        ("consistency_decay", -0.1, "at least 0 and below 1"),
        ("average_epochs", -1, "a whole number, at least 0"),
        ("average_epochs", 1.5, "a whole number, at least 0"),
        ("max_waste", 0.9, "a number, at least 1"),
        ("max_waste", float("inf"), "a number, at least 1"),
        ("models_at_once", -1, "a whole number, at least 0"),
    ],
)
def test_impossible_values_are_refused(name, value, allowed):
    with pytest.raises(UserError) as caught:
        Settings(**{name: value})
    assert str(caught.value) == f"{name} is {value!r}, but must be {allowed}"


def test_more_epochs_to_average_than_there_are_is_refused():
    assert Settings(epochs=3, average_epochs=3).average_epochs == 3
    with pytest.raises(UserError, match="average_epochs is 4, but must be at most epochs, 3"):
        Settings(epochs=3, average_epochs=4)


def test_numbers_of_any_type_become_those_of_python():
    settings = Settings(epochs=2.0, batch_size=np.int64(3), learning_rate=np.float32(0.5))
    assert settings == Settings(epochs=2, batch_size=3, learning_rate=0.5)
    types = [type(getattr(settings, name)) for name in ("epochs", "batch_size", "learning_rate")]
    assert types == [int, int, float]
    assert Settings(patch_weight=1).patch_weight == 1
