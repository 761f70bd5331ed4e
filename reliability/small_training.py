"""A small training as a command: signals, damage, and its results."""

import hashlib
import json
import os
import pathlib
import random
import re
import signal
import time
from collections.abc import Mapping
from typing import Any

from lossattn_jax.checkpoint import integrity, store
from lossattn_jax.train.images import reporting
from reliability import damage, processes

PACKAGES = ("jax", "jaxlib", "orbax-checkpoint", "tensorstore")  # that a record names
OVERRIDES: dict[str, Any] = {
    "model.width": 0.125,
    "train.epochs": 12,
    "train.batch_size": 32,
    "eval.batch_size": 24,
    "eval.every_epochs": 4,
    "log.every_steps": 2,
    "log.pictures": 0,
    "optimizer.warmup_epochs": 1.0,
}


def facts(end: processes.End) -> dict[str, Any]:
    """What the record has of a training's end."""
    lines = end.stderr.splitlines()
    match = re.search(r"steps of \d+ images, from step (\d+)", end.stderr)
    about = ("damaged", "going on from", "starts from the beginning")
    return {
        "code": end.returncode,
        "from_step": int(match[1]) if match else None,
        "warnings": [line for line in lines if any(words in line for words in about)],
        "last_line": end.last_line,
        "traceback": "Traceback" in end.stderr,
    }


class Training(processes.Process):
    """The command, started once."""

    def __init__(
        self,
        workdir: pathlib.Path,
        data_dir: str,
        log: pathlib.Path,
        overrides: Mapping[str, Any] = OVERRIDES,
    ):
        """Starts it.

        Args:
          workdir: of the run.
          data_dir: holds a digit_scenes.
          log: file for what it says on stderr.
          overrides: of the config, by key.
        """
        self.workdir = workdir
        super().__init__(
            arguments(workdir, data_dir, overrides),
            log,
            environment={**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
        )


def arguments(
    workdir: str | pathlib.Path, data_dir: str, overrides: Mapping[str, Any] = OVERRIDES
) -> list[str]:
    """What Python gets to train; see `Training`."""
    values = {**overrides, "data.dir": data_dir}
    return [
        str(processes.ROOT / "train.py"),
        f"--config={processes.ROOT / 'configs' / 'digit_scenes.py'}",
        *(f"--config.{key}={value}" for key, value in values.items()),
        f"--workdir={workdir}",
    ]


def strike(
    training: Training, number: signal.Signals, seconds: float, draw: random.Random
) -> dict[str, Any] | None:
    """Sends a signal at a random moment, a third during a save.

    Args:
      training: just started.
      number: the signal.
      seconds: that an undisturbed run takes; the moments are spread over nine tenths of them.
      draw: of the moment.

    Returns:
      For the record: the moment; None where the run has ended before.
    """
    saving = draw.random() < 1 / 3
    moment = training.start_time + draw.uniform(0, 0.9 * seconds)
    save, delay = draw.randrange(1, 4), draw.uniform(0, 0.05)
    saves: set[str] = set()
    folder = training.workdir / store.CHECKPOINTS_NAME
    before = {path.name for path in folder.glob("*tmp*")}  # of earlier kills

    def ready() -> bool:
        if not saving:
            return time.monotonic() >= moment
        if folder.is_dir():
            saves.update({path.name for path in folder.glob("*.orbax-checkpoint-tmp")} - before)
        if len(saves) < save:
            return False
        time.sleep(delay)
        return True

    seconds_after_start = training.strike(number, ready)
    if seconds_after_start is None:
        return None
    return {"saving": saving, "seconds_after_start": seconds_after_start}


def damage_checkpoint(
    way: str, workdir: pathlib.Path, draw: random.Random
) -> dict[str, Any] | None:
    """Damages a random file of the newest checkpoint.

    Args:
      way: of `damage.WAYS`.
      workdir: of the run.
      draw: of the file, and of what is random in the damage.

    Returns:
      For the record; None where there is no checkpoint.
    """
    folders = steps(workdir)
    if not folders:
        return None
    files = sorted(f for f in folders[-1].rglob("*") if f.is_file() and f.stat().st_size)
    kinds: dict[str, list[pathlib.Path]] = {}
    for file in files:
        kinds.setdefault(damage.kind_of(file, folders[-1]), []).append(file)
    kind = draw.choice(sorted(kinds))
    damage.WAYS[way](draw.choice(kinds[kind]), workdir, draw)
    return {"way": way, "step": int(folders[-1].name), "file": kind}


def steps(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The folders of a run's checkpoints, by their steps."""
    folders = (workdir / store.CHECKPOINTS_NAME).glob("*")
    return sorted((f for f in folders if f.name.isdecimal()), key=lambda f: int(f.name))


def bits(workdir: pathlib.Path) -> dict[str, str]:
    """Digests of the arrays in the last checkpoint, and its step."""
    import orbax.checkpoint as ocp

    last = steps(workdir)[-1]
    digests = {"step": last.name}
    with ocp.StandardCheckpointer() as reader:
        for item in ("variables", "training"):
            if not (last / item).exists():  # a conversion has no state of a training
                continue
            arrays = integrity.digests_of(reader.restore(last / item))
            content = json.dumps(arrays, sort_keys=True).encode()
            digests[item] = hashlib.sha256(content).hexdigest()
    return digests


def metrics_are_whole(workdir: pathlib.Path, overrides: Mapping[str, Any], total: int) -> bool:
    """Whether a finished run's metrics have every step once, in order.

    Args:
      workdir: of the run.
      overrides: of its config, by key.
      total: updates of the run.
    """
    metrics_lines = reporting.read_metrics(workdir)
    steps_by_kind = {
        kind: [line["step"] for line in metrics_lines if line["kind"] == kind]
        for kind in ("train", "test")
    }
    per_epoch = total // overrides["train.epochs"]
    tests = overrides["eval.every_epochs"] * per_epoch
    return steps_by_kind == {
        kind: [step for step in range(1, total + 1) if step % every == 0 or step == total]
        for kind, every in (("train", overrides["log.every_steps"]), ("test", tests))
    }
