"""Names of the arrays in a tree."""

from typing import Any

import jax


def name_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Names a tree's leaves, such as "backbone/conv1/kernel".

    A field of a class is as a key of a dictionary.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
