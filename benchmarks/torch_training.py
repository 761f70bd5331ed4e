"""Training and evaluation of `torch_networks` on one CPU.

As a PyTorch user writes it.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import machine, torch_networks
from lossattn_jax import data
from lossattn_jax.kernels import cpu


@dataclasses.dataclass(frozen=True)
class Way:
    """How a network is written, where there is a choice.

    Attributes:
      channels_last: whether images and weights lie in memory as ours do.
      fused: with capsules, whether the units are one convolution; the papers' code has one after the other.
    """

    channels_last: bool = False
    fused: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        return ("NHWC" if self.channels_last else "NCHW") + (", fused units" if self.fused else "")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained.

    Attributes:
      backbone: "resnet18" or "vgg11_bn".
      head: "conv" or "capsule".
      width: multiplies the channels of every layer.
      batch_size: images of an update.
      learning_rate: of SGD.
      momentum: of SGD.
      weight_decay: L2 added to the gradient.
      patch_weight: lambda.
    """

    backbone: str
    head: str
    width: float
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    patch_weight: float


class Trainer:
    """A network and its optimiser, with random images.

    These have CIFAR-10's shape. It uses all cores there are.
    """

    def __init__(self, recipe: Recipe, way: Way, seed: int = 0):
        torch.set_num_threads(cpu.cores())
        # As XLA does: on one batch gradients vanish after some updates, and numbers too small to be normal
        # would take many times as long.
        torch.set_flush_denormal(True)
        torch.manual_seed(seed)
        spec = data.get_spec("cifar10")
        self._recipe = recipe
        self._format = torch.channels_last if way.channels_last else torch.contiguous_format
        network: Any = torch_networks.build(
            recipe.backbone, recipe.head, spec.num_classes, recipe.width, way.fused
        )
        self._network = network.to(memory_format=self._format)
        self._optimizer = torch.optim.SGD(
            network.parameters(),
            recipe.learning_rate,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self._mean, self._std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
        random = np.random.default_rng(seed)
        height, width, channels = spec.image_shape
        images = random.integers(0, 256, (recipe.batch_size, channels, height, width), np.uint8)
        self._images = torch.from_numpy(images)
        self._labels = torch.from_numpy(random.integers(0, spec.num_classes, recipe.batch_size))

    def seconds(self, steps: int) -> list[float]:
        """Wall times of updates, with augmentation and the loss read."""
        self._network.train()
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            self._update(self._normalise(_augment(self._images)), self._labels).item()
            times.append(time.perf_counter() - began)
        return times

    def evaluation_seconds(self, batches: int) -> list[float]:
        """Wall times of evaluated batches, with correct predictions read."""
        self._network.eval()
        times = []
        with torch.inference_mode():
            for _ in range(batches):
                began = time.perf_counter()
                logits, *_ = self._network(self._normalise(self._images))
                (logits.argmax(1) == self._labels).sum().item()
                times.append(time.perf_counter() - began)
        return times

    def peak_memory(self, steps: int) -> int:
        """Largest resident memory of this process during so many updates, in bytes."""
        return machine.peak_memory(lambda: self.seconds(steps))

    def weights(self) -> dict[str, np.ndarray]:
        """The state dict under the keys of the papers' code, as copies."""
        state: Mapping[str, Tensor] = self._network.state_dict()
        names = torch_networks.keys(list(state))
        return {
            name: tensor.numpy().copy() for name, tensor in zip(names, state.values(), strict=True)
        }

    def losses(self, images: np.ndarray, labels: np.ndarray, steps: int) -> list[float]:
        """Trains on one batch without augmentation.

        Args:
          images: float32 `[B, H, W, 3]`, normalised.
          labels: int `[B]`.
          steps: updates.

        Returns:
          The loss before each update.
        """
        self._network.train()
        batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        batch = batch.contiguous(memory_format=self._format)
        return [self._update(batch, torch.from_numpy(labels)).item() for _ in range(steps)]

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        loss = torch_networks.loss(self._network(images), labels, self._recipe.patch_weight)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _normalise(self, images: Tensor) -> Tensor:
        images = (images.float() / 255 - self._mean) / self._std
        return images.contiguous(memory_format=self._format)


def _augment(images: Tensor, pad: int = 4) -> Tensor:
    """Random crops and flips of uint8 images `[B, 3, H, W]`."""
    with_border = F.pad(images, (pad, pad, pad, pad))
    _, _, height, width = images.shape
    crops = []
    for image, down, across, flip in zip(
        with_border,
        torch.randint(0, 2 * pad + 1, (len(images),)).tolist(),
        torch.randint(0, 2 * pad + 1, (len(images),)).tolist(),
        (torch.rand(len(images)) < 0.5).tolist(),
        strict=True,
    ):
        window = image[:, down : down + height, across : across + width]
        crops.append(window.flip(2) if flip else window)
    return torch.stack(crops)
