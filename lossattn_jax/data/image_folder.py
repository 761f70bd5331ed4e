"""The data set `folder`: what a user's image files say of themselves."""

import dataclasses
import logging
import pathlib

import numpy as np

from lossattn_jax.config.options import DataOptions
from lossattn_jax.data import (
    file_source,
    file_survey,
    image_files,
    memory,
    normalisation,
)
from lossattn_jax.data.file_survey import FileFacts
from lossattn_jax.data.image_files import FileList
from lossattn_jax.data.specs import DatasetSpec, with_size
from lossattn_jax.errors import UserError

log = logging.getLogger(__name__)

ORIGIN = "folder"  # of `origins.ORIGINS`
_SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class _Survey:
    """A surveyed split.

    Attributes:
      files: all of it.
      facts: of each.
      images: `[N, H, W, 3]` uint8 as stored where all had to be decoded and are wanted; else None.
    """

    files: FileList
    facts: list[FileFacts]
    images: np.ndarray | None

    @property
    def refusals(self) -> list[str]:
        """Returns a sentence for each file that cannot be read."""
        return [one.refusal for one in self.facts if one.refusal]


def complete(template: DatasetSpec, options: DataOptions) -> DatasetSpec:
    """Finds the classes of a folder of images and the statistics of its training split.

    Each file is decoded at most once; where all fit in memory and are to be there, they are cached.

    Args:
      template: the data set without classes.
      options: of the data; see `image_files` for the folder's layout.

    Raises:
      UserError: the folder cannot be used, or a class has no image to train on that can be read.
    """
    spec = with_size(template, options.image_size)
    root = file_source.folder_of(options.dir)
    files = image_files.divide(
        image_files.find(root, options.table), options.test_share, options.split_seed
    )
    image_files.check_classes(files)
    names = files.class_names()
    spec = dataclasses.replace(
        spec,
        num_classes=len(names),
        class_names=names,
        multi_label=files.has_several,
        max_boxes=0 if files.boxes is None else 1,
        table=options.table,
        test_share=options.test_share,
        split_seed=options.split_seed,
    )
    cache = file_source.cache_folder(root)
    wanted = not spec.has_boxes and memory.keeps(options.mode, spec, len(files))
    surveys = {split: _survey(spec, files.of_split(split), cache, wanted) for split in _SPLITS}
    _refuse_lost_class(surveys["train"], names)
    _warn_of_duplicates(surveys)
    counts = {name: len(one.files) - len(one.refusals) for name, one in surveys.items()}
    mean, std = normalisation.choose(
        options.normalisation,
        None,
        lambda: file_survey.add_sums(surveys["train"].facts, spec.view).moments(),
    )
    spec = dataclasses.replace(
        spec, mean=mean, std=std, num_train=counts["train"], num_test=counts["test"]
    )
    for split, one in surveys.items():
        if one.images is not None:
            good = [place for place, fact in enumerate(one.facts) if not fact.refusal]
            images = one.images if len(good) == len(one.images) else one.images[good]
            source = file_source.of_files(spec, split, one.files, one.facts, cache)
            memory.store(source, images)
    return spec


def refusals(options: DataOptions, spec: DatasetSpec) -> list[str]:
    """Describes the files of each split that are left out, a clause for each split.

    Args:
      options: of the data.
      spec: that `complete` made of them.
    """
    root = file_source.folder_of(options.dir)
    files = image_files.divide(image_files.find(root, spec.table), spec.test_share, spec.split_seed)
    clauses = []
    for split in _SPLITS:
        one = _survey(spec, files.of_split(split), file_source.cache_folder(root), wanted=False)
        if one.refusals:
            clauses.append(file_source.describe_refusals(root, split, one.refusals, len(one.facts)))
    return clauses


def _survey(spec: DatasetSpec, files: FileList, cache: pathlib.Path, wanted: bool) -> _Survey:
    images = np.empty((len(files), *spec.view.stored_shape), np.uint8) if wanted else None
    is_stored = np.zeros(len(files), bool)

    def keep(place: int, picture: np.ndarray) -> None:
        if images is not None:
            images[place] = picture
            is_stored[place] = True

    facts = file_survey.survey(files.root, files.names, spec.view, cache, keep)
    is_whole = all(stored or one.refusal for stored, one in zip(is_stored, facts, strict=True))
    return _Survey(files, facts, images if is_whole else None)


def _refuse_lost_class(train: _Survey, names: tuple[str, ...]) -> None:
    readable = [place for place, one in enumerate(train.facts) if not one.refusal]
    readable_names = train.files.take(readable).class_names()
    lost = [name for name in names if name not in readable_names]
    if lost:
        raise UserError(
            f"no training image of the class {lost[0]!r} in {train.files.root} can be read: "
            f"{train.refusals[0]}"
        )


def _warn_of_duplicates(surveys: dict[str, _Survey]) -> None:
    """Warns of files that are in both splits, by their content."""
    in_training = {
        one.sha256: name
        for one, name in zip(surveys["train"].facts, surveys["train"].files.names, strict=True)
        if not one.refusal
    }
    twins = [
        (in_training[one.sha256], name)
        for one, name in zip(surveys["test"].facts, surveys["test"].files.names, strict=True)
        if not one.refusal and one.sha256 in in_training
    ]
    if twins:
        log.warning(
            "warning: %d of %d test images in %s are training images too, so that tests are too good, the "
            "first: %s is %s",
            len(twins),
            len(surveys["test"].facts),
            surveys["test"].files.root,
            twins[0][1],
            twins[0][0],
        )
