"""Keys under their former names, which work with a warning."""

import functools
import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from ml_collections import ConfigDict

log = logging.getLogger(__name__)

# Of experiments with bags: former name and name.
BAGS = {
    **{f"training.{key}": f"train.{key}" for key in ("epochs", "batch_size", "average_epochs")},
    **{f"training.{key}": f"train.{key}" for key in ("max_waste", "max_skipped", "models_at_once")},
    **{f"training.{key}": f"optimizer.{key}" for key in ("learning_rate", "weight_decay")},
    **{f"training.patch_{key}": f"loss.patch_{key}" for key in ("weight", "ramp_epochs")},
    "training.patch_reduction": "loss.patch_reduction",
    **{
        f"training.consistency_{key}": f"loss.consistency_{key}"
        for key in ("weight", "ramp_epochs", "decay")
    },
    **{f"network.{key}": f"model.{key}" for key in ("backbone", "hidden", "dropout")},
    **{f"network.{key}": f"model.{key}" for key in ("ensemble", "standardise")},
}

_FLAG = "config."


@functools.cache  # once for each key, although a config file is run twice
def warn(old: str, new: str) -> None:
    """Warns of the former name of a key."""
    log.warning("warning: config.%s is called config.%s now", old, new)


def in_args(args: Sequence[str], former_names: Mapping[str, str]) -> list[str]:
    """Gives keys their names in a command line, and warns of them.

    Args:
      args: such as `--config.training.epochs=3`, `--noconfig.network.standardise`.
      former_names: of keys: former name and name.
    """
    new_args = list(args)
    for place, arg in enumerate(args):
        if arg == "--":
            break
        flag, equals, value = arg.partition("=")
        dashes, negation, key = flag.rpartition(_FLAG)
        if dashes.strip("-") in ("", "no") and negation and key in former_names:
            warn(key, former_names[key])
            new_args[place] = f"{dashes}{_FLAG}{former_names[key]}{equals}{value}"
    return new_args


def in_values(values: Mapping[str, Any], former_names: Mapping[str, str]) -> dict[str, Any]:
    """Gives keys of stored values their names, in their order."""
    return {former_names.get(key, key): value for key, value in values.items()}


class BagConfig(ConfigDict):
    """A config of bags in which `config.training.epochs` means `config.train.epochs`, with a warning."""

    def __getitem__(self, key: str) -> Any:
        if key in _SECTIONS and key not in self:
            return _FormerSection(self, key)
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key in _SECTIONS and key not in self and isinstance(value, Mapping | ConfigDict):
            _FormerSection(self, key).update(dict(value))
        else:
            super().__setitem__(key, value)


_SECTIONS = {name.partition(".")[0] for name in BAGS}


class _FormerSection(MutableMapping[str, Any]):
    """A former section; its keys are looked up where they are now."""

    def __init__(self, config: ConfigDict, name: str):
        vars(self).update(_config=config, _name=name)

    def _locate(self, key: str) -> tuple[ConfigDict, str]:
        former = f"{self._name}.{key}"
        if former not in BAGS:
            raise KeyError(f"config.{former} is not a key")
        warn(former, BAGS[former])
        section, _, name = BAGS[former].partition(".")
        return self._config[section], name

    def __getitem__(self, key: str) -> Any:
        section, name = self._locate(key)
        return section[name]

    def __setitem__(self, key: str, value: Any) -> None:
        section, name = self._locate(key)
        section[name] = value

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError as error:
            raise AttributeError(error) from None

    def __setattr__(self, key: str, value: Any) -> None:
        try:
            self[key] = value
        except KeyError as error:
            raise AttributeError(error) from None

    def __delitem__(self, key: str) -> None:
        raise TypeError(f"config.{self._name}.{key} cannot be removed")

    def __iter__(self) -> Iterator[str]:
        prefix = f"{self._name}."
        return (old.removeprefix(prefix) for old in BAGS if old.startswith(prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
