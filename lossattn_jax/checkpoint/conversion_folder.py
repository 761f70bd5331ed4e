"""The workdir of a conversion; a killed one starts again.

A file says from the first to the last moment that the conversion is not finished, and of what it is. The
config comes after the checkpoint, so that a folder with both is a run.
"""

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from lossattn_jax.checkpoint import provenance, run_folder
from lossattn_jax.checkpoint.store import CHECKPOINTS_NAME, Checkpoints
from lossattn_jax.config import config_json, images
from lossattn_jax.config.options import ImageOptions
from lossattn_jax.data import DatasetSpec
from lossattn_jax.errors import UntrustedCode, UserError
from lossattn_jax.files import records

UNFINISHED_NAME = "unfinished_conversion.json"

# What a training writes before its first checkpoint.
_OF_TRAINING = ("data.json", "metrics.jsonl")


def refuse_used(folder: pathlib.Path, options: ImageOptions) -> None:
    """Refuses a workdir that holds anything but an unfinished conversion.

    Args:
      folder: the workdir, which need not exist.
      options: of the conversion.

    Raises:
      UserError: it holds a run, or the config of another one.
    """
    refusal = f"the workdir {folder} holds a run already"
    with Checkpoints(folder, read_only=True) as checkpoints:
        steps = checkpoints.steps_with_folder()
    if os.path.lexists(folder / UNFINISHED_NAME) and steps in ([], [0]):
        return
    if steps:
        raise UserError(f"{refusal}: use another one")
    if any(os.path.lexists(folder / name) for name in _OF_TRAINING):
        raise UserError(f"{refusal}, a training without a checkpoint yet: use another one")
    # A conversion by an earlier version that was killed before its checkpoint leaves this.
    path = folder / run_folder.CONFIG_NAME
    if os.path.lexists(path):
        try:
            earlier = config_json.read(path, trust_code=config_json.named_code(options))
        except UntrustedCode as error:
            raise config_json.other_code(error, options, folder) from None
        earlier_options = images.resolve(earlier)
        before, now = (provenance.of_config(one, ("",)) for one in (earlier_options, options))
        if (reason := records.difference(before, now)) is not None:
            raise UserError(f"{refusal}, with another config ({reason}): use another one")


def refuse_unfinished(folder: pathlib.Path) -> None:
    """Refuses to train in a workdir whose conversion is not finished.

    Raises:
      UserError: it is not.
    """
    if os.path.lexists(folder / UNFINISHED_NAME):
        raise UserError(
            f"the workdir {folder} holds a conversion that was not finished: the same convert command "
            "finishes it; or use another workdir"
        )


def write(
    folder: pathlib.Path,
    options: ImageOptions,
    spec: DatasetSpec,
    items: Mapping[str, Any],
    *,
    weights: str,
) -> None:
    """Writes a run of converted weights: checkpoint 0, config, data set.

    Args:
      folder: the workdir; made where absent.
      options: of the run.
      spec: of its data set.
      items: its "params" and "batch_stats".
      weights: the file that they are from, for readers.

    Raises:
      UserError: the folder holds a run or another unfinished conversion, is being written by another
        command, or cannot be written.
    """
    made_from = {**provenance.of_config(options, ("",)), "weights": provenance.of_variables(items)}
    run_folder.make_workdir(folder)
    with run_folder.lock_workdir(folder):
        refuse_used(folder, options)
        mark = folder / UNFINISHED_NAME
        records.find(mark, made_from)
        with run_folder.writing(folder):
            records.write(mark, {"weights": weights}, made_from)
            if os.path.lexists(folder / CHECKPOINTS_NAME):
                shutil.rmtree(folder / CHECKPOINTS_NAME)
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(0, {"variables": items}, None)
        run_folder.write_config(options, folder, spec)
        with run_folder.writing(folder):
            mark.unlink()
