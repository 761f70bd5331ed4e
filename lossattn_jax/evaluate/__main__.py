"""Evaluates a finished run on a split:

python -m lossattn_jax.evaluate --workdir=runs/digit_scenes
"""

import json

import jax
from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.data.subset import SPLITS
from lossattn_jax.evaluate import test_time_views
from lossattn_jax.evaluate.evaluation import evaluate_run, refuse_nonfinite
from lossattn_jax.files import records


def main() -> None:
    """Runs the command; see the flags."""
    values = flags.FLAGS
    result = evaluate_run(
        values.workdir,
        values.split,
        values.checkpoint,
        values.batch_size,
        values.data_dir,
        out=values.out,
        views=values.views,
        trust_code=values.trust_code,
    )
    if jax.process_index() == 0:
        print(json.dumps(records.without_digests(result), indent=2))
    refuse_nonfinite(result, values.split)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_enum("split", "test", SPLITS, "what to evaluate on")
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step")
    flags.DEFINE_integer(
        "batch_size", None, "images per batch; default: as in the run", lower_bound=1
    )
    flags.DEFINE_string("data_dir", None, "folder of the data sets; default: as in the run")
    flags.DEFINE_string("out", None, "file to write; default: evaluation_SPLIT.json in the workdir")
    flags.DEFINE_string(
        "views",
        test_time_views.ONE,
        f"views of an image whose logits are averaged: {', '.join(test_time_views.VIEWS)}; or your own, "
        "package.module:attribute",
    )
    command.define_trust_code()
    command.run(main, processes=True)
