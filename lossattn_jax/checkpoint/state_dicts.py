"""State dicts as PyTorch's trainers save them: wrappers and prefixes."""

from collections.abc import Mapping
from typing import Any

from lossattn_jax.errors import UserError

# Under which names trainers store a state dict beside others, such as the optimiser's.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# What every key begins with where the network is a part of a module: DataParallel's, Lightning's and others'.
PREFIXES = ("module.", "model.", "net.")
_COMPILE_PREFIX = (
    "_orig_mod"  # what torch.compile puts into the names of a module that it has compiled
)
_DEEPEST = 8  # wrappers inside each other


def unwrap(state_dict: Any) -> dict[str, Any]:
    """Unwraps a trainer's state dict, under the network's own keys.

    Args:
      state_dict: values by key; or a dictionary with such a one under one of `WRAPPERS`, which may be wrapped
        again. Every key may begin with `PREFIXES`, in any order, and have `_orig_mod.` anywhere.

    Raises:
      UserError: it is no dictionary, holds several state dicts, or one key both compiled and not.
    """
    for _ in range(_DEEPEST):  # a dictionary may hold itself
        inside = _unwrap_once(state_dict)
        if inside is None:
            break
        state_dict = inside
    if not isinstance(state_dict, Mapping):
        raise UserError(
            f"the weights are of type {type(state_dict).__name__}, but must be a dictionary of arrays"
        )
    weights: dict[str, Any] = {}
    for name, value in state_dict.items():
        key = ".".join(part for part in str(name).split(".") if part != _COMPILE_PREFIX)
        if key in weights:
            raise UserError(
                f"the weights hold {key!r} twice, with and without {_COMPILE_PREFIX!r}: leave one of them out"
            )
        weights[key] = value
    while prefix := next(
        (p for p in PREFIXES if weights and all(k.startswith(p) for k in weights)), ""
    ):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _holds_arrays(values: Mapping[str, Any]) -> bool:
    has_wrapper = any(isinstance(values.get(name), Mapping) for name in WRAPPERS)
    return has_wrapper or any(hasattr(value, "shape") for value in values.values())


def _unwrap_once(state_dict: Any) -> Mapping[str, Any] | None:
    """Returns the dictionary under one of `WRAPPERS`, or None.

    Raises:
      UserError: several do.
    """
    if not isinstance(state_dict, Mapping):
        return None
    names = [name for name in WRAPPERS if isinstance(state_dict.get(name), Mapping)]
    if len(names) > 1:  # a network's settings may stand beside its weights
        names = [name for name in names if _holds_arrays(state_dict[name])] or names
    if len(names) > 1:
        raise UserError(
            f"the weights hold several state dicts ({', '.join(map(repr, names))}): save the one that is "
            "meant by itself"
        )
    return state_dict[names[0]] if names else None
