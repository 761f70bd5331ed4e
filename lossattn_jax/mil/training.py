"""Training of many networks for bags at once: all folds and repeats of a method in one compiled program.

The bags lie on the device as one flat array, and a step cuts its bags out of it, padded to the length of
their bucket. Models are split over the devices; each device trains its models group by group
(`Settings.models_at_once`), so that on a CPU the parameters and Adam's moments of one model stay in cache.
All models visit the bags in the same order and skip those that they may not see.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lossattn_jax import devices
from lossattn_jax.errors import UserError
from lossattn_jax.mil import device_bags, programs
from lossattn_jax.mil.bags import BagDataset, bucket_lengths
from lossattn_jax.mil.estimator import standardisation
from lossattn_jax.mil.networks import BagNetwork
from lossattn_jax.mil.order import epochs_order
from lossattn_jax.mil.settings import PER_MODEL, Settings
from lossattn_jax.mil.steps import Models

log = logging.getLogger(__name__)

# Calls of the program in a run; the log tells how far it is after each.
_BLOCKS = 10
_SECONDS_BETWEEN_LINES = 10


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one model learns from, and what it is asked.

    Attributes:
      seed: of its parameters and dropout.
      train: `[bags]` bool, the bags that it is trained on.
      held: `[bags]` bool, the bags that it predicts after each epoch.
      scored: `[bags]` bool, the bags among `held` by which its best epoch is found; None: not wanted.
      keep_epoch: epoch, from 1, whose parameters are wanted too; None: not wanted.
      overrides: values of `Settings` of its own, of those that `PER_MODEL` names.
    """

    seed: int
    train: np.ndarray
    held: np.ndarray
    scored: np.ndarray | None = None
    keep_epoch: int | None = None
    overrides: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Trained:
    """Networks after training.

    Attributes:
      last: parameters at the end (their average, with `Settings.average_epochs`), every leaf with a
        leading axis of M models.
      best: those of the best epoch by the scored bags (accuracy; of equal ones the lower loss); None where no
        plan has scored bags.
      kept: those of the plans' `keep_epoch`; None where no plan has one.
      best_epochs: `[M]` int, from 1; None without `best`.
      logits: `[M, epochs, bags, K]` float32 after each epoch; NaN where a bag was not predicted.
      mean, scale: `[M, ...]` what instances are standardised with, broadcast over their features.
      seconds: wall time, compilation included.
    """

    last: Any
    best: Any
    kept: Any
    best_epochs: np.ndarray | None
    logits: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    seconds: float


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What M networks say of B bags with N instances in all; NaN where a bag was not asked for.

    Attributes:
      logits: `[M, B, K]` float32.
      attention: `[M, N]` float32, in the order of `BagDataset.instances`.
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
    label: str = "",
) -> Trained:
    """Trains one network for each plan.

    Args:
      dataset: bags with labels in `[0, network.num_classes)`.
      network: of all models.
      settings: of all models, but for the plans' overrides.
      plans: M of them, all with `scored` or all without.
      standardise: whether each feature is scaled to mean 0 and variance 1 of the model's training bags.
      order_seed: of the order of the bags, which all models share.
      every_epoch: False predicts after the last epoch only.
      label: what the log calls this.

    Raises:
      UserError: a model has no bag to train on, or some plans choose their epoch and others do not, or
        an override is unknown.
    """
    began = time.monotonic()
    select, keep = _check(plans, settings, every_epoch)
    tops = bucket_lengths(dataset.lengths, settings.max_waste)
    group = settings.models_at_once or (1 if jax.default_backend() == "cpu" else len(plans))
    group = min(group, -(-len(plans) // jax.local_device_count()))
    mean, scale = _standardisations(dataset, plans, standardise)
    program = programs.training(
        network, _shared(settings), tops, group, select, keep, _uses_consistency(settings, plans)
    )
    data = devices.replicate(device_bags.on_device(dataset, tops))
    models = devices.shard(_padded(_models(settings, plans, mean, scale), group))
    states = program.start(models, data)
    logits, bucket_of = [], np.searchsorted(tops, dataset.lengths)
    block = _block(settings.epochs)
    progress = _Progress(label, settings.epochs, len(plans))
    for first in range(0, settings.epochs, block):
        epochs = np.arange(first, first + block)
        steps = {
            "order": epochs_order(bucket_of, settings.batch_size, order_seed, epochs.tolist()),
            "epoch": epochs.astype(np.int32),
            "predict": epochs >= (0 if every_epoch else settings.epochs - 1),
        }
        states, said = program.block(models, states, data, devices.replicate(steps))
        logits.append(devices.gather(said)[: len(plans)])
        progress.tell(first + block)
    predicted = np.arange(settings.epochs) >= (0 if every_epoch else settings.epochs - 1)
    told = np.stack([plan.held for plan in plans])[:, None] & predicted[None, :, None]
    chosen = devices.gather(program.chosen(states))
    last, best, kept, best_epochs = jax.tree.map(lambda x: x[: len(plans)], chosen)
    return Trained(
        last=last,
        best=best,
        kept=kept,
        best_epochs=best_epochs + 1 if select else None,
        logits=np.where(told[..., None], np.concatenate(logits, axis=1), np.nan),
        mean=mean,
        scale=scale,
        seconds=time.monotonic() - began,
    )


def predict(
    dataset: BagDataset,
    network: BagNetwork,
    settings: Settings,
    params: Any,
    mean: np.ndarray,
    scale: np.ndarray,
    asked: np.ndarray,
) -> Predictions:
    """What trained networks say of bags.

    Args:
      dataset: the bags, not necessarily those of the training.
      network: of the training.
      settings: of the training.
      params: of M networks, every leaf with a leading axis of M.
      mean, scale: `[M, ...]`, as `Trained` has them.
      asked: `[M, bags]` bool, which bags each is asked about.
    """
    count = len(asked)
    tops = bucket_lengths(dataset.lengths, settings.max_waste)
    group = settings.models_at_once or (1 if jax.default_backend() == "cpu" else count)
    group = min(group, -(-count // jax.local_device_count()))
    program = programs.prediction(network, tops, group)
    models = (params, mean, 1 / scale, asked)
    shards = devices.shard(_padded(jax.tree.map(_float32, models), group))
    data = devices.replicate(device_bags.on_device(dataset, tops))
    said = jax.tree.map(lambda x: x[:count], devices.gather(program(shards, data)))
    instances = len(dataset.instances)
    in_asked = np.repeat(asked, dataset.lengths, axis=1)
    logits, attention, instance_logits = said
    return Predictions(
        logits=np.where(asked[..., None], logits, np.nan),
        attention=np.where(in_asked, attention[:, :instances], np.nan),
        instance_logits=np.where(in_asked[..., None], instance_logits[:, :instances], np.nan),
    )


def _check(plans: Sequence[Plan], settings: Settings, every_epoch: bool) -> tuple[bool, bool]:
    """Whether a best epoch is to be found, and whether some epoch is to be kept."""
    select = any(plan.scored is not None for plan in plans)
    for number, plan in enumerate(plans):
        if not plan.train.any():
            raise UserError(f"model {number} has no bag to train on, but must have one at least")
        if plan.scored is not None and not (plan.scored & plan.held).any():
            raise UserError(f"model {number} has no bag to find its best epoch by")
        if not 1 <= (plan.keep_epoch or 1) <= settings.epochs:
            raise UserError(
                f"model {number} is to keep epoch {plan.keep_epoch}, but has {settings.epochs}"
            )
        unknown = set(plan.overrides) - set(PER_MODEL)
        if unknown:
            raise UserError(
                f"{unknown.pop()} cannot differ between models; what can is {', '.join(PER_MODEL)}"
            )
    if select and not every_epoch:
        raise UserError("the best epoch cannot be found where only the last is looked at")
    return select, any(plan.keep_epoch is not None for plan in plans)


def _shared(settings: Settings) -> Settings:
    """Settings without what models have of their own, so that those do not compile a program anew."""
    return dataclasses.replace(
        settings, learning_rate=1.0, weight_decay=0.0, patch_weight=0.0, consistency_weight=0.0
    )


def _uses_consistency(settings: Settings, plans: Sequence[Plan]) -> bool:
    name = "consistency_weight"
    return any(plan.overrides.get(name, settings.consistency_weight) > 0 for plan in plans)


def _standardisations(
    dataset: BagDataset, plans: Sequence[Plan], standardise: bool
) -> tuple[np.ndarray, np.ndarray]:
    if not standardise:
        ones = np.ones((len(plans), *(1 for _ in dataset.instances.shape[1:])), np.float32)
        return np.zeros_like(ones), ones
    seen: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    for plan in plans:
        if plan.train.tobytes() not in seen:
            instances = dataset.instances[np.repeat(plan.train, dataset.lengths)]
            seen[plan.train.tobytes()] = standardisation(instances)
    pairs = [seen[plan.train.tobytes()] for plan in plans]
    mean, scale = (np.stack([pair[i] for pair in pairs]).astype(np.float32) for i in range(2))
    return mean, scale


def _models(
    settings: Settings, plans: Sequence[Plan], mean: np.ndarray, scale: np.ndarray
) -> Models:
    own = {
        name: np.array(
            [plan.overrides.get(name, getattr(settings, name)) for plan in plans], np.float32
        )
        for name in PER_MODEL
    }
    nothing = np.zeros_like(plans[0].held)
    return Models(
        seed=np.array([plan.seed for plan in plans], np.uint32),
        mean=mean,
        inverse_scale=(1 / scale).astype(np.float32),
        train=np.stack([plan.train for plan in plans]),
        held=np.stack([plan.held for plan in plans]),
        scored=np.stack([nothing if plan.scored is None else plan.scored for plan in plans]),
        keep_epoch=np.array([(plan.keep_epoch or 0) - 1 for plan in plans], np.int32),
        **own,
    )


def _float32(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x if x.dtype == bool else x.astype(np.float32)


def _padded(tree: Any, group: int) -> Any:
    """Repeats the first model until the devices can share whole groups equally."""

    def pad(leaf):
        count = len(leaf)
        unit = group * jax.local_device_count()
        more = np.zeros(-count % unit, np.int64)
        return np.concatenate([leaf, leaf[more]]) if len(more) else leaf

    return jax.tree.map(pad, tree)


def _block(epochs: int) -> int:
    """Epochs of one call: the most that divide the run into `_BLOCKS` equal calls, or more."""
    return max(d for d in range(1, max(1, epochs // _BLOCKS) + 1) if epochs % d == 0)


class _Progress:
    """Lines of the log that tell how far a training is."""

    def __init__(self, label: str, epochs: int, models: int):
        self._label, self._epochs, self._models = label, epochs, models
        self._began = self._told = time.monotonic()
        self._first: tuple[int, float] | None = None

    def tell(self, epoch: int) -> None:
        now = time.monotonic()
        # The first call compiles: the rate is that of the others.
        if self._first is None:
            self._first = (epoch, now)
            return
        if now - self._told < _SECONDS_BETWEEN_LINES and epoch < self._epochs:
            return
        self._told = now
        done, since = self._first
        rate = (epoch - done) / max(now - since, 1e-9)
        left = math.ceil((self._epochs - epoch) / rate)
        log.info(
            "%s: epoch %d of %d, %d models at once, %.1f epochs of one model a second, %d:%02d left",
            self._label,
            epoch,
            self._epochs,
            self._models,
            rate * self._models,
            *divmod(left, 60),
        )
