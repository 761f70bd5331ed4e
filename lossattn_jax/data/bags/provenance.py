"""The inputs of a fold: digests of bags and split, config values."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax.config import former_keys
from lossattn_jax.config.options import BagOptions, leaves
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.data.bags.streaming import PlacedBags, StreamedBags
from lossattn_jax.files import digests

# What a sentence calls the fields of `BagDataset`; a field without a word here has its own name.
_WORDS = {
    "lengths": "bag lengths",
    "labels": "bag labels",
    "ids": "bag ids",
    "instance_labels": "instance labels",
    "features": "feature names",
    "positive": "positive class",
}
SPLIT = "training and test bags"
CONFIG = "config."  # how the names of a config's values begin
_MOST_LISTED = 10  # values of a tuple; longer ones are digested
_FREE = ("repeats",)  # keys of a config that a fold does not depend on


def of_bags(dataset: PlacedBags) -> dict[str, Any]:
    """Digests bags field by field, without their data set's name.

    Every array is read once. A field that is None is left out. Bags that are read one by one have their
    survey's digests in the place of instances.

    Returns:
      JSON: by words that a reader understands, digests of arrays and of long tuples, and the values of
      short tuples, texts and numbers.
    """
    if isinstance(dataset, StreamedBags):
        return _of_streamed(dataset, np.ones(len(dataset), bool))
    parts = {}
    for field in dataclasses.fields(dataset):
        value = getattr(dataset, field.name)
        if field.name != "name" and value is not None:
            parts[_WORDS.get(field.name, field.name)] = _plain_or_digest(value)
    return parts


def _of_streamed(dataset: StreamedBags, rows: np.ndarray) -> dict[str, Any]:
    """Digests some bags that are read one by one, as `of_bags` does."""
    instances = [digest for digest, row in zip(dataset.survey.digests, rows, strict=True) if row]
    values = {
        "instances": digests.of_json(instances),
        "lengths": dataset.lengths[rows],
        "labels": dataset.labels[rows],
        "ids": tuple(bag_id for bag_id, row in zip(dataset.ids, rows, strict=True) if row),
        "classes": dataset.classes,
        "positive": dataset.positive,
        "features": dataset.features,
        "groups": dataset.select(rows).groups,
        "read one by one": True,
    }
    return {
        _WORDS.get(name, name): _plain_or_digest(value)
        for name, value in values.items()
        if value is not None
    }


def of_splits(dataset: PlacedBags, splits: Sequence[Split]) -> tuple[dict[str, Any], ...]:
    """Digests each fold's bags and split.

    Bags that a fold neither trains on nor tests are not looked at: with more repeats, generated data sets
    have more bags.

    Returns:
      For each split JSON, as of `of_bags`.
    """
    whole: dict[str, Any] = {}
    splits_parts = []
    for split in splits:
        in_split = split.used
        if in_split.all():
            whole = whole or of_bags(dataset)
            bags = whole
        elif isinstance(dataset, StreamedBags):
            bags = _of_streamed(dataset, in_split)
        else:
            bags = of_bags(dataset.select(in_split))
        rows = {part: values[in_split] for part, values in split.parts.items()}
        splits_parts.append({**bags, SPLIT: digests.of_arrays(rows)})
    return tuple(splits_parts)


def of_config(options: BagOptions) -> dict[str, Any]:
    """Returns the config values that folds depend on.

    As JSON, each as `config.KEY`: all but `repeats`.
    """
    return {f"{CONFIG}{key}": _plain(value) for key, value in leaves(options) if key not in _FREE}


def rename_keys(made_from: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Gives a record's config keys their names of today.

    Keys have their names of today, and those that came later than the record their defaults: with these the
    results are what they were.

    Args:
      made_from: of the record; None where it has none.
    """
    if made_from is None:
        return None
    former = {f"{CONFIG}{old}": f"{CONFIG}{new}" for old, new in former_keys.BAGS.items()}
    return {**of_config(BagOptions()), **former_keys.in_values(made_from, former)}


def _plain_or_digest(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim:
        return digests.of_arrays({"": value})
    plain = _plain(value)
    if isinstance(plain, list) and len(plain) > _MOST_LISTED:
        return digests.of_json(plain)
    return plain


def _plain(value: Any) -> Any:
    """Turns a value into JSON, as text where it must."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
