"""Maps that a backbone makes of a split's images."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from lossattn_jax import data, devices
from lossattn_jax.models import ImageNetwork
from lossattn_jax.models.network import backbone_variables


def compute_maps(
    model: ImageNetwork, variables: Any, dataset: data.Dataset, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Computes the maps of all images, batch by batch.

    As in testing: of the pictures' centres, with the running statistics.

    Args:
      model: the network.
      variables: its "params" and "batch_stats".
      dataset: the split.
      batch_size: images per batch over all devices, rounded up to a multiple of their number.

    Yields:
      Batches of all processes, in each of them, in the split's order and without padding: `map` float32
      `[b, H', W', C]`, and what else an evaluation's batch has of each example.
    """
    backbone = model.make_backbone()
    of_backbone = devices.replicate(backbone_variables(variables))

    def forward(of_backbone: Any, images: jax.Array) -> Any:
        inputs = data.network_input(images, dataset.spec, model.dtype)
        return backbone.apply(of_backbone, inputs, False)

    forward_devices = devices.pmap(forward)
    batches = dataset.eval_batches(
        batch_size=devices.round_up(batch_size),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with data.prefetch(batches, lambda batch: (batch, devices.shard(batch["image"]))) as pairs:
        for batch, images in pairs:
            rest = {name: array for name, array in batch.items() if name != "image"}
            maps = devices.gather(forward_devices(of_backbone, images)).astype(np.float32)
            whole = devices.concatenate_processes({**rest, "map": maps})
            mask = whole.pop("mask") > 0
            places = np.argsort(whole["index"][mask])
            yield {name: array[mask][places] for name, array in whole.items()}
