"""The check that JAX and PyTorch train the same network for bags."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import jax_bags, torch_bags
from benchmarks.comparison import DisagreementError
from lossattn_jax.data.bags.bags import BagDataset, bucket_lengths
from lossattn_jax.data.order import bucket_batches
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags import training
from lossattn_jax.train.bags.objective import bag_loss
from lossattn_jax.train.bags.settings import Settings

TOLERANCE = 1e-4
# Of what the weights moved: far below that of another update, far above rounding.
MOVED_TOLERANCE = 1e-3


def check(
    dataset: BagDataset,
    network: BagNetwork,
    settings: Settings,
    recipe: torch_bags.Recipe,
    steps: int = 20,
) -> dict[str, Any]:
    """Trains both from the same weights, without dropout, and compares them.

    JAX's side is `lossattn_jax.train.bags.training.train`, so that its padding and order are in it.

    Args:
      dataset: bags, of which up to `steps` of all lengths are taken.
      network: of JAX.
      settings: of its training; one bag a step.
      recipe: the same for PyTorch.
      steps: at least; whole passes over the bags that are taken.

    Returns:
      The largest difference of a bag's loss before and after (`loss`, in nats), of a parameter after
      (`parameters`), and that of all parameters relative to what training moved them (`moved`, both as
      L2 norms); the number of steps, and the mean losses before and after (`losses`).

    Raises:
      DisagreementError: a difference is larger than `TOLERANCE`, or that relative to the movement larger than
        `MOVED_TOLERANCE`.
    """
    by_length = np.argsort(dataset.lengths, kind="stable")
    rows = by_length[
        np.unique(np.linspace(0, len(by_length) - 1, min(steps, len(by_length))).astype(int))
    ]
    bags = dataset.select(np.sort(rows))
    epochs = -(-steps // len(bags))
    settings = dataclasses.replace(settings, epochs=epochs)
    network = network.clone(dropout=0.0)
    everything = np.ones(len(bags), bool)
    plan = training.Plan(seed=1, train=everything, held_out=everything)
    models = training.train(bags, network, settings, [plan], every_epoch=False, label="agreement")

    bucket = bags.pad(np.arange(len(bags)), int(bags.lengths.max()))
    moments = models.mean[0], models.scale[0]
    x = jax_bags.standardise(bucket.instances, *moments)
    start = jax.jit(network.init)(jax.random.key(plan.seed), jnp.asarray(x[:1]))["params"]
    end = jax.tree.map(lambda leaf: leaf[0], models.last)

    @jax.jit
    def losses(params: Any) -> jax.Array:
        out: Any = network.apply({"params": params}, x, bucket.mask)
        weight, how = settings.patch_weight, settings.patch_reduction
        return bag_loss(out, jnp.asarray(bucket.labels), jnp.asarray(bucket.mask), weight, how)

    # PyTorch's threads would stay behind in this process, beside those of JAX.
    torch_bags.torch.set_num_threads(1)
    instances = [jax_bags.standardise(bag, *moments) for bag in bags.bags]
    fold = torch_bags.Fold(instances, bags.labels.tolist())
    theirs = torch_bags.Training(dataclasses.replace(recipe, dropout=0.0), fold)
    torch_bags.set_weights(theirs.network, start)
    before = theirs.losses()
    bucket_of = np.searchsorted(bucket_lengths(bags.lengths, settings.max_waste), bags.lengths)
    for epoch in range(epochs):
        theirs.steps(bucket_batches(bucket_of, 1, 0, [epoch])[0, :, 0].tolist())
    after = theirs.losses()

    ours = np.stack([losses(start), losses(end)])
    differences = {
        "steps": epochs * len(bags),
        "losses": ours.mean(axis=1).tolist(),
        "loss": float(np.abs(ours - np.stack([before, after])).max()),
        **_distances(start, end, torch_bags.weights(theirs.network)),
    }
    tolerances = {"loss": TOLERANCE, "parameters": TOLERANCE, "moved": MOVED_TOLERANCE}
    wrong = [
        f"{name} by {differences[name]:.2g}"
        for name, most in tolerances.items()
        if not differences[name] <= most
    ]
    if wrong:
        raise DisagreementError(
            f"after {differences['steps']} steps on {dataset.name} JAX and PyTorch differ too much to be "
            f"timed against each other: {', '.join(wrong)}"
        )
    return differences


def _distances(start: Any, end: Any, other: Any) -> dict[str, float]:
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)
        for tree in (start, end, other)
    ]
    difference, movement = flat[1] - flat[2], flat[1] - flat[0]
    return {
        "parameters": float(np.abs(difference).max()),
        "moved": float(np.linalg.norm(difference) / np.linalg.norm(movement)),
    }
