"""What the log says while networks for bags are trained."""

import logging
import math
import time

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10


class Progress:
    """Lines of the log that tell how far a training is."""

    def __init__(self, label: str, epochs: int, models: int):
        """Starts the clock of a training of `models` networks for `epochs`, which the log calls `label`."""
        self._label, self._epochs, self._models = label, epochs, models
        self._began = self._told = time.monotonic()
        self._first: tuple[int, float] | None = None

    def tell(self, epoch: int) -> None:
        """Tells, where there was no line for some seconds, that so many epochs are done."""
        now = time.monotonic()
        # The first call compiles: the rate is that of the others.
        if self._first is None:
            self._first = (epoch, now)
            return
        if now - self._told < _SECONDS_BETWEEN_LINES and epoch < self._epochs:
            return
        self._told = now
        done, since = self._first
        rate = (epoch - done) / max(now - since, 1e-9)
        left = math.ceil((self._epochs - epoch) / rate)
        log.info(
            "%s: epoch %d of %d, %d models at once, %.1f epochs of one model a second, %d:%02d left",
            self._label,
            epoch,
            self._epochs,
            self._models,
            rate * self._models,
            *divmod(left, 60),
        )
