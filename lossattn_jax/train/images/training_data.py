"""The record `data.json` of the images that a run trains on."""

import pathlib
from typing import Any

import jax

from lossattn_jax import data, devices
from lossattn_jax.checkpoint import provenance
from lossattn_jax.errors import UserError
from lossattn_jax.files import records
from lossattn_jax.train.images import reporting

RECORD_NAME = "data.json"


def describe(train_set: data.Dataset, test_set: data.Dataset) -> dict[str, Any]:
    """Digests a run's images; all processes have to come here.

    Raises:
      UserError: as of `provenance.of_data`.
    """
    of_train, of_test = provenance.of_data(train_set, test_set)
    return {"training images": of_train, "test images": of_test}


def refuse_other(workdir: pathlib.Path, images: dict[str, Any], folder: str) -> None:
    """Refuses to resume a run with other images.

    All processes have to come here.

    Where the workdir does not say which these were, it warns.

    Args:
      workdir: of the run.
      images: of `describe`.
      folder: of the data sets, for the message.

    Raises:
      UserError: the images are others.
    """
    reason = None
    try:
        made_from = records.read(workdir / RECORD_NAME).made_from
    except FileNotFoundError:
        made_from = None
        reporting.warn(
            "warning: the run in %s was started before runs said by digests which images they train on: "
            "whether they are the same cannot be seen; from now on it can",
            workdir,
        )
    except records.DamagedRecord as error:
        made_from = None
        reporting.warn(
            "warning: %s: whether the images are the same cannot be seen; it is written anew", error
        )
    if made_from is not None:
        reason = records.difference(made_from, images)
    if devices.anywhere(reason is not None):
        raise UserError(
            f"the data set in {folder} is another one than the run in {workdir} was started with "
            f"({reason or 'as another process says'}): give the folder with the same images as "
            "config.data.dir, or use another workdir (config.init_from can start it from this run)"
        )


def write(workdir: pathlib.Path, images: dict[str, Any], dataset: str) -> None:
    """Stores what `describe` has said; the first process does.

    Raises:
      UserError: the workdir cannot be written.
    """
    if jax.process_index() == 0:
        try:
            records.write(workdir / RECORD_NAME, {"dataset": dataset}, images, indent=1)
        except OSError as error:
            raise UserError(f"the workdir {workdir} cannot be written: {error.strerror}") from None
