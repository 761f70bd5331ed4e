"""Time from a training's command to its first step.

    python -m benchmarks.start --data_dir=data --out=results/benchmarks/start_cpu.json

Each start is a process of its own, ended after its first step: with an empty folder of compiled
programs ("first"), and with one that an earlier start has filled ("second"). Importing alone is measured too.
"""

import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import flag_values, machine
from lossattn_jax.commands import command
from lossattn_jax.errors import UserError

# Below the package's logger, which is the one that commands show.
log = logging.getLogger("lossattn_jax.benchmarks")

SECOND_TARGET = 5.0  # seconds of a second start
IMPORT_TARGET = 1.5  # seconds of an import
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorboardX", "numpy")
# Lines of a training's log, and what has happened by then.
MARKS = {
    "devices: ": "devices",  # and the state is there
    "memory: ": "program",  # and the update's program, compiled or loaded
    "step 1/": "step",
}
_ROOT = pathlib.Path(__file__).parents[1]
_IMPORT = "import lossattn_jax.train.images.loop"


def start_once(config: str, data_dir: str, programs: str) -> dict[str, float]:
    """Starts a training and ends it after its first step.

    Args:
      config: path of the config.
      data_dir: folder of its data set.
      programs: folder of compiled programs.

    Returns:
      Seconds from the start until each of `MARKS`' values.

    Raises:
      UserError: the training ends without a step.
    """
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": programs}
    seconds: dict[str, float] = {}
    lines = []
    with tempfile.TemporaryDirectory() as workdir:
        arguments = [
            sys.executable,
            "train.py",
            f"--config={config}",
            f"--config.data.dir={data_dir}",
            "--config.log.every_steps=1",
            f"--workdir={workdir}/run",
        ]
        began = time.perf_counter()
        with subprocess.Popen(
            arguments, cwd=_ROOT, env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    now = time.perf_counter() - began
                    lines.append(line.strip())
                    seconds |= {mark: now for words, mark in MARKS.items() if words in line}
                    if "step" in seconds:
                        return seconds
            finally:
                process.kill()
    raise UserError(f"the training ended before its first step: {' '.join(lines[-1:])}")


def import_once() -> float:
    """Seconds of a Python that imports what training needs, and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORT], cwd=_ROOT, check=True)
    return time.perf_counter() - began


def run(
    out: str,
    *,
    data_dir: str,
    config: str = "configs/digit_scenes.py",
    repeats: int = 7,
) -> dict[str, Any]:
    """Measures starts and imports, writes and prints the results.

    Args:
      out: JSON file for the results.
      data_dir: folder of the config's data set.
      config: path of the config.
      repeats: of each; first starts take longer and are made `repeats // 2`, at least once.

    Returns:
      What is in the file: `first` and `second` with the spread of the seconds until each of `MARKS`' values,
      `import` with those of an import.

    Raises:
      UserError: a training ends without a step, or the file cannot be written.
    """
    path = machine.prepare(out)
    # From where the trainings are started.
    data_dir, config = (str(pathlib.Path(one).resolve()) for one in (data_dir, config))
    record: dict[str, Any] = {
        **machine.header("benchmarks.start", PACKAGES),
        "targets": {"second": SECOND_TARGET, "import": IMPORT_TARGET},
    }
    firsts = []
    for _ in range(max(1, repeats // 2)):
        with tempfile.TemporaryDirectory() as programs:
            firsts.append(start_once(config, data_dir, programs))
            log.info("without programs: %.2f s", firsts[-1]["step"])
    seconds = []
    with tempfile.TemporaryDirectory() as programs:
        start_once(config, data_dir, programs)
        for _ in range(repeats):
            seconds.append(start_once(config, data_dir, programs))
            log.info("with programs: %.2f s", seconds[-1]["step"])
    import_once()  # writes what Python keeps of modules
    record |= {
        "first": _spreads(firsts),
        "second": _spreads(seconds),
        "import": machine.spread([import_once() for _ in range(repeats)]),
    }
    machine.write(record, path)
    print(table(record))
    log.info("results: %s", path)
    return record


def table(record: Mapping[str, Any]) -> str:
    """The results of `run`, as text."""
    lines = [f"{'seconds until':<24}{'median':>8}   min to max"]
    rows = [
        (f"{mark}, {start} start", record[start][mark])
        for start in ("first", "second")
        for mark in MARKS.values()
    ]
    for name, spread in [*rows, ("imported", record["import"])]:
        lines.append(
            f"{name:<24}{spread['median']:>8.2f}   {spread['min']:.2f} to {spread['max']:.2f}"
        )
    targets = record["targets"]
    lines.append(f"targets: {targets['second']} s a second start, {targets['import']} s an import")
    return "\n".join(lines)


def _spreads(starts: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {mark: machine.spread([start[mark] for start in starts]) for mark in MARKS.values()}


def main() -> None:
    """The command; see the flags."""
    run(**flag_values.arguments(run))


if __name__ == "__main__":
    # Not where tests import several benchmarks, whose flags have the same names.
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_string("data_dir", None, "folder of the config's data set", required=True)
    flags.DEFINE_string("config", "configs/digit_scenes.py", "what is trained")
    flags.DEFINE_integer("repeats", 7, "starts of each kind", lower_bound=1)
    command.run(main)
