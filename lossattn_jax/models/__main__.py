"""Prints the networks of the paper's tables: `python -m lossattn_jax.models`."""

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.models import table


def main() -> None:
    """The command; its flag `--list` is what it does anyway."""
    print("\n".join(table.lines()))


if __name__ == "__main__":
    flags.DEFINE_bool("list", True, "print the networks, their parameters and the paper's numbers")
    command.run(main)
