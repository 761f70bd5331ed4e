"""The command `lossattn`: runs this package's commands by name.

`lossattn COMMAND` does what `python -m lossattn_jax.MODULE` does. JAX is imported by the commands alone, so
that the list and the help come at once.
"""

import contextlib
import difflib
import os
import runpy
import sys
from collections.abc import Sequence

from lossattn_jax import __version__
from lossattn_jax.commands import help_text, table

_EXIT_USER_ERROR = 2
_EXIT_INTERRUPTED = 130
_LONGEST = 60  # characters of a wrong word that are printed
_HELP = (*help_text.WORDS, "help")
_VERSION = ("--version", "-V", "version")


def main() -> None:
    """Runs the command line of this process, and exits."""
    try:
        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:  # before a command has begun
        print("interrupted.", file=sys.stderr)
        sys.exit(_EXIT_INTERRUPTED)


def run(args: Sequence[str]) -> int:
    """Runs a command line.

    Args:
      args: what follows `lossattn`.

    Returns:
      The exit code; a command that is run exits with its own.
    """
    args = [*(word for arg in args[:1] for word in arg.split()), *args[1:]]  # "mil cv" in quotes
    if args and args[0] in _HELP:
        args = [*args[1:], "--help"] if args[1:] else []
    if not args:
        return _print(help_text.contents())
    if args[0] in _VERSION:
        return _print(f"{version()}\n")
    match = table.find(args)
    if match is None:
        return _answer(args)
    command, rest = match
    if help_text.is_asked(rest):
        return _print(help_text.read_text(command))
    sys.argv = [f"lossattn {command.words}", *rest]
    _find_modules_here()
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    return 0


def _find_modules_here() -> None:
    """Finds modules in the current folder first, as `python -m` does.

    So `package.module:attribute` finds a user's own code.
    """
    with contextlib.suppress(OSError):  # the folder has gone
        here = os.getcwd()
        if not sys.flags.safe_path and not {"", here} & set(sys.path):
            sys.path.insert(0, here)


def _print(text: str) -> int:
    """Prints all that is said, and returns the exit code."""
    if sys.stdout is None:  # as it is where the command was started without one
        return 0
    try:
        print(text, end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has gone, as `head` does
            return 0
        print(f"error: the output cannot be written: {error.strerror}.", file=sys.stderr)
        return _EXIT_USER_ERROR
    return 0


def version() -> str:
    """Describes versions of the package, Python and JAX, and the devices."""
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


def _answer(args: Sequence[str]) -> int:
    """Lists commands that begin with a word, or names the nearest."""
    word, *rest = args
    several = table.begins(word)
    if several and (not rest or help_text.is_asked(rest)):
        return _print(
            "".join(f"lossattn {command.words}: {command.summary}\n" for command in several)
        )
    if several and rest[0].startswith("-"):
        wrong, nearest = word, [c.words for c in several if c.module.endswith(f".{word}")]
    else:
        wrong = " ".join([word, rest[0]] if several else [word])
        names = [command.words for command in table.COMMANDS]
        nearest = difflib.get_close_matches(wrong.replace("_", "-"), names, n=1)
    if nearest:
        way_out = f"the nearest is: lossattn {nearest[0]}"
    else:
        ones = ", ".join(command.words for command in several or table.COMMANDS)
        way_out = f"there are: {ones}, and --help and --version"
    wrong_text = repr(wrong if len(wrong) <= _LONGEST else f"{wrong[:_LONGEST]}...")
    print(f"error: {wrong_text} is not a command of lossattn; {way_out}.", file=sys.stderr)
    return _EXIT_USER_ERROR


if __name__ == "__main__":
    main()
