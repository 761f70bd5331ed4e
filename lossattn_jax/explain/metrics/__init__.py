"""Metrics of explanations: faithfulness, localisation, and agreement of maps.

A metric is an entry of `metric_registry`, which looks at the `maps` of a batch; `explanation_metrics` puts
all of them into one program.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)
