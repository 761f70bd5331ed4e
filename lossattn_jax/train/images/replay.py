"""Replay of an update that a run has skipped: reports non-finite values."""

import pathlib
from typing import Any

import jax

from lossattn_jax import data, devices
from lossattn_jax.checkpoint import run_folder, runs
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.config import images as config_lib
from lossattn_jax.config.options import ImageOptions
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import nonfinite_values
from lossattn_jax.models import ImageNetwork
from lossattn_jax.train.images.gradients import Found, make_gradients
from lossattn_jax.train.images.job import build_network, fresh_state
from lossattn_jax.train.images.nonfinite import part_of, parts_of, read_batch, refuse_mixed
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import Length, learning_rate_schedule
from lossattn_jax.train.state import TrainState


def replay(dump: str | pathlib.Path, *, trust_code: bool = False) -> list[str]:
    """Runs loss and gradient of a dumped update again, on all devices of this process.

    The update is the run's own, with its augmentation and dropout. On another number of devices than the
    run's it is another one only with `config.model.batch_norm` local.

    Args:
      dump: a folder of `lossattn_jax.train.images.nonfinite`.
      trust_code: whether code that the run's config names by reference is imported.

    Returns:
      Sentences: what of the state before the update, of the images' losses, of the gradient and of the
      running statistics after it is not finite, images by their places in the training set.

    Raises:
      UserError: there is no such dump, it cannot be read, its parts were not written together, or the
        devices cannot share its batch equally.
    """
    folder = pathlib.Path(dump)
    stored = run_folder.stored_config(folder, trust_code=trust_code)
    options = config_lib.resolve(stored)
    batch = read_batch(folder)
    refuse_mixed(folder, parts_of(options, batch))
    examples = int(batch.pop("training_examples"))
    spec = runs.spec_of(options.data)
    model = build_network(options.model, spec)
    devices.per_device(len(batch["index"]), "the number of images in the dump")
    steps_per_epoch = data.steps_per_epoch(examples, options.train.batch_size)
    state = _state(folder, options, model, spec, examples)
    refuse_mixed(folder, part_of(state))
    find = devices.pmap(make_gradients(model, spec, options, steps_per_epoch))
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
    options: ImageOptions,
    model: ImageNetwork,
    spec: data.DatasetSpec,
    examples: int,
) -> TrainState:
    steps_per_epoch = data.steps_per_epoch(examples, options.train.batch_size)
    length = Length(options.train.epochs, steps_per_epoch)
    learning_rate = learning_rate_schedule(options.optimizer, length)
    optimizer = make_optimizer(options.optimizer, learning_rate, length)
    like = jax.eval_shape(lambda: fresh_state(options, model, optimizer, spec, examples).items())
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
