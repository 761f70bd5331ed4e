"""The forward pass of evaluation over pictures, in batches of one shape."""

import concurrent.futures
import contextlib
import dataclasses
import numbers
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lossattn_jax import data, devices
from lossattn_jax.attention import losses
from lossattn_jax.checkpoint import runs
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import metrics
from lossattn_jax.evaluate.evaluation import make_eval_step, to_devices
from lossattn_jax.kernels import cpu
from lossattn_jax.predict.inputs import Input

MOST_IMAGES = 64  # of a batch, where a user says nothing
_MOST_IN_BATCH = 2**16  # more do not fit in any device's memory, whatever the images' size


@dataclasses.dataclass(frozen=True)
class Rows:
    """Outputs for the n pictures of a batch that could be read, without padding.

    Attributes:
      names: of the pictures.
      images: `[n, H, W, 3]` uint8, as the network saw them.
      logits: `[n, K]` float32.
      probabilities: `[n, K]` float32; see `losses.probabilities`.
      patch_logits: `[n, P, K]` float32.
      patch_probabilities: `[n, P, K]` float32.
      attention: `[n, P]` float32.
      finite: `[n]` bool, whether all outputs of a picture are finite.
      refusals: by the name of each file that could not be read, a sentence.
    """

    names: tuple[str, ...]
    images: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    patch_logits: np.ndarray
    patch_probabilities: np.ndarray
    attention: np.ndarray
    finite: np.ndarray
    refusals: dict[str, str]


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Pictures on the host: `image` is padded, `rows` are those that could be read."""

    names: tuple[str, ...]
    image: np.ndarray
    rows: np.ndarray
    refusals: dict[str, str]


class Forward:
    """A network on this process' devices, compiled once for batches of one size."""

    def __init__(self, run: runs.Run, batch_size: int | None = None):
        """Places the variables on the devices.

        Args:
          run: a checkpoint.
          batch_size: pictures per batch over all devices, rounded up to a multiple of their number; None: as
            in the run's config, but `MOST_IMAGES` at most.

        Raises:
          UserError: it is no whole number from 1.
        """
        check_batch_size(batch_size)
        self.run = run
        size = batch_size or min(run.options.eval.batch_size, MOST_IMAGES)
        self.batch_size = devices.round_up(size)
        self._step = make_eval_step(run.model, run.spec, run.loss)
        self._variables = devices.replicate(run.variables)

    def batches(self, inputs: Sequence[Input]) -> Iterator[Rows]:
        """Runs the network over pictures; see `stream`."""
        with contextlib.closing(self.stream([inputs])) as stream:
            for _, rows in stream:
                yield rows

    def stream(self, groups: Iterable[Sequence[Input]]) -> Generator[tuple[int, Rows], None, None]:
        """Runs the network over groups of pictures, which threads read ahead.

        What memory it takes does not depend on how many groups there are.

        Args:
          groups: of pictures; no batch has pictures of two.

        Yields:
          Batch by batch, in the order of the pictures: the number of their group, and what the network says.

        Raises:
          UserError: a picture that is no file cannot be taken.
        """
        with concurrent.futures.ThreadPoolExecutor(cpu.cores() + 1) as pool:
            host_batches = (
                (number, self._read(pool, part)) for number, part in self._parts(groups)
            )
            placed = data.prefetch(host_batches, lambda pair: (*pair, self._put(pair[1])))
            with placed:
                for number, batch, shards in placed:
                    _, outputs = self._step(self._variables, shards)
                    yield number, self._rows(batch, outputs)

    def _parts(self, groups: Iterable[Sequence[Input]]) -> Iterator[tuple[int, Sequence[Input]]]:
        for number, inputs in enumerate(groups):
            for start in range(0, len(inputs), self.batch_size):
                yield number, inputs[start : start + self.batch_size]

    def _read(self, pool: concurrent.futures.ThreadPoolExecutor, inputs: Sequence[Input]) -> _Batch:
        image = np.zeros((self.batch_size, *self.run.spec.image_shape), np.uint8)
        rows, refusals = [], {}
        for row, (input, result) in enumerate(zip(inputs, pool.map(_take, inputs), strict=True)):
            if isinstance(result, str):
                refusals[input.name] = result
            else:
                image[row] = result
                rows.append(row)
        names = tuple(inputs[row].name for row in rows)
        return _Batch(names, image, np.array(rows, np.int64), refusals)

    def _put(self, batch: _Batch) -> dict[str, jax.Array]:
        mask = np.zeros(self.batch_size, np.float32)
        mask[batch.rows] = 1
        spec = self.run.spec
        # Labels and boxes are not known: what the step measures with them nobody looks at.
        label = np.zeros((self.batch_size, *spec.label_shape), spec.label_dtype)
        return to_devices({"image": batch.image, "label": label, "mask": mask})

    def _rows(self, batch: _Batch, outputs: Any) -> Rows:
        host = devices.gather(outputs)
        kind, rows = self.run.loss, batch.rows
        # Of the padded batch, so that each is one program too.
        return Rows(
            batch.names,
            batch.image[rows],
            host.logits[rows],
            np.asarray(losses.probabilities(kind, host.logits))[rows],
            host.patch_logits[rows],
            np.asarray(losses.probabilities(kind, host.patch_logits))[rows],
            host.attention[rows],
            np.asarray(metrics.outputs_finite(host))[rows],
            batch.refusals,
        )


def check_batch_size(value: Any) -> None:
    """Refuses a number of pictures that cannot be a batch, with a `UserError`."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if value is not None and (not whole or not 1 <= value <= _MOST_IN_BATCH):
        raise UserError(
            f"batch_size is {value!r}, but must be a whole number from 1 to {_MOST_IN_BATCH}, or None for "
            "the run's own"
        )


def _take(input: Input) -> np.ndarray | str:
    """The network's image, or why a file cannot be one."""
    try:
        return input.read()
    except UserError as error:
        if not input.is_file:
            raise
        return str(error)
