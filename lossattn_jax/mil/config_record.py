"""The file `config.json` of a workdir of bags."""

import logging
import os
import pathlib

from lossattn_jax.checkpoint.run_folder import CONFIG_NAME
from lossattn_jax.config import bags as config_lib
from lossattn_jax.config import config_json
from lossattn_jax.config.options import BagOptions, leaves
from lossattn_jax.data.bags import provenance
from lossattn_jax.errors import UntrustedCode, UserError
from lossattn_jax.files import records
from lossattn_jax.mil import fold_results
from lossattn_jax.mil.workdir import Workdir

log = logging.getLogger(__name__)


def refuse_other(options: BagOptions, folder: pathlib.Path) -> None:
    """Refuses options unlike those of a workdir; `repeats` may change.

    Where there is none, or a damaged one, every fold that is there is compared. A damaged one without a fold
    may be another kind of run's.

    Args:
      options: of the command.
      folder: the workdir, which need not exist.

    Raises:
      UserError: it differs, or the file is damaged and no fold says whose it is.
    """
    path = folder / CONFIG_NAME
    if not os.path.exists(path):  # pathlib's raises where a name is too long
        _refuse_other_folds(options, folder)
        return
    try:
        record = config_lib.read(path, trust_code=config_json.named_code(options))
    except UntrustedCode as error:
        raise config_json.other_code(error, options, folder) from None
    except config_json.DamagedConfig:
        if not _refuse_other_folds(options, folder):
            raise
        log.warning(
            "%s is damaged; it is made again, as the folds there are of this command's config", path
        )
        return
    before = dict(leaves(record))
    for key, value in leaves(options):
        if before.get(key) != value and key != "repeats":
            raise UserError(
                f"config.{key} is {value!r}, but the run in {folder} has {before.get(key)!r}; use "
                "another workdir"
            )


def write(options: BagOptions, workdir: Workdir) -> None:
    """Writes a command's options into a workdir, which it may make.

    Raises:
      UserError: it cannot be written, or as of `refuse_other`.
    """
    if workdir.make():
        # Another command may have been here while this one read the bags.
        refuse_other(options, workdir.path)
    if workdir.writable:
        with workdir.writing():
            config_lib.write(options, workdir.path / CONFIG_NAME)


def _refuse_other_folds(options: BagOptions, folder: pathlib.Path) -> int:
    """Refuses options unlike those of a workdir's folds; counts the folds."""
    now, count = provenance.of_config(options), 0
    for path in sorted(folder.glob("*/*/*/repeat*_fold*.json")):
        try:
            before = provenance.rename_keys(fold_results.read(path).made_from)
        except (FileNotFoundError, records.DamagedRecord):
            continue
        if before is not None:
            before = {k: value for k, value in before.items() if k.startswith(provenance.CONFIG)}
        records.refuse_other(path, before, now)
        count += 1
    return count
