"""Networks for images, built by name."""

import functools
import math
import numbers

import jax.numpy as jnp
from flax.typing import Dtype

from lossattn_jax.attention import pooling as pooling_lib
from lossattn_jax.attention import poolings
from lossattn_jax.errors import UserError
from lossattn_jax.models.backbones import BACKBONES
from lossattn_jax.models.combinations import find_form
from lossattn_jax.models.heads import HEADS
from lossattn_jax.models.layers import BatchNorm
from lossattn_jax.models.network import ImageNetwork
from lossattn_jax.models.parts import Build


def build(
    backbone: str = "resnet18",
    head: str = "conv",
    pooling: str = poolings.DEFAULT,
    num_classes: int = 10,
    width: float = 1.0,
    threshold: float = pooling_lib.DEFAULT_THRESHOLD,
    *,
    bottleneck_relu_before_add: bool | None = None,
    bottleneck_first_kernel: int | None = None,
    dtype: Dtype = jnp.float32,
    bn_axis_name: str | None = None,
) -> ImageNetwork:
    """Builds a network of the TIP 2021 or the AAAI 2020 paper.

    Of the former's tables, or the latter's image setting.

    Each of the three parts may also be one of your own, named as `package.module:attribute`; see
    `models.parts.Backbone`, `models.parts.Head` and `attention.poolings.Pooling`.

    Args:
      backbone: one of `BACKBONES`. With a head they keep the image's size (section IV-A), but for
        "resnet18_stride2", which halves it once, for 64x64 images (also without a head), and "small"
        (ours, for CPUs and demonstrations). Without one the VGGs pool and the ResNets stride, as
        usual. "capsnet", "deepcaps" and "hitnet" are those of other papers on capsules, whose numbers the
        table quotes.
      head: one of `HEADS`; "none" is the plain network.
      pooling: one of `POOLINGS`. With head "none": "mean", also called "none", or the AAAI paper's loss
        attention over a ResNet's map, or what each of the networks of capsules has: "dynamic_routing" with
        "capsnet", "biased_routing" with "deepcaps", "hit_or_miss" with "hitnet".
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
    form = find_form(backbone, head, pooling)
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
    made_of, made_by = BACKBONES.find(backbone), HEADS.find(head)
    parts = Build(
        width=width,
        plain=made_by.plain,
        norm=functools.partial(BatchNorm, axis_name=bn_axis_name, dtype=dtype),
        dtype=dtype,
        axis_name=bn_axis_name,
        num_classes=num_classes,
        first_kernel=bottleneck_first_kernel,
        relu_before_add=bottleneck_relu_before_add,
    )
    return ImageNetwork(
        make_backbone=made_of.make(parts),
        make_head=made_by.makes[form](parts, made_of),
        num_classes=num_classes,
        dtype=dtype,
        pooling=pooling,
        threshold=threshold,
        attention_hidden=parts.scale(poolings.POOLINGS.find(pooling).hidden),
        form=form,
    )
