"""The command `replay` under its former name for bags:

python -m lossattn_jax.mil.replay --dump=runs/mil/musk1/loss_attention/nonfinite/model_3_epoch_2_update_12
"""

import logging

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.train.replay import replay

__all__ = [
    "replay",
]

log = logging.getLogger("lossattn_jax.mil.replay")  # as a command the module has another name


def main() -> None:
    """The command; see the flags."""
    log.warning(
        "warning: lossattn mil replay is lossattn replay now; the old name works until the next release"
    )
    print("\n".join(replay(flags.FLAGS.dump, trust_code=flags.FLAGS.trust_code)))


if __name__ == "__main__":
    flags.DEFINE_string("dump", None, "folder that the training named when it ended", required=True)
    command.define_trust_code()
    command.run(main)
