"""What `safety_campaign` tries: every command, with inputs, results, and which of its files are damaged.

A world is a folder in which a command runs, with all that it reads and writes; paths are relative to it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from benchmarks import crash_trials
from benchmarks.processes import ROOT

KILL, DAMAGE, FULL, PAIR, READ_ONLY = "kill", "damage", "full", "pair", "read-only"
KINDS = (KILL, DAMAGE, FULL, PAIR, READ_ONLY)

# Whose appearance anywhere in a world is a moment for a kill.
TEMPORARIES = (".part", "incomplete.", "orbax-checkpoint-tmp", ".tmp")

_OVERRIDES = {
    **crash_trials.OVERRIDES,
    **{"train.epochs": 4, "train.batch_size": 20, "eval.batch_size": 20, "eval.every_epochs": 2},
}
_DIVERGING = {
    "optimizer.learning_rate": 1e30,
    "optimizer.warmup_epochs": 0.0,
    "train.max_skipped": 1,
}
_MIL = ("-m", "lossattn_jax.mil", "--folds=3", "--repeats=1", "--config.training.epochs=4")
_THREE_METHODS = "--method=loss_attention,mi_svm,mi_kernel"


def train(workdir: str, **overrides: object) -> tuple[str, ...]:
    """What Python gets to train the small network; see `crash_trials`."""
    return tuple(crash_trials.arguments(workdir, "data", {**_OVERRIDES, **overrides}))


def _module(name: str, *words: str) -> tuple[str, ...]:
    return ("-m", f"lossattn_jax.{name}", *words)


def _write_images(world: pathlib.Path) -> None:
    draw = np.random.default_rng(0)
    (world / "own").mkdir()
    for name in ("a", "b", "c"):
        pixels = draw.integers(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(world / "own" / f"{name}.png")


def _write_bags(world: pathlib.Path) -> None:
    for seed, name in enumerate(("bags", "other_bags")):
        draw = np.random.default_rng(seed)
        rows = ["bag_label,bag_id,a,b,c,d"]
        for bag in range(20):
            for features in draw.normal(bag % 2, 1.0, (3 + bag % 3, 4)):
                rows.append(f"{bag % 2},b{bag}," + ",".join(f"{value:.4f}" for value in features))
        (world / f"{name}.csv").write_text("\n".join(rows) + "\n")


def _write_digits(world: pathlib.Path) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (200, 28, 28)).astype(np.uint8)
    np.savez(world / "digits.npz", image=images, label=np.arange(200) % 10)


# Inputs by the name of their file or folder, in an order in which they can be made: by these functions,
# or by a command and the exit code that it has to have.
Command = tuple[str, ...]
INPUTS: Mapping[str, Callable[[pathlib.Path], None] | tuple[Command, int]] = {
    "data": (("-m", "benchmarks.small_scenes", "--data_dir=data"), 0),
    "run": (train("run"), 0),
    "other": (train("other", seed=1), 0),
    "dump": (train("dump", **_DIVERGING), 2),
    "weights.npz": (_module("convert", "--workdir=run", "--to=weights.npz"), 0),
    "weights.safetensors": (_module("convert", "--workdir=run", "--to=weights.safetensors"), 0),
    "own": _write_images,
    "bags.csv": _write_bags,
    "other_bags.csv": lambda world: None,  # made with the other
    "digits.npz": _write_digits,
    "mil": ((*_MIL, _THREE_METHODS, "--dataset=bags.csv", "--workdir=mil"), 0),
    "other_mil": (
        (*_MIL, "--method=mi_svm,mi_kernel", "--dataset=other_bags.csv", "--workdir=other_mil"),
        0,
    ),
    "mil_dump": (
        (
            *(*_MIL, "--dataset=bags.csv", "--workdir=mil_dump", "--config.training.max_skipped=1"),
            *("--config.network.standardise=False", "--config.training.learning_rate=1e30"),
        ),
        2,
    ),
}


@dataclasses.dataclass(frozen=True)
class Unseen:
    """Damage that nobody can see, or that is a user's choice; it is not tried.

    Attributes:
      pattern: of files in the world.
      ways: of `safety_damage.WAYS`.
      reason: for the record.
    """

    pattern: str
    ways: tuple[str, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Subject:
    """A command, called in one way.

    Attributes:
      command: what the table calls it.
      arguments: of Python.
      inputs: of `INPUTS`, that its world begins with.
      case: what is special about it; "" for nothing.
      before: arguments of commands that ran in that world before.
      without: patterns of files that its world does not have.
      results: patterns of the files that are its results.
      workdirs: runs whose last checkpoints are results.
      damaged: patterns of what is damaged, in a world in which the command has ended.
      fresh: whether it is damaged in a world in which the command has not run.
      aims: patterns of files whose appearance is a moment for a kill, besides `TEMPORARIES`.
      prints: whether what it prints is a result.
      logs: files that tell what happened: after damage to them, they may be others than before.
      unseen: damage that is not tried.
      kinds: of trials.
      weight: of its damage; what takes longer has less.
    """

    command: str
    arguments: Command
    inputs: tuple[str, ...] = ()
    case: str = ""
    before: tuple[Command, ...] = ()
    without: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    workdirs: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    fresh: bool = False
    aims: tuple[str, ...] = ()
    prints: bool = False
    logs: tuple[str, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    kinds: tuple[str, ...] = KINDS
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The command and the case."""
        return f"{self.command} ({self.case})" if self.case else self.command


_USERS = "a user's choice of files and values, which has another result by right"
_EVALUATE = _module("evaluate", "--workdir=run")
_COMPARE = ("--num=2", "--explainers=attention,contribution")
_DAMAGE_ALONE = (DAMAGE,)
_CACHES = ("data/digit_scenes/1.0.0/cache_*.npz", "data/digit_scenes/1.0.0/shard_digests.json")
_ALL_OF_DATA = ("data/**/*",)

SUBJECTS = (
    Subject(
        "train",
        train("run"),
        ("data",),
        results=("run/metrics.jsonl", "run/config.json"),
        workdirs=("run",),
        damaged=("run/**/*",),
        aims=("run/config.json", "run/data.json", "run/metrics.jsonl", "run/checkpoints/*"),
        logs=("run/metrics.jsonl",),
    ),
    Subject(
        "train",
        train("run"),
        ("data",),
        case="damaged data",
        workdirs=("run",),
        damaged=_ALL_OF_DATA,
        fresh=True,
        kinds=_DAMAGE_ALONE,
    ),
    Subject(
        "evaluate",
        _EVALUATE,
        ("data", "run", "other"),
        results=("run/evaluation_test.json",),
        damaged=("run/**/*",),
        aims=("run/evaluation_test.json",),
        prints=True,
    ),
    Subject(
        "evaluate",
        _EVALUATE,
        ("data", "run"),
        case="damaged data",
        results=("run/evaluation_test.json",),
        damaged=_ALL_OF_DATA,
        fresh=True,
        prints=True,
        kinds=_DAMAGE_ALONE,
    ),
    Subject(
        "evaluate",
        _EVALUATE,
        ("data", "run"),
        case="damaged data without caches",
        without=_CACHES,
        results=("run/evaluation_test.json",),
        damaged=_ALL_OF_DATA,
        fresh=True,
        prints=True,
        kinds=_DAMAGE_ALONE,
    ),
    Subject(
        "explain",
        _module("explain", "--workdir=run", "--num=2"),
        ("data", "run"),
        results=("run/report/**/*",),
        damaged=("run/**/*",),
        aims=("run/report", "run/report/images", "run/report/index.html"),
        weight=0.3,
    ),
    Subject(
        "explain",
        _module("explain", "--workdir=run", "--images=own", "--out=report"),
        ("run", "own"),
        case="own images",
        results=("report/**/*",),
        damaged=("own/*",),
        fresh=True,
        unseen=(Unseen("own/*", ("swapped", "removed", "edited", "doubled"), _USERS),),
    ),
    Subject(
        "compare_explainers",
        _module("compare_explainers", "--workdir=run", *_COMPARE),
        ("data", "run"),
        results=("run/compare_explainers.json",),
        damaged=("run/**/*",),
        aims=("run/compare_explainers.*",),
        weight=0.15,
    ),
    Subject(
        "explanation_table",
        _module("explanation_table", "--runs=run,other", "--table=t.md", "--record=t.json"),
        ("data", "run", "other"),
        before=(
            *(_module("evaluate", f"--workdir={run}") for run in ("run", "other")),
            *(
                _module("compare_explainers", f"--workdir={run}", *_COMPARE)
                for run in ("run", "other")
            ),
        ),
        results=("t.md", "t.json"),
        damaged=("run/*", "t.*"),
        aims=("t.*",),
        prints=True,
    ),
    Subject(
        "export_maps",
        _module("export_maps", "--workdir=run", "--out=maps"),
        ("data", "run", "other"),
        before=(_module("export_maps", "--workdir=other", "--out=other_maps"),),
        results=("maps/**/*",),
        damaged=("maps/**/*",),
        aims=("maps", "maps/zarr.json", "maps/done/c/*", "maps/pixels/c/**/*"),
    ),
    Subject(
        "convert --from",
        _module(
            *("convert", "--from=weights.npz", "--workdir=new"),
            *(word for word in train("new") if word.startswith("--config")),
        ),
        ("weights.npz",),
        results=("new/config.json",),
        workdirs=("new",),
        damaged=("weights.npz",),
        fresh=True,
        aims=("new", "new/config.json", "new/checkpoints", "new/checkpoints/*"),
        unseen=(Unseen("weights.npz", ("swapped",), _USERS),),
    ),
    Subject(
        "convert --from",
        _module(
            *("convert", "--from=weights.safetensors", "--workdir=new"),
            *(word for word in train("new") if word.startswith("--config")),
        ),
        ("weights.safetensors",),
        case="safetensors",
        results=("new/config.json",),
        workdirs=("new",),
        damaged=("weights.safetensors",),
        fresh=True,
        unseen=(
            Unseen("weights.safetensors", ("swapped",), _USERS),
            Unseen(
                "weights.safetensors",
                ("bit", "edited"),
                "the format has no checksum: other numbers of the same shapes are other weights",
            ),
        ),
        kinds=_DAMAGE_ALONE,
    ),
    Subject(
        "convert --to",
        _module("convert", "--workdir=run", "--to=new.npz"),
        ("run", "other"),
        results=("new.npz",),
        damaged=("run/**/*", "new.npz"),
        aims=("new.npz",),
    ),
    Subject(
        "replay",
        _module("replay", "--dump=dump/nonfinite/step_1"),
        ("dump",),
        damaged=("dump/nonfinite/**/*",),
        prints=True,
        weight=0.5,
    ),
    Subject(
        "data.prepare",
        ("-m", "benchmarks.small_scenes", "--data_dir=data"),
        (),
        results=("data/digit_scenes/*/cache_*.npz", "data/digit_scenes/*/*.labels.txt"),
        damaged=_ALL_OF_DATA,
        aims=("data", "data/digit_scenes/*", "data/digit_scenes/*/cache_*"),
    ),
    Subject(
        "mil",
        (*_MIL, _THREE_METHODS, "--dataset=bags.csv", "--workdir=mil"),
        ("bags.csv", "other_mil"),
        results=("mil/*", "mil/*/*", "mil/*/*/*", "mil/*/*/*/*"),
        damaged=("mil/**/*",),
        aims=("mil/config.json", "mil/bags/data.json", "mil/bags/*/final/*", "mil/table.md"),
        prints=True,
    ),
    Subject(
        "mil.tables",
        _module("mil.tables", "--runs=mil,other_mil", "--table=t.md", "--record=t.json"),
        ("mil", "other_mil"),
        results=("t.md", "t.json"),
        damaged=("mil/**/*", "t.*"),
        aims=("t.*",),
        prints=True,
    ),
    Subject(
        "mil.lambdas",
        _module(
            *(
                "mil.lambdas",
                f"--config={ROOT / 'configs' / 'mil_mnist.py'}",
                "--data_dir=digits.npz",
            ),
            *("--workdir=lambdas", "--lambdas=0,1", "--repeats=1", "--config.training.epochs=4"),
            *("--config.bags.train=6", "--config.bags.test=6"),
        ),
        ("digits.npz",),
        results=("lambdas/**/*",),
        damaged=("lambdas/**/*", "digits.npz"),
        aims=("lambdas/*", "lambdas/*/*"),
        unseen=(Unseen("digits.npz", ("swapped",), _USERS),),
        weight=0.5,
    ),
    Subject(
        "mil.replay",
        _module(
            "mil.replay",
            "--dump=mil_dump/bags/loss_attention/nonfinite/model_0_epoch_1_update_1",
        ),
        ("mil_dump",),
        damaged=("mil_dump/bags/**/*",),
        prints=True,
    ),
    Subject(
        "models", _module("models", "--list"), prints=True, kinds=(KILL, FULL, PAIR, READ_ONLY)
    ),
)
