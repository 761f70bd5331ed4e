"""State dicts of the papers' networks, made from the golden files' recipe."""

import functools
import json
import pathlib
import zlib

import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parents[3] / "shared" / "golden"


def golden(name: str) -> dict[str, np.ndarray]:
    """A golden file's arrays; skips the test where it is absent."""
    with np.load(_present(GOLDEN / f"{name}.npz")) as arrays:
        return dict(arrays)


def reference_state_dict(network: str, seed: int) -> dict[str, np.ndarray]:
    """The state dict of one of the papers' networks, which its golden file was made with."""
    shapes = reference_shapes()[network]
    return {key: reference_value(key, tuple(shape), seed) for key, shape in shapes.items()}


@functools.cache
def reference_shapes() -> dict[str, dict[str, list[int]]]:
    """Keys and shapes of the papers' networks; skips the test where they are absent."""
    return json.loads(_present(GOLDEN / "reference_state_dict_shapes.json").read_text())


def reference_value(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Value that the recipe gives a PyTorch array of this key and shape."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    stream = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    normal = stream.standard_normal(shape)
    if key.endswith("running_var"):
        return 1 + 0.1 * np.abs(normal)
    if key.endswith("running_mean"):
        return 0.1 * normal
    if len(shape) == 4:
        # The only such shape with one channel is that of the capsules' b4.
        return normal * (0.5 if shape[0] == 1 else np.sqrt(2 / np.prod(shape[1:])))
    if len(shape) == 2:
        return normal / np.sqrt(shape[1])
    return 1 + 0.1 * normal if key.endswith("weight") else 0.1 * normal


def _present(path: pathlib.Path) -> pathlib.Path:
    if not path.exists():
        pytest.skip(f"golden file {path.name} is not beside this checkout")
    return path
