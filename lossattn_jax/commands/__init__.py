"""The commands of `lossattn`: table, texts of `--help`, start and end.

`table` and `help_text` do without JAX, so that `lossattn --help` is quick; `command` runs what a module's
flags say, `progress` measures how far it is, `imports` has the rest of the package imported when it is first
wanted.
"""
