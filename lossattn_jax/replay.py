"""Makes a skipped update of a run again and reports non-finite values:

python -m lossattn_jax.replay --dump=runs/digit_scenes/nonfinite/step_120
"""

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.train.images.replay import replay

__all__ = [
    "replay",
]


def main() -> None:
    """The command; see the flags."""
    print("\n".join(replay(flags.FLAGS.dump, trust_code=flags.FLAGS.trust_code)))


if __name__ == "__main__":
    flags.DEFINE_string("dump", None, "folder that the run named when it ended", required=True)
    command.define_trust_code()
    command.run(main)
