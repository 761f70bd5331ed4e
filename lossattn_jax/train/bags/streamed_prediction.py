"""Predictions for bags that are read one by one; pieces of a long one give what the whole gives.

What a network computes of each instance by itself is computed piece by piece, and the pooling of all of them
at once, on layers that are far narrower than the instances. Devices that have all models share the pieces;
layers that are too large for a device are pooled by all of them, each with a part of the instances.
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
from lossattn_jax.train.bags import spread as spread_lib
from lossattn_jax.train.bags import streamed_steps
from lossattn_jax.train.bags.spread import Spread
from lossattn_jax.train.bags.states import gather_models, pad_groups

PIECE = 4096  # instances
# That shorter bags are padded to, whatever the others are, so that each has the same bits among any others.
# Each is a program to compile.
_LENGTHS = (64, 512, 2048, PIECE)
_PIECES_KEPT = 4  # whose memory the C library may keep
_LAYER_COPIES = 3  # that pooling makes of layers, about
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


def is_split(network: BagNetwork, length: int, most: int | None) -> bool:
    """Whether a bag's layers are pooled by all devices together.

    Args:
      network: of the models.
      length: instances of the bag; one piece is never split.
      most: instances that a device pools; see `spread.is_split`.

    Raises:
      UserError: they would have to be, but the network's pooling is not for that.
    """
    bytes_of_instance = _LAYER_COPIES * 4 * (sum(network.widths) + network.num_classes)
    return length > PIECE and spread_lib.is_split(network, length, bytes_of_instance, most)


class StreamedPredictor:
    """Predicts for bags with M networks whose parameters stay on the devices."""

    def __init__(
        self,
        network: BagNetwork,
        params: Any,
        mean: np.ndarray,
        inverse_scale: np.ndarray,
        group: int = 1,
        *,
        instances_per_device: int | None = None,
    ):
        """Takes the networks.

        Args:
          network: of all models.
          params: of M networks, every leaf with a leading axis of M.
          mean, inverse_scale: `[M, features...]` float32, for standardisation.
          group: models that a device computes together.
          instances_per_device: of a bag; see `spread.is_split`.
        """
        self._network, self._group = network, group
        self._count = len(mean)
        self._most = instances_per_device
        self._on_host = (params, mean, inverse_scale)
        self._models: dict[Spread, Any] = {}

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

        Raises:
          UserError: a bag is too large for a device, and the network's pooling is not for several.
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
        # Models that each device has a part of cannot pool a bag together: then all have all.
        some_split = is_split(self._network, int(lengths.max()), self._most)
        spread = spread_lib.BAGS if some_split else spread_lib.of_prediction(self._count)
        longest = _padded_length(min(int(lengths.max()), PIECE))
        step_bytes = longest * int(np.prod(bags.shape)) * 4
        pieces = bag_stream.read_ahead(Pieces(bags, places, convert), step_bytes, memory)
        most = spread.num_parts if memory >= 2 * spread.num_parts * step_bytes else 1
        layers: list[np.ndarray] = []
        try:
            for piece, out in self._compute(pieces, spread, most, predict_mask):
                if piece.first and piece.last:
                    yield self._finite(piece.row, *out)
                    continue
                length = int(bags.lengths[piece.row])
                if piece.first:
                    layers = [_room_for(part, length) for part in out]
                    stop = 0
                start, stop = stop, stop + out[0].shape[1]
                for layer, part in zip(layers, out, strict=True):
                    layer[:, start:stop] = part
                if piece.last or start % (_PIECES_KEPT * PIECE) == 0:
                    cpu.release_memory()  # or what pieces have taken stays in pieces of its own
                if piece.last:
                    split = is_split(self._network, length, self._most)
                    pool = self._pool_split if split else self._pool
                    predicts = predict_mask[:, piece.row]
                    yield self._finite(piece.row, *pool(layers, length, predicts, spread))
                    layers = []
        finally:
            pieces.close()  # type: ignore[attr-defined]

    def _place(self, spread: Spread) -> Any:
        """The models on the devices."""
        if spread not in self._models:
            self._models[spread] = spread.place_models(self._on_host, self._group)
        return self._models[spread]

    def _compute(
        self, pieces: Iterator[Piece], spread: Spread, most: int, predict_mask: np.ndarray
    ) -> Iterator[tuple[Piece, list[np.ndarray]]]:
        """Computes pieces, up to `most` at once.

        Yields:
          Each piece, in their order, with the outputs of a whole bag (logits, attention, instance logits), or
          the layers `[M, n, width]` of a part of one.
        """
        for several in _alike(pieces, most):
            outputs = self._run(several, spread, predict_mask)
            while several:  # each piece is let go of when it has been used
                yield several.pop(0), outputs.pop(0)

    def _run(
        self, several: list[Piece], spread: Spread, predict_mask: np.ndarray
    ) -> list[list[np.ndarray]]:
        """The outputs of pieces that are computed by one program."""
        whole = several[0].first and several[0].last
        make = streamed_steps.whole_bag if whole else streamed_steps.bag_layers
        predicts, inputs = spread.place_parts(
            [predict_mask[:, piece.row] for piece in several],
            [(piece.x, piece.mask) if whole else (piece.x,) for piece in several],
            self._group,
        )
        out = make(self._network, self._group)(self._place(spread), predicts, *inputs)
        of_pieces = spread.gather_parts(out, self._count, len(several))
        first = 1 if whole else 0  # behind the logits of the bag
        return [
            [*parts[:first], *(array[:, : int(piece.mask.sum())] for array in parts[first:])]
            for piece, parts in zip(several, of_pieces, strict=True)
        ]

    def _pool(
        self, layers: list[np.ndarray], length: int, predicts: np.ndarray, spread: Spread
    ) -> Any:
        """Predictions of the layers of a whole bag, as `_room_for` has them."""
        program = streamed_steps.bag_pooling(self._network, spread_lib.MODELS)
        mask = np.arange(layers[0].shape[1]) < length
        where, inputs = spread.place_parts([predicts], [(mask,)], self._group)
        shards = spread.place_models(layers, self._group)
        out = program(self._place(spread)[0], where, shards, *inputs)
        [(logits, attention, instance_logits)] = spread.gather_parts(out, self._count, 1)
        return logits, attention[:, :length], instance_logits[:, :length]

    def _pool_split(
        self, layers: list[np.ndarray], length: int, predicts: np.ndarray, spread: Spread
    ) -> Any:
        """The same, where each device has a part of the instances."""
        program = streamed_steps.bag_pooling(self._network, spread_lib.INSTANCES)
        mask = np.arange(layers[0].shape[1]) < length
        parts = devices.shard_axis(pad_groups(layers, self._group, parts=1), 1)
        everywhere = devices.replicate(pad_groups(predicts, self._group, parts=1))
        out = program(self._place(spread)[0], everywhere, parts, devices.shard_axis(mask, 0))
        logits = gather_models(out[0], self._count)
        attention, instance_logits = (
            np.concatenate(list(np.asarray(of_parts)), axis=1)[: self._count, :length]
            for of_parts in out[1:]
        )
        return logits, attention, instance_logits

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


def _alike(pieces: Iterator[Piece], most: int) -> Iterator[list[Piece]]:
    """Puts pieces together that follow one another and are computed by the same program."""
    several: list[Piece] = []
    for piece in pieces:
        if several and _kind(several[0]) != _kind(piece):
            yield several
            several = []
        several.append(piece)
        if len(several) == most:  # without waiting for the next one
            yield several
            several = []
    if several:
        yield several


def _kind(piece: Piece) -> tuple[bool, tuple[int, ...], Any]:
    return piece.first and piece.last, piece.x.shape, piece.x.dtype
