"""Compares a run's attention with other explainers; `explain.comparison` as a command:

python -m lossattn_jax.compare_explainers --workdir=runs/digit_scenes
"""

import jax
from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.data.subset import SPLITS
from lossattn_jax.explain import comparison_report, explainers
from lossattn_jax.explain.comparison import compare, compare_run, refuse_nonfinite
from lossattn_jax.explain.metrics import metric_registry

__all__ = [
    "compare",
    "compare_run",
]


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    result = compare_run(
        values.workdir,
        values.explainers,
        num=values.num,
        split=values.split,
        checkpoint=values.checkpoint,
        batch_size=values.batch_size,
        data_dir=values.data_dir,
        metric_names=values.metrics,
        out=values.out,
        trust_code=values.trust_code,
    )
    if jax.process_index() == 0:
        print(comparison_report.table(result["explainers"]), end="")
    refuse_nonfinite(result)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_list(
        "explainers",
        list(explainers.NAMES),
        "which to compare; or your own, package.module:attribute",
    )
    flags.DEFINE_list(
        "metrics",
        [metric_registry.ALL],
        f"all, or some of {', '.join(metric_registry.NAMES)}; or your own, package.module:attribute",
    )
    flags.DEFINE_integer("num", 512, "number of images of the split", lower_bound=1)
    flags.DEFINE_enum("split", "test", SPLITS, "where the images come from")
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step")
    flags.DEFINE_integer("batch_size", 64, "images at a time", lower_bound=1)
    flags.DEFINE_string("data_dir", None, "folder of the data sets; default: as in the run")
    flags.DEFINE_string(
        "out", None, "JSON file to write; default: compare_explainers.json in the workdir"
    )
    command.define_trust_code()
    command.run(main, processes=True)
