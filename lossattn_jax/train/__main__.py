"""Trains a network from a config.

    python -m lossattn_jax.train --config=digit_scenes --workdir=runs/digit_scenes [--config.KEY=VALUE ...]

It is `lossattn train`, and `python train.py` in the repository. Rerunning the same command goes on from the
newest intact checkpoint. SIGTERM saves the state and ends with exit code 0.
"""

import os
import signal

if __name__ == "__main__":  # for the second that the imports take
    _END_TEXT = b"ended by SIGTERM: no training was under way\n"
    signal.signal(signal.SIGTERM, lambda *_: (os.write(2, _END_TEXT), os._exit(0)))

from absl import flags
from ml_collections import config_flags

from lossattn_jax.commands import command
from lossattn_jax.evaluate.evaluation import refuse_nonfinite
from lossattn_jax.train import preemption
from lossattn_jax.train.images import loop

CONFIG = config_flags.DEFINE_config_file("config", None, command.CONFIG_HELP, lock_config=True)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder for checkpoints, metrics and TensorBoard files", required=True
)


def main() -> None:
    """Trains with the given flags."""
    with preemption.watch() as stop:
        measurements = loop.train(
            CONFIG.value, WORKDIR.value, stop, trust_code=flags.FLAGS.trust_code
        )
    # All is done; at its end Python takes handlers away, and SIGTERM would still spoil the exit code.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    refuse_nonfinite(measurements, "test")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    command.define_trust_code()
    command.run(main, processes=True)
