"""Fitted methods in folders, without pickle: any version of Python and JAX reads what another has written.

    methods.make("mi_kernel").fit(bags, labels).save("models/mi_kernel")
    method = lossattn_jax.mil.load("models/mi_kernel")
    method.predict_proba(bags)      # with every bit as before

A folder has `model.json`, a record of `lossattn_jax.files.records` that says what the model is and carries
digests of the rest; `arrays.npz`, what `fit` has learned; and of networks `checkpoints/`, their parameters.
The record is written last: a folder without it is no model.
"""

import dataclasses
import logging
import pathlib
import platform
import shutil
from collections.abc import Collection, Mapping
from importlib import metadata
from os import PathLike
from typing import Any

import numpy as np

import lossattn_jax
from lossattn_jax import files
from lossattn_jax.config.options import OptimizerOptions
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests, npz, records
from lossattn_jax.mil import methods
from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.mil.selection import Validation
from lossattn_jax.registry import is_reference, refuse_untrusted
from lossattn_jax.train.bags.settings import Settings

log = logging.getLogger(__name__)

RECORD_NAME, ARRAYS_NAME, CHECKPOINTS_NAME = "model.json", "arrays.npz", "checkpoints"
KIND, SCHEMA = "model of bags", 1

# What a record has, and of which type.
_CONTENT = {
    "method": str,
    "code": str | None,
    "settings": dict,
    "classes": list,
    "arrays": str,
    "checkpoint": int | None,
    "parameters": str | None,
    "versions": dict,
}
_VARIABLES = "variables"  # the item of a checkpoint
_STEP = 0  # its number
_LABELS = ("positive", "class_weight")  # settings that hold the user's words, and never name code
_VALIDATION = "validation"
_VERSIONS = ("jax", "numpy", "scikit-learn")


def save(method: BagClassifier, folder: str | PathLike[str], *, replace: bool = False) -> None:
    """Writes a fitted method; see `BagClassifier.save`.

    `replace` writes over a model that is there.
    """
    path = pathlib.Path(folder)
    described = describe(method)
    arrays = method.state()
    try:
        files.make_folder(path)
        if replace:  # not half of one and half of the other
            (path / RECORD_NAME).unlink(missing_ok=True)
        if (path / RECORD_NAME).exists():
            raise UserError(f"the folder {path} has a model already; use another one")
        # Which are written after the arrays, and the older ones removed: another run's would be lost.
        if (path / CHECKPOINTS_NAME).exists() and not (path / ARRAYS_NAME).exists():
            raise UserError(
                f"the folder {path} has {CHECKPOINTS_NAME} of something else; use another one"
            )
        # What a killed process has left, or a model that is replaced.
        shutil.rmtree(path / CHECKPOINTS_NAME, ignore_errors=True)
        records.write_arrays(path / ARRAYS_NAME, arrays)
        parameters = _write_parameters(method, path)
        records.write(
            path / RECORD_NAME,
            {
                "kind": KIND,
                "schema": SCHEMA,
                **described,
                "classes": method.classes_.tolist(),
                "positive": method.positive_,
                "instance_shape": arrays["shape"].tolist(),
                "features": method.feature_names_,
                "standardised": bool(method.standardise),
                "arrays": digests.of_arrays(arrays),
                **parameters,
                **({} if method.chosen_ is None else {"chosen": method.chosen_}),
                "versions": _versions(),
            },
            method.trained_on_,
            indent=1,
        )
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the folder {path} cannot be written: {reason}") from None


def load(
    folder: str | PathLike[str], *, trust_code: bool | Collection[str] = False
) -> BagClassifier:
    """Reads a fitted method that `save` has written.

    Args:
      folder: with the model.
      trust_code: whether code that it names by reference is imported, or which references are.

    Raises:
      UntrustedCode: it names code that is not trusted; nothing was imported.
      UserError: there is no model, or a file of it is missing, damaged or of another kind.
    """
    path = pathlib.Path(folder)
    record = read(path)
    content, assumed = record.content, record.made_from or {}
    named = {key: value for key, value in content["settings"].items() if key not in _LABELS}
    refuse_untrusted({"method": content["method"], **named}.items(), path / RECORD_NAME, trust_code)
    arrays = _read_arrays(path, content["arrays"])
    entry = methods.METHODS.find(content["method"], f"the method in {path / RECORD_NAME}")
    if content["code"] != methods.code_digest(content["method"]):
        log.warning(
            "the file of %s is not what it was when %s was written", content["method"], path
        )
    try:
        method = entry.make(**_settings_of_json(content["settings"], content["method"]))
        method.restore(arrays, assumed)
        method.chosen_ = content.get("chosen")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not hold what this version of {content['method']} is made of "
            f"({type(error).__name__}: {error}); it was written by lossattn_jax "
            f"{content['versions'].get('lossattn_jax')}"
        ) from error
    _read_parameters(method, path, content)
    return method


def read(folder: str | PathLike[str]) -> records.Record:
    """Reads what a model says of itself, and nothing else of it.

    Raises:
      UserError: there is none, or it is damaged, of another kind or of a later version.
    """
    path = pathlib.Path(folder) / RECORD_NAME
    try:
        record = records.read(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} has no {RECORD_NAME}, and so is no model; `lossattn mil train` or `save` writes one"
        ) from None
    except records.DamagedRecord as error:
        raise UserError(f"{error}; train it again") from None
    kind, schema = record.content.get("kind"), record.content.get("schema")
    if kind != KIND or record.made_from is None:
        raise UserError(f"{path} is a record of {kind!r}, but must be one of {KIND!r}")
    if schema != SCHEMA:
        versions = record.content.get("versions")
        writer = versions.get("lossattn_jax") if isinstance(versions, dict) else None
        raise UserError(
            f"{path} has the schema {schema!r}, but this version reads {SCHEMA}: it was written by "
            f"lossattn_jax {writer}"
        )
    for key, kind in _CONTENT.items():
        if key not in record.content or not isinstance(record.content[key], kind):
            raise UserError(
                f"{path} does not say as it must what its {key!r} is; train the model again"
            )
    return record


def inputs_of(content: Mapping[str, Any], trained_on: Mapping[str, Any]) -> dict[str, Any]:
    """What a model follows from, for `records.difference`: method, settings and data.

    Args:
      content: of its record.
      trained_on: likewise what it was made from.
    """
    # Settings of later versions are None where they are not used, and earlier models lack them.
    settings = {
        f"setting {key}": value for key, value in content["settings"].items() if value is not None
    }
    return {"method": content["method"], "code": content["code"], **settings, **trained_on}


def describe(method: BagClassifier) -> dict[str, Any]:
    """Name, code and settings of a method, fitted or not, as its record has them.

    Raises:
      UserError: as of `save`.
    """
    name = name_of(method)
    return {
        "method": name,
        "code": methods.code_digest(name),
        "settings": _settings_to_json(method, name),
    }


def refuse_unsaveable(method: BagClassifier) -> None:
    """Refuses a method that could not be saved, before it is fitted.

    Raises:
      UserError: as of `save`.
    """
    describe(method)
    if type(method)._state is BagClassifier._state:
        method._state()  # which says so


def name_of(method: BagClassifier) -> str:
    """The name or reference by which a fitted method is made again.

    Raises:
      UserError: a class of the user's own that cannot be imported.
    """
    own = type(method)
    if own is NetworkClassifier:
        return str(method.method)
    for name, entry in methods.METHODS.items():
        if entry.classical is own:
            return name
    reference = f"{own.__module__}:{own.__qualname__}"
    if own.__module__ == "__main__" or not is_reference(reference):
        raise UserError(
            f"{own.__qualname__} cannot be saved, for it cannot be imported again: put it into a module, at "
            "its top level"
        )
    return reference


def _write_parameters(method: BagClassifier, path: pathlib.Path) -> dict[str, Any]:
    """Writes the parameters of networks; says where they are, and their digest."""
    if not isinstance(method, NetworkClassifier):
        return {"checkpoint": None, "parameters": None}
    # Orbax takes a second, which commands that save nothing need not wait.
    from lossattn_jax.checkpoint import provenance
    from lossattn_jax.checkpoint.store import Checkpoints

    variables = {"params": method.networks_.last}
    with Checkpoints(path, keep=1, has_metrics=False) as checkpoints:
        checkpoints.save(_STEP, {_VARIABLES: variables}, None)
    return {"checkpoint": _STEP, "parameters": provenance.of_variables(variables)}


def _read_parameters(method: BagClassifier, path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Gives networks their parameters."""
    step = content["checkpoint"]
    if step is None or not isinstance(method, NetworkClassifier):
        return
    from lossattn_jax.checkpoint import provenance
    from lossattn_jax.checkpoint.store import Checkpoints

    like = {_VARIABLES: {"params": method.parameter_shapes()}}
    with Checkpoints(path, read_only=True) as checkpoints:
        if step not in checkpoints.steps():
            raise UserError(f"{path} has lost its checkpoint {step}, and so its parameters")
        variables = checkpoints.restore(step, like)[_VARIABLES]
    if provenance.of_variables(variables) != content["parameters"]:
        raise UserError(f"checkpoint {step} in {path} has the parameters of another model")
    method.set_parameters(variables["params"])


def _read_arrays(path: pathlib.Path, digest: str) -> dict[str, np.ndarray]:
    place = path / ARRAYS_NAME
    try:
        arrays = npz.read_arrays(place)
    except FileNotFoundError:
        raise UserError(f"{path} has lost its {ARRAYS_NAME}; train the model again") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in files.LACKS:
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{place} cannot be read ({reason}); train the model again") from None
    if digests.of_arrays(arrays) != digest:
        raise UserError(f"{place} is not as it was written; train the model again")
    return arrays


def _settings_to_json(method: BagClassifier, name: str) -> dict[str, Any]:
    """The constructor's settings as JSON."""
    params = method.get_params(deep=False)
    if params.get(_VALIDATION) is None:  # as of models that were written before there was any
        params.pop(_VALIDATION, None)
    return {
        key: _to_json(value, f"{name} has the setting {key}")
        for key, value in params.items()
        if key not in method.not_stored
    }


def _to_json(value: Any, what: str) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_to_json(item, what) for item in value]
    if isinstance(value, Settings):
        return dataclasses.asdict(value)
    if isinstance(value, Validation):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {_VALIDATION: {key: _to_json(own, what) for key, own in fields.items()}}
    if isinstance(value, Mapping):  # whose keys may be numbers, unlike JSON's
        return {"pairs": [[_to_json(part, what) for part in pair] for pair in value.items()]}
    if isinstance(value, PathLike):
        return str(value)
    raise UserError(f"{what}, a {type(value).__name__}, which cannot be saved")


def _settings_of_json(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The constructor's settings that `_settings_to_json` has written."""
    values = {key: _of_json(value) for key, value in settings.items()}
    if values.get("method") == name:  # of a network, where it is the method's own
        del values["method"]
    return values


def _of_json(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_of_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "pairs" in value:
        return {label: _of_json(item) for label, item in value["pairs"]}
    if _VALIDATION in value:
        return Validation(**_of_fields(value[_VALIDATION]))
    fields = {key: _of_json(item) for key, item in value.items() if key != "optimizer"}
    return Settings(**fields, optimizer=OptimizerOptions(**_of_fields(value["optimizer"])))


def _of_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _of_json(item) for key, item in fields.items()}


def _versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in _VERSIONS}
    return {
        "lossattn_jax": lossattn_jax.__version__,
        "python": platform.python_version(),
        **versions,
    }
