"""The package's side of `pinned_updates`; run inside the pinned tree.

    python pinned_adapter.py scenes FOLDER
    python pinned_adapter.py bags OUT.npz ARGUMENTS-OF-lossattn_jax.mil

All that it takes for granted of the package are its imports and what comes before `run_bags`: where a name
moves or a result gets another form, these follow, and nothing else.
"""

import runpy
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.data import prepare
from lossattn_jax.train.bags import training
from lossattn_jax.train.bags.objective import bag_loss

# The module and the function that trains all folds of a network together, and those that predicts with them.
TRAIN = (training, "train")
PREDICT = (training, "predict")


def write_scenes(folder: str, train: int, test: int) -> None:
    """Prepares a digit_scenes of so many images."""
    prepare.prepare("digit_scenes", folder, builder_kwargs={"num_train": train, "num_test": test})


def parameters(models: Any) -> dict[str, Any]:
    """Returns parameters of a result of `TRAIN`, by kind.

    Each leaf has an axis of models.
    """
    trees = {"last": models.last, "best": models.best, "kept": models.at_keep_epoch}
    return {name: tree for name, tree in trees.items() if tree is not None}


def count_skipped(models: Any) -> int:
    """Counts non-finite updates in a result of `TRAIN`."""
    name = "num_skipped" if hasattr(models, "num_skipped") else "skipped"  # in earlier trees
    return int(np.sum(getattr(models, name)))


def outputs(predictions: Any) -> dict[str, np.ndarray]:
    """Returns logits, patch logits and attention of a result of `PREDICT`.

    `logits` `[M, B, K]`, `patch_logits` `[M, N, K]`, `attention` `[M, N]`.
    """
    return {
        "logits": predictions.logits,
        "patch_logits": predictions.instance_logits,
        "attention": predictions.attention,
    }


def losses(
    dataset: Any, network: Any, settings: Any, predictions: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Losses `[M, B]` float32 of the bags that each model predicts.

    NaN for the other bags.

    Args:
      dataset, network, settings: the first arguments of `TRAIN` and `PREDICT`.
      predictions: of `outputs`.
    """
    has_patch_loss = network.method == "loss_attention"
    result = np.full(predictions["logits"].shape[:2], np.nan, np.float32)
    for model, bag in zip(
        *np.nonzero(np.isfinite(predictions["logits"]).all(axis=-1)), strict=True
    ):
        rows = slice(*dataset.offsets[bag : bag + 2])
        of_bag = Outputs(
            jnp.asarray(predictions["logits"][model, bag][None]),
            jnp.asarray(predictions["patch_logits"][model, rows][None]),
            jnp.asarray(predictions["attention"][model, rows][None]),
        )
        result[model, bag] = bag_loss(
            of_bag,
            jnp.asarray(dataset.labels[bag][None]),
            jnp.ones((1, dataset.lengths[bag]), bool),
            settings.patch_weight if has_patch_loss else None,
            settings.patch_reduction,
        )[0]
    return result


def run_bags(out: str, arguments: list[str]) -> None:
    """Runs `lossattn_jax.mil` and stores what its networks were and said.

    The file has `parameters/PLACE/WHICH/NAME`, `outputs/PLACE/NAME` and `losses/PLACE`, the place being
    that of the call among those of the same function, and `num_skipped`.
    """
    trainings, predictions = _watch(*TRAIN), _watch(*PREDICT)
    sys.argv = ["lossattn_jax.mil", *arguments]
    try:
        runpy.run_module("lossattn_jax.mil", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code:
            raise
    arrays: dict[str, Any] = {"skipped": sum(count_skipped(result) for _, result in trainings)}
    for place, (_, models) in enumerate(trainings):
        leaves = jax.tree_util.tree_leaves_with_path(parameters(models))
        for path, leaf in leaves:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            arrays[f"parameters/{place}/{name}"] = np.asarray(leaf)
    for place, ((dataset, network, settings, *_), prediction) in enumerate(predictions):
        arrays_of_call = outputs(prediction)
        arrays |= {f"outputs/{place}/{name}": array for name, array in arrays_of_call.items()}
        arrays[f"losses/{place}"] = losses(dataset, network, settings, arrays_of_call)
    np.savez(out, **arrays)


def _watch(module: Any, name: str) -> list[tuple[tuple[Any, ...], Any]]:
    """Records arguments and result of each later call of a function.

    The positional arguments.
    """
    calls: list[tuple[tuple[Any, ...], Any]] = []
    original: Callable[..., Any] = getattr(module, name)

    def watch(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        calls.append((arguments, result))
        return result

    setattr(module, name, watch)
    return calls


def main() -> None:
    """Does what the first argument says."""
    what, target, *rest = sys.argv[1:]
    if what == "scenes":
        write_scenes(target, *map(int, rest))
    elif what == "bags":
        run_bags(target, rest)
    else:
        raise ValueError(f"{what!r} is neither scenes nor bags")


if __name__ == "__main__":
    main()
