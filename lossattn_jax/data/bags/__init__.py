"""Bags: files, tables, benchmarks, generated bags, folds and padding.

`bags.BagDataset` holds bags as one flat array of instances; `sources` finds those that a user names. To add a
data set of bags, put a `Source` into `sources.SOURCES`: `WholeBags` where all bags are there for
cross-validation, `GeneratedBags` where they are drawn from images, `AssumptionBags` where they test what a
method has learned. A published benchmark is a `Benchmark` in `benchmarks.BENCHMARKS`, and nothing else.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)
