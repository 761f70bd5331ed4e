"""The benchmark of a step's memory."""

import pytest

from benchmarks import step_memory
from lossattn_jax.config.images import default_config


def memory_of(batch_size, **saving):
    config = default_config()
    config.model.width = 0.05
    config.train.update(batch_size=batch_size, **saving)
    return step_memory.step_memory(config)


@pytest.mark.slow
def test_memory_grows_with_the_batch_and_shrinks_with_remat():
    small, large = memory_of(4), memory_of(16)
    assert large["temporary"] > 2 * small["temporary"]
    # 12 images of 32x32x3 bytes, labels and places; no more.
    assert 0 < large["state"] - small["state"] < 12 * (3072 + 8) + 1024
    assert memory_of(16, remat=True)["temporary"] < large["temporary"]


@pytest.mark.slow
def test_parts_of_a_batch_take_less_memory():
    whole, quarter = memory_of(16)["temporary"], memory_of(4)["temporary"]
    assert memory_of(16, accumulate=4)["temporary"] < (whole + quarter) / 2
    assert memory_of(16, remat=True, accumulate=4)["temporary"] < (whole + quarter) / 2
