"""Cross-validates methods on bags.

    python -m lossattn_jax.mil --dataset=musk1 --download --workdir=runs/mil
    python -m lossattn_jax.mil --dataset=own.csv --method=all --folds=10 --repeats=5 --workdir=runs/own
    python -m lossattn_jax.mil --dataset=a.csv,b.csv --positive=tumor,cancer --ignore=age --workdir=runs/two

Rerunning the same command goes on with the folds that are not there yet; those of other data are refused.
"""

from absl import flags

from lossattn_jax.attention import poolings
from lossattn_jax.commands import command
from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import sources
from lossattn_jax.data.bags.columns import Choice
from lossattn_jax.kernels import cpu
from lossattn_jax.mil import experiment, methods, report, selection

DATASET = flags.DEFINE_list(
    "dataset",
    None,
    f"files of bags (CSV), some of {', '.join(sources.SOURCES)}, or your own, package.module:attribute",
    required=True,
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
FOLDS = flags.DEFINE_integer("folds", None, "of cross-validation; the config's where not given")
REPEATS = flags.DEFINE_integer("repeats", None, "of all folds; the config's where not given")
WORKDIR = flags.DEFINE_string("workdir", None, "folder for the results", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", "data/mil", "folder of the benchmarks, or of TFDS")
DOWNLOAD = flags.DEFINE_bool("download", False, "whether to fetch a benchmark that is not there")
CONFIG = command.define_config(config_lib.__file__, config_lib.SCHEMA)


def main() -> None:
    """Runs the command; its flags are above."""
    cpu.one_device_per_core()
    config = CONFIG.value
    config.folds = config.folds if FOLDS.value is None else FOLDS.value
    config.repeats = config.repeats if REPEATS.value is None else REPEATS.value
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
    )
    print(report.table(summaries), end="")
    report.refuse_nonfinite(summaries)


if __name__ == "__main__":
    command.run(main, config_lib.SCHEMA)
