"""The command `lossattn`: runs the commands of this package by their names, and lists them.

`lossattn COMMAND` does what `python -m lossattn_jax.MODULE` does. JAX is imported by the commands alone, so
that the list and the help come at once.
"""

import difflib
import os
import runpy
import sys
from collections.abc import Sequence

from lossattn_jax import __version__
from lossattn_jax.commands import help_text, table

_EXIT_USER_ERROR = 2
_LONGEST = 60  # characters of a wrong word that are printed


def main() -> None:
    """Runs the command line of this process, and exits."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(args: Sequence[str]) -> int:
    """Runs a command line.

    Args:
      args: what follows `lossattn`.

    Returns:
      The exit code; a command that is run exits with its own.
    """
    if not args or args[0] in ("--help", "-h"):
        print(help_text.contents(), end="")
        return 0
    if args[0] == "--version":
        print(version())
        return 0
    found = table.find(args)
    if found is None:
        return _refuse(args)
    command, rest = found
    if help_text.is_asked(rest):
        print(help_text.stored(command), end="")
        return 0
    sys.argv = [f"lossattn {command.words}", *rest]
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    return 0


def version() -> str:
    """Versions of this package, of Python and of JAX, and the devices that JAX computes on."""
    import jax

    from lossattn_jax import devices

    try:
        computing = devices.describe()
    except RuntimeError as error:  # JAX's own sentence, such as of a TPU that another process has
        computing = f"none can be used ({' '.join(str(error).split())})"
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"lossattn_jax {__version__}\nPython {python}\nJAX {jax.__version__}\ndevices: {computing}"
    )


def _refuse(args: Sequence[str]) -> int:
    """Says which command is nearest to words that are none."""
    word = args[0]
    several = table.begins(word)
    if several and len(args) == 1:
        print(*(f"lossattn {command.words}: {command.summary}" for command in several), sep="\n")
        return 0
    given = " ".join([word, args[1]] if several else [word])
    names = [command.words for command in table.COMMANDS]
    nearest = difflib.get_close_matches(given.replace("_", "-"), names, n=1)
    if nearest:
        way_out = f"the nearest is: lossattn {nearest[0]}"
    else:
        ones = ", ".join(command.words for command in several) or ", ".join(names)
        way_out = f"there are: {ones}"
    shown = repr(given if len(given) <= _LONGEST else f"{given[:_LONGEST]}...")
    print(f"error: {shown} is not a command of lossattn; {way_out}.", file=sys.stderr)
    return _EXIT_USER_ERROR


if __name__ == "__main__":
    main()
