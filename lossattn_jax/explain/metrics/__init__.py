"""Metrics of explanations: faithfulness, localisation, and agreement of maps.

`explanation_metrics` puts all of them into one program for a batch.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)
