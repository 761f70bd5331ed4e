"""Start and end of a command: flags, log, errors, exit code."""

import difflib
import functools
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from lossattn_jax import devices
from lossattn_jax.commands import help_text, shortages, table
from lossattn_jax.config import config_file, former_keys, images
from lossattn_jax.config.schema import Schema
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.kernels import cpu

EXIT_USER_ERROR = 2
EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130

CONFIG_HELP = "the config: a file, or the name of one in configs/; NAME:ARGUMENT where it takes one"

_LONGEST = 4000  # characters of a sentence

_PLACE = ("coordinator", "num_processes", "process_id")


class _Formatter(logging.Formatter):
    """Formats log lines without control characters; warnings begin with that word."""

    def format(self, record: logging.LogRecord) -> str:
        warns = record.levelno >= logging.WARNING
        says_so = record.getMessage().lower().startswith("warning")
        record.kind = "warning: " if warns and not says_so else ""
        return _printable(super().format(record))


class _Stdout:
    """Writes to a stdout that may close or fill up.

    Its reader may go away, as `head` does, or its disk become full.

    What is left for that reader is dropped, and the rest of the work is done. A full disk is an error, once.
    """

    def __init__(self, stdout: Any):
        self._stdout = stdout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stdout.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stdout.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stdout.fileno())
            if not isinstance(error, BrokenPipeError):
                raise


def run(
    main: Callable[..., None],
    schema: Schema = images.SCHEMA,
    processes: bool = False,
    *,
    operands: bool = False,
) -> None:
    """Parses the flags, sets the log up, calls `main` and exits.

    Args:
      main: the command; called with nothing, or with the list of operands.
      schema: of the flag --config.
      processes: whether several processes may share the command; they get flags to find each other, and
        only the first one logs more than warnings.
      operands: whether it takes words that are no flags, before, between or behind these.

    With --help it prints what `lossattn COMMAND --help` does, where the command is in the table.

    The exit code is 0, or 2 for a mistake in flags, config, paths or data, or where the system lacks
    something (one sentence on stderr, no traceback), or 3 where a part of the work was left out for such a
    mistake and the rest is done, or 130 after Ctrl-C, or 1 with a traceback for a bug.
    """
    sys.argv[1:] = _named_as_today(sys.argv[1:], schema)
    if processes:
        _define_process_flags()
    stdout = sys.stdout
    if stdout is not None:  # as it is where the command was started without one
        sys.stdout = cast(Any, _Stdout(stdout))
    try:
        app.run(
            lambda argv: sys.exit(_call(main, argv, processes, operands)),
            flags_parser=functools.partial(_parse, keys=schema.keys(), main=main),
        )
    finally:
        if stdout is not None:
            sys.stdout.flush()
        sys.stdout = stdout


def define_config(path: str, schema: Schema) -> flags.FlagHolder:
    """Defines the flag --config of a command that needs none.

    Args:
      path: the file that is the config where the flag is not given.
      schema: of that config.
    """
    sys.argv[1:] = _named_as_today(sys.argv[1:], schema)
    try:
        # With a default, ml_collections reads the overrides here and not with the other flags.
        _check_config_flags(sys.argv[1:], schema.keys())
    except UserError as error:
        sys.exit(_complain(error))
    flag = config_flags.DEFINE_config_file("config", path, CONFIG_HELP, lock_config=True)
    show_in_help("config")
    return flag


def _named_as_today(args: Sequence[str], schema: Schema) -> list[str]:
    """Puts configs' paths and keys' names of today into a command line."""
    return former_keys.in_args(config_file.with_paths(args), schema.former_names)


def define_trust_code() -> None:
    """Defines the flag --trust_code, of commands that open what is stored."""
    flags.DEFINE_bool(
        "trust_code", False, "import code that the run names by reference, package.module:attribute"
    )
    show_in_help("trust_code")


def define_text_or_empty(name: str, meaning: str) -> None:
    """Defines a flag for a text that may be empty; others need a value."""
    flags.DEFINE(_TextOrEmpty(), name, None, meaning)  # type: ignore[no-untyped-call]


class _TextOrEmpty(flags.ArgumentParser[str]):
    """Takes any text."""

    syntactic_help = "a text, or nothing"

    def flag_type(self) -> str:
        """Returns the type of the flag."""
        return help_text.TEXT_OR_EMPTY


def _call(
    main: Callable[..., None], argv: Sequence[str], processes: bool, operands: bool = False
) -> int:
    _log_to_stderr()
    cpu.tune()
    devices.keep_programs()
    process = None
    try:
        if len(argv) > 1 and not operands:
            raise UserError(f"the argument {argv[1]!r} is not a flag; see --help")
        process = _join() if processes else None
        main(*([list(argv[1:])] if operands else []))
        if sys.stdout is not None:  # as it is where the command was started without one
            sys.stdout.flush()
    except UserError as error:
        code = _complain(error, process)
        if code != EXIT_INCOMPLETE:
            return code
    except Exception as error:
        shortage = shortages.describe(error)
        if shortage is None:
            raise
        return _complain(UserError(shortage), process)
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    else:
        code = 0
    if process is not None:
        # At its end JAX waits only so long for the others, one of which may still write.
        devices.barrier("the command is done")
    return code


def one_line(text: str) -> str:
    """Makes a sentence printable: one line, no control characters.

    Whatever of a file it quotes.

    Of one that is longer than `_LONGEST` characters, the middle is left out.
    """
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return _printable(text)


def _printable(text: str) -> str:
    """Makes a text printable; its lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _complain(error: UserError, process: int | None = None) -> int:
    who = f" (process {process})" if process else ""
    print(f"error{who}: {one_line(str(error)).rstrip('.')}.", file=sys.stderr)
    return EXIT_INCOMPLETE if isinstance(error, Incomplete) else EXIT_USER_ERROR


def _define_process_flags() -> None:
    """Defines the flags by which a command's processes find each other."""
    before = set(flags.FLAGS)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where all processes meet")
    flags.DEFINE_integer("num_processes", None, "how many processes there are", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "which of them this is, from 0", lower_bound=0)
    flags.DEFINE_bool(
        "distributed", False, "find the processes of a SLURM step, TPU pod or Open MPI job"
    )
    flags.DEFINE_integer("join_timeout", 300, "seconds until all have to be there", lower_bound=1)
    for name in set(flags.FLAGS) - before:
        show_in_help(name)


def show_in_help(name: str) -> None:
    """Counts a flag that is defined here among the command's own."""
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def _join() -> int | None:
    """Joins the other processes; returns the process' number, or None."""
    values = flags.FLAGS
    place = place_of({name: values[name].value for name in _PLACE})
    if values.distributed and place is not None:
        raise UserError("--distributed finds the processes by itself: leave --coordinator out")
    if not values.distributed and place is None:
        return None
    _keep_stdout()
    try:
        devices.join_processes(place, values.join_timeout)
    except UserError as error:
        code = _complain(error, place.process_id if place else None)
        sys.stderr.flush()
        os._exit(code)  # a thread still waits for the others, and would end in pages of complaint
    process = jax.process_index()
    if process:
        _log_to_stderr(logging.WARNING, f"process {process}: ")
    return process


def _keep_stdout() -> None:
    """Keeps libraries' messages out of stdout.

    gloo prints there whom it has met.
    """
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = cast(Any, _Stdout(os.fdopen(ours, "w")))


def place_of(place_flags: dict[str, Any]) -> devices.Place | None:
    """Returns the place that the flags of `_PLACE` name, or None."""
    missing = [f"--{name}" for name, value in place_flags.items() if value is None]
    if len(missing) == len(place_flags):
        return None
    if missing:
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together, but "
            f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} missing"
        )
    place = devices.Place(**place_flags)
    host, _, port = place.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator is {place.coordinator!r}, but must be HOST:PORT, with a port from 1 to 65535"
        )
    if place.process_id >= place.num_processes:
        raise UserError(
            f"--process_id is {place.process_id}, but must be below --num_processes, {place.num_processes}"
        )
    return place


def _log_to_stderr(level: int = logging.INFO, prefix: str = "") -> None:
    """Logs our own lines from `level` on to stderr.

    Without those of the libraries below us.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(f"%(asctime)s {prefix}%(kind)s%(message)s", "%H:%M:%S"))
    log = logging.getLogger("lossattn_jax")
    log.setLevel(level)
    log.handlers = [handler]
    log.propagate = False
    # Through absl, Orbax and TFDS tell every step they take, and warn of what was asked for.
    # What they complain of is raised as well.
    absl_logging.set_verbosity(absl_logging.FATAL)


def _parse(argv: Sequence[str], keys: set[str], main: Callable[..., None]) -> list[str]:
    own = table.of_file(main.__code__.co_filename)
    if own is not None and help_text.is_asked(argv[1:]):
        own_flags = flags.FLAGS.get_key_flags_for_module(argv[0])
        print(help_text.of_command(own, own_flags), end="")
        sys.exit(0)
    try:
        _refuse_empty_flags(argv[1:])
        _check_config_flags(argv[1:], keys)
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        sys.exit(_complain(UserError(_name_missing_flag(argv[1:], str(error)))))
    except UserError as error:
        sys.exit(_complain(error))


def _name_missing_flag(args: Sequence[str], sentence: str) -> str:
    """Names missing flags, and the one that a lone word lacks.

    Args:
      args: of the command line.
      sentence: absl's.
    """
    missing = re.findall(rf"Flag --(\w+) {help_text.MISSING}", sentence)
    if not missing:
        return sentence
    word = next(_find_words(args), None)
    if word is None:
        names = " and ".join(f"--{name}" for name in sorted(missing))
        return f"{names} {'are' if missing[1:] else 'is'} missing; see the examples of --help"
    if word == "help":
        return "the argument 'help' is not a flag: say --help"
    is_config = "config" in missing and word.partition(":")[0] in config_file.names()
    name = "config" if is_config else missing[0]
    return f"the argument {word!r} is not a flag: say --{name}={word}"


def _refuse_empty_flags(args: Sequence[str]) -> None:
    """Refuses a text flag without a value; `_check_config_flags` looks at --config."""
    for arg, after in itertools.zip_longest(args, args[1:]):
        if arg == "--":
            return
        name, equals, value = arg.lstrip("-").partition("=")
        if not arg.startswith("-") or name not in flags.FLAGS or name.startswith("config."):
            continue  # the config's check covers empty keys
        if flags.FLAGS[name].flag_type() == "string" and not (value if equals else after):
            raise _empty(name)


def _empty(name: str) -> UserError:
    return UserError(f"--{name} is empty, but must have a value; see the examples of --help")


def _find_words(args: Sequence[str]) -> Iterator[str]:
    """The arguments that are neither flags nor their values."""
    value = False
    for place, arg in enumerate(args):
        if arg == "--":
            yield from args[place + 1 :]
            return
        if arg.startswith("-") and not value:
            name, equals, _ = arg.lstrip("-").partition("=")
            value = not equals and name in flags.FLAGS and not flags.FLAGS[name].boolean
        elif value:
            value = False
        else:
            yield arg


def _check_config_flags(args: Sequence[str], keys: set[str]) -> None:
    """Refuses unusable config files and unknown keys.

    Before ml_collections meets them.
    """
    for arg, after in itertools.zip_longest(args, args[1:], fillvalue=""):
        if not arg.startswith("-"):
            continue
        name, equals, value = arg.lstrip("-").partition("=")
        if name == "config":
            path = value if equals else after
            if not path:
                raise _empty(name)
            config_file.check(path)
        key = name.removeprefix("no") if name.startswith("noconfig.") else name
        if key.startswith("config.") and key.removeprefix("config.") not in keys:
            close = difflib.get_close_matches(key.removeprefix("config."), sorted(keys), n=1)
            hint = f"did you mean config.{close[0]}? Allowed are" if close else "allowed are"
            raise UserError(f"{key} is not a config key; {hint}: {', '.join(sorted(keys))}")
