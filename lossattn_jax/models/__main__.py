"""Prints the networks of the paper's tables: `python -m lossattn_jax.models --list`."""

from absl import flags

from lossattn_jax import command
from lossattn_jax.errors import UserError
from lossattn_jax.models import table


def main() -> None:
    """The command; its flag is `--list`."""
    if not flags.FLAGS.list:
        raise UserError("say --list to print the networks of the paper's tables")
    print("\n".join(table.lines()))


if __name__ == "__main__":
    flags.DEFINE_bool("list", False, "print the networks, their parameters and the paper's numbers")
    command.run(main)
