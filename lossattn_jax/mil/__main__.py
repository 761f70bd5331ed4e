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
from lossattn_jax.kernels import cpu
from lossattn_jax.mil import bag_flags, bootstrap, experiment, methods, report, selection

DATASET = flags.DEFINE_list(
    "dataset",
    None,
    "files of bags (CSV, TSV, Parquet), folders of feature files, some of "
    f"{', '.join(sources.SOURCES)}, or your own, package.module:attribute",
    required=True,
)
bag_flags.define_table()
bag_flags.define_format()
POSITIVE = flags.DEFINE_list(
    "positive", [], "the positive class of each data set of two, where its words do not say it"
)
bag_flags.define_features()
METHOD = flags.DEFINE_list(
    "method",
    [poolings.DEFAULT],
    f"all, paper for those of the AAAI paper's table, or some of {', '.join(methods.NAMES)}; or your own, "
    "package.module:attribute",
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
bag_flags.define_instances()
bag_flags.define_class_weight()
bag_flags.define_patience()
bag_flags.define_memory()
bag_flags.define_devices()
REPEATS = flags.DEFINE_integer("repeats", None, "of all folds; the config's where not given")
BOOTSTRAP = flags.DEFINE_integer(
    "bootstrap",
    bootstrap.RESAMPLES,
    "resamples of groups, or of bags that have none, for the intervals of metrics; 0 for none",
)
WORKDIR = flags.DEFINE_string("workdir", None, "folder for the results", required=True)
KEEP_MODELS = flags.DEFINE_bool(
    "keep_models",
    False,
    "keep the model of each fold, for mil predict, in a folder beside its file",
)
bag_flags.define_data()
CONFIG = command.define_config(config_lib.__file__, config_lib.SCHEMA)


def main() -> None:
    """Runs the command; its flags are above."""
    cpu.one_device_per_core()
    config = CONFIG.value
    folds = _number_of_folds(FOLDS.value)
    config.folds = folds if isinstance(folds, int) else config.folds
    config.repeats = config.repeats if REPEATS.value is None else REPEATS.value
    bag_flags.set_training(config)
    summaries = experiment.run(
        DATASET.value,
        METHOD.value,
        SELECT.value,
        config,
        WORKDIR.value,
        flags.FLAGS.data_dir,
        download=flags.FLAGS.download,
        positive=POSITIVE.value,
        choice=bag_flags.choice(),
        labels=flags.FLAGS.labels,
        columns=bag_flags.columns(),
        folds=folds,
        memory_gib=flags.FLAGS.memory,
        instances_per_device=flags.FLAGS.instances_per_device,
        file_format=flags.FLAGS.file_format,
        keep_models=KEEP_MODELS.value,
        resamples=BOOTSTRAP.value,
    )
    print(report.table(summaries), end="")
    report.refuse_nonfinite(summaries)


def _number_of_folds(text: str | None) -> int | str | None:
    """A number where the flag has one, and otherwise its word."""
    return int(text) if text and re.fullmatch(r"[+-]?\d{1,4000}", text, re.ASCII) else text


if __name__ == "__main__":
    command.run(main, config_lib.SCHEMA)
