"""Ten ways to damage a file, for `campaign`."""

import functools
import json
import math
import pathlib
import random
import re
import struct
from collections.abc import Callable
from typing import Any

# Of names that differ from run to run or count something: files of one kind are called alike.
_PARTS_OF_NAMES = ((re.compile("[0-9a-f]{32}"), "*"), (re.compile(r"\d+"), "#"))
_TEXT = (".json", ".jsonl", ".csv", ".md", ".html", ".txt")
_NUMBER = re.compile(rb"(?<![\w.+-])-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])")


def kind_of(file: pathlib.Path, world: pathlib.Path) -> str:
    """Names a file's kind: its path without numbers and random parts."""
    name = file.relative_to(world).as_posix()
    for pattern, sign in _PARTS_OF_NAMES:
        name = pattern.sub(sign, name)
    return name


def flip_bit(content: bytes, place: float) -> bytes:
    """Flips one bit of a content, which is not empty.

    Args:
      content: of a file.
      place: of the bit: 0 for the first, 1 for the last.
    """
    byte, bit = divmod(round(place * (8 * len(content) - 1)), 8)
    return content[:byte] + bytes([content[byte] ^ 1 << bit]) + content[byte + 1 :]


# Each makes another content of a file's, at a place between 0 (its beginning) and 1 where there is a choice.
CHANGES: dict[str, Callable[[bytes, float], bytes]] = {
    "cut": lambda content, place: content[: int(place * len(content))],
    "empty": lambda content, place: b"",
    "zeros": lambda content, place: bytes(len(content)),
    "bit": flip_bit,
    "doubled": lambda content, place: content * 2,
}


def _change(name: str, file: pathlib.Path, world: pathlib.Path, draw: random.Random) -> bool:
    content = file.read_bytes()
    new_content = CHANGES[name](content, draw.random()) if content else content
    file.write_bytes(new_content)
    return new_content != content


def _random_bytes(file: pathlib.Path, world: pathlib.Path, draw: random.Random) -> bool:
    file.write_bytes(draw.randbytes(max(16, file.stat().st_size)))
    return True


def _swap(file: pathlib.Path, world: pathlib.Path, draw: random.Random) -> bool:
    """Exchanges a file for one of its kind, else of its ending."""
    content = file.read_bytes()
    others = [
        other
        for other in sorted(world.rglob(f"*{file.suffix}"))
        if other.is_file() and not other.is_symlink() and other.suffix == file.suffix
        if other.read_bytes() != content and other.stat().st_size
    ]
    kind = kind_of(file, world)
    top = pathlib.PurePath(kind).parts[0]
    alike = [other for other in others if kind_of(other, world) == kind]
    # The same file of another run.
    alike += [
        other
        for other in others
        if kind_of(other, world).partition("/")[2] == kind.partition("/")[2]
        and other.relative_to(world).parts[0] != top
    ]
    if not (alike or others):
        return False
    other = draw.choice(alike or others)
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return True


def _remove(file: pathlib.Path, world: pathlib.Path, draw: random.Random) -> bool:
    file.unlink()
    return True


def _edit(file: pathlib.Path, world: pathlib.Path, draw: random.Random) -> bool:
    """Replaces one number by another that could be there as well."""
    content = file.read_bytes()
    if file.suffix in _TEXT:
        edit = _edit_text(content, draw)
    else:
        edit = _edit_float(content, draw)
    if edit is None or edit == content:
        return False
    file.write_bytes(edit)
    return True


def _edit_text(content: bytes, draw: random.Random) -> bytes | None:
    places = list(_NUMBER.finditer(content))
    if not places:
        return None
    place = draw.choice(places)
    value = json.loads(place[0].lstrip(b"0") or b"0") if place[0].isdigit() else float(place[0])
    new = json.dumps(_other_number(value, draw)).encode()
    return content[: place.start()] + new + content[place.end() :]


def _other_number(value: Any, draw: random.Random) -> Any:
    if isinstance(value, int):
        return value + 1 if value < 1 or draw.random() < 0.5 else value - 1
    if 0 <= value <= 1:
        return 1 - value if value != 0.5 else 0.75
    return value * 1.25


def _edit_float(content: bytes, draw: random.Random) -> bytes | None:
    """Replaces an aligned float32 of a binary file by another.

    One that looks like a number, else any.
    """
    count = len(content) // 4
    if not count:
        return None
    values = struct.unpack(f"<{count}f", content[: 4 * count])
    likely = [place for place, value in enumerate(values) if 1e-4 < abs(value) < 1e4]
    place = draw.choice(likely or range(count))
    value = values[place] if math.isfinite(values[place]) else 1.0
    new = struct.pack("<f", value * 0.5 if value else 1.0)
    return content[: 4 * place] + new + content[4 * place + 4 :]


def _put_folder(file: pathlib.Path, world: pathlib.Path, draw: random.Random) -> bool:
    file.unlink()
    file.mkdir()
    return True


# Each damages a file of a world and returns whether this could be done; what is random it draws.
WAYS: dict[str, Callable[[pathlib.Path, pathlib.Path, random.Random], bool]] = {
    **{name: functools.partial(_change, name) for name in CHANGES},
    "random": _random_bytes,
    "swapped": _swap,
    "removed": _remove,
    "edited": _edit,
    "folder": _put_folder,
}
