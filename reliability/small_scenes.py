"""Prepares a digit_scenes of a few images.

python -m reliability.small_scenes --data_dir=DATA
"""

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.data import prepare

TRAIN, TEST = 60, 40  # images


def main() -> None:
    """The command; see the flags."""
    sizes = {"num_train": TRAIN, "num_test": TEST}
    prepare.prepare("digit_scenes", flags.FLAGS.data_dir, builder_kwargs=sizes)


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "folder for data sets", required=True)
    command.run(main)
