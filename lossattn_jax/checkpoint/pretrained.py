"""Published weights of a backbone that a run starts from, and the record of which they were.

Files of torchvision (ResNets), timm and DINOv2 (vision transformers), or of any backbone that has names in
PyTorch.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lossattn_jax import devices
from lossattn_jax.checkpoint import run_folder, state_dicts, torch_arrays, torch_names, weight_files
from lossattn_jax.errors import UserError, name_first
from lossattn_jax.files import digests, records
from lossattn_jax.models.network import BACKBONE, ImageNetwork
from lossattn_jax.models.parts import PublishedWeights

log = logging.getLogger(__name__)

RECORD_NAME = "pretrained.json"

_KEY = "config.model.pretrained"
_WEIGHTS = "weights"  # in the record, the digest of the file
_MOST_NAMED = 3  # arrays that a sentence names


@dataclasses.dataclass(frozen=True)
class PretrainedBackbone:
    """A backbone's variables from a file.

    Attributes:
      variables: by collection, the tree of the backbone, float32.
      resized: the arrays that were made ones for images of another size, with both shapes.
      left_out: names of the file's arrays that are not the backbone's.
    """

    variables: dict[str, Any]
    resized: tuple[str, ...]
    left_out: tuple[str, ...]


def read(
    path: str | pathlib.Path, model: ImageNetwork, image_shape: tuple[int, int, int]
) -> PretrainedBackbone:
    """Reads the weights of a network's backbone.

    Args:
      path: `.safetensors`, `.npz`, `.pt` or `.pth`; see `weight_files.read`. Names are those of the
        backbone's methods `torch_modules` and `published_weights`, behind a trainer's wrappers and prefixes
        (`state_dicts.unwrap`).
      model: the network.
      image_shape: (height, width, channels) of its images, to whose grid position embeddings are resampled.

    Raises:
      UserError: the file cannot be read, lacks arrays, has some of wrong shapes or that the backbone has not,
        or values that no network can use; or the backbone has no names in PyTorch.
    """
    layout = torch_names.backbone_layout(model, image_shape)
    backbone: Any = model.make_backbone()
    published = getattr(backbone, "published_weights", PublishedWeights)()
    # Before the content is read: some kB of a file can unpack to gigabytes.
    content = weight_files.read(path, lambda headers: _select(headers, layout, published))
    try:
        weights, left_out = _select(content, layout, published)
        arrays = {key: torch_arrays.to_array(key, value) for key, value in weights.items()}
        map_size = model.patch_grid(image_shape).map_size
        resized = []
        for key, resizing in published.resized.items():
            before = arrays[key]
            arrays[key] = resizing.resize(before, map_size)
            if arrays[key] is not before:
                resized.append(f"{key} from {before.shape} to {arrays[key].shape}")
        torch_arrays.refuse_unusable(layout.slots, arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    leaves = {path: np.empty(shape, np.float32) for path, shape in layout.leaves.items()}
    for slot in layout.slots:
        slot.write(leaves[slot.path], arrays[slot.key])
    # A copy: JAX may otherwise go on using the memory of `leaves`.
    tree = traverse_util.unflatten_dict({path: jnp.array(leaf) for path, leaf in leaves.items()})
    variables = {collection: parts[BACKBONE] for collection, parts in tree.items()}
    return PretrainedBackbone(variables, tuple(resized), left_out)


def start(
    path: str,
    model: ImageNetwork,
    image_shape: tuple[int, int, int],
    variables: Mapping[str, Any],
    workdir: pathlib.Path,
) -> dict[str, Any]:
    """Puts a file's backbone into a network's first variables, and writes the record.

    All processes have to come here.

    Args:
      path: of the file; empty: the variables stay, and no record does of a start that no checkpoint came of.
      model: the network.
      image_shape: (height, width, channels) of its images.
      variables: collections as of `model.init`.
      workdir: of the run; exists.

    Returns:
      The collections with the file's backbone.

    Raises:
      UserError: as of `read`, with the key before it; or processes have different files, or the workdir
        cannot be written.
    """
    record = workdir / RECORD_NAME
    if not path:
        if jax.process_index() == 0:
            with run_folder.writing(workdir):
                record.unlink(missing_ok=True)
        return dict(variables)
    try:
        backbone = read(path, model, image_shape)
    except UserError as error:
        raise UserError(f"{_KEY}: {error}") from None
    digest = digests.of_file(path)
    if digest is None or not devices.same_everywhere(int(digest[:7], 16)):
        raise UserError(
            f"{_KEY} is {path!r}, but the file changes, or is another one for another process: every host "
            "has to have the same copy"
        )
    log.info("backbone from %s", path)
    for what, names in (("resampled", backbone.resized), ("left out", backbone.left_out)):
        if names:
            log.info("of %s, %s: %s", path, what, ", ".join(names))
    if jax.process_index() == 0:
        content = {
            "file": path,
            "resampled": list(backbone.resized),
            "left_out": list(backbone.left_out),
        }
        with run_folder.writing(workdir):
            records.write(record, content, {_WEIGHTS: digest}, indent=1)
    filled = {
        name: {**variables[name], BACKBONE: tree} for name, tree in backbone.variables.items()
    }
    return {**variables, **filled}


def refuse_other(path: str, workdir: pathlib.Path) -> None:
    """Refuses to resume a run with other weights than it was started from.

    The file may be gone, or not be named any more.

    Args:
      path: of the file, or empty.
      workdir: of the run.

    Raises:
      UserError: the file is another one, or the run was started without.
    """
    if not path:
        return
    remedy = f"leave {_KEY} empty, as the checkpoints hold the weights, or use another workdir"
    try:
        made_from = records.read(workdir / RECORD_NAME).made_from or {}
    except FileNotFoundError:
        raise UserError(
            f"{_KEY} is {path!r}, but the run in {workdir} was started without such a file: {remedy}"
        ) from None
    except records.DamagedRecord as error:
        log.warning("warning: %s: whether %s is the same file cannot be seen", error, path)
        return
    digest = digests.of_file(path)
    if digest is not None and digest != made_from.get(_WEIGHTS):
        raise UserError(
            f"{_KEY} is {path!r}, but the run in {workdir} was started from another file: {remedy}"
        )


def _select(
    content: Any, layout: torch_names.Layout, published: PublishedWeights
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Selects the arrays of a state dict that a backbone takes, and names those that it leaves out.

    Raises:
      UserError: names, shapes or dtypes are those of another network.
    """
    weights = {
        published.renamed.get(key, key): value for key, value in state_dicts.unwrap(content).items()
    }
    shapes = {slot.key: slot.shape for slot in layout.slots}
    counters = {key for key in weights if key.endswith(torch_names.COUNTER)}
    left_out = tuple(sorted(key for key in weights if key.startswith(published.left_out)))
    missing = [key for key in shapes if key not in weights]
    unknown = sorted(weights.keys() - shapes.keys() - counters - set(left_out))
    wrong = []
    for key in shapes.keys() & weights.keys():
        shape = tuple(getattr(weights[key], "shape", ()))
        resizing = published.resized.get(key)
        fits = shape == shapes[key] if resizing is None else resizing.suits(shape)
        if not (fits and torch_arrays.is_array(weights[key])):
            wrong.append(f"{key!r} of {shape} instead of {shapes[key]}")
    clauses = []
    if missing:
        clauses.append(f"lack {name_first([repr(key) for key in missing], _MOST_NAMED)}")
    if wrong:
        clauses.append(f"have {name_first(sorted(wrong), _MOST_NAMED)}")
    if unknown:
        names = name_first([repr(key) for key in unknown], _MOST_NAMED)
        clauses.append(f"have {names}, which this backbone has not")
    if clauses:
        raise UserError(
            f"the weights {', and '.join(clauses)}: take the file of this config.model.backbone at "
            "config.model.width 1"
        )
    for key in shapes:
        if isinstance(weights[key], np.ndarray):
            torch_arrays.check_dtype(key, weights[key])
    return {key: weights[key] for key in shapes}, left_out
