"""Texts of `--help`: examples first, then flags.

`lossattn COMMAND --help` has to answer at once, and flags are known only once a command's modules, with JAX,
are imported. So the texts lie in `help/`, as `python -m lossattn_jax.MODULE --help` prints them, which makes
them of the flags themselves. `python -m lossattn_jax.commands` writes them anew, and a test compares them.
"""

import pathlib
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from lossattn_jax.commands import table

FOLDER = pathlib.Path(__file__).parent / "help"
_WIDTH = 100
_INDENT = "      "
WORDS = ("--help", "-help", "-h", "-?")  # that ask for help
MISSING = "must have a value other than None"  # what absl says of a needed flag
# Type of a flag for a text that may be empty; those of type "string" need a value.
TEXT_OR_EMPTY = "string or empty"
# What a flag's value is called, by the name that absl or ml_collections has for its kind.
_VALUES = {
    "int": "NUMBER",
    "float": "NUMBER",
    "string": "TEXT",
    TEXT_OR_EMPTY: "TEXT",
    "comma separated list of strings": "A,B,...",
    "config object": "CONFIG",
}


def is_asked(args: Sequence[str]) -> bool:
    """Whether a command line asks for help."""
    own = args[: args.index("--")] if "--" in args else args
    return any(arg in WORDS for arg in own)


def contents() -> str:
    """Returns the table of contents that `lossattn` alone prints."""
    wide = max(len(command.words) for command in table.COMMANDS)
    lines = [f"  lossattn {command.words:{wide}}  {command.summary}" for command in table.COMMANDS]
    return "\n".join(
        [
            "Loss-based attention for images and bags.",
            "",
            *lines,
            "",
            "lossattn COMMAND --help shows examples and flags of a command, lossattn --version the versions.",
            "",
        ]
    )


def read_text(command: table.Command) -> str:
    """Reads the text of a command, made of its flags.

    Raises:
      FileNotFoundError: it was not made.
    """
    return path_of(command).read_text(encoding="utf-8")


def path_of(command: table.Command) -> pathlib.Path:
    """Returns the path of a command's text."""
    return FOLDER / f"{command.words.replace(' ', '_')}.txt"


def of_command(command: table.Command, flags: Iterable[Any]) -> str:
    """Makes the text of a command.

    Args:
      command: the command.
      flags: its own, as absl has them.
    """
    lines = [f"lossattn {command.words}: {command.summary}.", "", "Examples:"]
    lines += [f"  lossattn {command.words} {example}" for example in command.examples]
    if command.operands:
        words, meaning = command.operands
        lines += ["", "Operands:", f"  {words}", f"{_INDENT}{meaning} (needed)"]
    lines += ["", "Flags:"]
    for flag in sorted(flags, key=lambda flag: (not _is_needed(flag), flag.name)):
        lines += _of_flag(flag)
    lines += ["", f"The same: python -m {command.module}"]
    return "\n".join(lines) + "\n"


def _of_flag(flag: Any) -> list[str]:
    kind = flag.flag_type()
    choices = getattr(flag.parser, "enum_values", None)
    if flag.boolean:
        syntax = f"  --[no]{flag.name}"
    else:
        syntax = f"  --{flag.name}={'|'.join(choices) if choices else _VALUES.get(kind, 'VALUE')}"
    # absl puts the choices of an enum before its help.
    help_ = flag.help.partition(">: ")[2] if choices else flag.help
    text = f"{help_.strip().rstrip('.')}{_note(flag, kind)}"
    lines = textwrap.wrap(
        " ".join(text.split()), _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT
    )
    if kind == "config object":
        lines += [f"{_INDENT}--{flag.name}.KEY=VALUE overrides any of its keys"]
    return [syntax, *lines]


def _note(flag: Any, kind: str) -> str:
    """Notes that a flag is needed, or its default."""
    if _is_needed(flag):
        return " (needed)"
    if kind == "config object":
        return ""  # its default is a file, wherever the package lies
    default = flag.default
    if default is None or default == [] or flag.boolean and not default:
        return ""
    if isinstance(default, list):
        default = ",".join(map(str, default))
    return f" (default: {default})"


def _is_needed(flag: Any) -> bool:
    return any(MISSING in check.message for check in flag.validators)
