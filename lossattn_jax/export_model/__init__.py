"""Networks as programs for others, who need JAX alone: the program, its record and its page.

`program` is the network with all that stands before and behind it, from pixels to probabilities,
`model_files` writes it, `calling_page` says how it is called. What runs in this package belongs into
`predict`. `python -m lossattn_jax.export_model` exports a finished run.
"""

from typing import TYPE_CHECKING

from lossattn_jax.commands import imports

__all__ = [
    "export_run",
]

if TYPE_CHECKING:
    from lossattn_jax.export_model.model_files import export_run
else:
    __getattr__, __dir__ = imports.attach(__name__)
