"""Training of all folds of bags against a plain loop in PyTorch.

    python -m benchmarks.bags_against_torch --data_dir=data/mil --datasets=fox,musk2 --out=bags_cpu.json

Both train the same network on the same folds in the same run, in turn, on all cores of the CPU that this
process may use. `taskset -c 0,1` gives it two.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
from absl import flags

from benchmarks import bag_limits, bag_table, comparison, flag_values, jax_bags, machine
from lossattn_jax import devices
from lossattn_jax.commands import command
from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import sources
from lossattn_jax.data.bags.bags import BagDataset, bucket_lengths, padding_waste
from lossattn_jax.data.bags.precision import standardisation
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.errors import UserError
from lossattn_jax.kernels import cpu
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags import programs
from lossattn_jax.train.bags.settings import Settings

if TYPE_CHECKING:
    from benchmarks import torch_bags

# Below the package's logger, which is the one that commands show.
log = logging.getLogger("lossattn_jax.benchmarks")

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")


def run(
    datasets: Sequence[str],
    data_dir: str,
    out: str,
    *,
    epochs: int = 20,
    repeats: int = 5,
    folds: int = 10,
    draws: int = 5,
    torch_epochs: int = 1,
    groups: Sequence[int] = (1, 5, 10),
    group_epochs: int = 4,
) -> dict[str, Any]:
    """Measures on each data set, writes the results and prints tables.

    The file is written after each data set, so that what is done is kept.

    Args:
      datasets: benchmarks, or files of bags of vectors.
      data_dir: folder of the benchmarks.
      out: JSON file for the results.
      epochs: of each timed call of JAX.
      repeats: timed repeats of everything.
      folds: of cross-validation.
      draws: how often all folds are drawn; JAX trains `draws * folds` models at once.
      torch_epochs: of each of the `folds` networks that a timed loop of PyTorch trains.
      groups: values of `Settings.models_at_once` to compare; () for none.
      group_epochs: epochs of each timed call of these.

    Returns:
      What is in the file. Times are wall times, in microseconds where a name ends in `us`.

    Raises:
      UserError: PyTorch is missing, a data set is unknown or cannot be read, or the file cannot be written.
      comparison.DisagreementError: the two do not compute the same.
    """
    comparison.check_sides()
    if not datasets:
        raise UserError("--datasets names none, but must name one at least")
    config = config_lib.default_config()
    config.folds, config.repeats = folds, draws
    config_lib.check(config)
    experiments = [_vectors(name, data_dir, config) for name in datasets]
    path = machine.prepare(out)
    record: dict[str, Any] = {
        **machine.header("benchmarks.bags_against_torch", PACKAGES),
        "jax_devices": jax.local_device_count(),
        "datasets": {},
    }
    for experiment in experiments:
        log.info("%s: %s", experiment.resident.name, devices.describe())
        own = _measure(experiment, epochs, repeats, torch_epochs, groups, group_epochs)
        record["datasets"][experiment.resident.name] = own
        machine.write(record, path)
        print(bag_table.table(experiment.resident.name, own))
        programs.forget()
    log.info("results: %s", path)
    return record


def main() -> None:
    """The command; see the flags."""
    cpu.one_device_per_core()
    run(**flag_values.arguments(run))


def _measure(
    experiment: sources.Experiment,
    epochs: int,
    repeats: int,
    torch_epochs: int,
    groups: Sequence[int],
    group_epochs: int,
) -> dict[str, Any]:
    from benchmarks import bag_agreement, torch_bags
    from benchmarks.torch_workers import Way, Workers

    dataset, splits = experiment.resident, experiment.splits
    network, settings = BagNetwork(dataset.num_classes), Settings(epochs=epochs)
    features = dataset.instances.shape[1]
    recipe = torch_bags.Recipe(
        features=features,
        classes=dataset.num_classes,
        hidden=network.widths,
        dropout=network.dropout,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        patch_weight=settings.patch_weight,
    )
    agreement = bag_agreement.check(dataset, network, settings, recipe)
    log.info(
        "%s: losses differ by %.1e, parameters by %.1e after %d steps",
        dataset.name,
        agreement["loss"],
        agreement["parameters"],
        agreement["steps"],
    )
    cores, count = cpu.cores(), jax.local_device_count()
    plain = list(dict.fromkeys([Way(1, 1), Way(1, cores), Way(cores, 1)]))
    ways = [*plain, Way(cores, 1, fused=True)]
    job = jax_bags.Job(dataset, network, settings, splits)
    # The folds of one draw: each bag is in all but one of them, as in JAX's job.
    one_draw = [_fold(dataset, split) for split in splits if split.repeat == 0]
    jax_us: list[float] = []
    torch_us: dict[Way, list[float]] = {way: [] for way in ways}
    with Workers(recipe, one_draw, cores) as workers:
        first = job.seconds()
        for way in ways:
            workers.seconds_per_step(way, 1)
        for repeat in range(repeats):
            jax_us.append(1e6 * job.seconds() / job.steps)
            for way in ways:
                seed = repeat * cores
                torch_us[way].append(1e6 * workers.seconds_per_step(way, torch_epochs, seed))
            log.info(
                "%s, repeat %d of %d: us per model-step: JAX %.1f; PyTorch %s",
                dataset.name,
                repeat + 1,
                repeats,
                jax_us[-1],
                ", ".join(f"{way.name} {values[-1]:.1f}" for way, values in torch_us.items()),
            )
    ours, job_steps = machine.spread(jax_us), job.steps // epochs * bag_table.JOB_EPOCHS
    compile_seconds = max(0.0, first - ours["median"] * job.steps / 1e6)
    rows = [
        {
            "way": way.name,
            **dataclasses.asdict(way),
            "steps_per_repeat": way.processes * torch_epochs * sum(len(f.bags) for f in one_draw),
            "us_per_step": machine.spread(values),
            "job_seconds": machine.spread(values)["median"] * job_steps / 1e6,
            "speedup": machine.spread(values)["median"] / ours["median"],
            # Of the same repeat, so that a machine that slows down for a while slows both.
            "speedup_in_repeats": machine.spread(
                [theirs / own for theirs, own in zip(values, jax_us, strict=True)]
            ),
        }
        for way, values in torch_us.items()
    ]
    fastest = min(rows[: len(plain)], key=lambda way: way["us_per_step"]["median"])
    tops = bucket_lengths(dataset.lengths, settings.max_waste)
    length = float(dataset.lengths.mean())
    padded_length = length * padding_waste(dataset.lengths, tops)
    return {
        "data": {
            "bags": len(dataset),
            "instances": len(dataset.instances),
            "features": features,
            "mean_length": length,
            "mean_padded_length": padded_length,
            "padded_to": list(tops),
            "models": len(splits),
        },
        "agreement": agreement,
        "jax": {
            "devices": count,
            "epochs_per_repeat": epochs,
            "steps_per_repeat": job.steps,
            "us_per_step": ours,
            "compile_seconds": compile_seconds,
            "job_seconds": compile_seconds + ours["median"] * job_steps / 1e6,
        },
        "torch": rows,
        "fastest_torch": fastest["way"],
        "speedup": fastest["speedup"],
        "limits": bag_limits.measure(
            features, network.widths, dataset.num_classes, padded_length, ours["median"] * count
        ),
        "models_at_once": jax_bags.compare_groups(
            dataset, network, splits, groups, group_epochs, repeats
        ),
    }


def _vectors(name: str, data_dir: str, config: Any) -> sources.Experiment:
    """The experiment on a data set of vectors."""
    if sources.find(name).is_generated:
        raise UserError(f"{name} has bags of images, but this measures networks for vectors")
    experiment = next(iter(sources.experiments(name, data_dir, config)))
    if experiment.resident.instances.ndim != 2:
        raise UserError(f"{name} has bags of images, but this measures networks for vectors")
    return experiment


def _fold(dataset: BagDataset, split: Split) -> "torch_bags.Fold":
    """The training bags of a split, standardised as `training.train` does."""
    from benchmarks import torch_bags

    bags = dataset.select(split.train)
    moments = standardisation(bags.instances)
    instances = [jax_bags.standardise(bag, *moments) for bag in bags.bags]
    return torch_bags.Fold(instances, bags.labels.tolist())


if __name__ == "__main__":
    # Not where tests import several benchmarks, whose flags have the same names.
    flags.DEFINE_list("datasets", ["fox", "musk2"], "benchmarks, or files of bags (CSV)")
    flags.DEFINE_string("data_dir", "data/mil", "folder of the benchmarks")
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_integer("epochs", 20, "of each timed call of JAX", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "timed repeats of everything", lower_bound=1)
    flags.DEFINE_integer("folds", 10, "of cross-validation", lower_bound=2)
    flags.DEFINE_integer("draws", 5, "of all folds, so many are trained at once", lower_bound=1)
    command.run(main)
