"""The data set `svhn_full`: house numbers, each digit's class and box.

Photographs; a TFDS builder.

It is read from the "full numbers" of SVHN (format 1), without unpacking them: `train.tar.gz`, `test.tar.gz`
and `extra.tar.gz` hold PNG files of any size in one folder, and `digitStruct.mat` beside them (see
`digit_struct`). Which digits occur in an image is its label, and there may be several of a class. The
configuration `extra` has the third archive too, `plain` has not.
"""

import gzip
import io
import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lossattn_jax.data import archives
from lossattn_jax.data.boxes import NO_BOX, pixels_to_fractions
from lossattn_jax.data.digit_struct import Digit, DigitStruct

URL = "http://ufldl.stanford.edu/housenumbers/"
_STRUCT = "digitStruct.mat"

_DESCRIPTION = """Street View House Numbers, format 1: photographs of whole house numbers of one to six
digits, of any size, with the class and the bounding box of every digit."""


def examples(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yields the images of an archive that `digitStruct.mat` names.

    Args:
      file: the archive, where any place can be read; it is read twice, since the boxes may come last.

    Yields:
      `image` PNG bytes, `objects` (a list of `bbox` float32 [4] and `label` int), `file_name`. A digit
      with nothing of its box in the image cannot be seen and is left out.

    Raises:
      KeyError, ValueError, OSError, tarfile.TarError: the archive is not in the published format.
    """
    contents = (content for name, content in _files(file) if name == _STRUCT)
    content = next(contents, None)
    contents.close()
    if content is None:
        raise KeyError(f"there is no {_STRUCT} in the archive")
    struct = DigitStruct(io.BytesIO(content))
    missing = set(struct.names)
    for name, content in _files(file, missing):
        missing.remove(name)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            width, height = image.size
        yield {
            "image": content,
            "objects": _objects(struct.digits(name), height, width),
            "file_name": name,
        }
    if missing:
        raise ValueError(f"it lacks {len(missing)} images, such as {min(missing)}")


def _objects(digits: list[Digit], height: int, width: int) -> list[dict[str, Any]]:
    labelled_boxes = [
        (digit.label, pixels_to_fractions(digit.corners(), height, width)) for digit in digits
    ]
    return [
        {"bbox": np.array(box, np.float32), "label": label}
        for label, box in labelled_boxes
        if box != NO_BOX
    ]


class _GzipReader(gzip.GzipFile):
    """Reads an archive's content in bounded parts."""

    def read(self, size: int | None = -1) -> bytes:
        """Reads bytes, in bounded parts.

        tarfile asks for as many as a header claims.
        """
        if size is None or not 0 <= size <= archives.MOST_BYTES + 1:
            raise ValueError(f"a header in it claims {size} bytes")
        return super().read(size)


def _files(file: BinaryIO, names: set[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """Yields names, without folders, and contents of an archive's files.

    Of `names` alone if given.
    """
    file.seek(0)
    # Nothing is written to disk, so that it does not matter what paths an archive claims.
    with _GzipReader(fileobj=file) as reader, tarfile.open(fileobj=reader, mode="r:") as archive:
        for member in archive:
            name = posixpath.basename(member.name)
            is_needed = name == _STRUCT if names is None else name in names
            stream = archive.extractfile(member) if is_needed and member.isfile() else None
            if stream is not None:
                most = archives.MOST_BYTES if name == _STRUCT else archives.MOST_IMAGE_BYTES
                yield name, archives.content(stream, member.name, member.size, most)


class SvhnFull(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `svhn_full`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = archives.INSTRUCTIONS
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="plain", description="Training and test images."),
        tfds.core.BuilderConfig(name="extra", description="With the extra images besides."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "objects": tfds.features.Sequence(
                        {
                            "bbox": tfds.features.BBoxFeature(),
                            "label": tfds.features.ClassLabel(names=list("0123456789")),
                        }
                    ),
                    "file_name": tfds.features.Text(),
                }
            ),
            homepage=URL,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        splits = (
            ("train", "test", "extra") if self.builder_config.name == "extra" else ("train", "test")
        )
        paths = archives.locate(dl_manager, {split: f"{URL}{split}.tar.gz" for split in splits})
        return {split: self._generate_examples(paths[split]) for split in splits}

    def _generate_examples(self, path: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        with archives.reading(path), path.open("rb") as file:
            for example in examples(file):
                yield example["file_name"], example
