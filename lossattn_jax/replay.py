"""Computes a skipped update of a training again and reports non-finite values:

python -m lossattn_jax.replay --dump=runs/digit_scenes/nonfinite/step_120
python -m lossattn_jax.replay --dump=runs/mil/musk1/loss_attention/nonfinite/model_3_epoch_2_update_12
"""

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.train.replay import replay

__all__ = [
    "replay",
]


def main() -> None:
    """The command; see the flags."""
    print("\n".join(replay(flags.FLAGS.dump, trust_code=flags.FLAGS.trust_code)))


if __name__ == "__main__":
    flags.DEFINE_string("dump", None, "folder that the training named when it ended", required=True)
    command.define_trust_code()
    command.run(main)
