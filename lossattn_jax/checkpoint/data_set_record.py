"""The record `data_set.json` of the data set that a run belongs to.

With it a run is opened where its data set is not: it has the classes, the images' shape and their statistics.
"""

import dataclasses
import pathlib
from typing import Any

from lossattn_jax.data import DatasetSpec
from lossattn_jax.errors import UserError, name_first
from lossattn_jax.files import records

RECORD_NAME = "data_set.json"
_MOST_NAMED = 10


def to_json(spec: DatasetSpec) -> dict[str, Any]:
    """Describes a data set as JSON, every field by its name."""
    return dataclasses.asdict(spec)


def from_json(values: dict[str, Any]) -> DatasetSpec:
    """Makes the data set that `to_json` described.

    Fields that came later have their defaults.

    Raises:
      TypeError: it describes none, or one of a later release.
    """
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return DatasetSpec(**fields)


def write(workdir: pathlib.Path, spec: DatasetSpec) -> None:
    """Stores a data set beside a run's checkpoints.

    Raises:
      OSError: the folder cannot be written.
    """
    records.write(workdir / RECORD_NAME, to_json(spec), {}, indent=1)


def read(workdir: pathlib.Path) -> DatasetSpec | None:
    """Reads the data set of a run; None for one from before there were records.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / RECORD_NAME
    try:
        return from_json(records.read(path).content)
    except FileNotFoundError:
        return None
    except (records.DamagedRecord, TypeError) as error:
        raise UserError(
            f"{path} does not say which data set the run belongs to ({error}); bring the file back from a "
            "copy, or remove it if the config names a data set of this package"
        ) from None


def refuse_other_classes(workdir: pathlib.Path, spec: DatasetSpec) -> None:
    """Refuses to go on with a run on a data set of other classes.

    Args:
      workdir: of the run.
      spec: of the data set to go on with.

    Raises:
      UserError: the classes or their order are others, or the record is damaged.
    """
    earlier = read(workdir)
    if earlier is not None and earlier.class_names != spec.class_names:
        here, there = (name_first(one.class_names, _MOST_NAMED) for one in (spec, earlier))
        raise UserError(
            f"the data set {spec.key} has the classes {here}, but the run in {workdir} has "
            f"{there}: give the data set of the run, or use another workdir "
            "(config.init_from can start it from this run)"
        )
