"""Writes a checkpoint of known arrays, for `test_stored_checkpoints.py` to read with later versions.

    python -m tests.support.stored_checkpoint tests/stored_checkpoints/NAME

The folder is that of a run whose network, optimiser and attention average are filled with numbers that follow
from their names, and `logits.json`, what the network says of the images of `images`.
"""

import json
import pathlib
import sys
import zlib

import jax
import numpy as np

from lossattn_jax.attention import ensemble
from lossattn_jax.checkpoint import run_folder, runs, store
from lossattn_jax.config import images as config_lib
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import Length, learning_rate_schedule
from lossattn_jax.train.state import TrainState, create_state

STEP = 7
EXAMPLES = 6  # of the training set
METRICS = {"accuracy": 0.75, "loss": 0.5}


def config():
    """Of the run: as small as the network gets, with everything that a training state may hold."""
    result = config_lib.default_config()
    result.data.name = "digit_scenes"
    result.model.update(backbone="small", width=0.05)
    result.optimizer.schedule = "one_cycle"
    result.loss.consistency_weight = 1.0
    return result


def images():
    """`[2, 32, 32, 3]` float32."""
    return np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)


def shapes() -> TrainState:
    """A state of the run, none of whose numbers are those of the checkpoint."""
    options = config_lib.resolve(config())
    spec = runs.spec_of(options.data)
    model = runs.build_model(options.model, spec)
    length = Length(options.train.epochs, 1)
    schedule = learning_rate_schedule(options.optimizer, length)
    optimizer = make_optimizer(options.optimizer, schedule, length)
    kept = ensemble.create(EXAMPLES, model.patch_grid(spec.image_shape).patches)
    return create_state(model, optimizer, spec.image_shape, 0, kept)


def items():
    """The items of the checkpoint."""

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        if np.issubdtype(leaf.dtype, np.floating):
            lowest = 0.1 if "batch_stats" in name else -0.5  # variances are positive
            return draw.uniform(lowest, 0.5, leaf.shape).astype(leaf.dtype)
        return draw.integers(0, 2, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes().items())


def logits(workdir: pathlib.Path):
    """What the stored network says of `images`, float32 `[2, classes]`."""
    run = runs.load(workdir)
    return np.asarray(run.model.apply(run.variables, images()).logits)


def write(workdir: pathlib.Path) -> None:
    """Makes the folder."""
    run_folder.make_workdir(workdir)
    run_folder.write_config(config(), workdir)
    with store.Checkpoints(workdir) as checkpoints:
        checkpoints.save(STEP, items(), METRICS)
    (workdir / "logits.json").write_text(json.dumps(logits(workdir).tolist()) + "\n")


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))
