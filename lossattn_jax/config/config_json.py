"""The config that a run stores beside its checkpoints, and whether another one may continue the run."""

import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from lossattn_jax import files
from lossattn_jax.attention import poolings
from lossattn_jax.config.images import (
    changes_betas,
    check,
    default_config,
    leaves,
    uses_consistency,
)
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests, records
from lossattn_jax.models import resnet
from lossattn_jax.models.heads import HEADS

log = logging.getLogger(__name__)

_REMEDY = "bring the file back, or use another workdir"


class DamagedConfig(UserError):
    """A config's file is not as it was written, or cannot be read."""


def write(config: ConfigDict, path: pathlib.Path) -> None:
    """Writes the resolved config as JSON, readable with `read`; an existing file is replaced whole.

    Beside the config it has `records.DIGEST`, of all the rest.
    """
    content = json.loads(json.dumps(config.to_dict()))
    content[records.DIGEST] = digests.of_json(content)
    files.write(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def read(
    path: pathlib.Path,
    defaults: Callable[[], ConfigDict] = default_config,
    checks: Callable[[ConfigDict], None] = check,
) -> ConfigDict:
    """Reads what `write` wrote. Keys that came later than the file have their defaults.

    Of a file without a digest, from before there were any, a warning tells.

    Args:
      path: the file.
      defaults: makes a config with every key there is.
      checks: refuses a config with an impossible value.

    Raises:
      DamagedConfig: the file cannot be read, or is not as it was written.
      UserError: there is no such file, or it is not a config.
    """
    entries, digest = _load(path)
    if digest is None:
        log.warning("warning: %s was written before configs carried digests", path)
    config = defaults()
    for key, value in entries:
        section, _, name = key.rpartition(".")
        parent = config.get(section) if section else config
        if not isinstance(parent, ConfigDict) or name not in parent:
            raise UserError(f"{path} has the key {key}, which this version does not know")
        try:
            parent[name] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            raise UserError(f"{path} has a wrong value of {key}: {error}") from None
    try:
        checks(config)
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError) as error:  # of values of other types
        raise UserError(f"{path} has a value that its key cannot have: {error}") from None
    return config


def read_digest(path: pathlib.Path) -> str | None:
    """Reads the digest of a config's file; None without one.

    Raises:
      DamagedConfig, UserError: as of `read`, but for values.
    """
    return _load(path)[1]


def _load(path: pathlib.Path) -> tuple[list[tuple[str, Any]], str | None]:
    """Keys and values of a config's file, and the digest that it has.

    Raises:
      DamagedConfig, UserError: as of `read`, but for values.
    """
    try:
        stored = json.loads(files.read(path))
        digest = stored.pop(records.DIGEST, None) if isinstance(stored, dict) else None
        entries = list(leaves(ConfigDict(stored))) if isinstance(stored, dict) else None
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a workdir of a run: it has no {path.name}") from None
    # The last one for what is nested too deeply.
    except (OSError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno in files.LACKS:
            raise  # which says nothing of the file
        reason = getattr(error, "strerror", None) or error
        raise DamagedConfig(f"{path} cannot be read as a config ({reason}); {_REMEDY}") from None
    if entries is None:
        raise DamagedConfig(f"{path} cannot be read as a config (it holds no keys); {_REMEDY}")
    if digest is not None and digest != digests.of_json(stored):
        raise DamagedConfig(f"{path} is not as it was written; {_REMEDY}")
    return entries, digest


# What must agree for a run to be continued, and why.
_FIXED = {
    "model.": ", and it shapes the model",
    "data.name": ", and it shapes the model",
    "optimizer.name": ", and it shapes the optimiser's state",
    "data.num_labels": ", and it decides what each step sees",
    "data.label_seed": ", and it decides what each step sees",
    "seed": ", and it decides what each step sees",
    "data.extra": ", and it decides what each step sees",
    "train.batch_size": ", and it decides what each step sees",
}
# Keys whose values may be None or an old name, with the value that decides what the network is: of a config
# and a value.
_RESOLVED: dict[str, Callable[[ConfigDict, Any], Any]] = {
    "model.bottleneck_relu_before_add": lambda config, value: bool(value),
    "model.bottleneck_first_kernel": lambda config, value: resnet.first_kernel(
        value, HEADS.find(config.model.head).plain
    ),
    "model.pooling": lambda config, value: poolings.POOLINGS.resolve(value),
}
# What may change as long as this stays as it is, which decides what the state holds.
_SWITCHES = {
    "loss.consistency_weight": uses_consistency,
    "optimizer.momentum_end": changes_betas,
    "optimizer.schedule": changes_betas,
}


def refuse_other_run(stored: ConfigDict, config: ConfigDict, workdir: pathlib.Path) -> list[str]:
    """Stops a run that would continue the checkpoints of another one.

    Args:
      stored: config beside the checkpoints.
      config: config of the run to continue with.
      workdir: for the message.

    Returns:
      Descriptions of the differences that are allowed, one per key.

    Raises:
      UserError: they differ in something that shapes the model or the rest of the state, or that decides
        the order of the data.
    """
    before = dict(leaves(stored))
    allowed = []
    for key, value in leaves(config):
        was = before[key]
        resolve = _RESOLVED.get(key, lambda config, value: value)
        if resolve(stored, was) == resolve(config, value):
            continue
        why = _why_fixed(key, stored, config)
        if why is not None:
            raise UserError(
                f"config.{key} is {value!r}, but the run in {workdir} has {was!r}{why}: use another "
                "workdir (config.init_from can start it from this run)"
            )
        allowed.append(f"config.{key}: {was!r} -> {value!r}")
    return allowed


def _why_fixed(key: str, stored: ConfigDict, config: ConfigDict) -> str | None:
    """Why a key that differs must not, as the end of a clause; None where it may."""
    for fixed, why in _FIXED.items():
        if key.startswith(fixed):
            return why
    switch = _SWITCHES.get(key)
    if switch is not None and switch(stored) != switch(config):
        return ", and what the state holds depends on it"
    if key == "loss.consistency_decay" and uses_consistency(config):
        return ", with which its average was made"
    return None
