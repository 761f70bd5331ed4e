"""A training that is started from Python, and shows how far it is."""

import contextlib
import logging
import pathlib
import sys
from collections.abc import Iterator

from ml_collections import ConfigDict

from lossattn_jax.train.images import loop

_PACKAGE = "lossattn_jax"


def train_run(
    config: ConfigDict, workdir: str | pathlib.Path, *, trust_code: bool = False
) -> dict[str, float]:
    """Trains a network, or resumes its run, and shows its log on stderr.

    Where the caller's own handlers get lines of level INFO, the log goes there alone.

    Args:
      config: see `lossattn_jax.config.default_config`.
      workdir: folder of the run; made where absent.
      trust_code: as of `loop.train`.

    Returns:
      The test metrics after the last step; see `loop.train`.

    Raises:
      UserError: as of `loop.train`.
    """
    with _shown_log():
        return loop.train(config, workdir, trust_code=trust_code)


@contextlib.contextmanager
def _shown_log() -> Iterator[None]:
    """Shows the package's log within the context, unless the caller does."""
    log = logging.getLogger(_PACKAGE)
    # Not any handler will do: on import absl gives the root log one, which gets warnings alone.
    if log.isEnabledFor(logging.INFO) and log.hasHandlers():
        yield
        return
    handler, level, propagates = logging.StreamHandler(sys.stderr), log.level, log.propagate
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
