"""Cross-validates methods on bags.

    python -m lossattn_jax.mil --dataset=musk1 --download --workdir=runs/mil
    python -m lossattn_jax.mil --dataset=own.csv --method=all --folds=10 --repeats=5 --workdir=runs/own
    python -m lossattn_jax.mil --dataset=a.csv,b.csv --positive=tumor,cancer --ignore=age --workdir=runs/two
    python -m lossattn_jax.mil --dataset=slides --labels=labels.csv --positive=tumor --workdir=runs/slides

Rerunning the same command goes on with the folds that are not there yet; those of other data are refused.
"""

import re

from absl import flags

from lossattn_jax.attention import poolings
from lossattn_jax.commands import command
from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import sources
from lossattn_jax.data.bags.bag_table import TableColumns
from lossattn_jax.data.bags.columns import Choice
from lossattn_jax.data.bags.feature_files import FORMATS
from lossattn_jax.kernels import cpu
from lossattn_jax.mil import bootstrap, experiment, methods, report, selection

DATASET = flags.DEFINE_list(
    "dataset",
    None,
    "files of bags (CSV, TSV, Parquet), folders of feature files, some of "
    f"{', '.join(sources.SOURCES)}, or your own, package.module:attribute",
    required=True,
)
LABELS = flags.DEFINE_string("labels", None, "table of the bags of a folder (CSV, TSV, Parquet)")
FILE_FORMAT = flags.DEFINE_string(
    "file_format",
    None,
    f"of a folder's feature files: {', '.join(FORMATS)}, or your own, package.module:attribute; what their "
    "endings say where not given",
)
BAG_COLUMN = flags.DEFINE_string(
    "bag_column", None, "of the table, ids of bags; bag_id, bag or slide_id where not given"
)
LABEL_COLUMN = flags.DEFINE_string(
    "label_column", None, "of the table, labels; bag_label or label where not given"
)
GROUP_COLUMN = flags.DEFINE_string(
    "group_column",
    None,
    "of the table, groups that are not divided between training and test, such as patients; of a folder's "
    "table group, patient, patient_id or case_id where not given, empty for none",
)
SPLIT_COLUMN = flags.DEFINE_string(
    "split_column",
    None,
    "of the table, train, validation or test; of a folder's table split where not given, empty for none",
)
FOLD_COLUMN = flags.DEFINE_string(
    "fold_column",
    None,
    "of the table, numbers of the folds in which bags are tested; of a folder's table fold where not given, "
    "empty for none",
)
PATH_COLUMN = flags.DEFINE_string(
    "path_column", None, "of the table, feature files; path where not given, empty for none"
)
POSITIVE = flags.DEFINE_list(
    "positive", [], "the positive class of each data set of two, where its words do not say it"
)
FEATURES = flags.DEFINE_list(
    "features", [], "names and patterns of columns that are features; all of numbers without a role"
)
IGNORE = flags.DEFINE_list("ignore", [], "names and patterns of columns that are no features")
METHOD = flags.DEFINE_list(
    "method",
    [poolings.DEFAULT],
    f"all, or some of {', '.join(methods.NAMES)}; or your own, package.module:attribute",
)
SELECT = flags.DEFINE_list(
    "select",
    [selection.FINAL],
    "how epochs and settings are chosen: all, or some of "
    + "; ".join(f"{name}: {what}" for name, what in selection.RULES.items()),
)
FOLDS = flags.DEFINE_string(
    "folds",
    None,
    f"of cross-validation, or {', '.join(sources.SPLITTINGS)}; the config's where not given",
)
MAX_INSTANCES = flags.DEFINE_integer(
    "max_instances", None, "that an epoch sees of a bag, drawn anew; the config's where not given"
)
MEMORY = flags.DEFINE_float(
    "memory", None, "GiB that bags which are read one by one may take; half of what is free"
)
REPEATS = flags.DEFINE_integer("repeats", None, "of all folds; the config's where not given")
BOOTSTRAP = flags.DEFINE_integer(
    "bootstrap",
    bootstrap.RESAMPLES,
    "resamples of groups, or of bags that have none, for the intervals of metrics; 0 for none",
)
WORKDIR = flags.DEFINE_string("workdir", None, "folder for the results", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", "data/mil", "folder of the benchmarks, or of TFDS")
DOWNLOAD = flags.DEFINE_bool("download", False, "whether to fetch a benchmark that is not there")
CONFIG = command.define_config(config_lib.__file__, config_lib.SCHEMA)


def main() -> None:
    """Runs the command; its flags are above."""
    cpu.one_device_per_core()
    config = CONFIG.value
    folds = _number_of_folds(FOLDS.value)
    config.folds = folds if isinstance(folds, int) else config.folds
    config.repeats = config.repeats if REPEATS.value is None else REPEATS.value
    if MAX_INSTANCES.value is not None:
        config.train.max_instances = MAX_INSTANCES.value
    summaries = experiment.run(
        DATASET.value,
        METHOD.value,
        SELECT.value,
        config,
        WORKDIR.value,
        DATA_DIR.value,
        download=DOWNLOAD.value,
        positive=POSITIVE.value,
        choice=Choice(tuple(FEATURES.value), tuple(IGNORE.value)),
        labels=LABELS.value,
        columns=TableColumns(
            bag=BAG_COLUMN.value,
            label=LABEL_COLUMN.value,
            group=GROUP_COLUMN.value,
            split=SPLIT_COLUMN.value,
            fold=FOLD_COLUMN.value,
            path=PATH_COLUMN.value,
        ),
        folds=folds,
        memory_gib=MEMORY.value,
        file_format=FILE_FORMAT.value,
        resamples=BOOTSTRAP.value,
    )
    print(report.table(summaries), end="")
    report.refuse_nonfinite(summaries)


def _number_of_folds(text: str | None) -> int | str | None:
    """A number where the flag has one, and otherwise its word."""
    return int(text) if text and re.fullmatch(r"[+-]?\d{1,4000}", text, re.ASCII) else text


if __name__ == "__main__":
    command.run(main, config_lib.SCHEMA)
