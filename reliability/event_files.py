"""TensorBoard's files of events, as TensorBoard shows them."""

import pathlib
import struct
from collections.abc import Iterator
from typing import Any

_HEAD = struct.Struct("<QI")  # before an event: its bytes, and their checksum
_FOOT = 4  # bytes of its own checksum, behind it


def points(folder: pathlib.Path) -> dict[str, list[tuple[int, int]]]:
    """The points of each tag that TensorBoard shows of a folder.

    It reads one file after the other by their names, and where one begins, it forgets what came before of the
    steps from there on.

    Returns:
      By tag, step and bytes of each point.
    """
    by_tag: dict[str, list[tuple[int, int]]] = {}
    for path in sorted(folder.iterdir()):
        for event in _events(path):
            if event.HasField("session_log"):
                if event.session_log.status == event.session_log.START:
                    for tag, earlier in by_tag.items():
                        by_tag[tag] = [point for point in earlier if point[0] < event.step]
            for value in event.summary.value:
                by_tag.setdefault(value.tag, []).append((event.step, event.ByteSize()))
    return by_tag


def _events(path: pathlib.Path) -> Iterator[Any]:
    """The events of a file, up to one that was cut."""
    from tensorboardX.proto import event_pb2

    content = path.read_bytes()
    place = 0
    while place + _HEAD.size <= len(content):
        size, _ = _HEAD.unpack_from(content, place)
        start = place + _HEAD.size
        place = start + size + _FOOT
        if place > len(content):
            return
        yield event_pb2.Event.FromString(content[start : start + size])
