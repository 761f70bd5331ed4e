"""Networks of the TIP 2021 paper's table, and their sizes.

On CIFAR-10, CIFAR-100 and SVHN.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from lossattn_jax.models import build, resnet, variable_shapes
from lossattn_jax.registry import lookup

IMAGE_SHAPE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Row:
    """A system of the paper's table, with its config's changes.

    All that its config differs from the defaults in.

    Attributes:
      name: of the row in `configs/tip.py`.
      system: what the paper calls it.
      parts: backbone, head and pooling; see `build`.
      paper_parameters: as printed, in millions, for 10 classes; None where there is no number.
      paper_accuracy: as printed, in percent, on CIFAR-10, CIFAR-100 and SVHN; None likewise.
      gigaflops: of an update for one image, forward and backward, rounded; see benchmarks/network_flops.py.
      note: what has to be known to compare it with the paper's.
      settings: further keys of the config and their values.
    """

    name: str
    system: str
    parts: tuple[str, str, str]
    paper_parameters: float | None
    paper_accuracy: tuple[float | None, float | None, float | None]
    gigaflops: float
    note: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def block(self) -> dict[str, Any]:
        """Further options of `build`, of a ResNet's blocks."""
        prefix = "model."
        return {
            key.removeprefix(prefix): value
            for key, value in self.settings.items()
            if key.startswith(prefix)
        }

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of its images, which its config may enlarge."""
        side = self.settings.get("data.image_size", 0)
        return (side, side, 3) if side else IMAGE_SHAPE

    @property
    def parameters(self) -> int:
        """Live parameters of our network for 10 classes."""
        return count_parameters(*self.parts, image_shape=self.image_shape, **self.block)


_UNKNOWN_CAPSNET = (
    "by its abstract Nair et al. test CapsNet; which layers have these figures is not known here, and this "
    "is the network of the row capsnet"
)
_EXTRA_SHORTCUTS = "the paper's count holds 0.27 M parameters of shortcuts that its code never uses"
# What the papers' code has in its own ResNet50, where He et al. begin with 1x1 and rectify the sum alone; and
# its script for it.
_OWN_RESNET50 = {
    "model.bottleneck_first_kernel": 3,
    "model.bottleneck_relu_before_add": True,
    "optimizer.learning_rate": 0.02,
    "train.batch_size": 48,
}
# As Sabour et al., whose numbers the table quotes.
_ADAM = {
    "optimizer.name": "adam",
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.0,
    "optimizer.schedule": "cosine",
}
# As the published code of DeepCaps has its first training: images at twice their size, moved by up to a tenth
# of it, and a rate that is halved after every 10 epochs.
_OF_DEEPCAPS = {
    "optimizer.name": "adam",
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.0,
    "optimizer.milestones": tuple(range(10, 100, 10)),
    "optimizer.decay_factor": 0.5,
    "train.epochs": 100,
    "train.batch_size": 256,
    "data.image_size": 64,
    "data.crop_padding": 6,
}


def _plain(name: str, system: str, *numbers: Any, **settings: Any) -> Row:
    return Row(name, system, (name, "none", "none"), *numbers, **settings)


def _conv(backbone: str, system: str, pooling: str, *numbers: Any) -> Row:
    name, title = f"{backbone}_{pooling}", f"{system} + {pooling.replace('_', ' ')}"
    return Row(name, title, (backbone, "conv", pooling), *numbers)


def _capsules(backbone: str, system: str, pooling: str, *numbers: Any) -> Row:
    title = f"{system} capsules, {pooling.replace('_', ' ')}"
    return Row(f"{backbone}_capsule_{pooling}", title, (backbone, "capsule", pooling), *numbers)


_VGG, _RESNET = ("vgg11_bn", "VGG11_bn"), ("resnet18", "ResNet18")

ROWS = (
    _plain(*_VGG, 28.15, (92.14, 70.20, 96.48), 0.8),
    _plain("vgg16_bn", "VGG16_bn", 33.65, (93.52, 72.35, 96.83), 1.6),
    _conv(*_VGG, "mean", 30.73, (93.99, 74.03, 96.37), 59),
    _conv(*_VGG, "attention", 30.80, (94.17, 75.47, 96.52), 59),
    _conv(*_VGG, "gated_attention", 30.86, (93.78, 74.35, 96.88), 59),
    _conv(*_VGG, "loss_attention", 30.73, (94.51, 76.81, 96.99), 59),
    _plain(*_RESNET, 11.17, (94.76, 76.61, 96.98), 2.9),
    _plain("resnet50", "ResNet50", 58.16, (95.01, 78.15, 97.12), 16.2, settings=_OWN_RESNET50),
    _conv(*_RESNET, "mean", 32.67, (94.59, 75.58, 96.72), 70.5),
    _conv(*_RESNET, "attention", 32.73, (94.83, 77.48, 97.08), 70.5),
    _conv(*_RESNET, "gated_attention", 32.80, (94.89, 76.33, 97.07), 70.5),
    _conv(*_RESNET, "loss_attention", 32.67, (95.31, 78.53, 97.11), 70.5),
    _capsules(*_VGG, "dynamic_routing", 33.41, (93.37, 68.41, 96.08), 59),
    _capsules(*_VGG, "loss_attention", 31.02, (94.98, 75.84, 96.78), 59, _EXTRA_SHORTCUTS),
    _capsules(*_RESNET, "dynamic_routing", 35.35, (93.88, 68.88, 96.70), 70.5),
    _capsules(*_RESNET, "loss_attention", 32.96, (95.47, 76.70, 97.24), 70.5, _EXTRA_SHORTCUTS),
    Row(
        "capsnet",
        "CapsNet",
        ("capsnet", "none", "dynamic_routing"),
        None,
        (89.40, None, 95.70),
        4.4,
        settings=_ADAM,
    ),
    Row(
        "deepcaps",
        "DeepCaps",
        ("deepcaps", "none", "biased_routing"),
        None,
        (91.01, None, 97.16),
        7.5,
        settings=_OF_DEEPCAPS,
    ),
    Row(
        "hitnet",
        "HitNet",
        ("hitnet", "none", "hit_or_miss"),
        None,
        (73.30, None, 94.50),
        2.2,
        settings=_ADAM,
    ),
    Row(
        "capsnet_nair",
        "CapsNet of Nair et al.",
        ("capsnet", "none", "dynamic_routing"),
        None,
        (67.53, None, 91.06),
        4.4,
        _UNKNOWN_CAPSNET,
        settings=_ADAM,
    ),
)
NAMES = tuple(row.name for row in ROWS)


def find(name: str) -> Row:
    """The row of a name.

    Raises:
      UnknownName: there is none.
    """
    return lookup("the row", name, {row.name: row for row in ROWS})


@functools.cache  # tracing a deep network takes a second
def count_parameters(
    backbone: str,
    head: str,
    pooling: str,
    num_classes: int = 10,
    width: float = 1.0,
    *,
    image_shape: tuple[int, int, int] = IMAGE_SHAPE,
    **options: Any,
) -> int:
    """Counts a network's parameters without making arrays.

    Live ones; `options` are others of `build`.
    """
    model = build(backbone, head, pooling, num_classes, width, **options)
    shapes = variable_shapes(model, image_shape)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def lines() -> list[str]:
    """Formats the table: our parameter counts beside the paper's, and accuracies."""
    header = ("system", "row", "ours", "paper", "CIFAR-10/100/SVHN in %", "GFLOP")
    cells = [header]
    notes: list[str] = []
    for row in ROWS:
        mark = ""
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            mark = "*" * (1 + notes.index(row.note))
        ours = row.parameters / 1e6
        paper = ("-" if row.paper_parameters is None else f"{row.paper_parameters:.2f}") + mark
        scores = "/".join("-" if s is None else f"{s:.2f}" for s in row.paper_accuracy)
        cells.append((row.system, row.name, f"{ours:.2f}", paper, scores, f"{row.gigaflops:g}"))
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    table = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    table.insert(1, "  ".join("-" * width for width in widths))
    resnets = ", ".join(
        f"{name} {count_parameters(name, 'none', 'none') / 1e6:.2f}" for name in resnet.STAGE_BLOCKS
    )
    return [
        *(line.rstrip() for line in table),
        "",
        "A row is trained with --config=tip:ROW on CIFAR-10, --config=tip:ROW,cifar100 or ,svhn_cropped.",
        "Parameters in millions, for 10 classes; accuracies are the paper's (IEEE TIP 2021).",
        "GFLOP: of an update, for one image; 200 epochs of CIFAR are 10 million images.",
        "ResNet50 has the papers' own bottlenecks: a 3x3 convolution first, rectified before the addition.",
        f"All plain ResNets that can be built, with He et al.'s blocks: {resnets}.",
        *(f"{'*' * number} {note}" for number, note in enumerate(notes, start=1)),
    ]
