"""Downloads or generates a data set, once: `python -m lossattn_jax.data.prepare --dataset=cifar10`.

This is the one module that needs TensorFlow, through TFDS' builders. Everything is stored as
array_record, which allows random access; the decoded images are cached beside it (see `memory`).
"""

import contextlib
import logging
import os
import pathlib
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from lossattn_jax import command, records
from lossattn_jax.data import memory
from lossattn_jax.data.datasets import (
    DatasetNotFound,
    open_source,
    quiet_logging,
    register,
    resolve_data_dir,
)
from lossattn_jax.data.specs import DATASETS, DatasetSpec, get_spec
from lossattn_jax.errors import UserError

# Named here, since `python -m` runs this module under another name.
log = logging.getLogger("lossattn_jax.data.prepare")

_RECORD_NAME = "prepared.json"  # beside the data set: what it was made with


def prepare(
    name: str,
    data_dir: str | None = None,
    extra: bool = False,
    builder_kwargs: Mapping[str, Any] | None = None,
    archives: str | None = None,
) -> str:
    """Makes sure that a data set and the cache of its decoded images are there.

    A second call finds both and returns at once. TFDS shows the progress on stderr.

    Args:
      name: one of `DATASETS`.
      data_dir: the folder data sets are kept in; None for TFDS' default.
      extra: whether SVHN's training set is to hold its `extra` split; see `get_spec`.
      builder_kwargs: for the TFDS builder, such as `num_train` of `digit_scenes` for a small one. A data set
        that is there has to be made with the same, where any are given.
      archives: a folder with published archives under their own names; what it has is not downloaded.

    Returns:
      The folder of the prepared data set, its version included.

    Raises:
      UserError: unknown data set, failed download, a folder or an archive that cannot be used, or a data
        set that is there and was made with other settings.
    """
    spec = get_spec(name, extra)
    if archives is not None and not os.path.isdir(archives):
        raise UserError(
            f"archives is {archives!r}, but must be a folder with the published archives."
        )
    settings = dict(builder_kwargs or {})
    built = False
    try:
        _refuse_other(open_source(spec, "train", data_dir).folder, settings)
    except DatasetNotFound:
        _build(spec, data_dir, settings, archives)
        built = True
    try:
        for split in ("train", "test"):
            memory.load(spec, split, data_dir)
        folder = open_source(spec, "train", data_dir).folder
        if built:
            _remember(folder, settings)
        return folder
    except DatasetNotFound as error:
        # TFDS leaves a folder that it finds alone, however little is in it.
        folder = os.path.join(resolve_data_dir(data_dir), spec.tfds_name)
        raise UserError(
            f"the copy of {name} in {folder} is damaged; remove the folder and run this again"
        ) from error


def _remember(folder: str, settings: Mapping[str, Any]) -> None:
    """Writes down what a data set was made with; where the folder cannot be written, nothing."""
    with contextlib.suppress(OSError):
        records.write(pathlib.Path(folder) / _RECORD_NAME, {}, _plain(settings), indent=1)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON."""
    plain = bool | int | float | str | None
    return {
        key: value if isinstance(value, plain) else repr(value) for key, value in settings.items()
    }


def _refuse_other(folder: str, settings: Mapping[str, Any]) -> None:
    """Stops where settings are given, and the data set that is there was made with others.

    Raises:
      UserError: they are others.
    """
    if not settings:
        return
    try:
        made_from = records.read(pathlib.Path(folder) / _RECORD_NAME).made_from
    except (FileNotFoundError, records.DamagedRecord):
        made_from = None
    if made_from is None:
        log.warning("warning: %s does not say with which settings it was made", folder)
        return
    if (reason := records.difference(made_from, _plain(settings))) is not None:
        raise UserError(
            f"the data set in {folder} was made with other settings ({reason}); name another data_dir, or "
            "remove the folder"
        )


def _build(
    spec: DatasetSpec,
    data_dir: str | None,
    builder_kwargs: Mapping[str, Any],
    archives: str | None,
) -> None:
    # TensorFlow greets the user with its build options otherwise; it reads this when imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    register(spec)
    root = resolve_data_dir(data_dir)
    # Google's bucket has no array_record copies, and asking it stalls where there is no network.
    config = tfds.download.DownloadConfig(try_download_gcs=False, manual_dir=archives)
    try:
        with quiet_logging(), _few_retries():
            builder = tfds.builder(
                spec.tfds_name, data_dir=root, file_format="array_record", **builder_kwargs
            )
            builder.download_and_prepare(download_config=config)
    except (
        OSError,  # the network's errors are of this kind as well
        ValueError,
        tfds.download.DownloadError,
        tfds.download.download_manager.NonMatchingChecksumError,
    ) as error:
        raise UserError(
            f"data set {spec.name} could not be prepared in {os.path.join(root, spec.tfds_name)} "
            f"({_reason(error)}); check the network and the folder and try again, give a "
            "folder with the published archives as --archives, or copy a prepared data set there"
        ) from error


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Lets TFDS give a host up after seconds; its ten doubling pauses last over three minutes."""
    from tensorflow_datasets.core.download import downloader

    before = getattr(downloader, "MAX_RETRIES", None)
    downloader.MAX_RETRIES = 5
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before


def _reason(error: Exception) -> str:
    url = getattr(getattr(error, "request", None), "url", None)
    if url:
        return f"{urllib.parse.urlsplit(url).hostname} cannot be reached"
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def main() -> None:
    """The command; its flags are `--dataset`, `--data_dir`, `--extra` and `--archives`."""
    values = flags.FLAGS
    if values.dataset is None:
        raise UserError(f"--dataset is missing; allowed are: {', '.join(sorted(DATASETS))}")
    folder = prepare(values.dataset, values.data_dir, values.extra, archives=values.archives)
    print(f"{values.dataset} is ready in {folder}")


if __name__ == "__main__":
    # Flags are defined here and not on import, so that other commands may import this module.
    flags.DEFINE_string("dataset", None, f"Which data set: {', '.join(sorted(DATASETS))}.")
    flags.DEFINE_string("data_dir", None, "Folder for data sets; TFDS' default if not given.")
    flags.DEFINE_bool("extra", False, "Train on SVHN's extra images as well.")
    flags.DEFINE_string(
        "archives", None, "Folder with published archives; they are not downloaded."
    )
    command.run(main)
