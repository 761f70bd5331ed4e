"""Replay of a skipped update of a network for images."""

from typing import Any

import jax

from lossattn_jax import data, devices
from lossattn_jax.checkpoint import data_set_record, runs
from lossattn_jax.config import config_json
from lossattn_jax.config import images as config_lib
from lossattn_jax.config.options import ImageOptions
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import nonfinite_values
from lossattn_jax.train.dumps import RECORD_NAME, Dump
from lossattn_jax.train.images import frozen
from lossattn_jax.train.images.backbone import make_image_optimizer
from lossattn_jax.train.images.gradients import BatchGradients, make_gradients
from lossattn_jax.train.images.job import build_network, fresh_state
from lossattn_jax.train.schedules import Length, learning_rate_schedule
from lossattn_jax.train.state import TrainState


def replay_update(dump: Dump, trust_code: bool = False) -> list[str]:
    """Recomputes loss and gradient of a dumped update.

    On another number of devices than the run's it is another one only with `config.model.batch_norm` local.

    Args:
      dump: of `train.images.nonfinite`.
      trust_code: whether code that the run's config names by reference is imported.

    Returns:
      Sentences: what of the state before the update, of the images' losses, of the gradient and of the
      running statistics after it is not finite, images by their places in the training set.

    Raises:
      UserError: the dump's arrays are others, or the devices cannot share its batch equally.
    """
    place = dump.folder / RECORD_NAME
    values = dump.content["config"]
    options = config_lib.resolve(config_json.from_values(values, place, trust_code=trust_code))
    batch = dump.tree("batch")
    examples = int(dump.content["examples"])
    pictures = _data_set(dump, options)
    model, spec = build_network(options.model, pictures), pictures
    if options.train.freeze:
        model, spec = frozen.behind_backbone(model, pictures)
    devices.per_device(len(batch["index"]), "the number of images in the dump")
    steps_per_epoch = data.steps_per_epoch(
        examples, options.train.batch_size, options.data.drop_last
    )
    like = jax.eval_shape(lambda: _fresh_state(options, pictures, examples).items())
    state = TrainState.from_items(dump.restore_state(like))
    compute_gradients = devices.pmap(make_gradients(model, spec, options, steps_per_epoch))
    of_batch: BatchGradients = compute_gradients(devices.replicate(state), devices.shard(batch))
    return [
        f"The update after step {int(state.step)} was made again on {len(batch['index'])} images.",
        nonfinite_values.of_state(
            state.items(), "parameters, running statistics and the optimiser's state"
        ),
        nonfinite_values.of_losses(
            devices.gather(of_batch.per_example["loss"]),
            batch["index"].tolist(),
            "images",
            ", by their places in the training set",
        ),
        nonfinite_values.of_gradient(devices.unreplicate(of_batch.gradients)),
        *_report_statistics(devices.unreplicate(of_batch.batch_stats)),
    ]


def _data_set(dump: Dump, options: ImageOptions) -> data.DatasetSpec:
    """The data set of the run; dumps of before there were records have its name alone."""
    stored = dump.content.get("data_set")
    if stored is None:
        return runs.spec_of(options.data)
    try:
        return data_set_record.from_json(stored)
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"{dump.folder / RECORD_NAME} does not say which data set the run belongs to ({error})"
        ) from None


def _fresh_state(options: ImageOptions, spec: data.DatasetSpec, examples: int) -> TrainState:
    model = build_network(options.model, spec)
    steps_per_epoch = data.steps_per_epoch(
        examples, options.train.batch_size, options.data.drop_last
    )
    length = Length(options.train.epochs, steps_per_epoch)
    learning_rate = learning_rate_schedule(options.optimizer, length)
    optimizer = make_image_optimizer(options, learning_rate, length)
    return fresh_state(options, model, optimizer, spec, examples)


def _report_statistics(batch_stats: Any) -> list[str]:
    names = nonfinite_values.names_of(batch_stats)
    if not names:
        return []
    return [
        f"After it, these running statistics are not finite: {nonfinite_values.list_first(names)}."
    ]
