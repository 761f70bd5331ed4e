"""Networks by name: `build` puts a backbone, a patch head and a pooling together."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax import pooling as pooling_lib
from lossattn_jax.errors import UserError
from lossattn_jax.models import resnet, small
from lossattn_jax.models.geometry import PatchGrid
from lossattn_jax.models.layers import BatchNorm
from lossattn_jax.models.network import POOLINGS, PatchNetwork
from lossattn_jax.models.outputs import Outputs
from lossattn_jax.models.patch_head import ConvPatchHead

BACKBONES = (*resnet.STAGE_BLOCKS, "small")
HEADS = ("conv",)

# Kernel, stride and channels of the patch convolution: 6x6 patches from a 32x32 image in both cases.
_PAPER_HEAD = (9, 4, 512)

__all__ = [
    "BACKBONES",
    "HEADS",
    "POOLINGS",
    "Outputs",
    "PatchGrid",
    "PatchNetwork",
    "build",
]


def build(
    backbone: str = "resnet18",
    head: str = "conv",
    pooling: str = "loss_attention",
    num_classes: int = 10,
    width: float = 1.0,
    threshold: float = pooling_lib.DEFAULT_THRESHOLD,
    dtype: Dtype = jnp.float32,
    bn_axis_name: str | None = None,
) -> PatchNetwork:
    """Makes a network of the TIP 2021 paper's tables.

    Args:
      backbone: "resnet18" (stride-free, section IV-A) or "small" (ours, for CPUs and demonstrations).
      head: "conv".
      pooling: "mean", "max" or "loss_attention".
      num_classes: K >= 2.
      width: multiplies the channels of every layer; 1.0 is the paper's network (32.67 M parameters for
        "resnet18" with 10 classes).
      threshold: t of the loss attention; 0.1 in the paper's tables, 1.0 to localise.
      dtype: compute dtype, float32 or bfloat16; parameters, statistics and outputs are float32.
      bn_axis_name: pmap axis over which batch statistics are shared in training; None keeps them
        local to a device.

    Returns:
      A Linen module: `module.init(key, images)`, `module.apply(variables, images, train=...)`.

    Raises:
      UserError: a name that does not exist, or a number out of range.
    """
    _check_name("backbone", backbone, BACKBONES)
    _check_name("head", head, HEADS)
    _check_name("pooling", pooling, POOLINGS)
    if num_classes < 2:
        raise UserError(f"num_classes is {num_classes}, but a classifier needs at least 2")
    if not width > 0:
        raise UserError(f"width is {width}, but must be positive")
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold is {threshold}, but must lie between 0 and 1")

    norm = functools.partial(BatchNorm, axis_name=bn_axis_name, dtype=dtype)

    def scaled(channels: int) -> int:
        return max(1, round(channels * width))

    make_backbone: Callable[..., nn.Module]
    if backbone == "small":
        make_backbone = functools.partial(
            small.SmallBackbone,
            channels=tuple(scaled(c) for c in small.CHANNELS),
            norm=norm,
            dtype=dtype,
        )
        kernel, stride, channels = small.HEAD
    else:
        make_backbone = functools.partial(
            resnet.ResNet,
            stage_blocks=resnet.STAGE_BLOCKS[backbone],
            stage_channels=tuple(scaled(c) for c in resnet.STAGE_CHANNELS),
            norm=norm,
            dtype=dtype,
        )
        kernel, stride, channels = _PAPER_HEAD
    make_head = functools.partial(
        ConvPatchHead,
        channels=scaled(channels),
        kernel=kernel,
        stride=stride,
        norm=norm,
        dtype=dtype,
    )
    return PatchNetwork(make_backbone, make_head, pooling, num_classes, threshold, dtype)


def _check_name(what: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        raise UserError(f"{what} is {name!r}, but must be one of: {', '.join(allowed)}")
