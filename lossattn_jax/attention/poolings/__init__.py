"""Poolings of images and bags, one registry entry each.

A pooling makes of the features of an image's patches, or of a bag's instances, one prediction and the weight
that each of them has in it. To add one, write a function of `Patches` and its `Pooling` in a file here, and
put it into `POOLINGS`; no other code lists poolings. One of your own, from any file, is named by reference:

    from lossattn_jax.attention.poolings import Outputs, Patches

    def sharp(patches: Patches) -> Outputs:
        return patches.weigh(pooling.softmax_attention(patches.patch_logits.max(-1), patches.mask))

    lossattn train --config.model.pooling=my.code:sharp ...
    lossattn mil cv --method=my.code:sharp ...

As a `Pooling(sharp, patch_loss=True, ...)` it says more of itself than a function can.
"""

from lossattn_jax.attention.outputs import Outputs as Outputs
from lossattn_jax.attention.poolings import (
    clustering,
    dual_stream,
    entry,
    hit_or_miss,
    learned_attention,
    loss_attention,
    maximum,
    routing,
    transformer,
    uniform,
)
from lossattn_jax.attention.poolings.entry import INSTANCES, SUPERVISION, Patches, Pooling
from lossattn_jax.registry import Registry

__all__ = ["DEFAULT", "BAG_POOLINGS", "POOLINGS", "SUPERVISION", "Outputs", "Patches", "Pooling"]

# All of them, under the names that networks for images know them by. "none" is what configs call the mean
# over the positions of a plain network's map.
POOLINGS = Registry(
    "pooling",
    Pooling,
    {
        "mean": uniform.MEAN,
        "mi_net": maximum.MI_NET,
        "max": maximum.MAX,
        "mi_net_ds": maximum.MI_NET_DS,
        "mi_net_rc": maximum.MI_NET_RC,
        "attention": learned_attention.ATTENTION,
        "gated_attention": learned_attention.GATED_ATTENTION,
        "loss_attention": loss_attention.LOSS_ATTENTION,
        "dynamic_routing": routing.DYNAMIC_ROUTING,
        "biased_routing": routing.BIASED_ROUTING,
        "hit_or_miss": hit_or_miss.HIT_OR_MISS,
        "bag_loss_attention": loss_attention.BAG_LOSS_ATTENTION,
        "instance_max": maximum.INSTANCE_MAX,
        "clam": clustering.CLAM,
        "dsmil": dual_stream.DSMIL,
        "transmil": transformer.TRANSMIL,
    },
    adopt=entry.adopt,
    old_names={"none": "mean"},
)

# Those that work on bags, under the names that networks for bags know them by: the AAAI 2020 paper's, in the
# order of its table, and behind them baselines of others. Loss attention is each paper's own.
BAG_POOLINGS = Registry(
    "method",
    Pooling,
    {
        name if pooling.paper is None else pooling.paper.method: pooling
        for name, pooling in sorted(POOLINGS.items(), key=lambda item: item[1].paper is None)
        if INSTANCES in pooling.takes
    },
    adopt=entry.adopt,
)

DEFAULT = "loss_attention"  # in either registry
