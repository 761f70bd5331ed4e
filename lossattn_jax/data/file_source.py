"""Splits of users' image files; see `image_files` for their layouts."""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lossattn_jax import files as files_lib
from lossattn_jax.data import file_survey, image_files, own_images
from lossattn_jax.data.boxes import NO_BOX
from lossattn_jax.data.file_survey import FileFacts
from lossattn_jax.data.image_files import FileList
from lossattn_jax.data.specs import DatasetSpec
from lossattn_jax.data.split_source import SplitDigests, SplitSource
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests

log = logging.getLogger(__name__)

_BESIDE = ".lossattn"  # hidden, so that it is no class


@dataclasses.dataclass(frozen=True)
class FileSource(SplitSource):
    """Random access to image files; see `SplitSource`.

    Attributes:
      spec: the data set.
      split: 'train' or 'test'.
      files: those that can be read.
      sha256: of the bytes of each.
      cache: folder for caches.
    """

    spec: DatasetSpec
    split: str
    files: FileList
    sha256: tuple[str, ...]
    cache: pathlib.Path

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self._read(int(index)) for index in indices]

    def labels(self) -> np.ndarray:
        """See `SplitSource.labels`."""
        return self._encoded.copy()

    @functools.cached_property
    def _encoded(self) -> np.ndarray:
        """Labels of all files, which reading an example must not encode anew."""
        return self.files.encode(self.spec.class_names, self.spec.multi_label)

    @property
    def folder(self) -> str:
        """Returns the folder that caches are written to."""
        return str(self.cache)

    @property
    def name(self) -> str:
        """Names the split for files, with the settings that it follows from."""
        spec = self.spec
        settings = digests.of_json([spec.table, spec.test_share, spec.split_seed])
        return f"{super().name}_{settings[:8]}"

    def digests(self) -> SplitDigests:
        """Digests the files' bytes and classes; and how they are stored, with boxes."""
        pictures = {
            "sha256": self.sha256,
            "labels": digests.of_array(self.labels()),
            "class_names": self.spec.class_names,
        }
        stored = {
            "boxes": self.files.boxes,
            "stored": [self.spec.view.stored_shape, self.spec.image_shape, self.spec.fit],
        }
        return SplitDigests(digests.of_json(pictures | stored), digests.of_json(pictures))

    def _read(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"places have to be 0 ... {len(self) - 1}")
        path = self.files.root / self.files.names[index]
        example = {
            "image": own_images.read_stored(path, self.spec.view),
            "label": self._encoded[index],
        }
        if self.files.boxes is not None:
            corners = self.files.boxes[index]
            box = NO_BOX
            if corners is not None:
                box = self.spec.view.place_box(corners, own_images.read_size(path))
            example["box"] = np.array(box, np.float32)
        return example


def open_files(spec: DatasetSpec, split: str, data_dir: str | None = None) -> FileSource:
    """Opens a split of a user's image files.

    Files that cannot be read are left out, which is said.

    Args:
      spec: the data set.
      split: 'train' or 'test'.
      data_dir: the folder of the images.

    Raises:
      UserError: there is no such folder, it has other classes than the data set, or several labels of an
        image where that has one, or no file can be read.
    """
    spec.split(split)
    root = folder_of(data_dir)
    every = image_files.find(root, spec.table)
    if every.has_several and not spec.multi_label:
        raise UserError(
            f"{root} has images with several labels, but the data set's have one each; write one into each "
            "cell of its table"
        )
    unknown = sorted({*every.class_names()} - {*spec.class_names})
    if unknown:
        raise UserError(
            f"{root} has images of the class {unknown[0]!r}, but the data set has {len(spec.class_names)} "
            f"classes without it: {', '.join(spec.class_names[:10])}"
            f"{', ...' if len(spec.class_names) > 10 else ''}; give the folder with the same classes"
        )
    files = image_files.divide(every, spec.test_share, spec.split_seed).of_split(split)
    cache = cache_folder(root)
    facts = file_survey.survey(root, files.names, spec.view, cache)
    if refusals := [one.refusal for one in facts if one.refusal]:
        log.warning("warning: %s", describe_refusals(root, split, refusals, len(facts)))
    return of_files(spec, split, files, facts, cache)


def of_files(
    spec: DatasetSpec,
    split: str,
    files: FileList,
    facts: Sequence[FileFacts],
    cache: pathlib.Path,
) -> FileSource:
    """Makes a split of surveyed files; leaves out those that cannot be read.

    Raises:
      UserError: none can be read.
    """
    good = [place for place, one in enumerate(facts) if not one.refusal]
    refusals = [one.refusal for one in facts if one.refusal]
    if not good:
        reason = f": {refusals[0]}" if refusals else ""
        raise UserError(
            f"{files.root} has no image of the split {split!r} that can be read{reason}"
        )
    return FileSource(
        spec, split, files.take(good), tuple(facts[place].sha256 for place in good), cache
    )


def describe_refusals(root: pathlib.Path, split: str, refusals: Sequence[str], count: int) -> str:
    """Describes in a clause the files of a split that are left out."""
    return (
        f"{len(refusals)} of {count} {split} images in {root} cannot be read and are left out, the first: "
        f"{refusals[0]}"
    )


def folder_of(data_dir: str | None) -> pathlib.Path:
    """Returns the folder of image files.

    Raises:
      UserError: none is named, or an address of the network.
    """
    if not data_dir:
        raise UserError(
            "config.data.dir is '', but must be the folder of the images for the data set folder"
        )
    files_lib.refuse_url(data_dir, "the folder of images")
    return pathlib.Path(os.path.abspath(os.path.expanduser(data_dir)))


def cache_folder(root: pathlib.Path) -> pathlib.Path:
    """Returns the folder for caches of a folder of images, made where it can be.

    It is in that folder, or where that cannot be written, in the user's cache folder.
    """
    beside = root / _BESIDE
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    elsewhere = home / "lossattn_jax" / f"{root.name}-{digests.of_json(str(root))[:16]}"
    for folder in (beside, elsewhere):
        try:
            files_lib.make_folder(folder)
            files_lib.check_writable(folder)
        except OSError as error:
            log.debug("%s cannot be written: %s", folder, error)
            continue
        return folder
    return beside
