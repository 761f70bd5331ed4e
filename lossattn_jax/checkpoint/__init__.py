"""Checkpoints: storage, integrity, and PyTorch's weights.

`store`, `writer` and `integrity` are the only modules that know about Orbax; `runs` opens a finished run
again, `run_folder` is its folder, `provenance` says what its outputs follow from. `conversion` reads and
writes weights under the names of the papers' code (`torch_names`), from and to the files of `weight_files`;
`pretrained` reads published weights of a backbone.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)
