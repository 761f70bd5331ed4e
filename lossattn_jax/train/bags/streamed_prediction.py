"""Predictions for bags that are read one by one; pieces of a long one give what the whole gives.

What a network computes of each instance by itself is computed piece by piece, and the pooling of all of them
at once, on layers that are far narrower than the instances.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lossattn_jax import devices
from lossattn_jax.data.bags import bag_stream
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags import streamed_steps

PIECE = 4096  # instances
# That shorter bags are padded to, whatever the others are, so that each has the same bits among any others.
_LENGTHS = tuple(2**power for power in range(4, PIECE.bit_length()))
_GROWTH = 4  # of the lengths that layers are pooled at, from one to the next


@dataclasses.dataclass(frozen=True, eq=False)
class BagPrediction:
    """What M networks say of one bag of n instances.

    Attributes:
      row: the bag's position.
      logits: `[M, K]` float32.
      attention: `[M, n]` float32; NaN where a model's outputs are not finite.
      instance_logits: `[M, n, K]` float32.
    """

    row: int
    logits: np.ndarray
    attention: np.ndarray
    instance_logits: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """Instances of one bag.

    Attributes:
      row: the bag's position.
      first, last: whether the piece is the bag's first, or last.
      x: `[1, length, features...]`, zeros at padding.
      mask: `[1, length]` bool.
    """

    row: int
    first: bool
    last: bool
    x: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces of bags, one bag after the other, for `bag_stream.read_ahead`.

    Attributes:
      bags: the bags.
      places: of each piece the bag's position, its first instance and the one behind its last.
      convert: what is done with instances before they are padded.
    """

    bags: Bags
    places: Sequence[tuple[int, int, int]]
    convert: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Piece:
        """Reads a piece."""
        row, start, stop = self.places[number]
        length = int(self.bags.lengths[row])
        part = self.convert(self.bags.read(row, start, stop))
        padded = _padded_length(min(length, PIECE))
        return Piece(row, start == 0, stop == length, *bag_stream.pad([part], 1, padded))


def _padded_length(length: int) -> int:
    """What a bag of so many instances, or a piece of a longer one, is padded to."""
    return next(top for top in _LENGTHS if top >= length)


class StreamedPredictor:
    """Predicts for bags with M networks whose parameters stay on the devices."""

    def __init__(
        self,
        network: BagNetwork,
        params: Any,
        mean: np.ndarray,
        inverse_scale: np.ndarray,
        group: int = 1,
    ):
        """Takes the networks.

        Args:
          network: of all models.
          params: of M networks, every leaf with a leading axis of M.
          mean, inverse_scale: `[M, features...]` float32, for standardisation.
          group: models that a device computes together.
        """
        self._network, self._group = network, group
        self._count = len(mean)
        self._models = devices.shard(padded_models((params, mean, inverse_scale), group))

    def predict(
        self,
        bags: Bags,
        rows: Sequence[int],
        memory: int,
        convert: Callable[[np.ndarray], np.ndarray],
        predict_mask: np.ndarray | None = None,
    ) -> Iterator[BagPrediction]:
        """Predicts for bags one after the other.

        Args:
          bags: the bags.
          rows: which of them, in which order.
          memory: bytes that what is read ahead may take.
          convert: what is done with instances as they are stored.
          predict_mask: `[M, bags]` bool, which models predict for which bags; of the others the outputs are
            0. None: all do.
        """
        if predict_mask is None:
            predict_mask = np.ones((self._count, len(bags)), bool)
        if not len(rows):
            return
        lengths = bags.lengths[np.asarray(rows)]
        places = [
            (int(row), start, min(start + PIECE, int(length)))
            for row, length in zip(rows, lengths, strict=True)
            for start in range(0, int(length), PIECE)
        ]
        longest = _padded_length(min(int(lengths.max()), PIECE))
        step_bytes = longest * int(np.prod(bags.shape)) * 4
        pieces = bag_stream.read_ahead(Pieces(bags, places, convert), step_bytes, memory)
        layers: list[list[np.ndarray]] = []
        try:
            for piece in pieces:
                predicts = devices.shard(padded_models(predict_mask[:, piece.row], self._group))
                if piece.first and piece.last:
                    yield self._finite(piece.row, *self._whole(piece, predicts))
                    continue
                layers = [] if piece.first else layers
                layers.append(self._layers(piece, predicts))
                if piece.last:
                    joined = [np.concatenate(parts, axis=1) for parts in zip(*layers, strict=True)]
                    layers = []
                    yield self._finite(piece.row, *self._pool(joined, predicts))
        finally:
            pieces.close()  # type: ignore[attr-defined]

    def _whole(self, piece: Piece, predicts: Any) -> Any:
        program = streamed_steps.whole_bag(self._network, self._group)
        length = int(piece.mask.sum())
        out = program(self._models, predicts, *devices.replicate((piece.x, piece.mask)))
        logits, attention, instance_logits = self._gather(out)
        return logits, attention[:, :length], instance_logits[:, :length]

    def _layers(self, piece: Piece, predicts: Any) -> list[np.ndarray]:
        """`[M, n, width]` of each layer."""
        program = streamed_steps.bag_layers(self._network, self._group)
        length = int(piece.mask.sum())
        out = self._gather(program(self._models, predicts, devices.replicate(piece.x)))
        return [layer[:, :length] for layer in out]

    def _pool(self, layers: list[np.ndarray], predicts: Any) -> Any:
        """Predictions of the layers `[M, N, width]` of a whole bag."""
        program = streamed_steps.bag_pooling(self._network)
        length = layers[0].shape[1]
        padded = PIECE
        while padded < length:
            padded *= _GROWTH
        behind = ((0, 0), (0, padded - length), (0, 0))
        wide = padded_models([np.pad(layer, behind) for layer in layers], self._group)
        mask = np.arange(padded) < length
        out = program(self._models[0], predicts, devices.shard(wide), devices.replicate(mask))
        logits, attention, instance_logits = self._gather(out)
        return logits, attention[:, :length], instance_logits[:, :length]

    def _gather(self, outputs: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[: self._count], devices.gather(outputs))

    def _finite(
        self, row: int, logits: np.ndarray, attention: np.ndarray, instance_logits: np.ndarray
    ) -> BagPrediction:
        """The prediction, without the weights of models whose outputs are not finite."""
        fine = np.isfinite(logits).all(axis=-1) & np.isfinite(instance_logits).all(axis=(1, 2))
        return BagPrediction(
            row, logits, np.where(fine[:, None], attention, np.nan), instance_logits
        )


def padded_models(tree: Any, group: int) -> Any:
    """Repeats the first model until the devices can share whole groups equally."""

    def pad(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        unit = group * jax.local_device_count()
        more = np.zeros(-len(leaf) % unit, np.int64)
        return np.concatenate([leaf, leaf[more]]) if len(more) else leaf

    return jax.tree.map(pad, tree)
