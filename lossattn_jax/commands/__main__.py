"""Writes the texts of `--help`, after a flag or example changed:

python -m lossattn_jax.commands
"""

import subprocess
import sys

from lossattn_jax import files
from lossattn_jax.commands import help_text, table


def main() -> None:
    """Makes each command's text, in a process of its own."""
    help_text.FOLDER.mkdir(exist_ok=True)
    for command in table.COMMANDS:
        command_line = [sys.executable, "-m", command.module, "--help"]
        text = subprocess.run(command_line, check=True, capture_output=True, text=True).stdout
        files.write(help_text.path_of(command), text.encode())


if __name__ == "__main__":
    main()
