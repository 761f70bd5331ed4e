"""A profile of some updates of a run, by JAX's profiler."""

import logging
import pathlib
from typing import Any

import jax

log = logging.getLogger(__name__)

FOLDER = "profile"


class Tracer:
    """Traces the updates of `config.profile`, as a context manager.

    Into WORKDIR/profile.

    Dispatches are traced as a whole, from the first that holds such an update to the last. An end of the
    run before that, by an error too, leaves a trace of what there was.
    """

    def __init__(
        self,
        span: tuple[int, int] | None,
        workdir: pathlib.Path,
        start_step: int,
        active: bool = True,
    ):
        """Plans a trace.

        Args:
          span: of updates, as `ImageOptions.profiled` has it; None: nothing is traced.
          workdir: folder of the run.
          start_step: updates done before; those of them that were to be traced are left out.
          active: False traces nothing: for every process but the first.
        """
        self._folder = workdir / FOLDER
        self._span = span if active else None
        self._first_step: int | None = None
        self._last_step = start_step
        self._last: Any = None
        if self._span is not None and start_step >= self._span[1]:
            log.info("profile: the updates %d:%d were made before", *self._span)
            self._span = None

    def __enter__(self) -> "Tracer":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._first_step is not None:
            self._stop()

    def before(self, step: int, size: int, pending: Any) -> None:
        """Starts the trace before a dispatch, if due.

        The dispatch has `size` updates after the `step`-th.

        Args:
          step: updates done.
          size: updates of the dispatch.
          pending: tree of arrays that the devices may still be computing, which are not to be traced.
        """
        if self._span is None or self._first_step is not None or step + size <= self._span[0]:
            return
        jax.block_until_ready(pending)
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
        self._first_step = self._last_step = step

    def after(self, step: int, results: Any) -> None:
        """Ends, if that is due, once the results are there.

        Args:
          step: updates done, with those of the dispatch.
          results: tree of arrays of the dispatch that are not donated later.
        """
        if self._first_step is None or self._span is None:
            return
        self._last_step, self._last = step, results
        if step >= self._span[1]:
            self._stop()

    def _stop(self) -> None:
        first_step, self._first_step, self._span = self._first_step, None, None
        try:
            jax.block_until_ready(self._last)
        finally:
            self._last = None
            jax.profiler.stop_trace()
        newest = max(self._folder.glob("plugins/profile/*/perfetto_trace.json.gz"))
        log.info(
            "profile of the updates after %d until %d: open %s at https://ui.perfetto.dev, or see all of it "
            "with tensorboard --logdir %s (and TensorBoard's profile plugin)",
            first_step,
            self._last_step,
            newest,
            self._folder,
        )
