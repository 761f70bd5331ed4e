"""Compares runs of images with the first of them:

python -m lossattn_jax.compare_runs runs/mean runs/loss_attention
"""

from collections.abc import Sequence

import jax
from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.compare_runs import comparison, tables
from lossattn_jax.data.subset import SPLITS
from lossattn_jax.mil import bootstrap


def main(workdirs: Sequence[str]) -> None:
    """The command; see the flags.

    Args:
      workdirs: of the runs.
    """
    values = flags.FLAGS
    result = comparison.compare(
        workdirs,
        values.split,
        values.checkpoint,
        values.num,
        batch_size=values.batch_size,
        data_dir=values.data_dir,
        resamples=values.resamples,
        seed=values.seed,
        out=values.out,
        trust_code=values.trust_code,
    )
    if jax.process_index() == 0:
        print(tables.to_markdown(result), end="")
    comparison.refuse_nonfinite(result)


if __name__ == "__main__":
    flags.DEFINE_enum(
        "split",
        "test",
        [*SPLITS, comparison.NONE],
        f"what to evaluate on; {comparison.NONE}: configs and curves alone",
    )
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step, of all runs")
    flags.DEFINE_integer("num", 48, "number of images shown at most", lower_bound=1)
    flags.DEFINE_integer(
        "batch_size", None, "images per batch; default: as in each run", lower_bound=1
    )
    flags.DEFINE_string("data_dir", None, "folder of the data sets; default: as in each run")
    flags.DEFINE_integer(
        "resamples", bootstrap.RESAMPLES, "of the bootstrap; 0: no intervals", lower_bound=0
    )
    flags.DEFINE_integer("seed", 0, "of the bootstrap", lower_bound=0)
    flags.DEFINE_string(
        "out", None, "folder to write; default: comparison beside the first run's folder"
    )
    command.define_trust_code()
    command.run(main, processes=True, operands=True)
