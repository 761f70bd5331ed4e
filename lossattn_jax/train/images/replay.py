"""Replay of an update that a run has skipped: reports non-finite values."""

import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from lossattn_jax import data, devices
from lossattn_jax.checkpoint import run_folder, runs
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import nonfinite_values
from lossattn_jax.models import ImageNetwork
from lossattn_jax.train.images.gradients import Found, make_gradients
from lossattn_jax.train.images.job import build_network, fresh_state
from lossattn_jax.train.images.nonfinite import part_of, parts_of, read_batch, refuse_mixed
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import learning_rate_schedule
from lossattn_jax.train.state import TrainState


def replay(dump: str | pathlib.Path) -> list[str]:
    """Runs loss and gradient of a dumped update again, on all devices of this process.

    The update is the run's own, with its augmentation and dropout. On another number of devices than the
    run's it is another one only with `config.model.batch_norm` local.

    Args:
      dump: a folder of `lossattn_jax.train.images.nonfinite`.

    Returns:
      Sentences: what of the state before the update, of the images' losses, of the gradient and of the
      running statistics after it is not finite, images by their places in the training set.

    Raises:
      UserError: there is no such dump, it cannot be read, its parts were not written together, or the
        devices cannot share its batch equally.
    """
    folder = pathlib.Path(dump)
    config = run_folder.stored_config(folder)
    batch = read_batch(folder)
    refuse_mixed(folder, parts_of(config, batch))
    examples = int(batch.pop("training_examples"))
    spec = runs.spec_of(config)
    model = build_network(config, spec)
    devices.per_device(len(batch["index"]), "the number of images in the dump")
    steps_per_epoch = data.steps_per_epoch(examples, config.train.batch_size)
    state = _state(folder, config, model, spec, examples, steps_per_epoch)
    refuse_mixed(folder, part_of(state))
    find = devices.pmap(make_gradients(model, spec, config, steps_per_epoch))
    found: Found = find(devices.replicate(state), devices.shard(batch))
    return [
        f"The update after step {int(state.step)} was made again on {len(batch['index'])} images.",
        nonfinite_values.of_state(
            state.items(), "parameters, running statistics and the optimiser's state"
        ),
        nonfinite_values.of_losses(
            devices.gather(found.seen["loss"]),
            batch["index"].tolist(),
            "images",
            ", by their places in the training set",
        ),
        nonfinite_values.of_gradient(devices.unreplicate(found.gradients)),
        *_sentence_of_statistics(devices.unreplicate(found.batch_stats)),
    ]


def _state(
    folder: pathlib.Path,
    config: ConfigDict,
    model: ImageNetwork,
    spec: data.DatasetSpec,
    examples: int,
    steps_per_epoch: int,
) -> TrainState:
    learning_rate = learning_rate_schedule(config, steps_per_epoch)
    optimizer = make_optimizer(config, learning_rate, steps_per_epoch)
    like = jax.eval_shape(lambda: fresh_state(config, model, optimizer, spec, examples).items())
    with checkpoint_lib.Checkpoints(folder, read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise UserError(f"{folder} is not a dump of a skipped update: it has no checkpoint")
        return TrainState.from_items(checkpoints.restore(step, like))


def _sentence_of_statistics(batch_stats: Any) -> list[str]:
    names = nonfinite_values.names_of(batch_stats)
    if not names:
        return []
    return [
        f"After it, these running statistics are not finite: {nonfinite_values.list_first(names)}."
    ]
