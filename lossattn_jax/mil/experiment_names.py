"""Names of experiments, in folders, tables and messages."""

import collections
import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from lossattn_jax.config.options import GeneratedBagOptions
from lossattn_jax.data.bags import sources
from lossattn_jax.data.bags.sources import Experiment

log = logging.getLogger(__name__)

_DIGITS = 8  # of a digest, in a name


def read(
    datasets: Sequence[str],
    load: Callable[[str], Iterable[Experiment]],
    options: GeneratedBagOptions,
    folder_of: Callable[[str], pathlib.Path],
    check: Callable[[Sequence[Experiment]], None],
) -> Iterator[Experiment]:
    """Yields a command's experiments, each under a unique name.

    An experiment has its data set's name while no other of the command has it. Of several with one name each
    gets `NAME-` and the first digits of its digest, and of those that have the same bags only one is
    yielded.

    All are read and checked before the first is yielded, but for generated bags, which are many: those are
    read when it is their turn, unless their name or their folder is there already.

    Args:
      datasets: as `sources.experiments` takes them.
      load: reads the experiments on one of them.
      options: of generated bags.
      folder_of: where the results of an experiment are, by its name.
      check: raises for experiments one of which cannot be run.

    Raises:
      UserError: a name is unknown, or the bags cannot be read, or as of `check`.
    """
    names = {dataset: sources.names(dataset, options) for dataset in dict.fromkeys(datasets)}
    often = collections.Counter(name for own in names.values() for name in own)

    def waits(dataset: str) -> bool:
        return sources.find(dataset).is_generated and not any(
            often[name] > 1 or os.path.lexists(folder_of(name)) for name in names[dataset]
        )

    early = {dataset: list(load(dataset)) for dataset in names if not waits(dataset)}
    if len(names) < len(datasets):
        log.info("a data set that is named twice is computed once")
    _rename(early, {name for name, count in often.items() if count > 1})
    check([experiment for experiments in early.values() for experiment in experiments])
    for dataset in names:
        if dataset in early:
            yield from early.pop(dataset)
        else:
            for experiment in load(dataset):
                check([experiment])
                yield experiment


def _rename(early: dict[str, list[Experiment]], ambiguous: set[str]) -> None:
    """Drops repeated bags, and renames different bags of one name."""
    digests: dict[str, set[str]] = collections.defaultdict(set)
    for dataset, experiments in early.items():
        different = []
        for experiment in experiments:
            name = experiment.dataset.name
            if name in ambiguous:
                digest = experiment.digest
                if digest in digests[name]:
                    log.info("%s has the bags that %s has already: computed once", dataset, name)
                    continue
                digests[name].add(digest)
            different.append(experiment)
        early[dataset] = different
    for dataset, experiments in early.items():
        for place, experiment in enumerate(experiments):
            name = experiment.dataset.name
            if len(digests[name]) > 1:
                own = f"{name}-{experiment.digest[:_DIGITS]}"
                log.info("%s is called %s here: other bags have its name", dataset, own)
                experiments[place] = _rename_experiment(experiment, own)


def _rename_experiment(experiment: Experiment, name: str) -> Experiment:
    dataset = dataclasses.replace(experiment.dataset, name=name)
    return dataclasses.replace(experiment, dataset=dataset)
