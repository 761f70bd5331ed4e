"""Tables of an explainer's metrics on several systems, over seeds.

    python -m lossattn_jax.explain.explanation_table --runs=runs/a0,runs/b0 --table=t.md --record=t.json

Each run has to have been through `python -m lossattn_jax.evaluate` and `lossattn_jax.compare_explainers`.
"""

import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from lossattn_jax import files
from lossattn_jax.attention.poolings import POOLINGS
from lossattn_jax.checkpoint import provenance, run_folder
from lossattn_jax.commands import command
from lossattn_jax.config.images import leaves
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate.metric_registry import EVALUATION_METRICS
from lossattn_jax.evaluate.metrics import finite
from lossattn_jax.explain.metrics import metric_registry
from lossattn_jax.explain.metrics.metric_registry import arrow
from lossattn_jax.files import digests, records
from lossattn_jax.files.escaping import for_markdown

# Named here, since `python -m` runs this module under another name.
log = logging.getLogger("lossattn_jax.explain.explanation_table")

EVALUATION_NAME, COMPARISON_NAME = "evaluation_test.json", "compare_explainers.json"
# The rows, and where each is better: what was evaluated, and what was compared.
METRICS: dict[str, bool] = {
    **{
        name: metric.higher
        for name, metric in EVALUATION_METRICS.items()
        if metric.compares_systems and metric.higher is not None
    },
    **{
        name: metric.higher
        for name, metric in metric_registry.METRICS.items()
        if metric.compares_systems and metric.higher is not None
    },
}
# What is said in words where nothing else is chosen and the data set has boxes.
IN_WORDS = tuple(name for name, metric in metric_registry.METRICS.items() if metric.in_words)


@dataclasses.dataclass(frozen=True)
class RunResults:
    """What is known of a run.

    Attributes:
      workdir: its folder.
      config: every key but the seed, with dots.
      seed: of the run.
      images: in words, what it was measured on.
      values: by names of `METRICS`, and of a user's own metrics; NaN for what is not finite.
      data: digests of the images, by names of the files that have one.
      own: of the user's own metrics, whether more is better.
    """

    workdir: str
    config: Mapping[str, Any]
    seed: int
    images: str
    values: Mapping[str, float]
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    own: Mapping[str, bool] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class System:
    """Runs that differ in the seed only, by their seeds.

    Attributes:
      name: head and pooling, and what tells it apart from other systems with the same.
      runs: at least one.
    """

    name: str
    runs: tuple[RunResults, ...]

    @property
    def metrics(self) -> dict[str, bool]:
        """Returns the measured rows, and whether more is better."""
        all_metrics = {**METRICS, **self.runs[0].own}
        return {name: higher for name, higher in all_metrics.items() if name in self.runs[0].values}

    def by_seed(self, metric: str) -> dict[int, float]:
        return {run.seed: run.values[metric] for run in self.runs}

    def mean(self, metric: str) -> float:
        return float(np.mean(list(self.by_seed(metric).values())))

    def deviation(self, metric: str) -> float:
        """Sample standard deviation over seeds; NaN of one seed."""
        values = list(self.by_seed(metric).values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def write(
    runs: Sequence[str],
    table: str,
    record: str,
    explainer: str = "attention",
    compare: Sequence[str] | None = None,
    *,
    trust_code: bool = False,
) -> str:
    """Writes the runs' table in Markdown, and their values in JSON.

    Args:
      runs: workdirs; the first one's system is compared with the others.
      table: the Markdown file.
      record: the JSON file.
      explainer: whose measures, of `explainers.NAMES`.
      compare: names of metrics that are said in words; None: those of `IN_WORDS` that were measured.
      trust_code: whether code that the runs' configs name by reference is imported.

    Returns:
      The Markdown.

    Raises:
      UserError: a run is not finished, lacks a measure, or is there twice; the runs were measured on
        different images; `compare` names what was not measured; or a file cannot be written.
    """
    run_results = [_read(run, explainer, trust_code) for run in runs]
    if not run_results:
        raise UserError("runs are none, but at least one workdir is needed")
    _refuse_different(run_results)
    systems = group(run_results)
    there = list(systems[0].metrics)
    compare_names = [name for name in IN_WORDS if name in there] if compare is None else compare
    for name in compare_names:
        if name not in there:
            raise UserError(f"compare has {name!r}, but must be of: {', '.join(there)}")
    pairs = [(metric, systems[0], other) for metric in compare_names for other in systems[1:]]
    lines = [
        f"Explainer `{explainer}`, {for_markdown(run_results[0].images)}.",
        "",
        *_table(systems),
    ]
    if pairs:
        lines += ["", *(_sentence(*pair) for pair in pairs)]
    text = "\n".join(lines) + "\n"
    content = {
        "explainer": explainer,
        "images": run_results[0].images,
        "systems": [_system_record(system) for system in systems],
        "differences": [_difference(*pair) for pair in pairs],
    }
    made_from = {
        run.workdir: digests.of_json([run.config, run.seed, run.values]) for run in run_results
    }
    complete = records.complete(content, {"explainer": explainer, **made_from})
    for path, content_there in ((table, text), (record, json.dumps(complete, indent=1) + "\n")):
        try:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            files.write(path, content_there.encode())
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return text


def group(run_results: Sequence[RunResults]) -> list[System]:
    """Systems in the order of their first runs.

    Raises:
      UserError: two runs have the same config, seed included.
    """
    groups: dict[tuple[Any, ...], dict[int, RunResults]] = {}
    for run in run_results:
        members = groups.setdefault(tuple(run.config.items()), {})
        if run.seed in members:
            raise UserError(
                f"{run.workdir} has the config and the seed of {members[run.seed].workdir}"
            )
        members[run.seed] = run
    firsts = [next(iter(members.values())) for members in groups.values()]
    return [
        System(_name(first, firsts), tuple(members[seed] for seed in sorted(members)))
        for first, members in zip(firsts, groups.values(), strict=True)
    ]


def _read(workdir: str, explainer: str, trust_code: bool) -> RunResults:
    config_there = run_folder.stored_config(workdir, trust_code=trust_code)
    config = dict(leaves(config_there))
    seed = config.pop("seed")
    evaluate = f"python -m lossattn_jax.evaluate --workdir={workdir}"
    compare = f"python -m lossattn_jax.compare_explainers --workdir={workdir}"
    of_evaluation = _record(workdir, EVALUATION_NAME, evaluate)
    of_comparison = _record(workdir, COMPARISON_NAME, compare)
    evaluation, comparison = of_evaluation.content, of_comparison.content
    try:
        of_explainers = comparison["explainers"]
        if explainer not in of_explainers:
            raise UserError(
                f"the explainer {explainer!r} was not compared in {workdir}; "
                f"{compare} --explainers={explainer} does it"
            )
        if evaluation["step"] != comparison["step"]:
            raise UserError(
                f"{workdir} was evaluated at step {evaluation['step']} and compared at step "
                f"{comparison['step']}; {evaluate} and {compare} take the latest one"
            )
        images = (
            f"{comparison['images']} images of {comparison['dataset']} ({comparison['split']}), accuracy "
            f"on {evaluation['num_examples']} of {evaluation['dataset']} ({evaluation['split']})"
        )
        of_split = {
            name: evaluation[name]
            for name, metric in EVALUATION_METRICS.items()
            if metric.compares_systems
        }
        values = {**of_split, **of_explainers[explainer]}
        own = {
            name: higher
            for name, higher in comparison.get("own_metrics", {}).items()
            if isinstance(higher, bool)
        }
        own_values = {name: values[name] for name in (*METRICS, *own) if name in values}
        numbers = {
            name: math.nan if value is None else float(value) for name, value in own_values.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{EVALUATION_NAME} or {COMPARISON_NAME} in {workdir} cannot be read ({error!r}); {evaluate} and "
            f"{compare} make them"
        ) from None
    inputs = {EVALUATION_NAME: of_evaluation.made_from, COMPARISON_NAME: of_comparison.made_from}
    _refuse_mixed(
        workdir,
        config_there,
        inputs,
        evaluation["step"],
        f"{evaluate} and {compare} make them again",
    )
    data = {name: made_from.get("data") for name, made_from in inputs.items() if made_from}
    return RunResults(workdir, config, seed, images, numbers, data, own)


def _refuse_mixed(
    workdir: str,
    config_there: ConfigDict,
    inputs: Mapping[str, Mapping[str, Any] | None],
    step: int,
    remedy: str,
) -> None:
    """Refuses records of other networks or other images.

    Args:
      workdir: of the run.
      config_there: its config.
      inputs: by the file's name what it was made from, None where that is not known.
      step: of the checkpoint.
      remedy: what makes the files again.
    """
    config = provenance.of_config(config_there)
    checkpoint = provenance.of_checkpoint(workdir, step)
    now = {**config, provenance.CONFIG_FILE: run_folder.config_digest(workdir)}
    if checkpoint is not None:
        now["parameters"] = checkpoint
    for name, made_from in inputs.items():
        if made_from is None:
            continue
        before = {key: made_from[key] for key in now if key in made_from}
        reason = records.difference(before, {key: now[key] for key in before})
        if reason is not None:
            raise UserError(
                f"{name} in {workdir} was not made from the run that is there now ({reason}); {remedy}"
            )
    known_inputs = [made_from for made_from in inputs.values() if made_from is not None]
    if len(known_inputs) == 2 and known_inputs[0].get("split") == known_inputs[1].get("split"):
        shared_keys = [key for key in known_inputs[0] if key in known_inputs[1]]
        first, second = ({key: made_from[key] for key in shared_keys} for made_from in known_inputs)
        reason = records.difference(first, second)
        if reason is not None:
            names = " and ".join(inputs)
            raise UserError(f"{names} in {workdir} were made from others ({reason}); {remedy}")


def _record(workdir: str, name: str, command_line: str) -> records.Record:
    path = pathlib.Path(workdir) / name
    try:
        record = records.read(path)
    except FileNotFoundError:
        raise UserError(f"{workdir} has no {name}; {command_line} makes it") from None
    except records.DamagedRecord as error:
        raise UserError(
            f"{name} in {workdir} cannot be read ({error}); {command_line} makes it"
        ) from None
    if record.made_from is None:
        log.warning(
            "warning: %s was written before results carried digests: that it is of this run cannot be seen",
            path,
        )
    return record


def _refuse_different(run_results: Sequence[RunResults]) -> None:
    """Runs that were not measured alike make no table."""
    first = run_results[0]
    for run in run_results[1:]:
        if run.images != first.images:
            raise UserError(
                f"{first.workdir} was measured on {first.images}, but {run.workdir} on {run.images}"
            )
        for name in first.data.keys() & run.data.keys():
            if first.data[name] != run.data[name]:
                raise UserError(
                    f"{name} in {run.workdir} was measured on other images than in {first.workdir}, though "
                    "the data set has the same name"
                )
        for one, other in ((first, run), (run, first)):
            for name in one.values.keys() - other.values.keys():
                raise UserError(
                    f"{other.workdir} has no {name}, which {one.workdir} has; "
                    f"python -m lossattn_jax.compare_explainers --workdir={other.workdir} makes it"
                )


def _name(run: RunResults, firsts: Sequence[RunResults]) -> str:
    """Names a system by head, pooling and threshold.

    Then by what differs in systems of that name.
    """
    name = _short_name(run)
    alike = [other.config for other in firsts if _short_name(other) == name]
    keys = [key for key in run.config if any(c[key] != run.config[key] for c in alike)]
    apart = ", ".join(f"{key} = {run.config[key]}" for key in keys)
    return f"{name} ({apart})" if apart else name


def _short_name(run: RunResults) -> str:
    name = f"{run.config['model.head']} + {run.config['model.pooling']}"
    has_threshold = POOLINGS.find(run.config["model.pooling"]).threshold
    return f"{name}, t = {run.config['model.threshold']:g}" if has_threshold else name


def _table(systems: Sequence[System]) -> list[str]:
    """Markdown's lines: a row for each metric, a column for each system."""
    lines = [
        f"| mean ± sample standard deviation | {' | '.join(for_markdown(s.name) for s in systems)} |",
        f"| --- |{' --- |' * len(systems)}",
        f"| seeds | {' | '.join(str(len(system.runs)) for system in systems)} |",
    ]
    for metric, higher in systems[0].metrics.items():
        cells = " | ".join(_cell(system, metric) for system in systems)
        lines.append(f"| {for_markdown(metric)}{arrow(higher)} | {cells} |")
    return lines


def _cell(system: System, metric: str) -> str:
    mean, deviation = system.mean(metric), system.deviation(metric)
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"


def _sentence(metric: str, first: System, second: System) -> str:
    ours, theirs = first.mean(metric), second.mean(metric)
    better = "higher" if first.metrics[metric] else "lower"
    sentence = (
        f"- `{metric}` ({better} is better): {for_markdown(first.name)} "
        f"has {ours:.3f} and {for_markdown(second.name)} {theirs:.3f}, a difference of {ours - theirs:+.3f}"
    )
    seeds, ahead = _count_pairs(metric, first, second)
    seeds_text = ", ".join(str(seed) for seed in seeds)
    if not seeds:
        return f"{sentence}; they have no seed in common."
    many = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return f"{sentence}; of the {many} in common ({seeds_text}) the first is ahead in {ahead}."


def _count_pairs(metric: str, first: System, second: System) -> tuple[list[int], int]:
    """Returns common seeds, and how often the first is better."""
    ours, theirs = first.by_seed(metric), second.by_seed(metric)
    seeds = [seed for seed in ours if seed in theirs]
    sign = 1 if first.metrics[metric] else -1
    return seeds, sum(sign * ours[seed] > sign * theirs[seed] for seed in seeds)


def _difference(metric: str, first: System, second: System) -> dict[str, Any]:
    ours, theirs = first.mean(metric), second.mean(metric)
    seeds, ahead = _count_pairs(metric, first, second)
    return {
        "metric": metric,
        "first": first.name,
        "second": second.name,
        **finite({"difference": ours - theirs}),
        "seeds": seeds,
        "ahead": ahead,
    }


def _system_record(system: System) -> dict[str, Any]:
    return {
        "name": system.name,
        "seeds": [run.seed for run in system.runs],
        "workdirs": [run.workdir for run in system.runs],
        "metrics": {
            metric: finite({"mean": system.mean(metric), "deviation": system.deviation(metric)})
            | {"values": [finite(run.values)[metric] for run in system.runs]}
            for metric in system.runs[0].values
        },
    }


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    text = write(
        values.runs,
        values.table,
        values.record,
        values.explainer,
        values.compare,
        trust_code=values.trust_code,
    )
    print(text, end="")


if __name__ == "__main__":
    flags.DEFINE_list("runs", None, "workdirs of finished runs", required=True)
    flags.DEFINE_string("table", None, "Markdown file to write", required=True)
    flags.DEFINE_string("record", None, "JSON file to write", required=True)
    flags.DEFINE_string("explainer", "attention", "whose measures")
    flags.DEFINE_list(
        "compare", None, f"metrics to say in words; default: {','.join(IN_WORDS)} where measured"
    )
    command.define_trust_code()
    command.run(main)
