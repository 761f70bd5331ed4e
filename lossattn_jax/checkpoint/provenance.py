"""Provenance of a network's outputs: digests and values they follow from.

They are the `made_from` of records.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lossattn_jax import data, devices
from lossattn_jax.checkpoint import integrity, run_folder, runs, store
from lossattn_jax.config.options import ImageOptions, leaves
from lossattn_jax.data.views import SQUEEZE
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests

# Keys of a config that decide what a checkpoint's network makes of a split. The others are about how it was
# trained, which the digest of its parameters covers, and about where the data are, not what they are.
_DECIDING = ("model.", "data.name", "data.extra", "data.num_labels", "data.label_seed")

CONFIG_FILE = run_folder.CONFIG_NAME  # key of the digest of a run's whole config

_OF_FLAX = ("parent", "name")  # fields of every module, which say where it is and not what it is


def of_outputs(run: runs.Run, dataset: data.Dataset) -> dict[str, Any]:
    """Describes what a run's outputs on a split follow from.

    But for rounding.

    Args:
      run: a checkpoint.
      dataset: the split.

    Returns:
      JSON: `split`, the run's (see `of_run`), and `data`, the digest of the split's examples.

    Raises:
      UserError: as of `of_data`.
    """
    (images,) = of_data(dataset)
    return {"split": dataset.split, **of_run(run), "data": images}


def of_measurement(run: runs.Run, dataset: data.Dataset, workdir: str) -> dict[str, Any]:
    """Describes a measurement as `of_outputs`, with the whole config's digest.

    For reports that name runs by it.
    """
    return {**of_outputs(run, dataset), CONFIG_FILE: run_folder.config_digest(workdir)}


def of_data(*datasets: data.Dataset) -> list[str]:
    """Digests splits, and refuses processes with other ones.

    Raises:
      UserError: they are not, or a file cannot be read.
    """
    contents = [dataset.digest() for dataset in datasets]
    # As many digits as an int32 takes.
    if not devices.same_everywhere(int(digests.of_json(contents)[:7], 16)):
        splits = " and ".join(dataset.split for dataset in datasets)
        raise UserError(
            f"the {splits} images of {datasets[0].spec.name} are others for another process; every host has "
            "to have the same copy of the data set"
        )
    return contents


def of_run(run: runs.Run) -> dict[str, Any]:
    """Describes what a run's outputs on any images follow from.

    But for rounding.

    Returns:
      JSON: `dataset`, `config.KEY` for the keys that matter, `class_names`, `image_shape`, `mean` and `std`
      of the normalisation, `fit` and `canvas` where pictures are cropped, `loss`, `network` (the digest of
      all that it is built of), `step`, and `parameters`, the digest of the checkpoint's variables.
    """
    return {
        "dataset": run.spec.name,
        **of_config(run.options),
        "class_names": list(run.spec.class_names),
        "image_shape": list(run.spec.image_shape),
        "mean": list(run.spec.mean),
        "std": list(run.spec.std),
        **_of_view(run.spec),
        "loss": run.loss,
        "network": of_network(run.model),
        "step": run.step,
        "parameters": of_variables(run.variables),
    }


def _of_view(spec: data.DatasetSpec) -> dict[str, Any]:
    """Describes how pictures are brought to a network's size, other than squeezed."""
    return {} if spec.fit == SQUEEZE else {"fit": spec.fit, "canvas": spec.canvas}


def of_config(options: ImageOptions, keys: tuple[str, ...] = _DECIDING) -> dict[str, Any]:
    """Returns the config's values under some keys, as JSON.

    Each as `config.KEY`, of all keys that begin with one of `keys`.
    """
    return {
        f"config.{key}": list(value) if isinstance(value, tuple) else value
        for key, value in leaves(options)
        if key.startswith(keys)
    }


def of_network(network: Any) -> str:
    """Digests all that a network or a part of one is built of."""
    return digests.of_json(_describe(network))


def of_variables(tree: Any) -> str:
    """Digests arrays by names, shapes, dtypes and bytes."""
    return digests.of_json([integrity.shapes_of(tree), integrity.digests_of(tree)])


def of_checkpoint(workdir: str | pathlib.Path, step: int) -> str | None:
    """Returns the digest of `of_variables` without reading arrays.

    None where there is no such checkpoint, or where it does not say: it has no digests, or is damaged.
    """
    try:
        record = integrity.read(store.folder(workdir, step))
    except UserError:
        return None
    if record.shapes is None or record.digests is None or "variables" not in record.shapes:
        return None
    return digests.of_json([record.shapes["variables"], record.digests["variables"]])


def _describe(value: Any) -> Any:
    """Describes a network or a part as JSON: classes and settings."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _describe(item) for key, item in value.items()}
    if isinstance(value, functools.partial):
        return [_describe(value.func), _describe(value.args), _describe(value.keywords)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        names = [name for name in fields if name not in _OF_FLAX]
        return [_describe(type(value)), {name: _describe(getattr(value, name)) for name in names}]
    if isinstance(value, np.ndarray | jax.Array):
        return digests.of_arrays({"": np.asarray(value)})
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return name
    try:
        return np.dtype(value).name  # such as jnp.float32, which is no type
    except (TypeError, ValueError):
        return type(value).__qualname__
