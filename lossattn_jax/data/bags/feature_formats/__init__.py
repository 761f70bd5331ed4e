"""Formats of feature files, a module each: how the arrays of a bag's file are opened.

`bag_file` makes a bag's reader of named arrays, whatever the format. A format opens a file's arrays for a
moment and closes the file again; it reads shapes and types without reading instances. To add one, write such
a function here and put its `FeatureFormat` into `FORMATS` of `lossattn_jax/data/bags/feature_files.py`.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)
