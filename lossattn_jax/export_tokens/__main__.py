"""Writes the tokens of a run's backbone as a folder of bags:

python -m lossattn_jax.export_tokens --workdir=runs/digit_scenes --out=tokens
"""

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.export_tokens.token_bags import DTYPES, SPLITS, export_tokens


def main() -> None:
    """Runs the command; see the flags."""
    values = flags.FLAGS
    export_tokens(
        values.workdir,
        values.out,
        values.splits,
        dtype=values.dtype,
        checkpoint=values.checkpoint,
        data_dir=values.data_dir,
        trust_code=values.trust_code,
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_string("out", None, "folder of the bags, new or to go on with", required=True)
    flags.DEFINE_multi_enum("splits", list(SPLITS), SPLITS, "a split; may be given several times")
    flags.DEFINE_enum("dtype", "float32", DTYPES, "of the numbers in the files")
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step")
    flags.DEFINE_string("data_dir", None, "folder of the data sets; default: as in the run")
    command.define_trust_code()
    command.run(main, processes=True)
