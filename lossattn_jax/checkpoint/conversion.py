"""Conversion of weights from and to PyTorch, under the papers' names.

The names are those of `lossattn_jax.checkpoint.torch_names`.
"""

import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from ml_collections import ConfigDict

from lossattn_jax.checkpoint import (
    conversion_folder,
    runs,
    state_dicts,
    torch_arrays,
    torch_names,
    weight_files,
)
from lossattn_jax.config import images as config_lib
from lossattn_jax.errors import UserError

log = logging.getLogger(__name__)

UNUSED = "unused"  # collection of what PyTorch's code stores and never uses


def from_torch_state_dict(
    state_dict: Mapping[str, Any],
    model: nn.Module,
    image_shape: tuple[int, int, int] | None = None,
) -> dict[str, Any]:
    """Converts a PyTorch state dict of the papers' code to variables.

    Every array that takes part must be there in its shape, and nothing else may. Of what the papers' code
    stores and never uses, the counters `num_batches_tracked` may be absent, as in files of PyTorch
    before 0.4.1; the rest may not, since PyTorch's own strict loading asks for it too. Values are taken as
    they are, also non-finite ones and negative running variances, which `convert_file` refuses.

    Args:
      state_dict: arrays (NumPy, JAX or PyTorch; floats of any width) by key. The whole may be wrapped as
        trainers do, `{"state_dict": ...}`, and every key may begin with `module.`, as of DataParallel; see
        `state_dicts.unwrap`.
      model: a network of `models.build`, or `mil.BagLeNet`.
      image_shape: (height, width, channels) of its images, on which the weights of dynamic routing and
        of a plain VGG's first dense layer depend. None: 64x64 for "resnet18_stride2", else 32x32.

    Returns:
      What `model.apply` takes: float32 JAX arrays in the tree of `model.init`. Values that the papers'
      code stores and never uses are kept in a further collection "unused", a flat dict of NumPy arrays
      by key, where they are not what `to_torch_state_dict` writes by itself. `model.apply` ignores it.

    Raises:
      UserError: a key is missing, unknown, or holds no array, or one of another shape; there are several
        state dicts in the wrapper; or the network's bottlenecks begin with a 3x3 convolution and
        `bottleneck_relu_before_add` is left open.
    """
    layout = torch_names.layout(model, image_shape)
    weights = _fitting(state_dict, model, layout)
    arrays = {key: torch_arrays.to_array(key, value) for key, value in weights.items()}

    leaves = {path: np.empty(shape, np.float32) for path, shape in layout.leaves.items()}
    for slot in layout.slots:
        slot.write(leaves[slot.path], arrays[slot.key])
    # A copy: JAX may otherwise go on using the memory of `leaves`.
    variables = traverse_util.unflatten_dict({p: jnp.array(leaf) for p, leaf in leaves.items()})
    extra = {}
    for key, usual in layout.unused.items():
        value = arrays.get(key, usual).astype(usual.dtype)
        if value.tobytes() != usual.tobytes():
            extra[key] = value
    return {**variables, UNUSED: extra} if extra else variables


def to_torch_state_dict(
    variables: Mapping[str, Any],
    model: nn.Module,
    image_shape: tuple[int, int, int] | None = None,
) -> dict[str, np.ndarray]:
    """Converts a network's variables to a complete PyTorch state dict.

    Strict loading takes it.

    Args:
      variables: "params", "batch_stats" where the network has them, and "unused" where there is one;
        other collections are left out.
      model: as in `from_torch_state_dict`, which this undoes.
      image_shape: as there.

    Returns:
      Arrays by key: float32, and int64 for the counters `num_batches_tracked`.

    Raises:
      UserError: the variables are not of this network.
    """
    layout = torch_names.layout(model, image_shape)
    extra = dict(variables.get(UNUSED, {}))
    for key in extra:
        if key not in layout.unused:
            raise UserError(f"variables['{UNUSED}'] has {key!r}, which this network has no use for")
    network_variables = {
        name: tree for name, tree in variables.items() if name in ("params", "batch_stats")
    }
    state = _read_slots(network_variables, layout, layout.slots)
    for key, usual in layout.unused.items():
        state[key] = np.array(extra.get(key, usual), usual.dtype)
    return state


def to_torch_parameters(
    params: Mapping[str, Any],
    model: nn.Module,
    image_shape: tuple[int, int, int] | None = None,
) -> dict[str, np.ndarray]:
    """Gives a tree shaped as the parameters PyTorch's keys.

    Such as gradients.

    Args:
      params: a tree like `variables["params"]`.
      model: as in `from_torch_state_dict`.
      image_shape: as there.

    Returns:
      float32 arrays by key, of parameters that take part alone.

    Raises:
      UserError: the tree is not of this network.
    """
    layout = torch_names.layout(model, image_shape)
    slots = [slot for slot in layout.slots if slot.path[0] == "params"]
    return _read_slots({"params": params}, layout, slots)


def _read_slots(
    tree: Mapping[str, Any], layout: torch_names.Layout, slots: Sequence[torch_names.Slot]
) -> dict[str, np.ndarray]:
    slot_paths = {slot.path for slot in slots}
    leaves = traverse_util.flatten_dict(tree)
    differing = sorted(slot_paths ^ leaves.keys())
    if differing:
        what = "lack" if differing[0] in slot_paths else "have"
        name = "/".join(differing[0])
        raise UserError(f"the variables {what} {name}: they are of another network")
    arrays = {path: np.asarray(leaf, np.float32) for path, leaf in leaves.items()}
    for path, array in arrays.items():
        if array.shape != layout.leaves[path]:
            raise UserError(
                f"the variables hold {'/'.join(path)} with shape {array.shape}, but this network's has "
                f"{layout.leaves[path]}"
            )
    return {slot.key: slot.read(arrays[slot.path]) for slot in slots}


def _fitting(
    state_dict: Mapping[str, Any], model: nn.Module, layout: torch_names.Layout
) -> dict[str, Any]:
    """Selects the arrays of a state dict that a network takes.

    Raises:
      UserError: keys, shapes or dtypes are those of another network, or the bottlenecks are not decided.
    """
    weights = state_dicts.unwrap(state_dict)
    torch_names.check_bottlenecks(model, weights)
    _check_keys(weights, layout)
    shapes = {slot.key: slot.shape for slot in layout.slots}
    shapes |= {key: array.shape for key, array in layout.unused.items() if key in weights}
    _check_shapes(weights, shapes)
    for key in shapes:
        if isinstance(weights[key], np.ndarray):
            torch_arrays.check_dtype(key, weights[key])
    return {key: weights[key] for key in shapes}


def _check_keys(state_dict: Mapping[str, Any], layout: torch_names.Layout) -> None:
    required_keys = [slot.key for slot in layout.slots]
    required_keys += [key for key in layout.unused if not key.endswith(torch_names.COUNTER)]
    missing = [key for key in required_keys if key not in state_dict]
    extra = sorted(state_dict.keys() - set(required_keys) - layout.unused.keys())
    wrong = []
    if missing:
        wrong.append(f"lack {_first_of(missing)}")
    if extra:
        wrong.append(f"have {_first_of(extra)}, which this network does not have")
    if wrong:
        raise UserError(f"the weights {', and '.join(wrong)}")


def _first_of(keys: Sequence[str]) -> str:
    return f"{keys[0]!r}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def _check_shapes(state_dict: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses arrays of wrong shapes before anything is converted.

    A file of 1 kB may hold one number as a tensor of terabytes.
    """
    has = {
        key: tuple(getattr(state_dict[key], "shape", ()))
        for key in shapes
        if torch_arrays.is_array(state_dict[key])
    }
    wrong = [key for key, shape in has.items() if shape != shapes[key]]
    if wrong:
        key = wrong[0]
        more = f"; nor do {len(wrong) - 1} more fit" if len(wrong) > 1 else ""
        raise UserError(
            f"{key!r} of the weights has shape {has[key]}, but this network's has {shapes[key]}{more}"
        )


def _refuse_unusable(
    variables: Mapping[str, Any], model: nn.Module, image_shape: tuple[int, int, int]
) -> None:
    """Refuses values that make every output NaN.

    Only arrays that take part are looked at.

    Raises:
      UserError: an array is not finite, or a running variance negative.
    """
    layout = torch_names.layout(model, image_shape)
    network_variables = {
        name: tree for name, tree in variables.items() if name in ("params", "batch_stats")
    }
    arrays = _read_slots(network_variables, layout, layout.slots)
    torch_arrays.refuse_unusable(layout.slots, arrays)


def convert_file(path: str | pathlib.Path, config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Makes a run of a file of weights.

    It has `config.json` and a checkpoint of step 0 without training state.

    Weights that are not finite, and negative running variances, are refused.

    What the papers' code stores and never uses is checked and left out. A killed conversion is made anew by
    the same call.

    Args:
      path: `.pt`, `.pth`, `.npz` or `.safetensors`; see `weight_files.read`.
      config: describes the network and its data set.
      workdir: folder of the run; made where absent.

    Raises:
      UserError: the file cannot be read, is of another network or holds values that no network can use,
        the config is impossible, or the workdir holds a run already, is being written by another command or
        cannot be written.
    """
    options = config_lib.resolve(config)
    spec = runs.spec_of(options.data)
    model = runs.build_model(options.model, spec)
    folder = pathlib.Path(workdir)
    conversion_folder.refuse_used(folder, options)
    layout = torch_names.layout(model, spec.image_shape)
    # Before the content is read: some kB of a file can unpack to gigabytes.
    state_dict = weight_files.read(path, lambda headers: _fitting(headers, model, layout))
    try:
        variables = from_torch_state_dict(state_dict, model, spec.image_shape)
        _refuse_unusable(variables, model, spec.image_shape)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    items = {name: variables.get(name, {}) for name in ("params", "batch_stats")}
    conversion_folder.write(folder, options, spec, items, weights=os.fspath(path))
    log.info("written: checkpoint 0 in %s", folder)


def export_file(
    workdir: str | pathlib.Path,
    path: str | pathlib.Path,
    checkpoint: str = "latest",
    *,
    trust_code: bool = False,
) -> None:
    """Writes a checkpoint's weights as a file for PyTorch.

    Args:
      workdir: folder of the run.
      path: `.npz` or `.safetensors`; an existing file is replaced.
      checkpoint: "latest", "best" or a step.
      trust_code: whether code that the run's config names by reference is imported.

    Raises:
      UserError: there is no such run or checkpoint, it holds weights that are not finite or negative
        running variances, or the file cannot be written.
    """
    weight_files.check_writable(path)
    run = runs.load(workdir, checkpoint, trust_code=trust_code)
    try:
        _refuse_unusable(run.variables, run.model, run.spec.image_shape)
    except UserError as error:
        raise UserError(f"checkpoint {run.step} in {workdir}: {error}") from None
    state = to_torch_state_dict(run.variables, run.model, run.spec.image_shape)
    weight_files.write(state, path)
    log.info("written: step %d of %s in %s", run.step, workdir, path)
