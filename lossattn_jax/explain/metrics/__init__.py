"""Metrics of explanations: faithfulness, localisation, and agreement of maps.

`metric_registry.METRICS` has them. A metric is a function of `maps.Maps`, an explainer's maps of a batch with
all that they are measured against; what it computes stands in `faithfulness`, `localisation` or
`map_agreement`. `explanation_metrics` puts all chosen ones into one program.

To add one that gives a value for each image, write the function and its `Metric` in `metric_registry`. One
that is made of others (with no `measure`: of curves, of a ranking of all images, of times) is computed in
`explanation_metrics.metrics_of`, or in `explain.comparison` if it needs the whole split, and has its entry
besides.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)
