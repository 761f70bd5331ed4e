"""Survey of image files: digests, damage, and sums of pixels.

Each file is read and decoded once, and what was found is remembered in a file of the cache folder, with what
the file system says of the file and with the SHA-256 of its bytes. Where the former has changed, the bytes
are read; where these have, the picture is decoded again. So copies and renamed files are known, and so is
what was put in the place of another.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.data import damage, decoding, own_images, pixel_statistics
from lossattn_jax.data.pixel_statistics import PixelSums
from lossattn_jax.data.views import View
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests, npz, sole_writer

_LOG = logging.getLogger(__name__)

_PART = 16  # files that a thread reads at a time
_CHANNELS = 3
_DIGEST = "digest"  # of the other arrays in the file


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """What is known of an image file.

    Attributes:
      status: size, dates and inode; see `_status`.
      sha256: of its bytes, in hexadecimal digits; '' where it cannot be read.
      sums: of its pixels as they are stored, by channel.
      squares: likewise.
      refusal: a sentence, where it is no image that can be read; else ''.
    """

    status: tuple[int, ...]
    sha256: str
    sums: tuple[int, ...] = (0,) * _CHANNELS
    squares: tuple[int, ...] = (0,) * _CHANNELS
    refusal: str = ""


Keep = Callable[[int, np.ndarray], None]


def survey(
    root: pathlib.Path,
    names: Sequence[str],
    view: View,
    cache: pathlib.Path,
    keep: Keep | None = None,
) -> list[FileFacts]:
    """Surveys image files.

    Args:
      root: the folder of the data set.
      names: of the files, in it.
      view: that they are stored in.
      cache: folder that the survey is remembered in, where it can be written.
      keep: takes the place and the stored picture of each file that had to be decoded; called in threads.

    Returns:
      Facts of each file.
    """
    side = "x".join(map(str, view.stored_shape))
    memory = cache / f"survey_{view.fit}_{side}.npz"
    by_name = _read_memory(memory)
    by_content = {facts.sha256: (name, facts) for name, facts in by_name.items()}

    def look(places: range) -> list[FileFacts]:
        return [_look(place) for place in places]

    def _look(place: int) -> FileFacts:
        name = names[place]
        path = root / name
        try:
            status = _status(path)
            before = by_name.get(name)
            if before is not None and before.status == status:
                return before
            with files.open_regular(path) as file:
                sha256 = hashlib.sha256(file.read()).hexdigest()
        except OSError as error:
            damage.refuse_lack(error, str(path))
            return FileFacts((), "", refusal=f"{name} cannot be read: {error.strerror}")
        if sha256 in by_content:
            twin, known = by_content[sha256]
            refusal = known.refusal.replace(twin, name)
            return dataclasses.replace(known, status=status, refusal=refusal)
        try:
            picture = own_images.read_stored(path, view)
        except UserError as error:
            return FileFacts(status, sha256, refusal=str(error).replace(str(path), name))
        sums = pixel_statistics.of_images(picture)
        if keep is not None:
            keep(place, picture)
        return FileFacts(status, sha256, sums.sums, sums.squares)

    facts: list[FileFacts] = []
    for _, part in decoding.map_parts(look, len(names), _PART, f"files in {root}"):
        facts += part
    now = dict(zip(names, facts, strict=True))
    if now != {name: by_name.get(name) for name in names}:
        _remember(memory, {**by_name, **now})
    return facts


def add_sums(facts: Sequence[FileFacts], view: View) -> PixelSums:
    """Adds the pixels of files that can be read."""
    height, width, _ = view.stored_shape
    return pixel_statistics.add(
        PixelSums(height * width, one.sums, one.squares) for one in facts if not one.refusal
    )


def _status(path: pathlib.Path) -> tuple[int, ...]:
    """Describes a file by size, dates and inode, which an edit changes."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _read_memory(memory: pathlib.Path) -> dict[str, FileFacts]:
    try:
        arrays = npz.read_arrays(memory)
        digest = str(arrays.pop(_DIGEST))
        if digest != digests.of_arrays(arrays):
            raise ValueError("it is not as it was written")
        names, shas, refusals = (
            _split_text(arrays[name]) for name in ("names", "sha256", "refusals")
        )
        return {
            name: FileFacts(tuple(status), sha256, tuple(sums), tuple(squares), refusal)
            for name, status, sha256, sums, squares, refusal in zip(
                names,
                arrays["status"].tolist(),
                shas,
                arrays["sums"].tolist(),
                arrays["squares"].tolist(),
                refusals,
                strict=True,
            )
        }
    except FileNotFoundError:
        return {}
    except Exception as error:  # NumPy and zipfile fail in many ways on a damaged file
        damage.refuse_lack(error, str(memory))
        _LOG.warning("%s is damaged (%s); the images are read again", memory, error)
        return {}


def _remember(memory: pathlib.Path, by_name: dict[str, FileFacts]) -> None:
    known = {name: facts for name, facts in by_name.items() if facts.sha256}
    if not known:
        return
    rows = list(known.values())
    arrays: dict[str, Any] = {
        "names": _join_text(known),
        "sha256": _join_text(row.sha256 for row in rows),
        "refusals": _join_text(row.refusal for row in rows),
        "status": np.array([row.status for row in rows], np.int64),
        "sums": np.array([row.sums for row in rows], np.int64),
        "squares": np.array([row.squares for row in rows], np.int64),
    }
    arrays[_DIGEST] = np.array(digests.of_arrays(arrays))
    try:
        with sole_writer.attempt(memory) as sole:
            if sole:
                with files.replacing(memory) as file:
                    np.savez(file, **arrays)
    except OSError as error:
        _LOG.debug("%s is not written: %s", memory, error)


def _join_text(texts: Any) -> np.ndarray:
    """Joins texts, none of which has a zero byte, as uint8."""
    return np.frombuffer("\0".join(texts).encode(errors="surrogateescape"), np.uint8)


def _split_text(content: np.ndarray) -> list[str]:
    return content.tobytes().decode(errors="surrogateescape").split("\0")
