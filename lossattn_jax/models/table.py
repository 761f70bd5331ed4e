"""The networks of the TIP 2021 paper's table on CIFAR-10, CIFAR-100 and SVHN, and their sizes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from lossattn_jax.models import build, resnet, variable_shapes

IMAGE_SHAPE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Row:
    """A system of the paper's table.

    Attributes:
      system: what it is called.
      backbone: see `build`, as are the next two.
      head: of the network.
      pooling: of the network.
      paper_parameters: as printed, in millions, for 10 classes; None where there is no number.
      paper_accuracy: as printed, in percent, on CIFAR-10, CIFAR-100 and SVHN; None likewise.
      note: what has to be known to compare the parameters.
      block: further options of `build`, of a ResNet's blocks.
    """

    system: str
    backbone: str
    head: str
    pooling: str
    paper_parameters: float | None
    paper_accuracy: tuple[float | None, float | None, float | None]
    note: str = ""
    block: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> str:
        """The name of the row's config under `configs/`."""
        if self.backbone == "capsnet":
            return "capsnet.py"
        parts = [self.backbone, "capsule" if self.head == "capsule" else "", self.pooling]
        return "_".join(part for part in parts if part not in ("", "none")) + ".py"

    @property
    def parameters(self) -> int:
        """Live parameters of our network for 10 classes."""
        return count_parameters(self.backbone, self.head, self.pooling, **self.block)


# What the papers' code has in its own ResNet50, where He et al. begin with 1x1 and rectify the sum alone.
_PAPERS_BOTTLENECK = {"bottleneck_first_kernel": 3, "bottleneck_relu_before_add": True}
_UNUSED = "the paper's count holds 0.27 M parameters of shortcuts that its code never uses"

ROWS = (
    Row("VGG11_bn", "vgg11_bn", "none", "none", 28.15, (92.14, 70.20, 96.48)),
    Row("VGG16_bn", "vgg16_bn", "none", "none", 33.65, (93.52, 72.35, 96.83)),
    Row("VGG11_bn + mean", "vgg11_bn", "conv", "mean", 30.73, (93.99, 74.03, 96.37)),
    Row("VGG11_bn + attention", "vgg11_bn", "conv", "attention", 30.80, (94.17, 75.47, 96.52)),
    Row(
        "VGG11_bn + gated attention",
        "vgg11_bn",
        "conv",
        "gated_attention",
        30.86,
        (93.78, 74.35, 96.88),
    ),
    Row(
        "VGG11_bn + loss attention",
        "vgg11_bn",
        "conv",
        "loss_attention",
        30.73,
        (94.51, 76.81, 96.99),
    ),
    Row("ResNet18", "resnet18", "none", "none", 11.17, (94.76, 76.61, 96.98)),
    Row(
        "ResNet50",
        "resnet50",
        "none",
        "none",
        58.16,
        (95.01, 78.15, 97.12),
        block=_PAPERS_BOTTLENECK,
    ),
    Row("ResNet18 + mean", "resnet18", "conv", "mean", 32.67, (94.59, 75.58, 96.72)),
    Row("ResNet18 + attention", "resnet18", "conv", "attention", 32.73, (94.83, 77.48, 97.08)),
    Row(
        "ResNet18 + gated attention",
        "resnet18",
        "conv",
        "gated_attention",
        32.80,
        (94.89, 76.33, 97.07),
    ),
    Row(
        "ResNet18 + loss attention",
        "resnet18",
        "conv",
        "loss_attention",
        32.67,
        (95.31, 78.53, 97.11),
    ),
    Row(
        "VGG11_bn capsules, dynamic routing",
        "vgg11_bn",
        "capsule",
        "dynamic_routing",
        33.41,
        (93.37, 68.41, 96.08),
    ),
    Row(
        "VGG11_bn capsules, loss attention",
        "vgg11_bn",
        "capsule",
        "loss_attention",
        31.02,
        (94.98, 75.84, 96.78),
        _UNUSED,
    ),
    Row(
        "ResNet18 capsules, dynamic routing",
        "resnet18",
        "capsule",
        "dynamic_routing",
        35.35,
        (93.88, 68.88, 96.70),
    ),
    Row(
        "ResNet18 capsules, loss attention",
        "resnet18",
        "capsule",
        "loss_attention",
        32.96,
        (95.47, 76.70, 97.24),
        _UNUSED,
    ),
    Row("CapsNet", "capsnet", "none", "dynamic_routing", None, (89.40, None, 95.70)),
)


def count_parameters(
    backbone: str,
    head: str,
    pooling: str,
    num_classes: int = 10,
    width: float = 1.0,
    **options: Any,
) -> int:
    """Live parameters of a network for 32x32 images; makes no array. `options` are others of `build`."""
    model = build(backbone, head, pooling, num_classes, width, **options)
    shapes = variable_shapes(model, IMAGE_SHAPE)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def lines() -> list[str]:
    """The table as text: for each row our parameter count beside the paper's, and its accuracies."""
    header = ("system", "backbone", "head", "pooling", "ours", "paper", "CIFAR-10/100/SVHN in %")
    cells = [header]
    notes: list[str] = []
    for row in ROWS:
        mark = ""
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            mark = "*" * (1 + notes.index(row.note))
        ours = row.parameters / 1e6
        paper = "-" if row.paper_parameters is None else f"{row.paper_parameters:.2f}{mark}"
        scores = "/".join("-" if s is None else f"{s:.2f}" for s in row.paper_accuracy)
        cells.append(
            (row.system, row.backbone, row.head, row.pooling, f"{ours:.2f}", paper, scores)
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    table = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    table.insert(1, "  ".join("-" * width for width in widths))
    resnets = ", ".join(
        f"{name} {count_parameters(name, 'none', 'none') / 1e6:.2f}" for name in resnet.STAGE_BLOCKS
    )
    return [
        *(line.rstrip() for line in table),
        "",
        "Parameters in millions, for 10 classes; accuracies are the paper's (IEEE TIP 2021).",
        "ResNet50 has the papers' own bottlenecks: a 3x3 convolution first, rectified before the addition.",
        f"All plain ResNets that can be built, with He et al.'s blocks: {resnets}.",
        *(f"{'*' * number} {note}" for number, note in enumerate(notes, start=1)),
    ]
