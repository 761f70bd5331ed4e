"""Training of networks for bags that are read one by one: the same as `training`, for larger data.

All models visit the bags in the same order, each bag is read once an epoch for all of them, and instances go
to the devices as they are stored. `training.train` gives the same but for its draws of dropout.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import gc
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax import devices
from lossattn_jax.commands.progress import LogClock, Progress
from lossattn_jax.data.bags import bag_stream, precision
from lossattn_jax.data.bags.bag_stream import StepBags
from lossattn_jax.data.bags.bag_survey import Survey
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.data.order import bucket_batches
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests
from lossattn_jax.kernels import bag_pieces, cpu
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags import plans as plans_lib
from lossattn_jax.train.bags import spread as spread_lib
from lossattn_jax.train.bags import streamed_steps
from lossattn_jax.train.bags.nonfinite import BagSkips, DumpWriter, Update
from lossattn_jax.train.bags.plans import HasEnded, Plan
from lossattn_jax.train.bags.settings import Settings
from lossattn_jax.train.bags.states import Models, State, gather_models
from lossattn_jax.train.bags.steps import Program, Steps
from lossattn_jax.train.bags.streamed_prediction import StreamedPredictor, is_split
from lossattn_jax.train.bags.training import TrainedModels, make_program

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10
# Padded slots for each instance, where most of the padding is not computed: a length less to compile.
_PIECES_WASTE = 1.6
_STEPS_KEPT = 8  # whose memory the C library may keep


def train(
    bags: Bags,
    survey: Survey,
    network: BagNetwork,
    settings: Settings,
    plans: Sequence[Plan],
    *,
    memory: int,
    max_instances: int = 0,
    instances_per_device: int | None = None,
    standardise: bool = True,
    order_seed: int = 0,
    every_epoch: bool = True,
    has_ended: HasEnded | None = None,
    label: str = "",
    dump_dir: pathlib.Path | None = None,
) -> TrainedModels:
    """Trains one network for each plan.

    Updates that are not finite are skipped as in `training.train`.

    Args:
      bags: with labels in `[0, network.num_classes)`.
      survey: of them.
      network: of all models.
      settings: of all models, but for the plans' overrides.
      plans: M of them, all with `selection` or all without.
      memory: bytes that what is read ahead may take.
      max_instances: that an epoch sees of a bag, drawn anew for each; 0: all.
      instances_per_device: of a bag; longer ones lie on all devices, each with a part of the instances. See
        `spread.is_split`.
      standardise: whether each feature is scaled to mean 0 and variance 1 of the model's training bags.
      order_seed: of the order of the bags and of the draw of instances, which all models share.
      every_epoch: False predicts after the last epoch only.
      has_ended: says after each epoch which models need no further ones; see `plans.HasEnded`.
      label: what the log calls this.
      dump_dir: gets a folder with the update that a training ended with; None: nothing.

    Raises:
      UserError: as of `training.train`, or `settings` ask for consistency, or a step's bags are larger than
        `memory`.
    """
    began = time.monotonic()
    assert bags.labels is not None
    program, tops, bucket_of = _plan_programs(
        bags,
        network,
        settings,
        plans,
        max_instances=max_instances,
        instances_per_device=instances_per_device,
        every_epoch=every_epoch,
    )
    spread = program.spread
    step_bytes = spread.pad_size(settings.batch_size) * tops[-1] * int(np.prod(bags.shape)) * 4
    bag_stream.steps_ahead(step_bytes, memory)  # whether one fits at all
    compiled = streamed_steps.training(program)
    mean, scale = plans_lib.standardisations(plans, bags.shape, standardise, survey.standardisation)
    convert = converter(mean, scale)
    _, mean32, scale32 = precision.in_float32(np.zeros((1, *bags.shape)), mean, scale)
    of_plans = plans_lib.models_of(settings, plans, mean32, scale32)
    of_models = of_plans
    models = spread.place_models(of_models, program.group)
    states = compiled.start(models, *_some_bag(bags.shape, tops[0]))
    in_a_row = spread.place_models(np.zeros(len(plans), np.int32), program.group)
    predicted = np.arange(settings.epochs) >= (0 if every_epoch else settings.epochs - 1)
    ends = plans_lib.Ends(has_ended, plans, settings.epochs)
    held_out = ends.held_out
    rows = np.flatnonzero(held_out.any(axis=0)).tolist()
    shape = (len(plans), settings.epochs, len(bags), network.num_classes)
    logits = np.full(shape, np.nan, np.float32)
    skips = BagSkips(bags.ids, plans, settings.max_skipped, label)
    buffers = bag_stream.Buffers()
    progress = _StepLog(label, settings.epochs, program.steps_per_epoch, len(plans))
    for epoch in range(settings.epochs):
        order = spread.pad_order(
            bucket_batches(bucket_of, settings.batch_size, order_seed, [epoch])
        )
        steps = bag_stream.TrainingSteps(
            bags, order[0], tops, order_seed, epoch, max_instances, convert, buffers
        )
        skipped = []
        first = epoch * program.steps_per_epoch
        batches = progress.time_waits(bag_stream.read_ahead(steps, step_bytes, memory))
        for place, batch in enumerate(batches):
            visible = of_models.train[:, np.maximum(batch.rows, 0)] & (batch.rows >= 0)
            clock = (np.int32(epoch), np.int32(first + place))
            (states, in_a_row), now = compiled.update(
                models,
                (states, in_a_row),
                spread.place_visible(visible, program.group),
                spread.place_bags(batch.x, batch.mask, batch.labels, batch.rows),
                devices.replicate(clock),
            )
            skipped.append(now)
            # Else the bags of several steps would be in memory. JAX lets go of those of a step that is done
            # when it is called next, or by Python's collector.
            now.block_until_ready()
            gc.collect(0)
            progress.after(first + place + 1, epoch)
            if place % _STEPS_KEPT == 0:  # or what compiling and steps have taken stays
                cpu.release_memory()
        of_steps = np.stack(devices.gather(skipped), axis=-1)[: len(plans), None]
        skips.add_epochs(of_steps, order, np.array([epoch]))
        model = skips.stuck_model()
        if model is not None:
            whole = Steps(dataclasses.replace(program, settings=settings, spread=spread_lib.MODELS))
            writer = _StreamedDumpWriter(steps, survey, plans, whole, dump_dir)
            raise writer.error(skips, model, models, states, epoch + 1)
        if settings.average_epochs:
            states = compiled.average(states, devices.replicate(np.int32(epoch)))
        if predicted[epoch] and rows:
            with progress.pause():
                params = states.average if settings.average_epochs else states.params
                predictor = StreamedPredictor(
                    network,
                    gather_models(params, len(plans)),
                    mean32,
                    1 / scale32,
                    program.group,
                    instances_per_device=instances_per_device,
                )
                for bag in predictor.predict(bags, rows, memory, convert, held_out):
                    own = held_out[:, bag.row]
                    logits[own, epoch, bag.row] = bag.logits[own]
        if program.selects or program.keeps:
            of_epoch = np.where(held_out[..., None], logits[:, epoch], np.float32(0))
            states = compiled.keep(
                models,
                states,
                spread.place_models(of_epoch, program.group),
                *devices.replicate((bags.labels, np.int32(epoch))),
            )
        if ends.update(logits[:, : epoch + 1]):
            if ends.all:
                break
            of_models = ends.apply(of_plans)
            models = spread.place_models(of_models, program.group)
            held_out = ends.held_out
            rows = np.flatnonzero(held_out.any(axis=0)).tolist()
    last, best, at_keep_epoch, best_epochs = gather_models(compiled.results(states), len(plans))
    return TrainedModels(
        last=last,
        best=best,
        at_keep_epoch=at_keep_epoch,
        best_epochs=best_epochs + 1 if program.selects else None,
        logits=logits,
        mean=mean,
        scale=scale,
        num_skipped=skips.total,
        seconds=time.monotonic() - began,
        epoch_seconds=np.array(progress.epoch_seconds),
        waiting_seconds=np.array(progress.waiting_seconds),
    )


@contextlib.contextmanager
def compiled_ahead(
    bags: Bags,
    network: BagNetwork,
    settings: Settings,
    plans: Sequence[Plan],
    *,
    max_instances: int = 0,
    instances_per_device: int | None = None,
    standardise: bool = True,
    every_epoch: bool = True,
    label_shape: tuple[int, ...] = (),
) -> Iterator[None]:
    """Compiles what `train` runs, in other threads, while the context is at something else.

    Args:
      bags, network, settings, plans, max_instances, instances_per_device, standardise, every_epoch: as
        `train` gets them, though bags need no labels yet.
      label_shape: of a bag's label, `(K,)` where bags have several.

    Raises:
      UserError: as of `train`.
    """
    program, tops, _ = _plan_programs(
        bags,
        network,
        settings,
        plans,
        max_instances=max_instances,
        instances_per_device=instances_per_device,
        every_epoch=every_epoch,
    )
    spread, group = program.spread, program.group
    shape = bags.shape if standardise else tuple(1 for _ in bags.shape)
    ones = np.ones((len(plans), *shape), np.float32)
    models = spread.place_models(plans_lib.models_of(settings, plans, ones, ones), group)
    compiled = streamed_steps.training(program)
    some_bag = _some_bag(bags.shape, tops[0])
    states = jax.tree.map(
        lambda leaf: np.zeros((len(plans), *leaf.shape[2:]), leaf.dtype),
        compiled.start.shapes(models, *some_bag),
    )
    rows = np.full(spread.pad_size(settings.batch_size), -1, np.int32)
    labels = np.zeros((len(rows), *label_shape), np.int32)
    seen_by_none = np.zeros((len(plans), len(rows)), bool)  # so that nothing is computed
    as_float64 = ones.astype(np.float64)
    part = converter(as_float64, as_float64)(bags.readers[0].read(0, 1))

    def arguments_of(top: int) -> tuple[Any, ...]:
        return (
            models,
            spread.place_models((states, np.zeros(len(plans), np.int32)), group),
            spread.place_visible(seen_by_none, group),
            spread.place_bags(*bag_stream.pad([part], len(rows), top), labels, rows),
            devices.replicate((np.int32(0), np.int32(0))),
        )

    for (
        top
    ) in tops:  # Python's part of it, which would be slow beside what is done within the context
        compiled.update.lower(*arguments_of(top))  # type: ignore[attr-defined]

    def compile_all() -> None:  # one after the other, since compiling takes some memory for a while
        for top in tops:
            compiled.update(*arguments_of(top))
            cpu.release_memory()
        compiled.start(models, *some_bag)
        bag_stream.import_grain()

    cpu.release_memory()  # what was before, so that less is added to it
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        job = pool.submit(compile_all)
        yield
        cpu.release_memory()
        job.result()
    cpu.release_memory()


def _some_bag(shape: tuple[int, ...], length: int) -> tuple[Any, Any]:
    """A bag of which only the shape matters, on the devices, and its mask."""
    return devices.replicate(bag_stream.pad([np.zeros((1, *shape), np.float32)], 1, length))


def _plan_programs(
    bags: Bags,
    network: BagNetwork,
    settings: Settings,
    plans: Sequence[Plan],
    *,
    max_instances: int,
    instances_per_device: int | None,
    every_epoch: bool,
) -> tuple[Program, tuple[int, ...], np.ndarray]:
    """Says what is compiled for a training.

    Returns:
      What the programs depend on, the rising lengths that steps are padded to, and `[bags]` the bucket of
      each bag. Bags of a step are of one bucket, and their order goes by these.
    """
    lengths = np.minimum(bags.lengths, max_instances or bags.lengths.max())
    tops = bag_stream.step_lengths(lengths, settings.max_waste)
    bucket_of = np.searchsorted(tops, lengths)
    instance_bytes = settings.batch_size * _bytes_of_instance(network, bags)
    split = spread_lib.is_split(network, int(lengths.max()), instance_bytes, instances_per_device)
    # Whether a bag can be predicted after the training, which then takes all of its instances.
    is_split(network, int(bags.lengths.max()), instances_per_device)
    spread = spread_lib.INSTANCES if split else None
    program = make_program(
        network, settings, plans, tops, bucket_of, every_epoch=every_epoch, spread=spread
    )
    if program.consistency:
        raise UserError(
            "consistency_weight is above 0, but of bags that are read one by one no attention of earlier "
            "epochs is kept; set it to 0"
        )
    if streamed_steps.computes_in_pieces(network, program.spread):
        tops = bag_stream.step_lengths(lengths, max(settings.max_waste, _PIECES_WASTE))
        tops = tuple(sorted(set(map(bag_pieces.pad_length, tops))))
    return program, tops, bucket_of


def predictor_of(
    network: BagNetwork,
    params: Any,
    mean: np.ndarray,
    scale: np.ndarray,
    *,
    instances_per_device: int | None = None,
) -> tuple[StreamedPredictor, Callable[[np.ndarray], np.ndarray]]:
    """Makes what predicts with trained networks, and what instances go through before.

    Args:
      network: of all models.
      params: of M networks, every leaf with a leading axis of M.
      mean, scale: `[M, features...]` float64, as `TrainedModels` has them.
      instances_per_device: of a bag; see `spread.is_split`.
    """
    shape = mean.shape[1:]
    _, mean32, scale32 = precision.in_float32(np.zeros((1, *shape)), mean, scale)
    predictor = StreamedPredictor(
        network, params, mean32, 1 / scale32, instances_per_device=instances_per_device
    )
    return predictor, converter(mean, scale)


def _bytes_of_instance(network: BagNetwork, bags: Bags) -> int:
    """Of an instance in an update, about: its features, and its layers with their gradients."""
    return 4 * (int(np.prod(bags.shape)) + 3 * sum(network.widths))


def converter(mean: np.ndarray, scale: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What instances go through before they are padded: as stored, unless float32 would lose their spread.

    Args:
      mean, scale: `[M, features...]` float64 of the models.
    """
    shifts = not precision.survives(mean, scale).all()

    def convert(instances: np.ndarray) -> np.ndarray:
        if shifts:
            return precision.in_float32(instances, mean, scale)[0]
        if instances.dtype.itemsize > 4:
            with np.errstate(over="ignore"):
                return instances.astype(np.float32)
        return instances

    return convert


class _StreamedDumpWriter(DumpWriter):
    """Writes dumps of bags that are read one by one."""

    def __init__(
        self,
        epoch_steps: bag_stream.TrainingSteps,
        survey: Survey,
        plans: Sequence[Plan],
        steps: Steps,
        folder: pathlib.Path | None,
    ):
        """Takes what a dump says.

        Args:
          epoch_steps: of the epoch in which the training ends, for its draw of instances.
          survey: of the bags.
          plans, steps, folder: see `DumpWriter`.
        """
        super().__init__(plans, steps, folder)
        self._epoch_steps, self._survey = epoch_steps, survey

    def digest(self) -> str:
        """Of all bags."""
        return digests.of_json(list(self._survey.digests))

    def batch(self, update: Update, model: Models, state: State, epochs: int) -> dict[str, Any]:
        """See `DumpWriter.batch`."""
        rows = np.array(update.rows, np.int32)
        steps = dataclasses.replace(self._epoch_steps, order=rows[None], epoch=update.epoch)
        batch: StepBags = steps[0]
        draw = functools.partial(streamed_steps.draw_noise, self.steps.network)
        epoch = jnp.int32(update.epoch)
        noise = draw(model.seed, epoch, jnp.asarray(rows), batch.x.shape[1])
        return {
            "x": batch.x.astype(np.float32),
            "mask": batch.mask,
            "labels": batch.labels,
            "noise": np.asarray(noise),
            "target": np.zeros(0, np.float32),
        }


class _StepLog:
    """Lines of the log that say how far a training is.

    Attributes:
      epoch_seconds, waiting_seconds: of the epochs so far; see `TrainedModels`.
    """

    def __init__(self, label: str, epochs: int, steps: int, models: int):
        """Starts the clock.

        Args:
          label: what the log calls the training.
          epochs: of it.
          steps: of an epoch.
          models: that are trained together.
        """
        self._label, self._epochs, self._models = label, epochs, models
        self._total = epochs * steps
        self._progress = Progress(0, self._total)
        self._clock = LogClock(_SECONDS_BETWEEN_LINES)
        self._compiles = True
        self._waited = 0.0
        self.epoch_seconds: list[float] = []
        self.waiting_seconds: list[float] = []

    def time_waits(self, batches: Iterator[StepBags]) -> Iterator[StepBags]:
        """Passes an epoch's batches on, and adds up the time until each is there."""
        start, of_epoch = time.monotonic(), 0.0
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            waited = time.monotonic() - began
            self._waited += waited
            of_epoch += waited
            if batch is None:
                self.epoch_seconds.append(time.monotonic() - start)
                self.waiting_seconds.append(of_epoch)
                return
            yield batch

    def after(self, step: int, epoch: int) -> None:
        """Logs, where there was no line for some seconds, that so many steps are done."""
        if self._compiles:  # the first call does: the rate is that of the others
            self._progress.restart(step)
            self._compiles = False
            self._waited = 0.0
        elif self._clock.is_due() or step == self._total:
            rate = self._progress.measure(step)
            log.info(
                "%s: epoch %d of %d, step %d of %d, %d models at once, %.1f steps a second, %.0f %% of the "
                "time waiting for bags, %s left",
                self._label,
                epoch + 1,
                self._epochs,
                step,
                self._total,
                self._models,
                rate,
                min(100 * self._waited / self._progress.seconds, 100),
                self._progress.time_left(step),
            )
            self._waited = 0.0

    def pause(self) -> Any:
        """See `Progress.pause`."""
        return self._progress.pause()
