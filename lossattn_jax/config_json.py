"""The config that a run stores beside its checkpoints, and whether another one may continue the run."""

import json
import pathlib

from ml_collections import ConfigDict

from lossattn_jax.config import (
    changes_betas,
    check,
    default_config,
    leaves,
    uses_consistency,
)
from lossattn_jax.errors import UserError


def write(config: ConfigDict, path: pathlib.Path) -> None:
    """Writes the resolved config as JSON, readable with `read`; an existing file is replaced whole."""
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text + "\n")
    part.replace(path)


def read(path: pathlib.Path) -> ConfigDict:
    """Reads what `write` wrote. Keys that came later than the file have their defaults.

    Raises:
      UserError: there is no such file, or it is not a config.
    """
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a workdir of a run: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a config: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path} cannot be read as a config: it holds no keys")
    config = default_config()
    for key, value in leaves(ConfigDict(stored)):
        section, _, name = key.rpartition(".")
        parent = config.get(section) if section else config
        if not isinstance(parent, ConfigDict) or name not in parent:
            raise UserError(f"{path} has the key {key}, which this version does not know")
        try:
            parent[name] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            raise UserError(f"{path} has a wrong value of {key}: {error}") from None
    check(config)
    return config


# What must agree for a run to be continued, and why.
_FIXED = {
    "model.": "shapes the model",
    "data.name": "shapes the model",
    "optimizer.name": "shapes the optimiser's state",
    "data.num_labels": "decides what each step sees",
    "data.label_seed": "decides what each step sees",
    "seed": "decides what each step sees",
    "data.extra": "decides what each step sees",
    "train.batch_size": "decides what each step sees",
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
      UserError: they differ in something that shapes the model or the order of the data.
    """
    before = dict(leaves(stored))
    differing = [(k, before[k], v) for k, v in leaves(config) if before[k] != v]
    for key, was, value in differing:
        for fixed, reason in _FIXED.items():
            if key.startswith(fixed):
                raise UserError(
                    f"config.{key} is {value!r}, but the run in {workdir} has {was!r}, and it "
                    f"{reason}: use another workdir (config.init_from can start it from this run)"
                )
    switches = {
        "loss.consistency_weight": uses_consistency,
        "optimizer.momentum_end": changes_betas,
        "optimizer.schedule": changes_betas,
    }
    for key, was, value in differing:
        switch = switches.get(key)
        if switch is not None and switch(stored) != switch(config):
            raise UserError(
                f"config.{key} is {value!r}, but the run in {workdir} has {was!r}, and what the state "
                "holds depends on it: use another workdir (config.init_from can start it from this run)"
            )
        if key == "loss.consistency_decay" and uses_consistency(config):
            raise UserError(
                f"config.{key} is {value!r}, but the run in {workdir} has {was!r}, with which its "
                "average was made: use another workdir (config.init_from can start it from this run)"
            )
    return [f"config.{key}: {was!r} -> {value!r}" for key, was, value in differing]
