"""TensorBoard files, written by whoever calls.

tensorboardX' own `SummaryWriter` leaves the writing to a thread. When that ends for want of disk space, it
says so in pages, and the next event is waited with for ever.
"""

import contextlib
import pathlib
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from lossattn_jax import files


class TensorBoard:
    """A file of TensorBoard's events.

    What cannot be written is an OSError of the call that finds it.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        """Starts a new file.

        Args:
          folder: made where absent.
          first_step: of the updates to come; TensorBoard forgets what earlier files say from there on.
        """
        with _no_torch():
            from tensorboardX import event_file_writer, summary, utils
            from tensorboardX.proto import event_pb2

        self._summary, self._utils, self._events = summary, utils, event_pb2
        files.make_folder(folder)
        # tensorboardX's name has only seconds and the host; the rest makes it unique.
        suffix = f".{secrets.token_hex(8)}"
        self._writer = event_file_writer.EventsWriter(str(folder / "events"), suffix)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=first_step, session_log=start)
        self._writer.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers by their tags.

        They are in the file then: a checkpoint that comes after them may be gone on from, and what was lost
        before it would never be told again.
        """
        for tag, value in values.items():
            self._write(step=step, summary=self._summary.scalar(tag, value))
        self._writer.flush()

    def figure(self, tag: str, step: int, figure: Any) -> None:
        """Records a matplotlib figure, and closes it."""
        image = self._utils.figure_to_image(figure)
        self._write(step=step, summary=self._summary.image(tag, image))
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def _write(self, **content: Any) -> None:
        self._writer.write_event(self._events.Event(wall_time=time.time(), **content))


@contextlib.contextmanager
def _no_torch() -> Iterator[None]:
    """Nothing can import PyTorch meanwhile, if it is not imported already.

    tensorboardX imports it where there is one, for a type in its signatures: a second or more of every start.
    """
    modules: dict[str, Any] = sys.modules
    if "torch" in modules:
        yield
        return
    modules["torch"] = None  # Python's own way of saying that there is no such module
    try:
        yield
    finally:
        del modules["torch"]
