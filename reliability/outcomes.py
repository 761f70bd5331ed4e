"""Outcomes of trials: a command's results are read, compared and judged."""

import hashlib
import json
import pathlib
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reliability import small_training
from reliability.processes import End

# Outcomes. The first two are right; "silently wrong" must never happen.
RIGHT, REFUSAL, WARNING = "right", "refused", "other result, with a warning"
WRONG = "silently wrong"
TRACEBACK, HANG, CRASH, DEAD_END = "traceback", "hang", "crash", "refused where it should go on"
UNCLEAR = "exit code without a sentence"
FAILURE = "the campaign itself failed"
GOOD = (RIGHT, REFUSAL, WARNING)

# Of JSON: dates, times, and what a file was made from, which is not the result.
_PASSING = {
    *("made_from", "digest", "seconds", "time", "date", "command", "workdir"),
    *("ms_per_image", "forward_passes", "times_attention"),
    *("images_per_second", "input_wait", "seconds_left", "epochs_per_second"),
}
_TIME = re.compile(r"(?<![\w.])[\d.,]+ ?(?:ms|s|min|h)\b")
_TIMED_ROWS = re.compile(r"^\| (?:ms_per_image|forward_passes|times_attention).*\n", re.MULTILINE)
_ONE_AT_A_TIME = threading.Lock()  # for Orbax


class Unreadable(Exception):
    """A result cannot be read; the text says why."""


def read_results(
    world: pathlib.Path,
    patterns: Sequence[str],
    workdirs: Sequence[str] = (),
    stores: Sequence[str] = (),
) -> dict[str, Any]:
    """The results of a command, without times and dates.

    Args:
      world: the folder that it ran in.
      patterns: of the files with its results, in the folder.
      workdirs: of runs whose last checkpoints are results, in the folder.
      stores: of Zarr whose arrays are results, in the folder.

    Raises:
      Unreadable: one cannot be read.
    """
    results: dict[str, Any] = {}
    for pattern in patterns:
        for file in sorted(world.glob(pattern)):
            # Neither locks nor temporaries are results.
            if file.is_file() and file.suffix != ".lock" and not file.name.startswith("."):
                results[file.relative_to(world).as_posix()] = _content(file, world)
    for name in workdirs:
        try:
            with _ONE_AT_A_TIME:
                results[name] = small_training.bits(world / name)
        except Exception as error:  # Orbax fails in many ways
            raise Unreadable(f"{name} has no checkpoint that can be read: {error!r}") from None
    for name in stores:
        results |= _arrays(world / name)
    return results


def _arrays(store: pathlib.Path) -> dict[str, Any]:
    """Digests of a Zarr store's arrays, and its root's attributes."""
    import tensorstore

    def array(folder: pathlib.Path) -> str:
        kvstore = {"driver": "file", "path": f"{folder}/"}
        values = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()
        return _digest(f"{values.dtype} {values.shape} ".encode() + values.tobytes())

    try:
        folders = [path for path in sorted(store.iterdir()) if (path / "zarr.json").exists()]
        root = _lasting(json.loads((store / "zarr.json").read_bytes()))
        return {f"{store.name}/{folder.name}": array(folder) for folder in folders} | {
            store.name: root.get("attributes")
        }
    except FileNotFoundError:
        return {}
    except Exception as error:  # TensorStore fails in many ways
        raise Unreadable(f"{store.name} cannot be read: {error!r}") from None


def _content(file: pathlib.Path, world: pathlib.Path) -> Any:
    try:
        if file.suffix == ".json":
            return _lasting(json.loads(file.read_bytes()))
        if file.suffix == ".jsonl":
            return [_lasting(json.loads(line)) for line in file.read_bytes().splitlines()]
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return {name: _digest(arrays[name].tobytes()) for name in arrays.files}
        if file.suffix in (".md", ".html", ".csv"):
            return strip_times(file.read_text(), world)
        return _digest(file.read_bytes())
    except Exception as error:  # NumPy and zipfile fail in many ways
        raise Unreadable(f"{file.name} cannot be read: {error!r}") from None


def strip_times(text: str, world: pathlib.Path) -> str:
    """What a command printed, without times and where it ran."""
    text = _TIMED_ROWS.sub("", text.replace(str(world), "WORLD"))
    return _TIME.sub("TIME", text)


def _lasting(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lasting(item) for key, item in value.items() if key not in _PASSING}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def differences(results: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """The names of results that are others, missing or too many."""
    names = {*results, *reference}
    absent = object()
    return sorted(n for n in names if results.get(n, absent) != reference.get(n, absent))


def judge(
    end: End, results: Mapping[str, Any] | None, reference: Mapping[str, Any], code: int = 0
) -> str:
    """The outcome of a command that may refuse, or be right.

    Args:
      end: how it ended.
      results: that it left; None where they cannot be read.
      reference: what they should be.
      code: of the undisturbed command, 0 or 3.
    """
    if end.returncode is None:
        return HANG
    if "Traceback" in end.stderr:
        return TRACEBACK
    if end.returncode == code:
        if results is not None and not differences(results, reference):
            return RIGHT
        return WARNING if results is not None and end.warns() else WRONG
    if end.returncode in (2, 3):
        return REFUSAL if len(end.errors()) == 1 else UNCLEAR
    return CRASH


def judge_rerun(
    end: End, results: Mapping[str, Any] | None, reference: Mapping[str, Any], code: int = 0
) -> str:
    """The outcome of a command that has to go on; see `judge`.

    It may refuse where all of its results are there already.
    """
    outcome = judge(end, results, reference, code)
    if outcome != REFUSAL:
        return outcome
    return RIGHT if results is not None and not differences(results, reference) else DEAD_END
