"""The paper's networks with loss attention in plain PyTorch.

Written as a PyTorch user would write them, module by module, with the state dict keys of the papers' code, so
that weights go over by `lossattn_jax.convert`. Imports PyTorch, which is no dependency of the package.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lossattn_jax.models import capsules, resnet, vgg

PATCH_KERNEL, PATCH_STRIDE = 9, 4
_EPSILON = 1e-20  # under a square root, whose derivative at 0 is infinite


class Block(nn.Module):
    """A ResNet's block of two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, inputs, H, W]` to `[B, outputs, H, W]`."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ConvHead(nn.Module):
    """The convolutional patch head, the classifier, and loss attention over 6x6 patches."""

    def __init__(self, inputs: int, channels: int, classes: int, bias: bool):
        super().__init__()
        self.conv5 = nn.Conv2d(inputs, channels, PATCH_KERNEL, PATCH_STRIDE, bias=bias)
        self.bn5 = nn.BatchNorm2d(channels)
        self.conv6 = nn.Conv2d(channels, channels, 1, bias=bias)
        self.bn6 = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `[B, C, H, W]` to logits, patch logits and attention.

        Their shapes are `[B, K]`, `[B, P, K]` and `[B, P]`.
        """
        positions = x.shape[2] * x.shape[3]
        x = F.relu(self.bn5(self.conv5(x)))
        x = F.relu(self.bn6(self.conv6(x)))
        features = x.flatten(2).transpose(1, 2)
        patch_logits = self.linear(features)
        attention = cut(shares(patch_logits), positions)
        summary = (features * attention[:, :, None]).sum(1)
        return self.linear(summary), patch_logits, attention


class Unit(nn.Module):
    """One unit of the first capsule layer."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.conv0 = nn.Conv2d(inputs, channels, PATCH_KERNEL, PATCH_STRIDE)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, inputs, H, W]` to `[B, channels, H', W']`."""
        return F.relu(self.bn(self.conv0(x)))


class Dimension(nn.Module):
    """One dimension of the second capsule layer."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv0 = nn.Conv2d(inputs, outputs, 1)
        self.bn0 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, inputs, H', W']` to `[B, outputs, H', W']`."""
        return F.relu(self.bn0(self.conv0(x)))


class CapsuleHead(nn.Module):
    """Both capsule layers, the classifier, and loss attention over capsules and patches.

    As in the papers' code every unit and every dimension is a module of its own. With `fused` the units
    are one convolution, and so are the dimensions.
    """

    def __init__(self, inputs: int, width: float, classes: int, fused: bool):
        super().__init__()
        units, dimension = scale(capsules.UNITS, width), scale(capsules.CAPSULE_DIMENSION, width)
        self.channels = scale(capsules.UNIT_CHANNELS, width)
        self.capsules = scale(capsules.CAPSULES, width)
        one, each = (units, 1) if fused else (1, units)
        self.units = nn.ModuleList(Unit(inputs, one * self.channels) for _ in range(each))
        self.b4 = nn.Parameter(torch.randn(1, self.channels, 1, 1))
        one, each = (dimension, 1) if fused else (1, dimension)
        self.layer5 = nn.ModuleList(
            Dimension(self.channels, one * self.capsules) for _ in range(each)
        )
        self.linear = nn.Linear(dimension, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps `[B, C, H, W]` to logits, patch logits and attention.

        Their shapes are `[B, K]`, `[B, P, K]` and `[B, P]`.
        """
        units = torch.cat([unit(x) for unit in self.units], 1)
        units = units.unflatten(1, (-1, self.channels))
        lengths = F.relu((units.square().sum(1) + _EPSILON).sqrt() - self.b4)
        batch, _, height, width = lengths.shape
        outputs = torch.cat([layer(lengths) for layer in self.layer5], 1)
        # Channels are [dimension, capsule]: capsules of all patches, one after the other.
        outputs = outputs.reshape(batch, -1, self.capsules, height * width)
        features = outputs.permute(0, 3, 2, 1)  # [B, P, capsules, dimension]
        logits = self.linear(features)
        weights = shares(logits.flatten(1, 2)).unflatten(1, (-1, self.capsules))
        attention = cut(weights.sum(2), height * width)
        weights = weights * (attention > 0)[:, :, None]
        weights = weights / weights.sum((1, 2), keepdim=True)
        summary = (features * weights[..., None]).sum((1, 2))
        return self.linear(summary), logits.sum(2), attention


class ResNet18Backbone(nn.Module):
    """ResNet18's convolutions without stride, and without normalisation behind the first one."""

    def __init__(self, width: float):
        super().__init__()
        channels = [scale(c, width) for c in resnet.STAGE_CHANNELS]
        self.outputs = channels[-1]
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        before = channels[0]
        for stage, after in enumerate(channels, start=1):
            setattr(self, f"layer{stage}", nn.Sequential(Block(before, after), Block(after, after)))
            before = after

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, 3, H, W]` to `[B, C, H, W]`."""
        x = self.conv1(x)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x


class VGG11Backbone(nn.Module):
    """VGG11's convolutions without pooling."""

    def __init__(self, width: float):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in (c for stage in vgg.STAGES["vgg11_bn"] for c in stage):
            after = scale(channels, width)
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(True)]
            before = after
        self.outputs = before
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, 3, H, W]` to `[B, C, H, W]`."""
        return self.features(x)


class Network(nn.Module):
    """A backbone and a head."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps images `[B, 3, H, W]` to logits, patch logits and attention."""
        return self.head(self.backbone(images))


def build(
    backbone: str, head: str, classes: int = 10, width: float = 1.0, fused: bool = False
) -> Network:
    """A network with loss attention at the paper's threshold.

    Args:
      backbone: "resnet18" or "vgg11_bn".
      head: "conv" or "capsule".
      classes: K.
      width: multiplies the channels of every layer.
      fused: with capsules, whether the units are one convolution.
    """
    bodies: dict[str, Any] = {"resnet18": ResNet18Backbone, "vgg11_bn": VGG11Backbone}
    body = bodies[backbone](width)
    if head == "capsule":
        return Network(body, CapsuleHead(body.outputs, width, classes, fused))
    return Network(body, ConvHead(body.outputs, scale(512, width), classes, backbone != "resnet18"))


def scale(channels: int, width: float) -> int:
    """Channels of a layer at a width, as `models.build` has them."""
    return max(1, round(channels * width))


def shares(logits: Tensor) -> Tensor:
    """Norms of rows of `[B, P, K]` as shares of the image's."""
    norms = (logits.square().sum(2) + _EPSILON).sqrt()
    return norms / norms.sum(1, keepdim=True)


def cut(before: Tensor, grid: int, threshold: float = 0.1) -> Tensor:
    """`relu(before - threshold / grid)`, renormalised over the patches."""
    rest = F.relu(before - threshold / grid)
    return rest / rest.sum(1, keepdim=True)


def loss(outputs: tuple[Tensor, Tensor, Tensor], labels: Tensor, patch_weight: float) -> Tensor:
    """Mean over images of cross-entropy plus the patches' weighted sum."""
    logits, patch_logits, attention = outputs
    each = F.cross_entropy(
        patch_logits.flatten(0, 1),
        labels.repeat_interleave(patch_logits.shape[1]),
        reduction="none",
    )
    patch = (attention * each.unflatten(0, attention.shape)).sum(1).mean()
    return F.cross_entropy(logits, labels) + patch_weight * patch


def keys(state: Sequence[str]) -> list[str]:
    """Keys of a state dict as the papers' code has them."""
    return [key.partition(".")[2] for key in state]
