"""Where a network looks: the picture of images, attention, patch predictions and image predictions.

    python -m lossattn_jax.explain --workdir=runs/digit_scenes [--images=one.png,two.jpg]

The numbers come from the forward pass that evaluation runs.
"""

import dataclasses
import itertools
import logging
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from lossattn_jax import command, data, devices, figures, losses, runs
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import EvalStep, forward_batches, make_eval_step, to_devices
from lossattn_jax.models import Outputs

# Named here, since `python -m` runs this module under another name.
log = logging.getLogger("lossattn_jax.explain")

MAX_IMAGES = 200  # in one picture: more rows are beyond what matplotlib draws


@dataclasses.dataclass(frozen=True)
class Explanations:
    """What a network says about N images.

    Attributes:
      names: what each image is called.
      images: `[N, H, W, C]` uint8, as the network saw them.
      labels: `[N]` int32 or multi-hot uint8 `[N, K]`, or None where the classes are not known.
      boxes: `[N, 4]` float32 (ymin, xmin, ymax, xmax), fractions of the image, or None.
      logits: `[N, K]` float32.
      probabilities: `[N, K]` float32; see `losses.probabilities`.
      patch_logits: `[N, P, K]` float32.
      attention: `[N, P]` float32.
    """

    names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray | None
    boxes: np.ndarray | None
    logits: np.ndarray
    probabilities: np.ndarray
    patch_logits: np.ndarray
    attention: np.ndarray


def explain_dataset(
    eval_step: EvalStep,
    variables: Any,
    dataset: data.Dataset,
    num: int,
    batch_size: int,
    kind: str = losses.CROSS_ENTROPY,
) -> Explanations:
    """Explains the first `num` images of a split (of each process' share of it).

    Args:
      eval_step: from `make_eval_step`.
      variables: replicated "params" and "batch_stats".
      dataset: the split.
      num: number of images; a smaller split gives fewer.
      batch_size: as evaluation's, so that it is the same compiled program.
      kind: of image loss; see `losses`.
    """
    # A whole number of batches on every process, so that all of them run the same steps.
    local = devices.round_up(batch_size) // jax.process_count()
    steps = itertools.islice(
        forward_batches(eval_step, variables, dataset, batch_size), -(-num // local)
    )
    seen = _collect(((batch, outputs) for batch, _, outputs in steps), num)
    names = tuple(f"{dataset.split} {index}" for index in seen["index"])
    return _explanations(names, seen, seen["label"], kind)


def explain_images(
    eval_step: EvalStep,
    variables: Any,
    images: np.ndarray,
    names: Sequence[str],
    batch_size: int,
    kind: str = losses.CROSS_ENTROPY,
    label_shape: tuple[int, ...] = (),
) -> Explanations:
    """Explains images whose classes are not known.

    Args:
      eval_step: from `make_eval_step`.
      variables: replicated "params" and "batch_stats".
      images: `[N, H, W, C]` uint8 of the network's size.
      names: what to call them.
      batch_size: images per batch; the last one is padded.
      kind: of image loss; see `losses`.
      label_shape: of an image's label in the data set that the network was trained on.
    """
    size = devices.round_up(min(batch_size, len(images)))

    def steps() -> Iterator[tuple[dict[str, np.ndarray], Outputs]]:
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padding = size - len(part)
            batch = {
                "image": np.concatenate([part, np.repeat(part[-1:], padding, axis=0)]),
                "label": np.zeros((size, *label_shape), np.int32),
                "mask": np.array([1.0] * len(part) + [0.0] * padding, np.float32),
            }
            yield batch, eval_step(variables, to_devices(batch))[1]

    return _explanations(tuple(names), _collect(steps(), len(images)), None, kind)


def _collect(
    steps: Iterable[tuple[dict[str, np.ndarray], Outputs]], num: int
) -> dict[str, np.ndarray]:
    """Batches and outputs of the first `num` real examples, concatenated."""
    parts = []
    for batch, outputs in steps:
        local = dataclasses.asdict(devices.gather(outputs))
        real = batch["mask"] > 0
        parts.append({name: array[real] for name, array in {**batch, **local}.items()})
    return {name: np.concatenate([part[name] for part in parts])[:num] for name in parts[0]}


def _explanations(
    names: tuple[str, ...], seen: dict[str, np.ndarray], labels: np.ndarray | None, kind: str
) -> Explanations:
    return Explanations(
        names=names,
        images=seen["image"],
        labels=labels,
        boxes=seen.get("box"),
        logits=seen["logits"],
        probabilities=np.asarray(losses.probabilities(kind, seen["logits"])),
        patch_logits=seen["patch_logits"],
        attention=seen["attention"],
    )


def read_image(path: str | pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Reads an image file of any size and mode as uint8 `shape` (height, width, 3).

    It is turned upright and resized; one of another shape is squeezed. Transparent parts become white.

    Raises:
      UserError: there is no such file, or it is not an image.
    """
    from PIL import Image, ImageOps

    height, width, _ = shape
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(
                "I"
            ):  # 16 bits of grey, which `convert` would cut off at 255
                upright = Image.fromarray(
                    (np.asarray(upright) // 256).clip(0, 255).astype(np.uint8)
                )
            if upright.has_transparency_data:
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            rgb = upright.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(rgb)
    except FileNotFoundError:
        raise UserError(f"the image {path} does not exist") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from None


def explain_run(
    workdir: str,
    images: Sequence[str] = (),
    num: int = 8,
    split: str = "test",
    checkpoint: str = "latest",
    output: str | None = None,
    data_dir: str | None = None,
) -> pathlib.Path:
    """Draws explanations of a run's checkpoint.

    Args:
      workdir: folder of the run.
      images: image files; none: the first `num` of `split`.
      num: number of images of the split.
      split: "train" or "test".
      checkpoint: "latest", "best" or a step.
      output: PNG to write; None: `explanations.png` in the workdir.
      data_dir: folder of the data sets; None: as in the run's config.

    Returns:
      The file written.

    Raises:
      UserError: there is no such run, checkpoint, data set or image, or the file cannot be written.
    """
    if max(len(images), num) > MAX_IMAGES:
        raise UserError(f"a picture shows at most {MAX_IMAGES} images, not {max(len(images), num)}")
    run = runs.load(workdir, checkpoint)
    eval_step = make_eval_step(run.model, run.spec)
    kind = runs.loss_kind(run.model, run.spec)
    variables = devices.replicate(run.variables)
    if images:
        pixels = np.stack([read_image(path, run.spec.image_shape) for path in images])
        names = [pathlib.Path(path).name for path in images]
        explanations = explain_images(
            eval_step,
            variables,
            pixels,
            names,
            run.config.eval.batch_size,
            kind,
            run.spec.label_shape,
        )
    else:
        dataset = runs.open_dataset(run, split, data_dir)
        explanations = explain_dataset(
            eval_step, variables, dataset, num, run.config.eval.batch_size, kind
        )
    grid = run.model.patch_grid(run.spec.image_shape)
    figure = figures.draw_explanations(explanations, grid, run.spec.class_names)
    path = pathlib.Path(output) if output else pathlib.Path(workdir) / "explanations.png"
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"the picture {path} cannot be written: {error}") from None
    log.info("written: %s", path)
    return path


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    explain_run(
        values.workdir,
        values.images,
        values.num,
        values.split,
        values.checkpoint,
        values.output,
        values.data_dir,
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_list("images", [], "image files to explain; default: the first of the split")
    flags.DEFINE_integer("num", 8, "number of images of the split", lower_bound=1)
    flags.DEFINE_enum("split", "test", ["train", "test"], "where the images come from")
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step")
    flags.DEFINE_string("output", None, "PNG to write; default: explanations.png in the workdir")
    flags.DEFINE_string("data_dir", None, "folder of the data sets; default: as in the run")
    command.run(main)
