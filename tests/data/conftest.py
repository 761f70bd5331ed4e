"""A small `digit_scenes`, prepared once for all tests of the data package."""

import pytest

from lossattn_jax import data
from lossattn_jax.data.prepare import prepare

NUM_TRAIN, NUM_TEST = 60, 21


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """The folder with 60 training and 21 test scenes; tests that change it work on a copy."""
    folder = str(tmp_path_factory.mktemp("data"))
    prepare("digit_scenes", folder, builder_kwargs={"num_train": NUM_TRAIN, "num_test": NUM_TEST})
    return folder


@pytest.fixture(scope="session")
def digits_spec():
    return data.get_spec("digit_scenes")
