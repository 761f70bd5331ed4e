"""Tiny runs on disk, as trainings leave them, and pictures for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from lossattn_jax import data
from lossattn_jax.checkpoint import run_folder, runs, store
from lossattn_jax.config import images as config_lib

SPEC = data.DatasetSpec("toy", 3, ("a", "=b", "<i>c</i>"), image_shape=(16, 16, 3))
BATCH = 4


def config():
    result = config_lib.default_config()
    result.model.update(backbone="small", width=0.1)
    result.eval.batch_size = BATCH
    return result


@functools.cache
def variables(num_classes=3, seed=6):
    spec = data.DatasetSpec("toy", num_classes, tuple("abcdefgh"[:num_classes]))
    model = runs.build_model(config_lib.resolve(config()).model, spec)
    images = jnp.zeros((1, 16, 16, 3))
    made = jax.jit(lambda key: model.init(key, images))(jax.random.key(seed))
    # So that predictions differ.
    classifier = jax.tree.map(
        lambda leaf: leaf * (2 if leaf.ndim > 1 else 0), made["params"]["classifier"]
    )
    return {**made, "params": {**made["params"], "classifier": classifier}}


def write(workdir, spec=SPEC, step=3, seed=6, change=lambda tree: tree):
    """Writes a run of a network that nobody trained; returns its folder."""
    run_folder.make_workdir(workdir)
    run_folder.write_config(config_lib.resolve(config()), workdir, spec)
    with store.Checkpoints(workdir) as checkpoints:
        tree = change(variables(spec.num_classes, seed))
        checkpoints.save(step, {"variables": tree}, None)
    return workdir


def arrays(count=6, size=(16, 16), seed=0):
    """`[count, *size, 3]` uint8: noise, each in a colour of its own."""
    draw = np.random.default_rng(seed)
    noise = draw.integers(0, 256, (count, *size, 3))
    return (noise // 4 + draw.integers(0, 192, (count, 1, 1, 3))).astype(np.uint8)


def write_pictures(folder, count=6, size=(20, 30), seed=0):
    """PNG files `00.png` ... in a folder; returns their arrays."""
    pictures = arrays(count, size, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    return pictures
