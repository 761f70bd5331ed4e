"""Errors that are the user's to mend, and how a command ends on one.

A mistake in a flag, a config, a path or a data set is reported as one sentence on standard error and
exit code 2, without a traceback. Anything else is a bug of ours and keeps its traceback.
"""

import sys
from collections.abc import Callable, Sequence

EXIT_USER_ERROR = 2


class UserError(Exception):
    """A mistake the user can mend; its text is one sentence that names what is wrong and what is allowed."""


def run_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Calls `main(argv)`; a `UserError` becomes its sentence on stderr and exit code 2.

    Args:
      main: the command; returns an exit code, or None for 0.
      argv: the arguments left over after flag parsing, `argv[0]` being the program.

    Returns:
      The exit code for `sys.exit`.
    """
    try:
        return main(argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
