"""Networks for images by name: `build` puts a backbone, a head and a pooling together."""

import functools
import math
import numbers
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.attention import learned
from lossattn_jax.attention import pooling as pooling_lib
from lossattn_jax.errors import UserError
from lossattn_jax.models import capsules, resnet, small, vgg
from lossattn_jax.models.capsules import CapsuleNetwork, RoutingNetwork
from lossattn_jax.models.combinations import check
from lossattn_jax.models.layers import BatchNorm
from lossattn_jax.models.network import ImageNetwork, PatchNetwork
from lossattn_jax.models.patch_head import ConvPatchHead, DenseHead, MapHead
from lossattn_jax.registry import lookup

# Kernel, stride and channels of the patch convolution: 6x6 patches of a 32x32 map, as of the small
# backbone's 8x8 map with its own.
_PAPER_HEAD = (9, 4, 512)
_DENSE_HIDDEN = 4096  # of the plain VGGs


def build(
    backbone: str = "resnet18",
    head: str = "conv",
    pooling: str = "loss_attention",
    num_classes: int = 10,
    width: float = 1.0,
    threshold: float = pooling_lib.DEFAULT_THRESHOLD,
    bottleneck_relu_before_add: bool | None = None,
    bottleneck_first_kernel: int | None = None,
    dtype: Dtype = jnp.float32,
    bn_axis_name: str | None = None,
) -> ImageNetwork:
    """Makes a network of the TIP 2021 paper's tables, or of the AAAI 2020 paper's image setting.

    Args:
      backbone: one of `BACKBONES`. With a head they keep the image's size (section IV-A), but for
        "resnet18_stride2", which halves it once, for 64x64 images (also without a head), and "small"
        (ours, for CPUs and demonstrations). Without one the VGGs pool and the ResNets stride, as
        usual. "capsnet" is that of Sabour et al. 2017.
      head: "none" (the plain network), "conv" or "capsule".
      pooling: one of `POOLINGS`. With head "none": "none", or "bag_loss_attention" over a ResNet's
        map (AAAI 2020), or "dynamic_routing" with "capsnet".
      num_classes: K >= 2.
      width: multiplies the channels of every layer; 1.0 is the paper's network (32.67 M parameters for
        "resnet18" with a convolutional head and 10 classes).
      threshold: t of the loss attention; 0.1 in the paper's tables, 1.0 to localise.
      bottleneck_relu_before_add: ResNets from 50 on: whether a block rectifies before it adds the
        shortcut, as the papers' code does. The usual block does not, and nor does None, which besides
        makes `convert` refuse weights that would fit either.
      bottleneck_first_kernel: the same networks: 1 or 3, side of a block's first convolution. None: 1
        in the plain networks (He et al. 2016), 3 with a head (the papers' code). The paper's own plain
        ResNet50, of 58.16 M parameters, has 3, and True for the key above.
      dtype: compute dtype, float32 or bfloat16; parameters, statistics and outputs are float32.
      bn_axis_name: pmap axis over which batch statistics are shared, and dropout drawn, in training;
        None keeps both local to a device.

    Returns:
      A Linen module: `module.init(key, images, train=False)`,
      `module.apply(variables, images, train=...)`.

    Raises:
      UserError: a name that does not exist, a combination that does not, or a number out of range.
    """
    check(backbone, head, pooling)
    if not isinstance(num_classes, numbers.Integral) or num_classes < 2:
        raise UserError(f"num_classes is {num_classes!r}, but must be a whole number, at least 2")
    if not isinstance(width, numbers.Real) or not 0 < width < math.inf:
        raise UserError(f"width is {width!r}, but must be a positive number")
    if not isinstance(threshold, numbers.Real) or not 0 <= threshold <= 1:
        raise UserError(f"threshold is {threshold!r}, but must lie between 0 and 1")
    if bottleneck_relu_before_add not in (None, False, True):
        raise UserError(
            f"bottleneck_relu_before_add is {bottleneck_relu_before_add!r}, but must be True, False or "
            "None"
        )
    if bottleneck_first_kernel not in (None, 1, 3):
        raise UserError(
            f"bottleneck_first_kernel is {bottleneck_first_kernel}, but must be 1, 3 or None"
        )

    def scaled(channels: int) -> int:
        return max(1, round(channels * width))

    norm = functools.partial(BatchNorm, axis_name=bn_axis_name, dtype=dtype)
    plain = head == "none"
    first_kernel = resnet.first_kernel(bottleneck_first_kernel, head)
    make_backbone = _backbone(
        backbone, plain, scaled, norm, dtype, bottleneck_relu_before_add, first_kernel
    )
    kernel, stride, channels = small.HEAD if backbone == "small" else _PAPER_HEAD

    if pooling == "dynamic_routing":
        units = _units(backbone, kernel, stride, scaled, norm, dtype)
        return RoutingNetwork(
            make_backbone, units, num_classes, dtype, scaled(capsules.CLASS_DIMENSION)
        )
    if head == "capsule":
        make_capsules = functools.partial(
            capsules.CapsuleHead,
            make_units=_units(backbone, kernel, stride, scaled, norm, dtype),
            capsules=scaled(capsules.CAPSULES),
            dimension=scaled(capsules.CAPSULE_DIMENSION),
            norm=norm,
            dtype=dtype,
        )
        return CapsuleNetwork(make_backbone, make_capsules, num_classes, dtype, threshold)

    conv_head = functools.partial(
        ConvPatchHead,
        channels=scaled(channels),
        kernel=kernel,
        stride=stride,
        norm=norm,
        use_bias=backbone in vgg.STAGES,
        dtype=dtype,
    )
    dense_head = functools.partial(
        DenseHead, hidden=scaled(_DENSE_HIDDEN), axis_name=bn_axis_name, dtype=dtype
    )
    heads: dict[str, Callable[..., nn.Module]] = {
        "none": dense_head if backbone in vgg.STAGES else MapHead,
        "conv": conv_head,
    }
    make_head = lookup("head", head, heads)
    return PatchNetwork(
        make_backbone, make_head, num_classes, dtype, pooling, threshold, scaled(learned.HIDDEN)
    )


def _backbone(
    name: str,
    plain: bool,
    scaled: Callable[[int], int],
    norm: Callable[..., nn.Module],
    dtype: Dtype,
    relu_before_add: bool | None,
    first_kernel: int,
) -> Callable[..., nn.Module]:
    if name == "small":
        channels = tuple(scaled(c) for c in small.CHANNELS)
        return functools.partial(small.SmallBackbone, channels=channels, norm=norm, dtype=dtype)
    if name == "capsnet":
        return functools.partial(
            capsules.CapsNetBackbone, channels=scaled(capsules.CAPSNET_CHANNELS), dtype=dtype
        )
    if name in vgg.STAGES:
        stages = tuple(tuple(scaled(c) for c in stage) for stage in vgg.STAGES[name])
        return functools.partial(vgg.VGG, stages=stages, pool=plain, norm=norm, dtype=dtype)

    bottlenecks = name in resnet.BOTTLENECKS
    make_block: Callable[..., nn.Module] = resnet.BasicBlock
    if bottlenecks:
        make_block = functools.partial(
            resnet.Bottleneck, first_kernel=first_kernel, relu_before_add=relu_before_add
        )
    strides = resnet.PLAIN_STRIDES if plain else resnet.NO_STRIDES
    if name == "resnet18_stride2":
        name, strides = "resnet18", resnet.STRIDE2_STRIDES
    stage_channels = tuple(scaled(c) for c in resnet.STAGE_CHANNELS)
    return functools.partial(
        resnet.ResNet,
        stage_blocks=resnet.STAGE_BLOCKS[name],
        stage_channels=stage_channels,
        strides=strides,
        make_block=functools.partial(make_block, norm=norm, dtype=dtype),
        norm=norm,
        norm_stem=plain,
        reduce_to=stage_channels[-1] if bottlenecks and not plain else None,
        dtype=dtype,
    )


def _units(
    backbone: str,
    kernel: int,
    stride: int,
    scaled: Callable[[int], int],
    norm: Callable[..., nn.Module],
    dtype: Dtype,
) -> Callable[..., capsules.PrimaryUnits]:
    if backbone == "capsnet":
        dimension, types = capsules.CAPSNET_PRIMARY
        return functools.partial(
            capsules.PrimaryUnits,
            units=scaled(dimension),
            channels=scaled(types),
            kernel=capsules.CAPSNET_KERNEL,
            stride=capsules.CAPSNET_STRIDE,
            norm=None,
            dtype=dtype,
        )
    return functools.partial(
        capsules.PrimaryUnits,
        units=scaled(capsules.UNITS),
        channels=scaled(capsules.UNIT_CHANNELS),
        kernel=kernel,
        stride=stride,
        norm=norm,
        dtype=dtype,
    )
