"""Predicts for image files with a trained run, as a table:

python -m lossattn_jax.predict --workdir=runs/digit_scenes --images=a.png,folder --out=predictions.csv

The same command goes on where it was stopped. SIGTERM ends it with exit code 0.
"""

import os
import signal

if __name__ == "__main__":  # for the seconds that the imports take
    _END_TEXT = b"ended by SIGTERM: nothing was begun\n"
    signal.signal(signal.SIGTERM, lambda *_: (os.write(2, _END_TEXT), os._exit(0)))

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.predict import prediction_run
from lossattn_jax.train import preemption


def main() -> None:
    """Runs the command; see the flags."""
    values = flags.FLAGS
    with preemption.watch() as stop:
        try:
            summary = prediction_run.predict_run(
                values.workdir,
                values.images,
                values.out,
                checkpoint=values.checkpoint,
                batch_size=values.batch_size,
                attention=values.attention,
                trust_code=values.trust_code,
                stop=stop,
            )
        except preemption.Preemption:
            return
    # All is done; at its end Python takes handlers away, and SIGTERM would still spoil the exit code.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    prediction_run.refuse_incomplete(summary, values.out)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_list("images", None, "image files and folders", required=True)
    flags.DEFINE_string("out", None, "table to write, .csv or .parquet", required=True)
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step")
    flags.DEFINE_integer(
        "batch_size",
        None,
        "images per batch; default: as in the run, but 64 at most",
        lower_bound=1,
    )
    flags.DEFINE_bool(
        "attention", False, "write each image's patch attention and patch logits, as HDF5"
    )
    command.define_trust_code()
    command.run(main)
