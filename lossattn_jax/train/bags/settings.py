"""Settings of training networks for bags, with the AAAI 2020 paper's defaults."""

import dataclasses
import numbers

from lossattn_jax.config import rules
from lossattn_jax.config.options import OptimizerOptions
from lossattn_jax.config.rules import Rule
from lossattn_jax.errors import UserError

# Settings that may differ between models of one program.
PER_MODEL = ("learning_rate", "weight_decay", "patch_weight", "consistency_weight")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of training a network for bags.

    Tables A2 to A4 of the AAAI 2020 paper's supplement.

    Attributes:
      epochs: passes over the training bags.
      batch_size: bags of an update.
      learning_rate: the highest of the schedule.
      weight_decay: L2 added to the gradient; decoupled with adamw.
      patch_weight: lambda of the instances' loss at the end of its ramp; loss attention only.
      patch_ramp_epochs: lambda(e) = weight * exp(-5 (1 - e / ramp)^2), 0 in epoch 0; 0: from the start.
      patch_reduction: "sum" of the weighted losses of a bag's instances, or their "mean", as the paper's
        public code has it for MNIST-bags.
      consistency_weight: w of the attention's distance from its average over epochs; 0: none.
      consistency_ramp_epochs: as patch_ramp_epochs.
      consistency_decay: of that average, per epoch.
      average_epochs: predict with the mean of the parameters at the ends of so many last epochs; 0: with
        the last.
      max_waste: padded slots for each instance; see `bags.bucket_lengths`.
      max_skipped: updates in a row that are not finite, at which a training ends.
      models_at_once: models that a device computes together; 0: one on CPUs, whose cache keeps its
        parameters, otherwise all.
      optimizer: what else the optimiser and its schedule have; its learning rate and weight decay are those
        above. Schedules go by the steps of the epochs, which all models share, also those in which a model
        has no bag.
    """

    epochs: int = 100
    batch_size: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 5e-4
    patch_weight: float = 0.1
    patch_ramp_epochs: float = 0
    patch_reduction: str = "sum"
    consistency_weight: float = 0.0
    consistency_ramp_epochs: float = 80
    consistency_decay: float = 0.6
    average_epochs: int = 0
    max_waste: float = 1.25
    max_skipped: int = 10
    models_at_once: int = 0
    optimizer: OptimizerOptions = OptimizerOptions(name="adam", schedule="constant")

    def __post_init__(self) -> None:
        """Refuses impossible values; NumPy's numbers become Python's."""
        for name, rule in _RULES.items():
            value = getattr(self, name)
            if not rule.accepts(value):
                raise UserError(f"{name} is {value!r}, but must be {rule.requirement}")
            # Searches draw them from arrays; whole ones count loops, and all are written as JSON.
            if isinstance(value, numbers.Integral) or rule.whole:
                object.__setattr__(self, name, int(value))
            elif isinstance(value, numbers.Real):
                object.__setattr__(self, name, float(value))
        own = {name: getattr(self, name) for name in ("learning_rate", "weight_decay")}
        object.__setattr__(self, "optimizer", dataclasses.replace(self.optimizer, **own))
        if self.average_epochs > self.epochs:
            raise UserError(
                f"average_epochs is {self.average_epochs}, but must be at most epochs, {self.epochs}"
            )


_RULES = {
    "epochs": rules.COUNT,
    "batch_size": rules.COUNT,
    "learning_rate": rules.POSITIVE,
    "weight_decay": rules.at_least(0),
    "patch_weight": rules.at_least(0),
    "patch_ramp_epochs": rules.at_least(0),
    "patch_reduction": Rule(lambda v: v in ("sum", "mean"), "sum or mean"),
    "consistency_weight": rules.at_least(0),
    "consistency_ramp_epochs": rules.at_least(0),
    "consistency_decay": rules.BELOW_ONE,
    "average_epochs": rules.COUNT_FROM_ZERO,
    "max_waste": rules.at_least(1),
    "max_skipped": rules.COUNT,
    "models_at_once": rules.COUNT_FROM_ZERO,
    "optimizer": Rule(lambda v: isinstance(v, OptimizerOptions), "an OptimizerOptions"),
}
