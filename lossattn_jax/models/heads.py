"""Heads by name: what makes patches, or capsules, of a backbone's map.

To add one, write its module in `patch_head` or a file of its own, and its `Head` here.
"""

import functools
from typing import Any

from lossattn_jax.attention.poolings.entry import (
    CAPSULES,
    CLASS_CAPSULES,
    MAP,
    ONE,
    PATCHES,
    SQUASHED,
    UNITS,
)
from lossattn_jax.models import capsules, deepcaps, hitnet
from lossattn_jax.models.parts import Backbone, Build, Head, adopt_head
from lossattn_jax.models.patch_head import ConvPatchHead, DenseHead, MapHead
from lossattn_jax.registry import Registry

_DENSE_HIDDEN = 4096  # of the plain VGGs


def _make_map_head(build: Build, backbone: Backbone) -> Any:
    del build, backbone
    return MapHead


def _make_dense_head(build: Build, backbone: Backbone) -> Any:
    del backbone
    return functools.partial(
        DenseHead, build.scale(_DENSE_HIDDEN), axis_name=build.axis_name, dtype=build.dtype
    )


def _make_conv_head(build: Build, backbone: Backbone) -> Any:
    patches = backbone.patches
    return functools.partial(
        ConvPatchHead,
        channels=build.scale(patches.channels),
        kernel=patches.kernel,
        stride=patches.stride,
        norm=build.norm,
        use_bias=patches.use_bias,
        dtype=build.dtype,
    )


def _make_units(build: Build, backbone: Backbone) -> Any:
    units = backbone.units
    return functools.partial(
        capsules.PrimaryUnits,
        units=build.scale(units.dimension),
        channels=build.scale(units.channels),
        kernel=units.kernel or backbone.patches.kernel,
        stride=units.stride or backbone.patches.stride,
        norm=build.norm if units.norm else None,
        dtype=build.dtype,
    )


def _make_deep_cell(build: Build, backbone: Backbone) -> Any:
    units = backbone.units
    return functools.partial(
        deepcaps.DeepCapsHead, build.scale(units.channels), units.dimension, dtype=build.dtype
    )


def _make_class_capsules(build: Build, backbone: Backbone) -> Any:
    del backbone
    return functools.partial(
        hitnet.HitOrMissHead,
        classes=build.num_classes,
        dimension=build.scale(hitnet.CAPSULE_DIMENSION),
        norm=build.norm,
        dtype=build.dtype,
    )


def _make_capsules(build: Build, backbone: Backbone) -> Any:
    return functools.partial(
        capsules.CapsuleHead,
        make_units=_make_units(build, backbone),
        capsules=build.scale(capsules.CAPSULES),
        dimension=build.scale(capsules.CAPSULE_DIMENSION),
        norm=build.norm,
        dtype=build.dtype,
    )


HEADS = Registry(
    "head",
    Head,
    {
        "none": Head(
            {
                MAP: _make_map_head,
                PATCHES: _make_map_head,
                ONE: _make_dense_head,
                UNITS: _make_units,
                SQUASHED: _make_deep_cell,
                CLASS_CAPSULES: _make_class_capsules,
            },
            plain=True,
        ),
        "conv": Head({PATCHES: _make_conv_head}),
        "capsule": Head({CAPSULES: _make_capsules, UNITS: _make_units}),
    },
    adopt=adopt_head,
)
