"""Combinations of backbones, heads and poolings that fit together.

A head makes what a pooling takes.
"""

from lossattn_jax.attention.poolings import POOLINGS, Pooling
from lossattn_jax.errors import UserError
from lossattn_jax.models.backbones import BACKBONES
from lossattn_jax.models.heads import HEADS
from lossattn_jax.models.parts import Backbone, Head


def poolings(backbone: str, head: str) -> tuple[str, ...]:
    """Lists the poolings that fit a backbone and a head.

    None where these do not fit.

    Raises:
      UnknownName: there is no such backbone or head.
    """
    parts = BACKBONES.find(backbone), HEADS.find(head)
    return tuple(name for name, pooling in POOLINGS.items() if _form(*parts, pooling) is not None)


def find_form(backbone: str, head: str, pooling: str) -> str:
    """Finds the form of features between a head and a pooling.

    See `poolings.entry`.

    Raises:
      UserError: a name is unknown, or a combination does not exist; a sentence with the ones that do.
    """
    parts = BACKBONES.find(backbone), HEADS.find(head)
    form = _form(*parts, POOLINGS.find(pooling))
    if form is not None:
        return form
    there_is = "; ".join(
        f"head {other} with pooling {', '.join(poolings(backbone, other))}"
        for other in HEADS
        if poolings(backbone, other)
    )
    raise UserError(
        f"backbone {backbone!r} with head {head!r} and pooling {pooling!r} does not exist; "
        f"for this backbone there is {there_is}"
    )


def _form(backbone: Backbone, head: Head, pooling: Pooling) -> str | None:
    pooling_forms = pooling.forms()
    return next((form for form in head.forms(backbone) if form in pooling_forms), None)
