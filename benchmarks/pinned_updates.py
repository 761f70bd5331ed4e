"""Pins what eight small trainings compute, to compare two trees.

    git worktree add ../before COMMIT
    python -m benchmarks.pinned_updates record --tree=../before --out=before.npz
    python -m benchmarks.pinned_updates record --tree=. --out=after.npz
    python -m benchmarks.pinned_updates compare before.npz after.npz

Each training is made twice by the real commands of the tree, on small data that is made for it: at a
learning rate that is 0 in float32, so that its losses and outputs are those of the first parameters, and with
`UPDATES` updates. What is pinned is read from the files that the commands leave: `metrics.jsonl`,
checkpoints, exported outputs, results of folds. What no file of a training of bags has comes from
`pinned_adapter`, which runs inside the tree and holds all that is taken for granted of its modules.

Both files have to come from one machine and the same versions of JAX. With `--fast` LLVM optimises no
program: that takes half the time, but programs round otherwise than those of users, so both files need it or
neither. `compare` ends with 1 where losses or outputs of the first step differ in a bit, or parameters after
the updates by more than `TOLERANCE`.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import machine, pinned_data
from lossattn_jax.errors import UserError

UPDATES = 20
TOLERANCE = 1e-5  # of parameters, relative to the largest absolute value of their array
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Positive, as a learning rate has to be, and 0 in float32.
_NO_RATE = 1e-50
_LOSSES = ("loss", "image_loss", "patch_loss", "consistency_loss")
_OUTPUTS = ("logits", "patch_logits", "attention")
_FIRST, _AFTER, _ABOUT = "first", "after", "about"
_ADAPTER = pathlib.Path(__file__).with_name("pinned_adapter.py")
_SCENES = (48, 24)  # training and test images
_HOUSE_NUMBERS = (8, 4)
_MOST_NAMES = 6  # arrays that a line names
# What XLA itself makes of a program does not change with them.
_FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_WAIT_SECONDS = 7200  # of a command, also on a machine that is busy


@dataclasses.dataclass(frozen=True)
class Images:
    """A training on images.

    Attributes:
      overrides: of `configs/digit_scenes.py`; with them the run makes `UPDATES` updates.
      first_epochs: of the run without a learning rate.
    """

    overrides: Mapping[str, Any]
    first_epochs: int = 1


@dataclasses.dataclass(frozen=True)
class Bags:
    """A training of networks for bags, all folds and repeats together.

    Attributes:
      method: one of `lossattn_jax.mil.methods.NAMES`.
      rules: of selection.
      overrides: of `lossattn_jax/mil/config.py`; with them a network makes about `UPDATES` updates.
    """

    method: str
    rules: tuple[str, ...]
    overrides: Mapping[str, Any]


_SGD = {"optimizer.learning_rate": 0.02, "loss.patch_ramp_epochs": 0}
_ADAM = {
    "optimizer.name": "adam",
    "optimizer.schedule": "constant",
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_epochs": 0.0,
    "loss.patch_ramp_epochs": 0,
}
# Between them they have all heads' kinds of networks, losses, optimisers and schedules.
CONFIGS: Mapping[str, Images | Bags] = {
    "conv": Images({**_SGD, "optimizer.warmup_epochs": 1.0}),
    "capsule": Images({**_ADAM, "model.head": "capsule"}),
    "plain": Images(
        {
            **_SGD,
            "model.backbone": "vgg11_bn",
            "model.head": "none",
            "model.pooling": "none",
            "model.width": 0.0625,
            "loss.label_smoothing": 0.1,
            "optimizer.schedule": "step",
            "optimizer.warmup_epochs": 0.0,
            "optimizer.milestones": (2, 4),
            "optimizer.weight_decay_mask": "kernels",
        }
    ),
    "several_labels": Images(
        {
            **_ADAM,
            "data.name": "svhn_full",
            "optimizer.name": "adamw",
            "optimizer.schedule": "cosine",
            "train.epochs": 10,
            "train.batch_size": 4,
        }
    ),
    "consistency": Images(
        {
            **_ADAM,
            "model.pooling": "bag_loss_attention",
            "loss.patch_reduction": "mean",
            "loss.consistency_weight": 10.0,
            "loss.consistency_ramp_epochs": 2,
            "optimizer.schedule": "ramps",
            "optimizer.ramp_up_epochs": 2,
            "optimizer.ramp_down_epochs": 2,
            "optimizer.momentum_end": 0.5,
            "optimizer.beta2_end": 0.99,
        },
        first_epochs=2,  # the first has no average of attention yet
    ),
    "accumulate": Images(
        {
            **_SGD,
            "model.head": "capsule",
            "model.pooling": "dynamic_routing",
            "train.accumulate": 3,
            "train.remat": True,
        }
    ),
    "bags_loss_attention": Bags(
        "loss_attention",
        ("final", "best_test_epoch"),
        {
            "training.epochs": 5,
            "training.consistency_weight": 1.0,
            "training.consistency_ramp_epochs": 2,
        },
    ),
    "bags_mi_net": Bags(
        "mi_net",
        ("final",),
        {
            "training.epochs": 6,
            "training.batch_size": 2,
            "training.average_epochs": 2,
            "training.models_at_once": 3,
        },
    ),
}
_IMAGES = {
    "seed": 3,
    "model.width": 0.1,
    "train.epochs": 5,
    "train.batch_size": 12,
    "eval.batch_size": 12,
    "log.every_steps": 1,
    "log.pictures": 0,
    "checkpoint.keep": 1,
}
_BAGS = {
    "seed": 3,
    "folds": 2,
    "repeats": 3,
    "network.hidden": (16, 8),
    "training.learning_rate": 1e-3,
}


class Tree:
    """A checked-out tree of this package, whose commands can be run.

    Attributes:
      folder: of the tree.
      flags: of XLA for its commands.
    """

    def __init__(self, folder: str | os.PathLike[str], programs: pathlib.Path, fast: bool = False):
        """Looks whether it is one.

        Args:
          folder: of the tree.
          programs: folder for compiled programs, which the commands share.
          fast: whether programs are compiled without LLVM's optimisations.

        Raises:
          UserError: it is none.
        """
        self.folder = pathlib.Path(folder).resolve()
        if not (self.folder / "train.py").is_file() or not (self.folder / "lossattn_jax").is_dir():
            raise UserError(f"--tree is {folder}, but must be a checked-out tree of lossattn_jax")
        self.flags = " ".join([_FAST if fast else "", os.environ.get("XLA_FLAGS", "")]).strip()
        self._environment = {
            **os.environ,
            "XLA_FLAGS": self.flags,
            "PYTHONPATH": str(self.folder),
            "JAX_COMPILATION_CACHE_DIR": str(programs),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def run(self, *arguments: object) -> None:
        """Runs `python ARGUMENTS` in the tree.

        Raises:
          UserError: it fails; with the end of what it said.
        """
        command = [str(argument) for argument in arguments]
        end = subprocess.run(
            # Without the folder of a script on the path, whose modules are not the tree's.
            [sys.executable, "-P", *command],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_WAIT_SECONDS,
        )
        if end.returncode:
            words = " ".join(command)
            raise UserError(f"in {self.folder} failed: python {words}: {end.stderr[-2000:]}")

    def commit(self) -> str:
        """Returns the tree's commit.

        With "+" where files were changed since; "unknown" outside of git.
        """
        git = ["git", "-C", str(self.folder)]
        options: dict[str, Any] = {"check": True, "capture_output": True, "text": True}
        try:
            name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], **options).stdout
            changes = subprocess.run([*git, "status", "--short", "-uno"], **options).stdout
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
        return name.strip() + ("+" if changes.strip() else "")


def record(
    tree: str | os.PathLike[str],
    out: str | os.PathLike[str],
    configs: Mapping[str, Images | Bags] = CONFIGS,
    fast: bool = False,
) -> dict[str, np.ndarray]:
    """Runs configs in a tree and stores what they compute.

    Args:
      tree: its folder.
      out: the file, which gets arrays named `CONFIG/first/NAME` and `CONFIG/after/NAME`, and `about` with
        the machine, versions and commit as JSON.
      configs: by name.
      fast: whether programs are compiled without LLVM's optimisations.

    Returns:
      The arrays of the configs.

    Raises:
      UserError: the tree is none, a command fails in it, or the file cannot be written.
    """
    path = machine.prepare(pathlib.Path(out))
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        checked_out = Tree(tree, work / "programs", fast)
        about = {
            "commit": checked_out.commit(),
            "date": machine.now(),
            "machine": machine.facts(),
            "versions": machine.versions(PACKAGES),
            "flags": checked_out.flags,
        }
        _make_data(checked_out, work, configs)
        for config, what in configs.items():
            began, core_seconds = time.monotonic(), _seconds_used()
            folder = work / config
            folder.mkdir()
            if isinstance(what, Images):
                arrays_of_config = _run_images(checked_out, what, work, folder)
            else:
                arrays_of_config = _run_bags(checked_out, what, work, folder)
            arrays |= {f"{config}/{key}": array for key, array in arrays_of_config.items()}
            seconds, core_seconds = time.monotonic() - began, _seconds_used() - core_seconds
            _write(
                path, arrays, about
            )  # also what is there of a record that is ended before it is whole
            _tell(
                f"{config}: {len(arrays_of_config)} arrays, {seconds:.0f} s, {core_seconds:.0f} s of a core"
            )
    return arrays


def _make_data(tree: Tree, work: pathlib.Path, configs: Mapping[str, Images | Bags]) -> None:
    """Makes the data that configs need in a folder."""
    pinned_data.write_bags(work / "bags.csv")
    images = [what.overrides for what in configs.values() if isinstance(what, Images)]
    if any("data.name" not in overrides for overrides in images):
        tree.run(_ADAPTER, "scenes", work / "data", *_SCENES)
    if any(overrides.get("data.name") == "svhn_full" for overrides in images):
        archives = work / "archives"
        archives.mkdir()
        pinned_data.write_house_numbers(archives, *_HOUSE_NUMBERS)
        prepare = ("-m", "lossattn_jax.data.prepare", "--dataset=svhn_full")
        tree.run(*prepare, f"--data_dir={work / 'data'}", f"--archives={archives}")


def _run_images(
    tree: Tree, config: Images, work: pathlib.Path, folder: pathlib.Path
) -> dict[str, np.ndarray]:
    """Trains on images without and with a learning rate.

    Returns what of it is pinned, by name.
    """
    overrides: dict[str, Any] = {**_IMAGES, **config.overrides, "data.dir": work / "data"}
    _train(tree, folder / "first", overrides, config.first_epochs, rate=_NO_RATE)
    _train(tree, folder / "after", overrides, overrides["train.epochs"])
    maps = folder / "maps.zarr"
    tree.run(
        *("-m", "lossattn_jax.export_maps", f"--workdir={folder / 'first'}"),
        *("--split=test", f"--out={maps}"),
    )
    arrays = {f"{_FIRST}/{name}": _zarr_array(maps / name) for name in _OUTPUTS}
    lines = [json.loads(line) for line in (folder / "first/metrics.jsonl").open()]
    train, test = ([line for line in lines if line["kind"] == kind] for kind in ("train", "test"))
    for name in _LOSSES:
        if name in train[0]:
            arrays[f"{_FIRST}/{name}"] = np.array([line[name] for line in train], np.float64)
    arrays[f"{_FIRST}/test_loss"] = np.array([line["loss"] for line in test], np.float64)
    steps = sorted(int(path.name) for path in (folder / "after/checkpoints").iterdir())
    if steps != [UPDATES]:
        raise UserError(f"the run made checkpoints {steps}, but must make {UPDATES} updates")
    variables = _checkpoint(folder / f"after/checkpoints/{UPDATES}/variables")
    return arrays | {f"{_AFTER}/{name}": array for name, array in variables.items()}


def _train(
    tree: Tree,
    workdir: pathlib.Path,
    overrides: Mapping[str, Any],
    epochs: int,
    rate: float | None = None,
) -> None:
    """Trains on images; tests and saves once, at the end."""
    own = {**overrides, "train.epochs": epochs}
    own |= {"eval.every_epochs": epochs, "checkpoint.every_epochs": epochs}
    if rate is not None:
        own["optimizer.learning_rate"] = rate
        own["optimizer.warmup_epochs"] = 0.0  # which has to be shorter than the run
        own["optimizer.ramp_down_epochs"] = 0
    tree.run("train.py", "--config=digit_scenes", f"--workdir={workdir}", *_flags(own))
    skips = [json.loads(line).get("skipped", 0) for line in (workdir / "metrics.jsonl").open()]
    if any(skips):
        raise UserError(f"{sum(skips)} updates of the run in {workdir} were not finite")


def _run_bags(
    tree: Tree, config: Bags, work: pathlib.Path, folder: pathlib.Path
) -> dict[str, np.ndarray]:
    """Trains networks for bags; returns the pinned arrays by name."""
    overrides: dict[str, Any] = {**_BAGS, **config.overrides}
    first = _cross_validate(tree, config, overrides, work, folder / "first", rate=_NO_RATE)
    after = _cross_validate(tree, config, overrides, work, folder / "after")
    arrays = {
        f"{_FIRST}/{name}": array
        for name, array in first.items()
        if name.startswith(("outputs/", "losses/"))
    }
    arrays |= {
        f"{_FIRST}/results/{name}": array for name, array in _fold_results(folder / "first").items()
    }
    return arrays | {
        f"{_AFTER}/{name}": array for name, array in after.items() if name.startswith("parameters/")
    }


def _cross_validate(
    tree: Tree,
    config: Bags,
    overrides: Mapping[str, Any],
    work: pathlib.Path,
    workdir: pathlib.Path,
    rate: float | None = None,
) -> dict[str, np.ndarray]:
    """Cross-validates on the bags; returns what the adapter stores."""
    own = dict(overrides)
    if rate is not None:
        own["training.learning_rate"] = rate
    out = workdir.with_suffix(".npz")
    tree.run(
        *(_ADAPTER, "bags", out, f"--dataset={work / 'bags.csv'}", f"--workdir={workdir}"),
        *(f"--method={config.method}", f"--select={','.join(config.rules)}", *_flags(own)),
    )
    with np.load(out, allow_pickle=False) as arrays_file:
        arrays = dict(arrays_file)
    if arrays["skipped"]:
        raise UserError(f"{arrays['skipped']} updates of the run in {workdir} were not finite")
    return arrays


def _fold_results(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads probabilities and weights of all folds, by file name."""
    arrays = {}
    for path in sorted(workdir.rglob("repeat*_fold*.json")):
        bags = json.loads(path.read_text())["bags"]
        for name in ("probabilities", "weights"):
            values = [np.array(bag[name], np.float64) for bag in bags]
            arrays[f"{path.parent.name}/{path.stem}/{name}"] = np.concatenate(values)
    return arrays


def _flags(overrides: Mapping[str, Any]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def _zarr_array(folder: pathlib.Path) -> np.ndarray:
    import tensorstore

    store = {"driver": "file", "path": str(folder)}
    return (
        tensorstore.open({"driver": "zarr3", "kvstore": store}, open=True).result().read().result()
    )


def _checkpoint(item: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a checkpoint's item, by Orbax alone."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        leaves = jax.tree_util.tree_leaves_with_path(checkpointer.restore(item))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


@dataclasses.dataclass(frozen=True)
class Difference:
    """What of a config's arrays differs between two files.

    Attributes:
      first: names of the arrays of the first step that are not equal bit for bit.
      after: of the parameters that are not, the largest difference relative to the largest absolute value
        of the array, by name; infinite where shapes differ or one is not finite.
    """

    first: tuple[str, ...]
    after: Mapping[str, float]

    @property
    def fails(self) -> bool:
        """Whether that is more than another order of sums explains."""
        return bool(self.first) or any(value > TOLERANCE for value in self.after.values())


def compare(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> dict[str, Difference]:
    """Holds recorded arrays against others.

    Args:
      before, after: arrays by name, as `record` returns them; one that a side lacks differs.

    Returns:
      By config.
    """
    names = [*before, *(name for name in after if name not in before)]
    differences = {}
    for config in dict.fromkeys(name.partition("/")[0] for name in names):
        first, relative = [], {}
        for name in names:
            owner, _, rest = name.partition("/")
            kind, _, array = rest.partition("/")
            if owner != config or _same_bits(before.get(name), after.get(name)):
                continue
            if kind == _AFTER:
                relative[array] = _relative(before.get(name), after.get(name))
            else:
                first.append(array)
        differences[config] = Difference(tuple(first), relative)
    return differences


def table(differences: Mapping[str, Difference]) -> str:
    """Formats differences: a line per config and array beyond tolerance."""
    wide = max(map(len, differences), default=0)
    lines = []
    for config, difference in differences.items():
        first = "equal bit for bit"
        if difference.first:
            more = len(difference.first) - _MOST_NAMES
            first = f"DIFFERENT in {', '.join(difference.first[:_MOST_NAMES])}"
            first += f" and {more} more" if more > 0 else ""
        after = "equal bit for bit"
        if difference.after:
            worst = max(difference.after, key=lambda name: difference.after[name])
            after = f"differ by up to {difference.after[worst]:.2g} ({worst})"
        lines.append(f"{config:<{wide}}  first step: {first}; parameters after: {after}")
        lines += [
            f"{'':<{wide}}  beyond {TOLERANCE:g}: {name} by {value:.2g}"
            for name, value in difference.after.items()
            if value > TOLERANCE
        ]
    return "\n".join(lines)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a file of `record`: its arrays and where they are from.

    Raises:
      UserError: it is not there, or no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays_file:
            arrays = dict(arrays_file)
        about = json.loads(str(arrays.pop(_ABOUT)))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no file of `record`: {error}") from None
    return arrays, about


def _write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes what `read` reads, in place of what is there.

    Raises:
      UserError: it cannot be written.
    """
    content: dict[str, Any] = {**arrays, _ABOUT: np.array(json.dumps(about))}
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            np.savez(file, **content)
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _same_bits(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return (
        one is not None
        and other is not None
        and (one.shape, one.dtype) == (other.shape, other.dtype)
        and one.tobytes() == other.tobytes()
    )


def _relative(one: np.ndarray | None, other: np.ndarray | None) -> float:
    """The largest difference relative to the largest absolute value of `one`."""
    if one is None or other is None or one.shape != other.shape:
        return float("inf")
    one, other = one.astype(np.float64), other.astype(np.float64)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("inf")
    difference, scale = np.abs(one - other).max(initial=0), np.abs(one).max(initial=0)
    if not difference:  # zeros of different signs, or other types
        return 0.0
    return float(difference / scale) if scale else float("inf")


def _seconds_used() -> float:
    """Time of a core that processes started here have taken."""
    times = os.times()
    return times.children_user + times.children_system


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pinned_updates")
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record", help="run the configs in a tree")
    recorder.add_argument("--tree", required=True, help="folder of the tree")
    recorder.add_argument("--out", required=True, help="file for the arrays (.npz)")
    recorder.add_argument(
        "--fast", action="store_true", help="compile without LLVM's optimisations; for both files"
    )
    comparer = commands.add_parser("compare", help="hold two such files against each other")
    comparer.add_argument("before", help="file of `record`")
    comparer.add_argument("after", help="file of `record`")
    for command in (recorder, comparer):
        command.add_argument("--configs", default=",".join(CONFIGS), help="which; default: all")
    values = parser.parse_args(arguments)
    names = values.configs.split(",")
    try:
        unknown = [name for name in names if name not in CONFIGS]
        if unknown:
            raise UserError(f"--configs has {unknown[0]!r}, but may have: {', '.join(CONFIGS)}")
        if values.command == "record":
            began = time.monotonic()
            record(values.tree, values.out, {name: CONFIGS[name] for name in names}, values.fast)
            _tell(f"{values.out}: {len(names)} configs, {time.monotonic() - began:.0f} s")
            return 0
        (before, about), (after, other) = read(values.before), read(values.after)
        before, after = _only(names, before), _only(names, after)
        if _bits_from(about) != _bits_from(other):
            _tell("warning: the files come from different machines, versions or XLA_FLAGS")
        differences = compare(before, after)
        print(f"{about['commit']} ({values.before}) and {other['commit']} ({values.after}):")
        print(table(differences))
        return int(any(difference.fails for difference in differences.values()))
    except UserError as error:
        _tell(f"error: {error}.")
        return 2


def _only(configs: Sequence[str], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of some configs.

    Raises:
      UserError: there are none of one.
    """
    for config in configs:
        if not any(name.startswith(f"{config}/") for name in arrays):
            raise UserError(f"{config} is not in both files: name those that are with --configs")
    return {name: array for name, array in arrays.items() if name.partition("/")[0] in configs}


def _bits_from(about: Mapping[str, Any]) -> list[Any]:
    """What the bits of a record may depend on besides the code."""
    return [about["versions"], about["flags"], *(about["machine"][key] for key in ("cpu", "cores"))]


if __name__ == "__main__":
    sys.exit(main())
