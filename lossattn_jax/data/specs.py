"""Data sets, and what network and pipeline know of each."""

import dataclasses
import re

import numpy as np
from numpy.typing import DTypeLike

from lossattn_jax.data import tiny_imagenet_classes
from lossattn_jax.data.views import CROP, SQUEEZE, View, canvas_of
from lossattn_jax.errors import UnknownName, UserError
from lossattn_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set, as network and pipeline need to know it.

    Attributes:
      name: our name, which is also the TFDS name unless `builder` gives another.
      num_classes: number of classes; labels are 0 ... num_classes - 1.
      class_names: one name per class, in label order.
      image_shape: (height, width, channels) of every image as it is handed out, uint8.
      mean: per-channel mean of the training pixels divided by 255.
      std: per-channel standard deviation of the same.
      flip: whether a mirrored image still shows its class (false for digits).
      train_split: TFDS split expression of the training set.
      test_split: TFDS split expression of the test set.
      num_train: training images of the published set. A prepared copy may be a part of it, so the
        length of the opened data set is what counts.
      num_test: test images of the published set, likewise.
      max_boxes: boxes of labelled objects that an image may have at most. 0: the data set has none. 1: one
        for an image, of what its label names, from TFDS' `bbox`. More: those of its TFDS `objects`,
        each with its class, of which the largest are kept where there are more.
      multi_label: whether an image may show any number of classes, or none. Its label is then the
        multi-hot row of the classes of its TFDS `objects`, and not a single number.
      builder: TFDS builder and config, such as 'coco/2017'; '' where that is `name`.
      builder_class: `package.module:attribute` of a builder that TFDS does not have. It is imported for
        preparing alone. '' with TFDS' own builders, and where importing this entry's module defines it.
      resize: whether stored images have any size and may be grey; they are made RGB and resized to
        `image_shape` when they are decoded.
      preparation_package: what its builder needs besides TFDS, "" for nothing; TFDS' own need TensorFlow.
      num_extra: images of the split `extra` that may be trained on besides; 0: there is none.
      extra_builder: `builder` of the data set with that split; '' where it is the same.
      reference: `package.module:attribute` that named it, of a user's own; '' for those of `DATASETS`.
      fit: how pictures of any size are brought to `image_shape`; see `views.View`.
      canvas: side in pixels of the square that is stored of a picture; see `views.View`. 0: `image_shape`.
      origin: which of `origins.ORIGINS` opens it.
      table: of image files, the table that lists them, in their folder; '': folders of classes do.
      test_share: of image files in no split, the share that is tested; of TFDS sets without a test split too.
      split_seed: which image files these are follows from it.
      is_network_input: whether images are handed out as floats that the network takes as they are, such as
        the maps of a frozen backbone.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] = (32, 32, 3)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    flip: bool = False
    train_split: str = "train"
    test_split: str = "test"
    num_train: int = 0
    num_test: int = 0
    max_boxes: int = 0
    multi_label: bool = False
    builder: str = ""
    resize: bool = False
    preparation_package: str = "TensorFlow"
    builder_class: str = ""
    num_extra: int = 0
    extra_builder: str = ""
    reference: str = ""
    fit: str = SQUEEZE
    canvas: int = 0
    origin: str = "tfds"
    table: str = ""
    test_share: float = 0.2
    split_seed: int = 0
    is_network_input: bool = False

    @property
    def view(self) -> View:
        """How pictures of any size become those of a network."""
        return View(self.image_shape, self.fit, self.canvas)

    @property
    def key(self) -> str:
        """Name of the data set in commands and configs."""
        return self.reference or self.name

    @property
    def tfds_name(self) -> str:
        """Name of the data set in TFDS, with its config.

        It is its folder, too.
        """
        return self.builder or self.name

    @property
    def has_boxes(self) -> bool:
        """Whether boxes of the labelled objects are known."""
        return self.max_boxes > 0

    @property
    def box_shape(self) -> tuple[int, ...]:
        """Shape of an image's boxes.

        (4,) for one, (M, 4) for up to M.
        """
        return (4,) if self.max_boxes == 1 else (self.max_boxes, 4)

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of a label: () for a class, (K,) multi-hot."""
        return (self.num_classes,) if self.multi_label else ()

    @property
    def label_dtype(self) -> DTypeLike:
        """Dtype of labels: int32 for a class, uint8 multi-hot."""
        return np.uint8 if self.multi_label else np.int32

    def split(self, split: str) -> str:
        """Returns the TFDS split of 'train' or 'test'.

        Another name is a `UserError`.
        """
        if split == "train":
            return self.train_split
        if split == "test":
            return self.test_split
        raise UserError(f"split {split!r} is unknown; allowed are 'train' and 'test'.")


_PHOTOGRAPH = 224  # side in pixels of the images of networks for photographs
_DIGITS = tuple("0123456789")

_CIFAR10_NAMES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())

_CIFAR100_NAMES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)

# In the order of COCO's own category file, which TFDS numbers from 0 on.
_COCO_NAMES = tuple(
    name.replace("_", " ")
    for name in """person bicycle car motorcycle airplane bus train truck boat traffic_light
    fire_hydrant stop_sign parking_meter bench bird cat dog horse sheep cow elephant bear zebra
    giraffe backpack umbrella handbag tie suitcase frisbee skis snowboard sports_ball kite
    baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass cup fork knife
    spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch
    potted_plant bed dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven
    toaster sink refrigerator book clock vase scissors teddy_bear hair_drier toothbrush""".split()
)

_SPECS = (
    DatasetSpec(
        name="digit_scenes",
        preparation_package="",
        builder_class="lossattn_jax.data.digit_scenes:DigitScenes",
        num_classes=10,
        class_names=_DIGITS,
        mean=(0.498, 0.497, 0.497),
        std=(0.268, 0.258, 0.275),
        num_train=10_000,
        num_test=2_000,
        max_boxes=1,
    ),
    DatasetSpec(
        name="cifar10",
        num_classes=10,
        class_names=_CIFAR10_NAMES,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        flip=True,
        num_train=50_000,
        num_test=10_000,
    ),
    DatasetSpec(
        name="cifar100",
        num_classes=100,
        class_names=_CIFAR100_NAMES,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        flip=True,
        num_train=50_000,
        num_test=10_000,
    ),
    DatasetSpec(
        name="svhn_cropped",
        num_classes=10,
        class_names=_DIGITS,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        num_train=73_257,
        num_extra=531_131,
        num_test=26_032,
    ),
    DatasetSpec(
        name="coco",
        builder="coco/2017",
        num_classes=80,
        class_names=_COCO_NAMES,
        image_shape=(64, 64, 3),
        # Not measured: the paper's code brings COCO's pixels to -1 ... 1 with these.
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        flip=True,
        test_split="validation",  # the objects of COCO's own test images are secret
        num_train=118_287,
        num_test=5_000,
        # The fullest image of the published set is said to have 93 objects; not counted here.
        max_boxes=100,
        multi_label=True,
        resize=True,
    ),
    DatasetSpec(
        name="tiny_imagenet",
        preparation_package="",
        builder_class="lossattn_jax.data.tiny_imagenet:TinyImagenet",
        num_classes=200,
        class_names=tiny_imagenet_classes.NAMES,
        image_shape=(64, 64, 3),
        # Not measured: these are what other photographs have, roughly.
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        flip=True,
        test_split="validation",  # the classes of its own test images are secret
        num_train=100_000,
        num_test=10_000,
        max_boxes=1,
        resize=True,  # some are grey
    ),
    DatasetSpec(
        name="svhn_full",
        preparation_package="",
        builder="svhn_full/plain",
        builder_class="lossattn_jax.data.svhn_full:SvhnFull",
        extra_builder="svhn_full/extra",  # TFDS' own svhn_cropped always has it; 1.8 GB are not for everyone
        num_extra=202_353,
        num_classes=10,
        class_names=_DIGITS,
        image_shape=(64, 64, 3),
        # Not measured; those of svhn_cropped are of other cut-outs.
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        num_train=33_402,
        num_test=13_068,
        max_boxes=6,  # no house number is longer
        multi_label=True,
        resize=True,
    ),
    # Its classes and their statistics are those of the files; see `image_folder`.
    DatasetSpec(
        name="folder",
        origin="folder",
        preparation_package="",
        num_classes=0,
        class_names=(),
        image_shape=(_PHOTOGRAPH, _PHOTOGRAPH, 3),
        flip=True,
        resize=True,
        fit=CROP,
        canvas=canvas_of(_PHOTOGRAPH),
    ),
)

DATASETS = Registry("data set of images", DatasetSpec, {spec.name: spec for spec in _SPECS})

TFDS = "tfds:"  # what the name of any data set of TFDS begins with
_OF_TFDS = re.compile(r"\w+(/[\w.+-]*\w)?", re.ASCII)
EXTRA = "+extra"  # what a training split with the extra images ends in


def with_size(spec: DatasetSpec, side: int) -> DatasetSpec:
    """Makes a data set whose images have another size.

    Args:
      spec: the data set.
      side: in pixels, of square images; 0: as it is.
    """
    if not side or spec.image_shape[:2] == (side, side):
        return spec
    shape = (side, side, spec.image_shape[2])
    return dataclasses.replace(
        spec, image_shape=shape, resize=True, fit=CROP, canvas=canvas_of(side)
    )


def _refuse_contradiction(spec: DatasetSpec) -> None:
    """Refuses a user's data set with contradicting numbers."""
    channels = spec.image_shape[-1]
    for name, has, needs in (
        ("class_names", len(spec.class_names), spec.num_classes),
        ("mean", len(spec.mean), channels),
        ("std", len(spec.std), channels),
    ):
        if has != needs:
            raise UserError(
                f"the data set {spec.key!r} has {has} of {name}, but must have {needs}, as it has "
                f"{spec.num_classes} classes and images of {spec.image_shape}"
            )


def get_spec(name: str, extra: bool = False, key: str = "") -> DatasetSpec:
    """Looks up a data set by name or reference.

    Args:
      name: one of `DATASETS`, `package.module:attribute` of a `DatasetSpec`, or "tfds:NAME" or
        "tfds:NAME/CONFIG" of a data set of TFDS.
      extra: train on the split `extra` as well (of svhn_cropped 604,388 images instead of 73,257, of
        svhn_full 235,755 instead of 33,402). The normalisation stays that of `train`, so that networks of
        both kinds can be compared.
      key: what a sentence calls the name; default: the kind.

    Returns:
      The specification. Of image files, and by "tfds:", it is without classes, which `origins.make_spec`
      finds.

    Raises:
      UserError: unknown name, a reference to something else, or `extra` for a data set without that split.
    """
    if name.startswith(TFDS):
        if not _OF_TFDS.fullmatch(name.removeprefix(TFDS)):
            raise UserError(
                f"{key or DATASETS.kind} is {name!r}, but must be tfds:NAME or tfds:NAME/CONFIG"
            )
        spec = dataclasses.replace(
            DATASETS["folder"], name=name, origin="tfds", builder=name.removeprefix(TFDS)
        )
    else:
        try:
            spec = DATASETS.find(name, key)
        except UnknownName as error:
            raise UnknownName(f"{error}, or tfds:NAME of one of TFDS") from None
    if spec.key != name:
        spec = dataclasses.replace(spec, reference=name)
        _refuse_contradiction(spec)
    if not extra:
        return spec
    if not spec.num_extra:
        having = " and ".join(data_set for data_set, one in DATASETS.items() if one.num_extra)
        raise UserError(f"data set {name!r} has no 'extra' split; only {having} have one.")
    return dataclasses.replace(
        spec,
        train_split=spec.train_split + EXTRA,
        num_train=spec.num_train + spec.num_extra,
        builder=spec.extra_builder or spec.builder,
    )
