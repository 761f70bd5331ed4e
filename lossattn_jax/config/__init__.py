"""Configuration: every key with its default, the check of values, config files and stored configs.

`images` is the configuration of networks for images, `bags` that of experiments with bags. Another check of a
value, or another key, belongs here and nowhere else.
"""

from typing import TYPE_CHECKING

from lossattn_jax.commands import imports

__all__ = [
    "check",
    "default_config",
    "leaves",
]

if TYPE_CHECKING:
    from lossattn_jax.config.images import (
        check,
        default_config,
        leaves,
    )
else:
    __getattr__, __dir__ = imports.attach(__name__)
