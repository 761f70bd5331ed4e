"""Which backbones, heads and poolings go together."""

from lossattn_jax.errors import UserError
from lossattn_jax.models import resnet, vgg

BACKBONES = (*vgg.STAGES, *resnet.STAGE_BLOCKS, "resnet18_stride2", "small", "capsnet")
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

_CONV_POOLINGS = tuple(p for p in POOLINGS if p not in ("none", "dynamic_routing"))
_CAPSULE_POOLINGS = ("loss_attention", "dynamic_routing")


def poolings(backbone: str, head: str) -> tuple[str, ...]:
    """The poolings that exist for a backbone and a head; none where these do not go together."""
    if head not in HEADS:
        return ()
    if backbone == "capsnet":
        return ("dynamic_routing",) if head == "none" else ()
    if head == "conv":
        return _CONV_POOLINGS
    if head == "capsule":
        return _CAPSULE_POOLINGS
    if backbone in vgg.STAGES:
        return ("none",)  # its one patch has nothing to be weighed against
    return ("none", "bag_loss_attention")


def check(backbone: str, head: str, pooling: str) -> None:
    """Refuses names and combinations that do not exist.

    Raises:
      UserError: a sentence with the ones that do.
    """
    names = (
        ("backbone", backbone, BACKBONES),
        ("head", head, HEADS),
        ("pooling", pooling, POOLINGS),
    )
    for what, name, allowed in names:
        if name not in allowed:
            raise UserError(f"{what} is {name!r}, but must be one of: {', '.join(allowed)}")
    if pooling in poolings(backbone, head):
        return
    existing = "; ".join(
        f"head {other} with pooling {', '.join(poolings(backbone, other))}"
        for other in HEADS
        if poolings(backbone, other)
    )
    raise UserError(
        f"backbone {backbone!r} with head {head!r} and pooling {pooling!r} does not exist; "
        f"for this backbone there is {existing}"
    )
