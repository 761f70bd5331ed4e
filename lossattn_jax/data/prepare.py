"""Downloads or generates a data set, once:

`python -m lossattn_jax.data.prepare --dataset=cifar10`.

This is the one module that needs TensorFlow, and only for TFDS' own builders: those of this package do
without. Everything is stored as array_record, which allows random access; the decoded images are cached
beside it (see `memory`).
"""

import contextlib
import errno
import importlib.util
import inspect
import logging
import os
import pathlib
import shutil
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from lossattn_jax.checkpoint import run_folder
from lossattn_jax.commands import command
from lossattn_jax.config.options import DataOptions
from lossattn_jax.data import damage, generated_folders, image_folder, memory, prepared_split
from lossattn_jax.data.bags.prepared_bags import PREPARED_BAGS
from lossattn_jax.data.datasets import (
    DatasetNotFound,
    open_prepared,
    quiet_logging,
    register,
    resolve_data_dir,
)
from lossattn_jax.data.generated_folders import GENERATED_IMAGES
from lossattn_jax.data.origins import make_spec
from lossattn_jax.data.specs import DATASETS, DatasetSpec, get_spec
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.files import records

# Named here, since `python -m` runs this module under another name.
log = logging.getLogger("lossattn_jax.data.prepare")

_RECORD_NAME = "prepared.json"  # beside the data set: what it was made with
_PLAN_NAME = "preparing.json"  # the same in the folder above, until the data set is there
_LEFTOVERS = "incomplete.*"  # what TFDS calls a folder until all is in it
# Flags that are keys of `config.data` too.
_OF_FOLDER_FLAGS = ("table", "test_share", "split_seed", "image_size")
# What is wrong with a folder and not with the network.
_OF_FOLDER = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR)


def prepare(
    name: str,
    data_dir: str | None = None,
    extra: bool = False,
    builder_kwargs: Mapping[str, Any] | None = None,
    archives: str | None = None,
) -> str:
    """Prepares a data set and its cache of decoded images.

    A second call finds both and returns at once. TFDS shows the progress on stderr.

    Args:
      name: one of `DATASETS` but "folder", `package.module:attribute` of a `DatasetSpec`, or "tfds:NAME" or
        "tfds:NAME/CONFIG"; or one of `GENERATED_IMAGES`, or of bags of `PREPARED_BAGS`, which are folders of
        files that are made on the spot.
      data_dir: the folder data sets are kept in; None for TFDS' default.
      extra: whether SVHN's training set is to hold its `extra` split; see `get_spec`.
      builder_kwargs: for the TFDS builder, such as `num_train` of `digit_scenes` for a small one; of bags
        such as `slides`. A data set that is there has to be made with the same, where any are given.
      archives: a folder with published archives under their own names; what it has is not downloaded.

    Returns:
      The folder of the prepared data set, its version included.

    Raises:
      UserError: unknown data set, a package that is not installed, failed download, a folder or an archive
        that cannot be used, a data set that is there and is damaged or was made with other settings, or that
        another process prepares.
    """
    if name in _generators():
        return _generate(name, data_dir, builder_kwargs or {})
    spec = get_spec(name, extra, "dataset")
    if archives is not None and not os.path.isdir(archives):
        raise UserError(
            f"archives is {archives!r}, but must be a folder with the published archives."
        )
    settings = dict(builder_kwargs or {})
    try:
        folder = _find(spec, data_dir, settings)
    except DatasetNotFound:
        _refuse_lack_of_packages(spec)
        with _alone(spec, data_dir) as parent:
            try:  # another process may have prepared it a moment ago
                folder = _find(spec, data_dir, settings)
            except DatasetNotFound:
                _refuse_other_format(spec, parent)
                with _settings_written(parent, settings):
                    _build(spec, data_dir, settings, archives)
                    folder = _find(spec, data_dir, settings)
    spec = make_spec(DataOptions(name=name, dir=data_dir or "", extra=extra, mode="memory"))
    for split in ("train", "test"):
        prepared_split.load(spec, split, data_dir)
    return folder


def prepare_folder(options: DataOptions) -> str:
    """Decodes a folder of images into its cache, where all fit in memory.

    Args:
      options: of the data, with the same settings as the training is to have.

    Returns:
      The folder of the images.

    Raises:
      Incomplete: some images cannot be read and are left out; the sentence has the first of each split.
      UserError: the folder cannot be used.
    """
    spec = make_spec(options)
    splits = [
        prepared_split.open_dataset(spec, split, options.dir, options.mode)
        for split in ("train", "test")
    ]
    in_memory = all(isinstance(split, memory.ArrayDataset) for split in splits)
    log.info(
        "%s: %d training and %d test images of %d classes, of %dx%d pixels for the network; %s",
        options.dir,
        *map(len, splits),
        spec.num_classes,
        *spec.image_shape[:2],
        "decoded into its cache" if in_memory else "read from the files whenever they are needed",
    )
    clauses = image_folder.refusals(options, spec)
    if clauses:
        raise Incomplete("; ".join(clauses))
    return options.dir


def _generators() -> dict[str, generated_folders.Write]:
    """Returns what writes the data sets that are folders of files, by their names."""
    return {**GENERATED_IMAGES, **{name: bags.write for name, bags in PREPARED_BAGS.items()}}


def _generate(name: str, data_dir: str | None, settings: Mapping[str, Any]) -> str:
    """Makes a folder of files on the spot; see `prepare`."""
    folder = generated_folders.folder_of(name, data_dir)
    if "://" in resolve_data_dir(data_dir):
        raise UserError(f"--data_dir is {data_dir}, but {name} is made in a folder of this machine")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with run_folder.lock_workdir(folder, beside=True):
            return str(generated_folders.make(folder, _generators()[name], settings))
    except OSError as error:
        damage.refuse_lack(error, str(folder))
        raise UserError(
            f"data set {name} could not be prepared in {folder} ({error.strerror or error}); make room or "
            "name another folder as --data_dir, and try again"
        ) from error


def _find(spec: DatasetSpec, data_dir: str | None, settings: Mapping[str, Any]) -> str:
    """Finds the folder of a prepared data set.

    Raises:
      DatasetNotFound: it is not.
      UserError: it is damaged, or was made with other settings.
    """
    address = open_prepared(spec, "train", data_dir).folder
    folder = pathlib.Path(address)
    if not os.path.exists(
        folder / _RECORD_NAME
    ):  # or the process that prepared it was killed before
        with contextlib.suppress(OSError):
            os.replace(folder.parent / _PLAN_NAME, folder / _RECORD_NAME)
    _refuse_other(folder, settings)
    return address


def _refuse_lack_of_packages(spec: DatasetSpec) -> None:
    """Refuses to download what could not be read then.

    Raises:
      UserError: the data set is built with a package that is not installed.
    """
    package = spec.preparation_package
    if package and importlib.util.find_spec(package.lower()) is None:
        raise UserError(
            f"data set {spec.name} is prepared with {package}, which is not installed: "
            "pip install 'lossattn_jax[prepare]'"
        )


@contextlib.contextmanager
def _alone(spec: DatasetSpec, data_dir: str | None) -> Iterator[pathlib.Path]:
    """Locks a data set for preparing; removes killed processes' files.

    Yields:
      The folder of its versions.

    Raises:
      UserError: another process prepares it, or the folder cannot be made.
    """
    folder = pathlib.Path(resolve_data_dir(data_dir)) / spec.tfds_name
    if "://" in resolve_data_dir(data_dir):
        yield folder
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _failure(spec, data_dir, error) from error
    with run_folder.lock_workdir(folder, beside=True):
        for leftover in folder.glob(_LEFTOVERS):
            shutil.rmtree(leftover, ignore_errors=True)
        yield folder


def _refuse_other_format(spec: DatasetSpec, parent: pathlib.Path) -> None:
    """Refuses a copy in an unusable format; TFDS would keep it.

    Args:
      spec: of the data set.
      parent: the folder of its versions.

    Raises:
      UserError: there is.
    """
    if "://" in str(parent) or not any(path.name[0].isdecimal() for path in parent.iterdir()):
        return
    raise UserError(
        f"data set {spec.name} could not be prepared in {parent}, since there is a copy that is damaged or "
        "in another format than array_record; remove the folder, or name another one as --data_dir"
    )


@contextlib.contextmanager
def _settings_written(parent: pathlib.Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Writes the settings of a data set before it is built.

    `_find` puts it beside the data set. Where the folder cannot be written, nothing is.

    Args:
      parent: the folder of the data set's versions.
      settings: of its builder.
    """
    plan = parent / _PLAN_NAME
    try:
        with contextlib.suppress(OSError):
            records.write(plan, {}, _plain(settings), indent=1)
        yield
    finally:
        with contextlib.suppress(OSError):
            plan.unlink(missing_ok=True)
            parent.rmdir()  # where nothing else is in it


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turns settings into JSON."""
    plain = bool | int | float | str | None
    return {
        key: value if isinstance(value, plain) else repr(value) for key, value in settings.items()
    }


def _refuse_other(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Refuses a data set that was made with other settings.

    Raises:
      UserError: they are others.
    """
    if not settings:
        return
    try:
        made_from = records.read(folder / _RECORD_NAME).made_from
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
            _name_folder(tfds.builder_cls(spec.tfds_name.partition("/")[0]), spec)
            builder = tfds.builder(
                spec.tfds_name, data_dir=root, file_format="array_record", **builder_kwargs
            )
            builder.download_and_prepare(download_config=config)
    except (
        OSError,  # the network's errors are of this kind as well
        RuntimeError,  # of array_record, where a file cannot be written
        ValueError,
        tfds.download.DownloadError,
        tfds.download.download_manager.NonMatchingChecksumError,
    ) as error:
        raise _failure(spec, data_dir, error) from error


def _name_folder(builder_class: Any, spec: DatasetSpec) -> None:
    """Tells TFDS where a user's builder is.

    It finds out for itself only where the module is in a package.
    """
    if spec.reference and builder_class.pkg_dir_path is None:
        import tensorflow_datasets as tfds

        builder_class.pkg_dir_path = tfds.core.Path(inspect.getfile(builder_class)).parent


def _failure(spec: DatasetSpec, data_dir: str | None, error: Exception) -> UserError:
    """Makes the error of a failed preparation.

    Raises:
      OSError, MemoryError: as of `damage.refuse_lack`.
    """
    folder = os.path.join(resolve_data_dir(data_dir), spec.tfds_name)
    damage.refuse_lack(error, folder)
    remedy = "check the network and the folder and try again"
    if any(os.strerror(number) in str(error) for number in _OF_FOLDER):
        remedy = "make room or name another folder, and try again"
    return UserError(
        f"data set {spec.name} could not be prepared in {folder} ({_reason(error)}); {remedy}, give a "
        "folder with the published archives as --archives, or copy a prepared data set there"
    )


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Limits TFDS' retries.

    Its ten doubling pauses last over three minutes.
    """
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


def _names() -> list[str]:
    return sorted([*DATASETS, *_generators()])


def main() -> None:
    """Runs the command; see its flags."""
    values = flags.FLAGS
    if values.dataset is None:
        raise UserError(
            f"--dataset is missing; allowed are: {', '.join(_names())}; tfds:NAME of another one of TFDS, or "
            "package.module:attribute of your own"
        )
    is_own = values.dataset in DATASETS and DATASETS[values.dataset].origin == image_folder.ORIGIN
    if is_own:
        settings: dict[str, Any] = {name: values[name].value for name in _OF_FOLDER_FLAGS}
        options = DataOptions(name=values.dataset, dir=values.data_dir or "", **settings)
        folder = prepare_folder(options)
    elif changed := [name for name in _OF_FOLDER_FLAGS if values[name].present]:
        raise UserError(f"--{changed[0]} is for --dataset={image_folder.ORIGIN} alone")
    else:
        folder = prepare(values.dataset, values.data_dir, values.extra, archives=values.archives)
    print(f"{values.dataset} is ready in {folder}")


if __name__ == "__main__":
    # Flags are defined here and not on import, so that other commands may import this module.
    flags.DEFINE_string(
        "dataset",
        None,
        f"which data set (needed): {', '.join(_names())}; tfds:NAME of another one of TFDS; or your own, "
        "package.module:attribute",
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "folder for data sets, default: that of TFDS; of folder, that of the images",
    )
    flags.DEFINE_string("table", "", "of folder: as config.data.table")
    flags.DEFINE_float("test_share", 0.2, "of folder: as config.data.test_share", 0.0, 1.0)
    flags.DEFINE_integer("split_seed", 0, "of folder: as config.data.split_seed", 0)
    flags.DEFINE_integer("image_size", 0, "of folder: as config.data.image_size", 0, 2048)
    flags.DEFINE_bool("extra", False, "train on SVHN's extra images as well")
    flags.DEFINE_string(
        "archives", None, "folder with published archives, which are not downloaded then"
    )
    command.run(main)
