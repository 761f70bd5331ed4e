"""Trains many networks for bags at once, in one compiled program.

The bags lie on the device as one flat array, and a step cuts its bags out of it, padded to the length of
their bucket. Models are split over the devices, or where there are fewer, the bags of a step (`spread`). Each
device trains its models group by group (`Settings.models_at_once`), so that on a CPU the parameters and
Adam's moments of one model stay in cache. All models visit the bags in the same order and skip those that
they may not see.
"""

import copy
import dataclasses
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lossattn_jax import devices
from lossattn_jax.commands.progress import LogClock, Progress
from lossattn_jax.data.bags import data_warnings, precision
from lossattn_jax.data.bags.bags import BagDataset, bucket_lengths
from lossattn_jax.data.order import bucket_batches, bucket_steps
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags import device_bags, programs
from lossattn_jax.train.bags import plans as plans_lib
from lossattn_jax.train.bags import spread as spread_lib
from lossattn_jax.train.bags.nonfinite import BagSkips, DatasetDumpWriter
from lossattn_jax.train.bags.plans import HasEnded, Plan
from lossattn_jax.train.bags.settings import Settings
from lossattn_jax.train.bags.spread import MODELS, Spread
from lossattn_jax.train.bags.states import gather_models
from lossattn_jax.train.bags.steps import Program, Steps

log = logging.getLogger(__name__)

# Calls of the program in a run; progress is logged after each.
_BLOCKS = 10
_SECONDS_BETWEEN_LINES = 10


@dataclasses.dataclass(frozen=True)
class TrainedModels:
    """Networks after training.

    Attributes:
      last: parameters at the end (their average, with `Settings.average_epochs`), every leaf with a
        leading axis of M models.
      best: those of the best epoch by the bags of `Plan.selection` (accuracy; of equal ones the lower loss);
        None where no plan has such bags.
      at_keep_epoch: those of the plans' `keep_epoch`; None where no plan has one.
      best_epochs: `[M]` int, from 1; None without `best`.
      logits: `[M, epochs, bags, K]` float32 after each epoch; NaN where a bag was not predicted, as after a
        model's end.
      mean, scale: `[M, ...]` float64, what instances are standardised with, broadcast over their features.
      num_skipped: `[M]` int32, updates that were not made because loss or gradient was not finite.
      seconds: wall time, compilation included; NaN of a model that was stored.
      epoch_seconds, waiting_seconds: `[epochs]` float64, wall time of each epoch's steps, and what of it went
        by until bags were read; None of bags that lie on the devices, and of stored models.
    """

    last: Any
    best: Any
    at_keep_epoch: Any
    best_epochs: np.ndarray | None
    logits: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    num_skipped: np.ndarray
    seconds: float
    epoch_seconds: np.ndarray | None = None
    waiting_seconds: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Outputs of M networks for B bags with N instances.

    NaN where a bag was not to be predicted.

    Attributes:
      logits: `[M, B, K]` float32.
      attention: `[M, N]` float32, in the order of `BagDataset.instances`; NaN too for all instances of a bag
        any of whose logits are not finite.
      instance_logits: `[M, N, K]` float32.
    """

    logits: np.ndarray
    attention: np.ndarray
    instance_logits: np.ndarray


def train(
    dataset: BagDataset,
    network: BagNetwork,
    settings: Settings,
    plans: Sequence[Plan],
    *,
    standardise: bool = True,
    order_seed: int = 0,
    every_epoch: bool = True,
    has_ended: HasEnded | None = None,
    label: str = "",
    dump_dir: pathlib.Path | None = None,
) -> TrainedModels:
    """Trains one network for each plan.

    An update whose loss or norm of the gradient is not finite is skipped: the model, its optimiser's
    state and the average of the bags' attention stay as they were. A warning says so.

    Args:
      dataset: bags with labels in `[0, network.num_classes)`.
      network: of all models.
      settings: of all models, but for the plans' overrides.
      plans: M of them, all with `selection` or all without.
      standardise: whether each feature is scaled to mean 0 and variance 1 of the model's training bags.
        Without it a warning names features whose spread does not survive float32.
      order_seed: of the order of the bags, which all models share.
      every_epoch: False predicts after the last epoch only.
      has_ended: says after some epochs which models need no further ones; see `plans.HasEnded`.
      label: what the log calls this.
      dump_dir: gets a folder with the update that a training ended with, see `train.dumps`; None: nothing.

    Raises:
      UserError: a model has no bag to train on, or some plans choose their epoch and others do not, or
        an override is unknown, or a model has skipped `settings.max_skipped` updates in a row.
    """
    began = time.monotonic()
    tops = bucket_lengths(dataset.lengths, settings.max_waste)
    bucket_of = np.searchsorted(tops, dataset.lengths)
    program = make_program(network, settings, plans, tops, bucket_of, every_epoch=every_epoch)

    def standardise_bags(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return precision.standardisation(dataset.instances[np.repeat(rows, dataset.lengths)])

    mean, scale = plans_lib.standardisations(plans, dataset.shape, standardise, standardise_bags)
    if not standardise and dataset.instances.dtype != np.float32:
        log.warning("%s", data_warnings.loss_in_float32(dataset))
    bags, *moments = _in_float32(dataset, mean, scale)
    compiled_training = programs.training(program)
    data = devices.replicate(device_bags.pack(bags, tops))
    spread, group = program.spread, program.group
    of_plans = plans_lib.models_of(settings, plans, *moments)
    models = spread.place_models(of_plans, group)
    states = compiled_training.start(models, data)
    predicts = np.arange(settings.epochs) >= (0 if every_epoch else settings.epochs - 1)
    ends = plans_lib.Ends(has_ended, plans, settings.epochs)
    shape = (len(plans), settings.epochs, len(dataset), network.num_classes)
    logits = np.full(shape, np.nan, np.float32)
    block = _block(settings.epochs)
    log_progress = _ProgressLog(label, settings.epochs, len(plans))
    skips = BagSkips(dataset.ids, plans, settings.max_skipped, label)
    writer = DatasetDumpWriter(
        bags, plans, Steps(dataclasses.replace(program, settings=settings, spread=MODELS)), dump_dir
    )
    for first in range(0, settings.epochs, block):
        epochs = np.arange(first, first + block)
        steps = {
            "order": spread.pad_order(
                bucket_batches(bucket_of, settings.batch_size, order_seed, epochs.tolist())
            ),
            "epoch": epochs.astype(np.int32),
            "predict": predicts[epochs],
        }
        inputs = (data, devices.replicate(steps))
        result = compiled_training.block(models, states, *inputs)
        block_logits, finite = devices.gather(result[1:])
        if finite.all():
            states = result[0]
            skips.clear_rows()
        else:
            rows = spread.place_models(skips.in_a_row, group)
            states, *outcome = compiled_training.checked_block(
                models, states, rows, *inputs, *result
            )
            block_logits, skip_mask = devices.gather(outcome)
            skips.add_epochs(skip_mask[: len(plans)], steps["order"], epochs)
            model = skips.stuck_model()
            if model is not None:
                raise writer.error(skips, model, models, states, first + block)
        predicted_bags = ends.held_out[:, None] & predicts[None, epochs, None]
        logits[:, epochs] = np.where(predicted_bags[..., None], block_logits[: len(plans)], np.nan)
        log_progress.after(first + block)
        if ends.update(logits[:, : first + block]):
            if ends.all:
                break
            models = spread.place_models(ends.apply(of_plans), group)
    results = gather_models(compiled_training.results(states), len(plans))
    last, best, at_keep_epoch, best_epochs = results
    return TrainedModels(
        last=last,
        best=best,
        at_keep_epoch=at_keep_epoch,
        best_epochs=best_epochs + 1 if program.selects else None,
        logits=logits,
        mean=mean,
        scale=scale,
        num_skipped=skips.total,
        seconds=time.monotonic() - began,
    )


def predict(
    dataset: BagDataset,
    network: BagNetwork,
    settings: Settings,
    params: Any,
    mean: np.ndarray,
    scale: np.ndarray,
    *,
    predict_mask: np.ndarray,
) -> Predictions:
    """Predicts bags with trained networks.

    Args:
      dataset: the bags, not necessarily those of the training.
      network: of the training.
      settings: of the training.
      params: of M networks, every leaf with a leading axis of M.
      mean, scale: `[M, ...]` float64, as `TrainedModels` has them.
      predict_mask: `[M, bags]` bool, the bags that each is to predict.
    """
    count = len(predict_mask)
    tops = bucket_lengths(dataset.lengths, settings.max_waste)
    spread = spread_lib.of_prediction(count)
    group = spread.group(settings.models_at_once, count)
    program = programs.prediction(network, tops, group)
    bags, mean32, scale32 = _in_float32(dataset, mean, scale)
    of_models = jax.tree.map(_float32, (params, mean32, 1 / scale32))
    shards = (*spread.place_models(of_models, group), spread.place_rows(predict_mask, group))
    data = devices.replicate(device_bags.pack(bags, tops))
    instances = len(dataset.instances)
    logits, attention, instance_logits = spread.gather_rows(program(shards, data), count)
    # Pooling turns non-finite logits into even weights, which are no attention.
    starts = dataset.offsets[:-1]
    of_instances = np.isfinite(instance_logits[:, :instances]).all(axis=-1)
    fine = np.logical_and.reduceat(of_instances, starts, axis=1) & np.isfinite(logits).all(axis=-1)
    of_wanted = np.repeat(predict_mask, dataset.lengths, axis=1)
    with_weights = np.repeat(predict_mask & fine, dataset.lengths, axis=1)
    return Predictions(
        logits=np.where(predict_mask[..., None], logits, np.nan),
        attention=np.where(with_weights, attention[:, :instances], np.nan),
        instance_logits=np.where(of_wanted[..., None], instance_logits[:, :instances], np.nan),
    )


class _ProgressLog:
    """Logs the progress of a training."""

    def __init__(self, label: str, epochs: int, models: int):
        """Starts the clock.

        The log calls the training of so many models `label`.
        """
        self._label, self._epochs, self._models = label, epochs, models
        self._progress = Progress(0, epochs, models)
        self._clock = LogClock(_SECONDS_BETWEEN_LINES)
        self._compiles = True

    def after(self, epoch: int) -> None:
        """Logs that so many epochs are done, every few seconds."""
        if self._compiles:  # the first call does: the rate is that of the others
            self._progress.restart(epoch)
            self._compiles = False
        elif self._clock.is_due() or epoch == self._epochs:
            rate = self._progress.measure(epoch)
            log.info(
                "%s: epoch %d of %d, %d models at once, %.1f epochs of one model a second, %s left",
                self._label,
                epoch,
                self._epochs,
                self._models,
                rate,
                self._progress.time_left(epoch),
            )


def _in_float32(
    dataset: BagDataset, mean: np.ndarray, scale: np.ndarray
) -> tuple[BagDataset, np.ndarray, np.ndarray]:
    """Casts bags and moments to float32; see `precision.in_float32`."""
    instances, *moments = precision.in_float32(dataset.instances, mean, scale)
    bags = copy.copy(dataset)
    # Not by `replace`, which refuses what is not finite: a bag that is not trained on may be too large on the
    # scale of the others, and then its outputs show that.
    object.__setattr__(bags, "instances", instances)
    return bags, moments[0], moments[1]


def make_program(
    network: BagNetwork,
    settings: Settings,
    plans: Sequence[Plan],
    tops: tuple[int, ...],
    bucket_of: np.ndarray,
    *,
    every_epoch: bool,
    spread: Spread | None = None,
) -> Program:
    """Says what the compiled programs of a training depend on.

    Args:
      network: of all models.
      settings: of all models; what each has of its own does not compile a program anew.
      plans: of the models.
      tops: rising lengths of the buckets.
      bucket_of: `[bags]` int, the bucket of each bag.
      every_epoch: whether the held bags are predicted after every epoch.
      spread: what devices share; None: as of `spread.of_training`.

    Raises:
      UserError: as of `plans.check`.
    """
    selects, keeps = plans_lib.check(plans, settings, every_epoch)
    consistency = plans_lib.uses_consistency(settings, plans)
    if spread is None:
        # Averages of attention are of all bags, and so on each device.
        spread = spread_lib.of_training(
            len(plans), settings.batch_size, splits_bags=not consistency
        )
    return Program(
        network=network,
        settings=dataclasses.replace(
            settings,
            learning_rate=1.0,
            weight_decay=0.0,
            patch_weight=0.0,
            consistency_weight=0.0,
        ),
        tops=tops,
        group=spread.group(settings.models_at_once, len(plans)),
        steps_per_epoch=bucket_steps(bucket_of, settings.batch_size),
        selects=selects,
        keeps=keeps,
        consistency=consistency,
        spread=spread,
    )


def _float32(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x if x.dtype == bool else x.astype(np.float32)


def _block(epochs: int) -> int:
    """Chooses how many epochs one call runs.

    The most that divide the run into `_BLOCKS` equal calls, or more.
    """
    return max(d for d in range(1, max(1, epochs // _BLOCKS) + 1) if epochs % d == 0)
