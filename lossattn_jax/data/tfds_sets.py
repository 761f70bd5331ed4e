"""Data sets of TFDS by name, described by their prepared folders."""

import dataclasses
import logging
import pathlib
from typing import Any

from lossattn_jax.config.options import DataOptions
from lossattn_jax.data import damage, datasets, decoding, memory, normalisation, pixel_statistics
from lossattn_jax.data.datasets import ImageSource
from lossattn_jax.data.pixel_statistics import PixelSums
from lossattn_jax.data.specs import DatasetSpec, with_size
from lossattn_jax.data.views import canvas_of
from lossattn_jax.errors import UserError
from lossattn_jax.files import records

log = logging.getLogger(__name__)

_READ_AT_ONCE = 100


def complete(template: DatasetSpec, options: DataOptions) -> DatasetSpec:
    """Gives a data set of TFDS the options' size and normalisation.

    One without classes has those of its prepared folder. Statistics of the training split are computed once
    and remembered beside it.

    Args:
      template: the data set.
      options: of the data.

    Raises:
      DatasetNotFound: it has to be opened for that, and is not prepared.
      UserError: it is damaged, or has no image and label.
    """
    data_dir = options.dir or None
    stated = None
    if template.class_names:
        spec, stated = template, (template.mean, template.std)
    else:
        spec = _with_metadata(template, data_dir, options.test_share)
    spec = with_size(spec, options.image_size)
    mean, std = normalisation.choose(
        options.normalisation, stated, lambda: _measure(spec, data_dir, options.mode).moments()
    )
    return dataclasses.replace(spec, mean=mean, std=std)


def _with_metadata(template: DatasetSpec, data_dir: str | None, test_share: float) -> DatasetSpec:
    """Reads classes, splits and the size of images from a prepared folder."""
    folder = datasets.newest_version(template, data_dir)
    import tensorflow_datasets as tfds

    try:
        with datasets.quiet_logging():
            info = tfds.builder_from_directory(folder).info
    except Exception as error:  # errors of protobuf and JSON share no base class
        raise damage.unreadable(folder, error, folder) from error
    features = dict(info.features.items())
    image, label = (features.get(name) for name in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise UserError(
            f"config.data.name is {template.name!r}, whose examples have {', '.join(features)}, but must "
            "have an image and a label of one class"
        )
    height, width, _ = image.shape
    spec = template
    if height and width:  # all have this size
        canvas = canvas_of(height) if height == width else 0
        spec = dataclasses.replace(spec, image_shape=(height, width, 3), canvas=canvas)
    train, test = _choose_splits(template, info, test_share)
    return dataclasses.replace(
        spec,
        num_classes=label.num_classes,
        class_names=tuple(label.names),
        train_split=train,
        test_split=test,
        num_train=info.splits[train].num_examples,
        num_test=info.splits[test].num_examples,
        test_share=test_share,
    )


def _choose_splits(template: DatasetSpec, info: Any, test_share: float) -> tuple[str, str]:
    """Chooses the splits to train on and to test."""
    if "train" not in info.splits:
        raise UserError(
            f"config.data.name is {template.name!r}, which has the splits {', '.join(info.splits)}, but must "
            "have a split train"
        )
    for name in ("test", "validation"):
        if name in info.splits:
            return "train", name
    percent = min(max(round(100 * (1 - test_share)), 1), 99)
    log.info(
        "%s has neither test nor validation: the last %d %% are tested",
        template.name,
        100 - percent,
    )
    return f"train[:{percent}%]", f"train[{percent}%:]"


def _measure(spec: DatasetSpec, data_dir: str | None, mode: str) -> PixelSums:
    """Sums the pixels of the training split, once for all calls."""
    source = datasets.open_prepared(spec, "train", data_dir)
    path = pathlib.Path(source.folder) / f"pixels_{source.name}.json"
    made_from = {"images": source.digests().examples}
    try:
        record = records.read(path)
        if record.made_from == made_from:
            return PixelSums(*(record.content[name] for name in ("pixels", "sums", "squares")))
    except (FileNotFoundError, records.DamagedRecord):
        pass
    sums = _sum_pixels(source, mode)
    try:
        records.write(path, dataclasses.asdict(sums), made_from, indent=1)
    except OSError as error:
        log.warning("statistics of the images are not kept in %s: %s", path, error.strerror)
    return sums


def _sum_pixels(source: ImageSource, mode: str) -> PixelSums:
    if memory.keeps(mode, source.spec, len(source)):
        images = memory.load_source(source).images
        return pixel_statistics.add(
            pixel_statistics.of_images(images[start : start + _READ_AT_ONCE])
            for start in range(0, len(images), _READ_AT_ONCE)
        )

    def read(indices: range) -> PixelSums:
        return pixel_statistics.add(
            pixel_statistics.of_images(example["image"]) for example in source.__getitems__(indices)
        )

    what = f"images of {source.spec.name}"
    return pixel_statistics.add(
        part for _, part in decoding.map_parts(read, len(source), _READ_AT_ONCE, what)
    )
