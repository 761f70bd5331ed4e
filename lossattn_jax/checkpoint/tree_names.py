"""Names of the arrays in a tree."""

from typing import Any

import jax


def named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves by name, such as "backbone/conv1/kernel"; a field of a class is as a key of a dictionary."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
