"""Weights of the golden files' networks, made from their recipe, in our modules' layout."""

import re
import zlib

import jax
import numpy as np

_REFERENCE_STATE = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def reference_key(path: tuple[str, ...]) -> str:
    """PyTorch state-dict key of the parameter or statistic at `path` of a ResNet with a conv head."""
    module, leaf = "/".join(path[:-1]), path[-1]
    module = module.replace("backbone/", "").removesuffix("/conv")
    for ours, theirs in (
        ("head/conv1", "conv5"),
        ("head/bn1", "bn5"),
        ("head/conv2", "conv6"),
        ("head/bn2", "bn6"),
        ("classifier", "linear"),
        ("shortcut_conv", "shortcut.0"),
        ("shortcut_bn", "shortcut.1"),
    ):
        module = module.replace(ours, theirs)
    module = re.sub(r"layer(\d)_(\d)", r"layer\1.\2", module).replace("/", ".")
    return f"{module}.{'weight' if leaf == 'kernel' else _REFERENCE_STATE[leaf]}"


def reference_value(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Value that the recipe gives a PyTorch parameter of this key and shape."""
    stream = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    normal = stream.standard_normal(shape)
    if key.endswith("running_var"):
        return 1 + 0.1 * np.abs(normal)
    if key.endswith("running_mean"):
        return 0.1 * normal
    if len(shape) == 4:
        return normal * np.sqrt(2 / np.prod(shape[1:]))
    if len(shape) == 2:
        return normal / np.sqrt(shape[1])
    return 1 + 0.1 * normal if key.endswith("weight") else 0.1 * normal


def reference_variables(variables, seed: int):
    """`variables` with every leaf replaced by the recipe's value."""

    def value(path, leaf):
        key = reference_key(tuple(entry.key for entry in path[1:]))
        if leaf.ndim == 4:
            kernel = reference_value(key, tuple(leaf.shape[i] for i in (3, 2, 0, 1)), seed)
            return kernel.transpose(2, 3, 1, 0).astype(np.float32)
        if leaf.ndim == 2:
            return reference_value(key, leaf.shape[::-1], seed).T.astype(np.float32)
        return reference_value(key, leaf.shape, seed).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, variables)
