"""The loss-attention network for bags in plain PyTorch.

One bag after the other, one fold after the other.

Written as one would write it without thinking of speed, but nothing is slow on purpose: bags are ready
as tensors, and no loss is read back.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax.errors import UserError

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    raise UserError(
        "PyTorch is needed for what is measured against: pip install torch==2.13.0"
    ) from None


@dataclasses.dataclass(frozen=True)
class Fold:
    """Training bags of a fold.

    Attributes:
      bags: `[n_i, D]` float32 each, standardised.
      labels: one for each bag, in `[0, K)`.
    """

    bags: Sequence[np.ndarray]
    labels: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The network and its training.

    Attributes:
      features: D of an instance.
      classes: K.
      hidden: widths of the dense layers.
      dropout: share of units that is dropped after each.
      learning_rate: of Adam.
      weight_decay: L2 added to the gradient.
      patch_weight: lambda of the loss of instances.
      fused: whether Adam is PyTorch's fused one, which is not its default.
    """

    features: int
    classes: int
    hidden: tuple[int, ...]
    dropout: float
    learning_rate: float
    weight_decay: float
    patch_weight: float
    fused: bool = False


class LossAttention(nn.Module):
    """Dense layers with dropout, a classifier, and its scores as attention."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        layers: list[nn.Module] = []
        width = recipe.features
        for after in recipe.hidden:
            layers += [nn.Linear(width, after), nn.ReLU(), nn.Dropout(recipe.dropout)]
            width = after
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, recipe.classes)

    def forward(self, bag: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Maps `[n, D]` to logits `[K]` and `[n, K]`, and attention `[n]`."""
        features = self.layers(bag)
        instance_logits = self.classifier(features)
        attention = torch.softmax(torch.logsumexp(instance_logits, dim=1), dim=0)
        return self.classifier(attention @ features), instance_logits, attention


def loss(
    network: LossAttention, bag: torch.Tensor, label: torch.Tensor, patch_weight: float
) -> torch.Tensor:
    """`CE(prediction, y) + lambda * sum_n a_n CE(z_n, y)`.

    Args:
      network: in training or not.
      bag: `[n, D]`.
      label: `[]` int64.
      patch_weight: lambda.

    Returns:
      `[]`, in nats.
    """
    logits, instance_logits, attention = network(bag)
    own = functional.cross_entropy(logits, label)
    each = functional.cross_entropy(
        instance_logits, label.expand(len(instance_logits)), reduction="none"
    )
    return own + patch_weight * (attention * each).sum()


class Training:
    """A network in training on one fold."""

    def __init__(self, recipe: Recipe, fold: Fold):
        self.network = LossAttention(recipe)
        self._patch_weight = recipe.patch_weight
        self._bags = [torch.from_numpy(np.ascontiguousarray(bag)) for bag in fold.bags]
        self._labels = [torch.tensor(int(label)) for label in fold.labels]
        self._optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=recipe.fused or None,
        )

    def steps(self, order: Iterable[int]) -> None:
        """A step on each of these bags, in this order."""
        self.network.train()
        for row in order:
            self._optimizer.zero_grad()
            loss(self.network, self._bags[row], self._labels[row], self._patch_weight).backward()
            self._optimizer.step()

    def losses(self) -> np.ndarray:
        """`[bags]`: the loss of each bag, without dropout."""
        self.network.eval()
        with torch.no_grad():
            pairs = zip(self._bags, self._labels, strict=True)
            return np.array(
                [loss(self.network, bag, label, self._patch_weight).item() for bag, label in pairs]
            )


def set_weights(network: LossAttention, params: Mapping[str, Any]) -> None:
    """Copies the parameters of a `lossattn_jax.mil.BagNetwork` of the same widths."""
    with torch.no_grad():
        for name, layer in _name_layers(network).items():
            kernel = np.array(params[name]["kernel"], np.float32)
            layer.weight.copy_(torch.from_numpy(kernel).T)
            layer.bias.copy_(torch.from_numpy(np.array(params[name]["bias"], np.float32)))


def weights(network: LossAttention) -> dict[str, dict[str, np.ndarray]]:
    """Undoes `set_weights`."""
    return {
        name: {
            "kernel": layer.weight.detach().numpy().T.copy(),
            "bias": layer.bias.detach().numpy().copy(),
        }
        for name, layer in _name_layers(network).items()
    }


class FoldTrainer:
    """Trains networks on the same folds again and again."""

    def __init__(self, folds: Sequence[Fold]):
        """Takes the folds."""
        self._folds = folds

    def train(self, recipe: Recipe, epochs: int, threads: int, seed: int) -> tuple[float, float]:
        """Trains a network on each fold, in random orders of bags.

        Args:
          recipe: of all of them.
          epochs: of each.
          threads: of PyTorch.
          seed: of weights, dropout and orders.

        Returns:
          When the training began and when it ended, on the machine's monotonic clock.
        """
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        random = np.random.default_rng(seed)
        trainings = [Training(recipe, fold) for fold in self._folds]
        began = time.monotonic()
        for training, fold in zip(trainings, self._folds, strict=True):
            for _ in range(epochs):
                training.steps(random.permutation(len(fold.bags)).tolist())
        return began, time.monotonic()


def _name_layers(network: LossAttention) -> dict[str, nn.Linear]:
    """The layers by the names that they have in Flax."""
    dense = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    return {
        **{f"dense{number}": layer for number, layer in enumerate(dense, start=1)},
        "classifier": network.classifier,
    }
