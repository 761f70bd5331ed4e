"""Plans: training and held-out bags of each model trained together."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax.data.bags.labels import weights_of_part
from lossattn_jax.errors import UserError
from lossattn_jax.train.bags.settings import PER_MODEL, Settings
from lossattn_jax.train.bags.states import Models


@dataclasses.dataclass(frozen=True)
class Plan:
    """Training bags, held-out bags and settings of one model.

    Attributes:
      seed: of its parameters and dropout.
      train: `[bags]` bool, the bags that it is trained on.
      held_out: `[bags]` bool, the bags that it predicts after each epoch.
      selection: `[bags]` bool, the bags among `held_out` by which its best epoch is found; None: not wanted.
      keep_epoch: epoch, from 1, whose parameters are wanted too; None: not wanted.
      overrides: values of `Settings` of its own, of those that `PER_MODEL` names.
      class_weights: `[K]` what the losses of each class' bags are multiplied by; None: all are 1.
      name: what messages call the model, beside its number.
    """

    seed: int
    train: np.ndarray
    held_out: np.ndarray
    selection: np.ndarray | None = None
    keep_epoch: int | None = None
    overrides: Mapping[str, float] = dataclasses.field(default_factory=dict)
    class_weights: np.ndarray | None = None
    name: str = ""


# Says of logits `[M, epochs so far, bags, K]`, NaN of bags that are not predicted, which models need no
# further epoch: `[M]` bool. A model may have some more epochs than it needs, for others' sake.
HasEnded = Callable[[np.ndarray], np.ndarray]


class Ends:
    """Which models of a training have ended: they see no bag any more, and predict none.

    Attributes:
      held_out: `[M, bags]` bool, the bags that models predict now.
    """

    def __init__(self, has_ended: HasEnded | None, plans: Sequence[Plan], epochs: int):
        """No model has ended.

        Args:
          has_ended: None: models have all epochs.
          plans: M of them.
          epochs: of the training.
        """
        self._has_ended, self._epochs = has_ended, epochs
        self._ended = np.zeros(len(plans), bool)
        self._train = np.stack([plan.train for plan in plans])
        self.held_out = np.stack([plan.held_out for plan in plans])

    @property
    def all(self) -> bool:
        """Whether all models have ended."""
        return bool(self._ended.all())

    def update(self, logits: np.ndarray) -> bool:
        """Looks after some epochs which models have ended; says whether some have now.

        Args:
          logits: see `HasEnded`.
        """
        if self._has_ended is None or logits.shape[1] >= self._epochs:
            return False
        before = self._ended
        self._ended = before | self._has_ended(logits)
        self.held_out = self.held_out & ~self._ended[:, None]
        return bool((self._ended & ~before).any())

    def apply(self, models: Models) -> Models:
        """Models of the plans, of which those that have ended see no bag and predict none.

        Args:
          models: of all plans, on the host.
        """
        train = self._train & ~self._ended[:, None]
        return dataclasses.replace(models, train=train, held_out=self.held_out)


def weigh_classes(
    plans: Sequence[Plan], labels: np.ndarray, classes: int, class_weight: Any
) -> list[Plan]:
    """Gives plans weights of classes, by the labels of their own training bags.

    Args:
      plans: of a training.
      labels: `[bags]` int in [0, K).
      classes: K.
      class_weight: see `labels.weights_of_part`.
    """
    return [
        dataclasses.replace(
            plan, class_weights=weights_of_part(class_weight, classes, labels[plan.train])
        )
        for plan in plans
    ]


def check(plans: Sequence[Plan], settings: Settings, every_epoch: bool) -> tuple[bool, bool]:
    """Whether plans select a best epoch, and whether they keep one.

    Args:
      plans: of a training.
      settings: of it.
      every_epoch: whether the held bags are predicted after every epoch.

    Raises:
      UserError: as `training.train`.
    """
    select = any(plan.selection is not None for plan in plans)
    for number, plan in enumerate(plans):
        if not plan.train.any():
            raise UserError(f"model {number} has no bag to train on, but must have one at least")
        if plan.selection is not None and not (plan.selection & plan.held_out).any():
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
    if len({plan.class_weights is None for plan in plans}) > 1:
        raise UserError("either all models have weights of classes or none has")
    if select and not every_epoch:
        raise UserError("the best epoch cannot be found where only the last is looked at")
    return select, any(plan.keep_epoch is not None for plan in plans)


def uses_consistency(settings: Settings, plans: Sequence[Plan]) -> bool:
    """Whether some model has the consistency loss of attention."""
    name = "consistency_weight"
    return any(plan.overrides.get(name, settings.consistency_weight) > 0 for plan in plans)


def standardisations(
    plans: Sequence[Plan],
    shape: tuple[int, ...],
    standardise: bool,
    of_bags: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and scale of each model's training bags.

    `[M, ...]` float64; 0 and 1 without `standardise`.

    Args:
      plans: M of them.
      shape: of an instance.
      standardise: whether features are.
      of_bags: computes both of the bags where a mask `[bags]` is True; once for plans with the same bags.
    """
    if not standardise:
        ones = np.ones((len(plans), *(1 for _ in shape)))
        return np.zeros_like(ones), ones
    by_bags: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    for plan in plans:
        if plan.train.tobytes() not in by_bags:
            by_bags[plan.train.tobytes()] = of_bags(plan.train)
    pairs = [by_bags[plan.train.tobytes()] for plan in plans]
    mean, scale = (np.stack([pair[i] for pair in pairs]).reshape(-1, *shape) for i in range(2))
    return mean, scale


def models_of(
    settings: Settings, plans: Sequence[Plan], mean: np.ndarray, scale: np.ndarray
) -> Models:
    """Makes the arrays of `Models` from plans.

    Args:
      settings: of the training.
      plans: M of them.
      mean, scale: `[M, ...]` float32, from `precision.in_float32`.
    """
    own = {
        name: np.array(
            [plan.overrides.get(name, getattr(settings, name)) for plan in plans], np.float32
        )
        for name in PER_MODEL
    }
    nothing = np.zeros_like(plans[0].held_out)
    weights = [plan.class_weights for plan in plans if plan.class_weights is not None]
    return Models(
        seed=np.array([plan.seed for plan in plans], np.uint32),
        mean=mean,
        inverse_scale=(1 / scale).astype(np.float32),
        train=np.stack([plan.train for plan in plans]),
        held_out=np.stack([plan.held_out for plan in plans]),
        selection=np.stack(
            [nothing if plan.selection is None else plan.selection for plan in plans]
        ),
        keep_epoch=np.array([(plan.keep_epoch or 0) - 1 for plan in plans], np.int32),
        class_weights=np.stack(weights).astype(np.float32) if weights else None,
        **own,
    )
