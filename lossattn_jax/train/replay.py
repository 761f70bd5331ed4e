"""Replay of a skipped update: reports its non-finite values."""

import pathlib

from lossattn_jax.errors import UserError
from lossattn_jax.registry import lookup
from lossattn_jax.train import dumps, former_dumps
from lossattn_jax.train.bags.replay import replay_update as replay_bags
from lossattn_jax.train.images.replay import replay_update as replay_images

_KINDS = {"images": replay_images, "bags": replay_bags}


def replay(dump: str | pathlib.Path, *, trust_code: bool = False) -> list[str]:
    """Recomputes loss and gradient of a dumped update.

    The update is the training's own, with its augmentation and dropout.

    Args:
      dump: a folder of `lossattn_jax.train.dumps`, of images or of bags.
      trust_code: whether code that it names by reference is imported.

    Returns:
      Sentences: what of the state before the update, of the losses and of the gradient is not finite.

    Raises:
      UserError: there is no such dump, it cannot be read, or its parts were not written together.
    """
    folder = pathlib.Path(dump)
    skipped_update = former_dumps.read(folder) or dumps.read(folder)
    replay_kind = lookup(f"the kind of the dump {folder}", skipped_update.kind, _KINDS)
    try:
        return replay_kind(skipped_update, trust_code)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"{folder} does not hold an update of the network in its record: {reason}"
        ) from None
