"""Exports a trained network as a program that needs JAX alone:

python -m lossattn_jax.export_model --workdir=runs/digit_scenes --out=model.stablehlo
"""

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.export_model.model_files import export_run


def main() -> None:
    """Runs the command; see the flags."""
    values = flags.FLAGS
    export_run(
        values.workdir,
        values.out,
        checkpoint=values.checkpoint,
        trust_code=values.trust_code,
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_string(
        "out", None, "file to write, with a .json and a page beside it", required=True
    )
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step")
    command.define_trust_code()
    command.run(main)
