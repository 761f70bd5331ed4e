"""Which config a run may resume with."""

import pathlib
from collections.abc import Callable
from typing import Any

from lossattn_jax.attention import poolings
from lossattn_jax.config.options import ImageOptions, leaves
from lossattn_jax.errors import UserError
from lossattn_jax.models import resnet
from lossattn_jax.models.heads import HEADS
from lossattn_jax.train.optimizer import changes_betas

# What must agree for a run to be continued, and why.
_SAME_KEYS = {
    "model.": ", and it shapes the model",
    "data.name": ", and it shapes the model",
    "data.image_size": ", and it shapes the model",
    "optimizer.name": ", and it shapes the optimiser's state",
    "data.num_labels": ", and it decides what each step sees",
    "data.held_out": ", and it decides what each step sees",
    "data.label_seed": ", and it decides what each step sees",
    "seed": ", and it decides what each step sees",
    "data.extra": ", and it decides what each step sees",
    "data.test_share": ", and it decides what each step sees",
    "data.split_seed": ", and it decides what each step sees",
    "data.normalisation": ", and it decides what each step sees",
    "data.drop_last": ", and it decides what each step sees",
    "train.batch_size": ", and it decides what each step sees",
    "train.freeze": ", and it decides what is trained",
}
# What may differ in spite of that: where a file lies that the first checkpoint was made from.
_FREE_KEYS = ("model.pretrained",)
# Keys whose values may be None or an old name, with the value that decides what the network is: of options
# and a value.
_RESOLVERS: dict[str, Callable[[ImageOptions, Any], Any]] = {
    "model.bottleneck_relu_before_add": lambda options, value: bool(value),
    "model.bottleneck_first_kernel": lambda options, value: resnet.first_kernel(
        value,
        HEADS.find(options.model.head).plain
        or options.model.backbone in resnet.IMAGENET_NAMES.values(),
    ),
    "model.pooling": lambda options, value: poolings.POOLINGS.resolve(value),
}
# What may change as long as this stays as it is, which decides what the state holds.
_SWITCHES: dict[str, Callable[[ImageOptions], bool]] = {
    "loss.consistency_weight": lambda options: options.loss.uses_consistency,
    "optimizer.momentum_end": lambda options: changes_betas(options.optimizer),
    "optimizer.schedule": lambda options: changes_betas(options.optimizer),
    "optimizer.restart_epochs": lambda options: options.optimizer.restart_epochs > 0,
}


def refuse_other_run(
    earlier: ImageOptions, options: ImageOptions, workdir: pathlib.Path
) -> list[str]:
    """Stops a run that would continue the checkpoints of another one.

    Args:
      earlier: of the config beside the checkpoints.
      options: of the run to continue with.
      workdir: for the message.

    Returns:
      Descriptions of the differences that are allowed, one per key.

    Raises:
      UserError: they differ in something that shapes the model or the rest of the state, or that decides
        the order of the data.
    """
    before, differences = dict(leaves(earlier)), {}
    for key, value in leaves(options):
        resolve = _RESOLVERS.get(key, lambda options, value: value)
        if resolve(earlier, before[key]) != resolve(options, value):
            differences[key] = value
    # Fixed keys come first: then both runs name the same optimiser, and no other is imported.
    for find_reason in (_why_fixed, _why_state_depends):
        for key, value in differences.items():
            why = find_reason(key, earlier, options)
            if why is not None:
                raise UserError(
                    f"config.{key} is {value!r}, but the run in {workdir} has {before[key]!r}{why}: use "
                    "another workdir (config.init_from can start it from this run)"
                )
    return [f"config.{key}: {before[key]!r} -> {value!r}" for key, value in differences.items()]


def _why_fixed(key: str, earlier: ImageOptions, options: ImageOptions) -> str | None:
    """Explains why a key must not differ; None where it may.

    As the end of a clause.
    """
    del earlier, options
    if key in _FREE_KEYS:
        return None
    return next((why for prefix, why in _SAME_KEYS.items() if key.startswith(prefix)), None)


def _why_state_depends(key: str, earlier: ImageOptions, options: ImageOptions) -> str | None:
    """Explains why a key must not differ for the state's sake.

    None where it may.
    """
    switch = _SWITCHES.get(key)
    if switch is not None and switch(earlier) != switch(options):
        return ", and what the state holds depends on it"
    if key == "loss.consistency_decay" and options.loss.uses_consistency:
        return ", with which its average was made"
    return None
