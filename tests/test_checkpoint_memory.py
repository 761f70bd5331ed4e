"""What a process keeps of the checkpoints that it has written."""

import gc
import sys

import numpy as np

from lossattn_jax.checkpoint.store import Checkpoints

ARRAYS, SAVES = 60, 10


def test_saving_keeps_nothing_of_every_array(tmp_path):
    tree = {f"array{number}": np.zeros(3, np.float32) for number in range(ARRAYS)}
    blocks = []
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(2 * SAVES):
            checkpoints.save(step, {"variables": tree}, {"accuracy": step / 100})
            if (step + 1) % SAVES == 0:
                checkpoints.wait()
                gc.collect()
                blocks.append(sys.getallocatedblocks())
    before, after = blocks
    assert after - before < SAVES * ARRAYS
