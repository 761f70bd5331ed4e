"""Training: schedules, optimisers, state, step and loop."""

from typing import TYPE_CHECKING

from lossattn_jax.commands import lazy

if TYPE_CHECKING:
    from lossattn_jax.train.images import loop as loop
else:
    __getattr__, __dir__ = lazy.attach(__name__)
