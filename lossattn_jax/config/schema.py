"""Schemas of configurations: keys, defaults, checks, former names of keys."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from ml_collections import ConfigDict

from lossattn_jax.config import options as options_lib
from lossattn_jax.config.options import OptimizerOptions, TrainOptions, leaves
from lossattn_jax.errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Schema(Generic[T]):
    """A configuration: of runs of images, or of experiments with bags.

    Attributes:
      defaults: every key with its default, an instance of a dataclass of `options`.
      source: what makes a config with every key, for a sentence.
      relations: refuse options that do not go together, with a `UserError`.
      former_names: what keys were called in the release before, by that name.
      holder: makes an empty config.
    """

    defaults: T
    source: str
    relations: tuple[Callable[[T], None], ...]
    former_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    holder: Callable[[], ConfigDict] = ConfigDict

    def config(self) -> ConfigDict:
        """Makes a config with every key and its default."""
        return options_lib.to_config(self.defaults, self.holder())

    def keys(self) -> set[str]:
        """Returns all dotted keys."""
        return {key for key, _ in leaves(options_lib.to_config(self.defaults))}

    def check(self, config: ConfigDict) -> None:
        """Refuses missing and unknown keys and impossible values.

        Raises:
          UserError: a sentence that names the key, the value and what is allowed.
        """
        self.resolve(config)

    def resolve(self, config: ConfigDict) -> T:
        """Checks a config, and makes options of it.

        Raises:
          UserError: as of `check`.
        """
        all_keys, values = self.keys(), dict(leaves(config))
        for key in sorted(values.keys() - all_keys):
            if new := self.former_names.get(key):
                raise UserError(f"config.{key} is not a key any more; it is config.{new} now")
            raise UserError(
                f"config.{key} is not a key; allowed are: {', '.join(sorted(all_keys))}"
            )
        for key in sorted(all_keys - values.keys()):
            raise UserError(f"config.{key} is missing; start from {self.source}")
        for key, rule in options_lib.rules_of(self.defaults).items():
            if not rule.accepts(values[key]):
                raise UserError(f"config.{key} is {values[key]!r}, but must be {rule.requirement}")
        options: T = options_lib.resolve(type(self.defaults), config)
        for refuse in self.relations:
            refuse(options)
        return options


def refuse_unknown_parts(optimizer: OptimizerOptions) -> None:
    """Refuses unknown optimisers and schedules; imports no user's code."""
    from lossattn_jax.registry import is_reference
    from lossattn_jax.train.optimizer import OPTIMIZERS
    from lossattn_jax.train.schedules import SCHEDULES

    parts: tuple[tuple[Any, str], ...] = ((OPTIMIZERS, "name"), (SCHEDULES, "schedule"))
    for registry, key in parts:
        name = getattr(optimizer, key)
        if not is_reference(name):
            registry.find(name, f"config.optimizer.{key}")


def refuse_unfit_schedule(optimizer: OptimizerOptions, train: TrainOptions) -> None:
    """Refuses a schedule that does not fit the training.

    Or whose ends do not fit together.
    """
    if optimizer.warmup_epochs >= train.epochs:
        raise UserError(
            f"config.optimizer.warmup_epochs is {optimizer.warmup_epochs}, but must be below "
            f"config.train.epochs, {train.epochs}; --config.optimizer.warmup_epochs=0 is none"
        )
    ends = ("momentum_end", "beta2_end")
    for key, other in zip(ends, reversed(ends), strict=True):
        value = getattr(optimizer, key)
        if value is not None and getattr(optimizer, other) is None:
            raise UserError(
                f"config.optimizer.{key} is {value}, but must be None as config.optimizer.{other} is"
            )
    falls = optimizer.ramp_down_epochs
    if optimizer.schedule == "ramps" and falls > train.epochs:
        raise UserError(
            f"config.optimizer.ramp_down_epochs is {falls}, but must be at most config.train.epochs, "
            f"{train.epochs}: a fall that has begun before the run leaves no learning rate"
        )
