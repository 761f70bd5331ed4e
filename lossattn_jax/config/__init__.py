"""Configuration: keys with defaults, checks, config files, stored configs.

`options` has every key with its default and its rule, once for images and bags; another key belongs there.
`images` and `bags` are the two configurations that are made of them, each a `schema.Schema`, which checks
values. `former_keys` has the names of keys in the release before, `config_json` the config of a workdir.
Beyond the functions where a command begins, code takes the frozen options that it needs and no config.
"""

from typing import TYPE_CHECKING

from lossattn_jax.commands import imports

__all__ = [
    "check",
    "default_config",
    "leaves",
]

if TYPE_CHECKING:
    from lossattn_jax.config.images import check, default_config, leaves
else:
    __getattr__, __dir__ = imports.attach(__name__)
