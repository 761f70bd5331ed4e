"""Predictions for bags that are read one by one; pieces of a long one give what the whole gives.

What a network computes of each instance by itself is computed piece by piece, and the pooling of all of them
at once, on layers that are far narrower than the instances.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lossattn_jax import devices
from lossattn_jax.data.bags import bag_stream
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.kernels import cpu
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags import streamed_steps
from lossattn_jax.train.bags.states import gather_models, pad_groups

PIECE = 4096  # instances
# That shorter bags are padded to, whatever the others are, so that each has the same bits among any others.
# Each is a program to compile.
_LENGTHS = (64, 512, 2048, PIECE)
_PIECES_KEPT = 4  # whose memory the C library may keep
_GROWTH = 3  # of the lengths that layers are pooled at, from one to the next


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
        self._models = devices.shard(pad_groups((params, mean, inverse_scale), group))

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
        layers: list[np.ndarray] = []
        try:
            for piece in pieces:
                predicts = devices.shard(pad_groups(predict_mask[:, piece.row], self._group))
                if piece.first and piece.last:
                    yield self._finite(piece.row, *self._whole(piece, predicts))
                    continue
                length = int(bags.lengths[piece.row])
                of_piece = self._layers(piece, predicts)
                if piece.first:
                    layers = [_room_for(part, length) for part in of_piece]
                    stop = 0
                start, stop = stop, stop + of_piece[0].shape[1]
                for layer, part in zip(layers, of_piece, strict=True):
                    layer[:, start:stop] = part
                if piece.last or start % (_PIECES_KEPT * PIECE) == 0:
                    cpu.release_memory()  # or what pieces have taken stays in pieces of its own
                if piece.last:
                    yield self._finite(piece.row, *self._pool(layers, length, predicts))
                    layers = []
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

    def _pool(self, layers: list[np.ndarray], length: int, predicts: Any) -> Any:
        """Predictions of the layers of a whole bag, as `_room_for` has them."""
        program = streamed_steps.bag_pooling(self._network)
        shards = devices.shard(pad_groups(layers, self._group))
        mask = np.arange(layers[0].shape[1]) < length
        out = program(self._models[0], predicts, shards, devices.replicate(mask))
        logits, attention, instance_logits = self._gather(out)
        return logits, attention[:, :length], instance_logits[:, :length]

    def _gather(self, outputs: Any) -> Any:
        return gather_models(outputs, self._count)

    def _finite(
        self, row: int, logits: np.ndarray, attention: np.ndarray, instance_logits: np.ndarray
    ) -> BagPrediction:
        """The prediction, without the weights of models whose outputs are not finite."""
        fine = np.isfinite(logits).all(axis=-1) & np.isfinite(instance_logits).all(axis=(1, 2))
        return BagPrediction(
            row, logits, np.where(fine[:, None], attention, np.nan), instance_logits
        )


def _room_for(part: np.ndarray, length: int) -> np.ndarray:
    """Zeros `[M, N, width]` for a layer of a whole bag, N being one of few lengths.

    Args:
      part: `[M, n, width]` of a piece.
      length: of the bag.
    """
    padded = PIECE
    while padded < length:
        padded *= _GROWTH
    return np.zeros((part.shape[0], padded, part.shape[2]), part.dtype)
