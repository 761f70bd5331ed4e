"""Which backbones, heads and poolings go together."""

from collections.abc import Mapping

from lossattn_jax.errors import UserError
from lossattn_jax.models import resnet, vgg
from lossattn_jax.registry import lookup

HEADS = ("none", "conv", "capsule")
POOLINGS = (
    "none",
    "mean",
    "max",
    "attention",
    "gated_attention",
    "loss_attention",
    "dynamic_routing",
    "bag_loss_attention",
)


def _of_heads(plain: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The poolings by head, of a backbone that goes with every head."""
    conv = tuple(p for p in POOLINGS if p not in ("none", "dynamic_routing"))
    return {"none": plain, "conv": conv, "capsule": ("loss_attention", "dynamic_routing")}


_POOLINGS_OF_HEADS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    # A VGG's one patch has nothing to be weighed against.
    **dict.fromkeys(vgg.STAGES, _of_heads(("none",))),
    **dict.fromkeys(
        (*resnet.STAGE_BLOCKS, "resnet18_stride2", "small"),
        _of_heads(("none", "bag_loss_attention")),
    ),
    "capsnet": {"none": ("dynamic_routing",), "conv": (), "capsule": ()},
}
BACKBONES = tuple(_POOLINGS_OF_HEADS)


def poolings(backbone: str, head: str) -> tuple[str, ...]:
    """Lists the poolings of a backbone and a head; none where these do not fit.

    Raises:
      UnknownName: there is no such backbone or head.
    """
    of_heads = lookup("backbone", backbone, _POOLINGS_OF_HEADS)
    return lookup("head", head, of_heads)


def check(backbone: str, head: str, pooling: str) -> None:
    """Refuses names and combinations that do not exist.

    Raises:
      UserError: a sentence with the ones that do.
    """
    existing = poolings(backbone, head)
    lookup("pooling", pooling, dict.fromkeys(POOLINGS))
    if pooling in existing:
        return
    there_is = "; ".join(
        f"head {other} with pooling {', '.join(poolings(backbone, other))}"
        for other in HEADS
        if poolings(backbone, other)
    )
    raise UserError(
        f"backbone {backbone!r} with head {head!r} and pooling {pooling!r} does not exist; "
        f"for this backbone there is {there_is}"
    )
