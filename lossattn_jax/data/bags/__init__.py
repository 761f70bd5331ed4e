"""Bags: files, tables, benchmarks, generated bags, folds and padding.

`bags` holds them as one flat array of instances; `sources` finds the bags that a user names.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)
