"""How a command of this package starts and ends: flags, log, errors, exit code."""

import ast
import difflib
import functools
import itertools
import logging
import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from lossattn_jax import config as config_lib
from lossattn_jax import devices
from lossattn_jax.errors import Incomplete, UserError

EXIT_USER_ERROR = 2
EXIT_INCOMPLETE = 3


def run(
    main: Callable[[], None], config: Callable[[], ConfigDict] = config_lib.default_config
) -> None:
    """Parses the flags, sets the log up, calls `main` and exits.

    Args:
      main: the command.
      config: makes a config with every key that the flag --config may have.

    The exit code is 0, or 2 for a mistake in flags, config, paths or data (one sentence on stderr, no
    traceback), or 3 where a part of the work was left out for such a mistake and the rest is done, or 1 with
    a traceback for a bug.
    """
    known = {key for key, _ in config_lib.leaves(config())}
    app.run(
        lambda argv: sys.exit(_call(main, argv)),
        flags_parser=functools.partial(_parse, known=known),
    )


def define_config(path: str, config: Callable[[], ConfigDict]) -> flags.FlagHolder:
    """Defines the flag --config for a command that has a config without it.

    Args:
      path: the file that is the config where the flag is not given.
      config: makes a config with every key there is.
    """
    try:
        # With a default, ml_collections reads the overrides here and not with the other flags.
        _check_config_flags(sys.argv[1:], {key for key, _ in config_lib.leaves(config())})
    except UserError as error:
        sys.exit(_complain(error))
    return config_flags.DEFINE_config_file(
        "config", path, "the config, a file of configs/", lock_config=True
    )


def _call(main: Callable[[], None], argv: Sequence[str]) -> int:
    _log_to_stderr()
    devices.tune_cpu()
    devices.keep_programs()
    try:
        if len(argv) > 1:
            raise UserError(f"the argument {argv[1]!r} is not a flag; see --help")
        main()
        return 0
    except UserError as error:
        return _complain(error)


def _complain(error: UserError) -> int:
    print(f"error: {str(error).rstrip('.')}.", file=sys.stderr)
    return EXIT_INCOMPLETE if isinstance(error, Incomplete) else EXIT_USER_ERROR


def _log_to_stderr() -> None:
    """Our own log lines, without those of the libraries below us."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("lossattn_jax")
    log.setLevel(logging.INFO)
    log.handlers = [handler]
    log.propagate = False
    # Through absl, Orbax and TFDS tell every step they take, and warn of what was asked for.
    absl_logging.set_verbosity(absl_logging.ERROR)


def _parse(argv: Sequence[str], known: set[str]) -> list[str]:
    try:
        _check_config_flags(argv[1:], known)
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        sys.exit(_complain(UserError(str(error))))
    except UserError as error:
        sys.exit(_complain(error))


def _check_config_flags(args: Sequence[str], known: set[str]) -> None:
    """Names a config file that cannot be used or an unknown key before ml_collections meets it."""
    for arg, after in itertools.zip_longest(args, args[1:], fillvalue=""):
        if not arg.startswith("-"):
            continue
        name, equals, value = arg.lstrip("-").partition("=")
        if name == "config":
            _check_config_file(value if equals else after)
        key = name.removeprefix("no") if name.startswith("noconfig.") else name
        if key.startswith("config.") and key.removeprefix("config.") not in known:
            close = difflib.get_close_matches(key.removeprefix("config."), sorted(known), n=1)
            hint = f"did you mean config.{close[0]}? Allowed are" if close else "allowed are"
            raise UserError(f"{key} is not a config key; {hint}: {', '.join(sorted(known))}")


def _check_config_file(value: str) -> None:
    name, colon, argument = value.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise UserError(f"the config file {str(path)!r} does not exist")
    try:
        functions = {
            node.name: node.args
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
    except (SyntaxError, ValueError) as error:
        raise UserError(f"the config file {path} is not Python: {error}") from None
    if "get_config" not in functions:
        raise UserError(f"the config file {path} has no function get_config")
    takes = functions["get_config"]
    if colon and not (takes.posonlyargs or takes.args or takes.vararg):
        raise UserError(f"the config file {path} takes no argument, but is given {argument!r}")
