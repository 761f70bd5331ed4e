"""Reports of a run: progress lines, `metrics.jsonl`, TensorBoard."""

import contextlib
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from lossattn_jax import files
from lossattn_jax.errors import UserError
from lossattn_jax.files import records
from lossattn_jax.train.images.tensorboard import TensorBoard

log = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"


def warn(sentence: str, *values: object) -> None:
    """Warns of what all processes see alike, once."""
    if jax.process_index() == 0:
        log.warning(sentence, *values)


class Reporter:
    """Writes the metrics of one run, as a context manager."""

    def __init__(self, workdir: pathlib.Path, start_step: int, active: bool = True):
        """Opens the files of a run, new or resumed.

        Lines from after `start_step`, which a killed run may have written before its checkpoint, are
        removed: their steps come again.

        Args:
          workdir: folder of the run.
          start_step: updates done before.
          active: False writes nothing: for every process but the first.

        Raises:
          UserError: a file cannot be written.
        """
        self._active = active
        if not active:
            return
        path = workdir / METRICS_NAME
        remove_broken_lines(workdir, start_step)
        with _writing(path):
            # Without a buffer, whose end would be written again, in vain, when the file is closed.
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))
            self._jsonl = os.fdopen(handle, "ab", buffering=0)
        self._path = path
        self._folder = workdir / TENSORBOARD_NAME
        with _writing(self._folder):
            self._tensorboard = TensorBoard(self._folder, start_step + 1)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._active:
            with contextlib.suppress(
                OSError
            ):  # errors that matter were raised where the file was written
                self._jsonl.close()
            with contextlib.suppress(OSError):
                self._tensorboard.close()

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Records metrics.

        Args:
          kind: "train" or "test"; the first part of the TensorBoard tag.
          step: updates done.
          values: by name. What is not finite is null in the file, and `nonfinite` counts it
            where it is none of the names.

        Raises:
          UserError: a file cannot be written.
        """
        if not self._active:
            return
        content, nonfinite = records.without_nonfinite(
            {"kind": kind, "step": step, **{name: _number(v) for name, v in values.items()}}
        )
        if nonfinite:
            content.setdefault(records.NONFINITE, nonfinite)
        line = json.dumps(content) + "\n"
        with _writing(self._path):
            rest = line.encode()
            while rest:
                rest = rest[self._jsonl.write(rest) :]
        # Of a value that is not finite tensorboardX warns each time.
        points = {f"{kind}/{name}": v for name, v in values.items() if math.isfinite(v)}
        with _writing(self._folder):
            self._tensorboard.scalars(step, points)

    def figure(self, name: str, step: int, draw: Callable[[], Any]) -> None:
        """Records a matplotlib figure in TensorBoard.

        `draw` makes it.

        Raises:
          UserError: the file cannot be written.
        """
        if self._active:
            image = draw()
            with _writing(self._folder):
                self._tensorboard.figure(name, step, image)


def remove_broken_lines(workdir: pathlib.Path, step: int) -> None:
    """Keeps the whole lines of `metrics.jsonl` up to `step`.

    An absent file becomes an empty one, and a symbolic link a file.

    Args:
      workdir: folder of the run.
      step: updates done before.

    Raises:
      UserError: the file cannot be written.
    """
    path = workdir / METRICS_NAME
    with _writing(path):
        content = b"".join(_lines_until(path, step))
        if path.is_symlink() or not path.is_file() or path.read_bytes() != content:
            files.write(path, content)


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of a finished run's `metrics.jsonl`."""
    return [json.loads(line) for line in (workdir / METRICS_NAME).read_text().splitlines()]


def read_legible_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the legible lines of a run's metrics, to be shown.

    None where there is no file; of lines that are broken a warning tells.
    """
    return [json.loads(line) for line in _lines_until(workdir / METRICS_NAME, sys.maxsize)]


def tells_of(workdir: pathlib.Path, kind: str, step: int) -> bool:
    """Whether a run's metrics have a line of kind and step."""
    path = workdir / METRICS_NAME
    lines = (json.loads(line) for line in _lines_until(path, step))
    return any(line["step"] == step and line.get("kind") == kind for line in lines)


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of writing a file into a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; when that is mended the same command goes on from "
            "the newest checkpoint"
        ) from error


class InputWait:
    """Measures how long devices waited for their next batch.

    While the host waits for a batch, the devices may still be at what they were given before. That is no
    waiting for input: a wait counts if, when it is over, the devices have nothing left to do.
    """

    def __init__(self) -> None:
        """Starts with nothing waited for."""
        self._seconds = 0.0

    def next(self, batches: Iterator[Any], results: Any) -> Any:
        """The next batch.

        Args:
          batches: where it comes from.
          results: tree of arrays, what the devices were last given to compute.
        """
        start = time.monotonic()
        batch = next(batches)
        seconds = time.monotonic() - start
        if all(array.is_ready() for array in jax.tree.leaves(results)):
            self._seconds += seconds
        return batch

    def share(self, seconds: float) -> float:
        """Returns the share of time that waited for input, 0 ... 1.

        Of the last `seconds`, in which `share` was not called.
        """
        wait, self._seconds = self._seconds, 0.0
        return min(wait / seconds, 1.0)


def progress_line(step: int, total_steps: int, values: Mapping[str, float], time_left: str) -> str:
    """Formats one line of a training log."""
    numbers = "  ".join(
        f"{name} {values[name]:.4f}" for name in ("loss", "accuracy", "patch_loss", "learning_rate")
    )
    return (
        f"step {step}/{total_steps}  epoch {values['epoch']:.2f}  {numbers}  "
        f"{values['images_per_second']:,.0f} images/s  input wait {100 * values['input_wait']:.1f} %  "
        f"{time_left} left"
    )


def _number(value: float) -> float:
    """Converts a number to JSON's, with all its digits.

    Also of NumPy's types.
    """
    return value if isinstance(value, int) else float(value)


def _lines_until(path: pathlib.Path, step: int) -> list[bytes]:
    """Reads whole lines with at most `step` updates.

    Of an earlier part of the run.

    Nothing is computed with them: what is damaged is left out, with a warning.
    """
    try:
        content = files.read(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("warning: %s cannot be read (%s): it begins anew", path, error.strerror)
        return []
    lines = []
    for line in content.splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                lines.append(line)
        # The last one for what is nested too deeply.
        except (ValueError, KeyError, TypeError, RecursionError):
            log.warning("left out of %s: a broken line", path)
    return lines
