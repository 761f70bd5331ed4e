"""The table of all commands of `lossattn`."""

import dataclasses
import pathlib
from collections.abc import Sequence

_PACKAGE = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `lossattn`.

    Attributes:
      words: what follows `lossattn`, such as "mil cv".
      module: what `python -m` runs as the same command.
      summary: what it does, on one line.
      examples: the arguments of some calls.
      operands: what it takes besides flags, and what that is; empty: nothing.
    """

    words: str
    module: str
    summary: str
    examples: tuple[str, ...]
    operands: tuple[str, str] | tuple[()] = ()


COMMANDS = (
    Command(
        "prepare",
        "lossattn_jax.data.prepare",
        "downloads or generates a data set, once",
        (
            "--dataset=digit_scenes --data_dir=data",
            "--dataset=tiny_imagenet --archives=Downloads",
        ),
    ),
    Command(
        "train",
        "lossattn_jax.train",
        "trains a network from a config; the same command goes on where it stopped",
        (
            "--config=digit_scenes --config.data.dir=data --workdir=runs/digit_scenes",
            "--config=tip:resnet18_loss_attention,cifar100 --config.train.epochs=20 --workdir=runs/cifar100",
            "--config=own.py --workdir=runs/own",
        ),
    ),
    Command(
        "evaluate",
        "lossattn_jax.evaluate",
        "measures a run on a split: accuracy, calibration, where it looks",
        (
            "--workdir=runs/digit_scenes",
            "--workdir=runs/digit_scenes --split=train --checkpoint=best --out=train.json",
        ),
    ),
    Command(
        "explain",
        "lossattn_jax.explain",
        "writes a report of where a network looks, for a split or your own images",
        (
            "--workdir=runs/digit_scenes",
            "--workdir=runs/digit_scenes --images=a.png,folder --out=report",
        ),
    ),
    Command(
        "predict",
        "lossattn_jax.predict",
        "writes a table of predictions for any number of image files; the same command goes on",
        (
            "--workdir=runs/digit_scenes --images=a.png,folder --out=predictions.csv",
            "--workdir=runs/digit_scenes --images=folder --checkpoint=best --out=predictions.parquet",
            "--workdir=runs/digit_scenes --images=folder --attention --out=predictions.csv",
        ),
    ),
    Command(
        "compare-explainers",
        "lossattn_jax.compare_explainers",
        "measures attention beside gradients, Grad-CAM and occlusion",
        (
            "--workdir=runs/digit_scenes",
            "--workdir=runs/digit_scenes --explainers=attention,grad_cam --num=128",
        ),
    ),
    Command(
        "compare-runs",
        "lossattn_jax.compare_runs",
        "compares runs of images: configs, metrics, curves, where they disagree",
        (
            "runs/mean runs/loss_attention",
            "runs/a runs/b runs/c --checkpoint=best --num=100 --out=runs/report",
            "runs/cifar10 runs/cifar100 --split=none",
        ),
        ("RUN RUN ...", "folders of runs; the others are compared with the first"),
    ),
    Command(
        "export-maps",
        "lossattn_jax.export_maps",
        "writes outputs and attention maps of a whole split as a Zarr store",
        ("--workdir=runs/digit_scenes --split=train --out=maps.zarr",),
    ),
    Command(
        "export-tokens",
        "lossattn_jax.export_tokens",
        "writes what a run's backbone makes of each image as bags, for the commands on bags",
        ("--workdir=runs/digit_scenes --out=tokens",),
    ),
    Command(
        "export-model",
        "lossattn_jax.export_model",
        "writes a network as a program that needs JAX alone",
        ("--workdir=runs/digit_scenes --out=model.stablehlo",),
    ),
    Command(
        "convert",
        "lossattn_jax.convert",
        "makes a run of PyTorch weights, or PyTorch weights of a run",
        (
            "--from=weights.safetensors --config=tip:resnet18_loss_attention --workdir=runs/w",
            "--to=weights.safetensors --workdir=runs/w --checkpoint=best",
        ),
    ),
    Command(
        "models",
        "lossattn_jax.models",
        "lists the networks of the paper's tables with their sizes, or what all networks cost",
        ("--list", "--list --image_size=224 --backbones=vit_s16,resnet50_imagenet --time"),
    ),
    Command(
        "replay",
        "lossattn_jax.replay",
        "makes a skipped update of a training again and reports non-finite values",
        (
            "--dump=runs/digit_scenes/nonfinite/step_120",
            "--dump=runs/mil/musk1/loss_attention/nonfinite/model_3_epoch_2_update_12",
        ),
    ),
    Command(
        "mil cv",
        "lossattn_jax.mil",
        "cross-validates methods on bags",
        (
            "--dataset=musk1 --data_dir=data/mil --download --workdir=runs/mil",
            "--dataset=own.csv --method=all --folds=10 --repeats=5 --workdir=runs/own",
            "--dataset=a.csv,b.csv --positive=tumor,cancer --ignore=age --workdir=runs/two",
            "--dataset=slides --labels=labels.csv --positive=tumor --workdir=runs/slides",
        ),
    ),
    Command(
        "mil train",
        "lossattn_jax.mil.train",
        "trains a model for bags that stays",
        (
            "--bags=slides --labels=labels.csv --positive=tumor --workdir=models/tumor",
            "--dataset=own.csv --method=mi_svm --class_weight=balanced --workdir=models/own",
        ),
    ),
    Command(
        "mil predict",
        "lossattn_jax.mil.predict",
        "predicts for bags with models that stay",
        (
            "--model=models/tumor --bags=slides --out=runs/slides",
            "--model=models/a,models/b --bags=slides --labels=labels.csv --out=runs/slides --instances",
        ),
    ),
    Command(
        "mil explain",
        "lossattn_jax.mil.explain",
        "writes a report of where the instances of bags are that count",
        (
            "--model=models/tumour --bags=slides --out=runs/report",
            "--model=models/tumour --bags=slides --labels=labels.csv --thumbnails=pictures --out=runs/r",
        ),
    ),
    Command(
        "mil replay",
        "lossattn_jax.mil.replay",
        "the former name of replay, which works until the next release",
        ("--dump=runs/mil/musk1/loss_attention/nonfinite/model_3_epoch_2_update_12",),
    ),
    Command(
        "mil tables",
        "lossattn_jax.mil.tables",
        "puts runs on bags together in the layout of the paper's table",
        ("--runs=runs/networks,runs/classical --table=t.md --record=t.json",),
    ),
    Command(
        "mil lambdas",
        "lossattn_jax.mil.lambdas",
        "measures which instances loss attention finds, for several lambdas",
        ("--config=mil_mnist --data_dir=digits.npz --workdir=runs/lambdas",),
    ),
)


def find(words: Sequence[str]) -> tuple[Command, list[str]] | None:
    """Finds the command that some words begin with.

    Args:
      words: what follows `lossattn`.

    Returns:
      The command and the rest of the words; None where they begin with no command.
    """
    for command in COMMANDS:
        own = command.words.split()
        if list(words[: len(own)]) == own:
            return command, list(words[len(own) :])
    return None


def of_file(path: str) -> Command | None:
    """Finds the command whose module is a file.

    Args:
      path: of the file.

    Returns:
      The command, or None where it is no command's.
    """
    try:
        parts = pathlib.Path(path).resolve().relative_to(_PACKAGE.resolve()).with_suffix("").parts
    except ValueError:
        return None
    module = ".".join((_PACKAGE.name, *parts)).removesuffix(".__main__")
    return next((command for command in COMMANDS if command.module == module), None)


def begins(word: str) -> list[Command]:
    """Finds the commands that begin with a word, such as "mil"."""
    return [command for command in COMMANDS if command.words.split()[:-1] == [word]]
