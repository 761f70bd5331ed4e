"""What `python -m lossattn_jax.predict` does: a table of predictions for any number of files."""

import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import pathlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax import devices, files
from lossattn_jax.checkpoint import provenance, run_folder
from lossattn_jax.commands.progress import LogClock, Progress
from lossattn_jax.data import own_images
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.evaluate import nonfinite_values
from lossattn_jax.files import digests, records
from lossattn_jax.kernels import cpu
from lossattn_jax.predict import inputs, prediction_files
from lossattn_jax.predict.forward import Rows
from lossattn_jax.predict.prediction_files import OutputPaths
from lossattn_jax.predict.trained_run import TrainedRun
from lossattn_jax.train import preemption

log = logging.getLogger(__name__)

PART = 512  # files
_SECONDS_BETWEEN_LINES = 10.0
_REMEDY = "use another --out"


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of the files.

    Attributes:
      files: how many there are.
      refusals: a sentence for each that could not be read.
      nonfinite: paths of those with an output that is not finite.
    """

    files: int
    refusals: tuple[str, ...]
    nonfinite: tuple[str, ...]


def run(
    trained: TrainedRun,
    images: Sequence[str],
    out: str,
    stop: preemption.Stop | None = None,
    *,
    attention: bool = False,
) -> Summary:
    """Writes a table of predictions, and goes on with what an earlier call has left of it.

    Args:
      trained: the run.
      images: files and folders.
      out: the table, `.csv` or `.parquet`.
      stop: from `preemption.watch`; None: SIGTERM is not cared for.
      attention: whether each image's attention and patch logits are written too; see
        `prediction_files.write_patches`.

    Returns:
      What became of the files; see `refuse_incomplete`.

    Raises:
      UserError: there is no file, or `out` is of other inputs or cannot be written.
      Preemption: the command was asked to end; what is done stays for the next call.
    """
    prediction_files.paths_of(out)  # a table that cannot be is refused first
    return _predict_files(trained, own_images.find(images), out, stop, attention=attention)


def _predict_files(
    trained: TrainedRun,
    images: Sequence[pathlib.Path],
    out: str,
    stop: preemption.Stop | None,
    *,
    attention: bool,
) -> Summary:
    """Predicts for files that `own_images.find` has listed; see `run`."""
    stop = stop or preemption.Stop()
    paths = prediction_files.paths_of(out)
    names = [str(path) for path in images]
    made_from = {
        **provenance.of_run(trained.checkpoint),
        "files in a part": PART,
        "paths": digests.of_json(names),
    }
    with files.writing_out(out):
        paths.table.absolute().parent.mkdir(parents=True, exist_ok=True)
        with run_folder.make_and_lock(paths.parts):
            work = _Work(trained, names, paths, made_from, attention)
            summary = work.find_complete()
            if summary is None:
                summary = work.do(stop)
            for path in paths.parts.glob("*.json"):
                path.unlink()
        _remove(paths.parts)
    if len(summary.refusals) == summary.files:
        reasons = nonfinite_values.list_first(summary.refusals)
        raise UserError(f"no image could be read: {reasons}")
    return summary


def refuse_incomplete(summary: Summary, out: str) -> None:
    """Ends a command that has left files out, or whose outputs are not all finite.

    Raises:
      Incomplete: the text names them.
    """
    sentences = []
    if summary.refusals:
        left_out = nonfinite_values.list_first(summary.refusals)
        sentences.append(
            f"{len(summary.refusals)} of {summary.files} files were left out of {out}: {left_out}"
        )
    if summary.nonfinite:
        empty = nonfinite_values.list_first(summary.nonfinite)
        sentences.append(
            f"outputs for {len(summary.nonfinite)} files are not finite, and empty in {out}: {empty}"
        )
    if sentences:
        raise Incomplete("; ".join(sentences))


class _Work:
    """The parts of a table, and the table."""

    def __init__(
        self,
        trained: TrainedRun,
        names: list[str],
        paths: OutputPaths,
        made_from: Mapping[str, Any],
        attention: bool,
    ):
        self._trained, self._names, self._paths = trained, names, paths
        self._made_from = made_from
        self._patch_files: dict[str, pathlib.Path] = {}  # by the images' paths
        if attention:
            short = own_images.short_names(list(map(pathlib.Path, names)))
            self._patch_files = {
                name: paths.attention / f"{files.safe_name(own)}.h5"
                for name, own in zip(names, short, strict=True)
            }
        self._count = -(-len(names) // PART)

    def _files(self, part: int) -> list[str]:
        return self._names[part * PART : (part + 1) * PART]

    def _of_part(self, digest: str) -> dict[str, Any]:
        return {"run": digests.of_json(self._made_from), "files": digest}

    def find_complete(self) -> Summary | None:
        """Finds what an earlier command has finished; None where there is work to do.

        Raises:
          UserError: it is of other inputs, or nobody knows of which.
        """
        record, table = self._paths.record, self._paths.table
        complete = None
        if record.exists():
            digest = digests.of_json(list(self._content_digests(range(self._count))))
            made_from = {**self._made_from, "files": digest}
            complete = records.find(record, made_from, remedy=_REMEDY)
        elif table.exists() and not (self._paths.parts / prediction_files.RUN_NAME).exists():
            raise UserError(f"{table} is there already, and not of this command: {_REMEDY}")
        if complete is None or digests.of_file(table) != complete.content["table"]:
            return None
        content = complete.content
        if self._patch_files and content.get("attention") != self._digest_patches(self._names):
            return None
        log.info("%s was complete: %d files", table, len(self._names))
        return Summary(
            content["files"], tuple(content["left_out"]), tuple(content["nonfinite_files"])
        )

    def _digest_patches(self, names: Sequence[str]) -> str:
        """Digests the files of some images' patches, as far as they are written."""
        with concurrent.futures.ThreadPoolExecutor(cpu.cores() + 1) as pool:
            paths = [self._patch_files[name] for name in names]
            return digests.of_json(list(pool.map(digests.of_file, paths)))

    def _content_digests(self, parts: Sequence[int] | range) -> Iterator[str]:
        """Yields the digest of what is in the files of each part."""
        with concurrent.futures.ThreadPoolExecutor(cpu.cores() + 1) as pool:
            for part in parts:
                yield digests.of_json(list(pool.map(digests.of_file, self._files(part))))

    def do(self, stop: preemption.Stop) -> Summary:
        """Predicts what is missing, and writes the table."""
        path = self._paths.parts / prediction_files.RUN_NAME
        if records.find(path, self._made_from, remedy=_REMEDY) is None:
            records.write(path, {}, self._made_from)
        there = self._find_parts()
        missing = [part for part in range(self._count) if part not in there]
        if there:
            log.info("%d of %d parts are there", len(there), self._count)
        stop.begin(lambda: self._describe(there), lambda: self._describe(there))
        with contextlib.closing(self._predict(missing)) as predicted:
            for part, digest in stop.between(predicted):
                there[part] = digest
        return self._write(there)

    def _describe(self, there: Mapping[int, str]) -> str:
        where = f"{len(there)} of {self._count} parts are in {self._paths.parts}"
        return f"{where}, from which the same command goes on"

    def _find_parts(self) -> dict[int, str]:
        """Digests of the files of parts that are there, by the parts' numbers."""
        numbers = [part for part in range(self._count) if self._paths.part(part).exists()]
        there = {}
        for part, digest in zip(numbers, self._content_digests(numbers), strict=True):
            path = self._paths.part(part)
            record = records.find(path, self._of_part(digest), remedy=_REMEDY)
            if record is None:
                continue
            written = record.content.get("attention")
            if not self._patch_files or written == self._digest_patches(self._files(part)):
                there[part] = digest
        return there

    def _predict(self, missing: Sequence[int]) -> Generator[tuple[int, str], None, None]:
        """Yields number and digest of each part that is written."""
        view = self._trained.checkpoint.spec.view
        groups = (inputs.of_files(self._files(part), view) for part in missing)
        done, total = 0, sum(len(self._files(part)) for part in missing)
        progress, clock = Progress(0, total), LogClock(_SECONDS_BETWEEN_LINES)
        contents = self._content_digests(missing)
        # Digests before the pictures are read: a file that changes meanwhile is found out by the next call.
        digest, own_done = next(contents, ""), 0
        rows: list[dict[str, Any]] = []
        refusals: dict[str, str] = {}
        with contextlib.closing(self._trained.forward.stream(groups)) as stream:
            for number, batch in stream:
                part = missing[number]
                rows += self._rows(batch)
                refusals |= batch.refusals
                own_done += len(batch.names) + len(batch.refusals)
                done += len(batch.names) + len(batch.refusals)
                if own_done == len(self._files(part)):
                    content = {"rows": rows, "left_out": list(refusals.values())}
                    if self._patch_files:
                        content["attention"] = self._digest_patches(self._files(part))
                    records.write(self._paths.part(part), content, self._of_part(digest))
                    yield part, digest
                    digest, rows, refusals, own_done = next(contents, ""), [], {}, 0
                if clock.is_due() or done == total:
                    rate = progress.measure(done)
                    left = progress.time_left(done)
                    log.info("%d of %d images  %.1f images/s  %s left", done, total, rate, left)

    def _rows(self, batch: Rows) -> list[dict[str, Any]]:
        probabilities = np.where(batch.finite[:, None], batch.probabilities, np.nan)
        labels = self._trained.labels(batch)
        if self._patch_files and batch.names:
            self._write_patches(batch)
        return [
            {"path": path, "predicted": label, "probabilities": row.tolist()}
            for path, label, row in zip(batch.names, labels, probabilities, strict=True)
        ]

    def _write_patches(self, batch: Rows) -> None:
        files.make_folder(self._paths.attention)
        attention = np.where(batch.finite[:, None], batch.attention, np.nan)
        grid = self._trained.grid
        for path, own, patch_logits in zip(batch.names, attention, batch.patch_logits, strict=True):
            attributes = {
                "image": prediction_files.as_utf8(path),
                "classes": list(self._trained.class_names),
                "model": self._made_from["parameters"],
                "grid": [grid.rows, grid.cols],
            }
            prediction_files.write_patches(self._patch_files[path], own, patch_logits, attributes)

    def _read(self) -> Iterator[dict[str, Any]]:
        """Yields what the records of the parts hold."""
        for part in range(self._count):
            yield records.read(self._paths.part(part)).content

    def _write(self, there: Mapping[int, str]) -> Summary:
        """Writes the table and its record, unless there is no row."""
        refusals: list[str] = []
        nonfinite: list[str] = []
        if not any(content["rows"] for content in self._read()):
            refusals = [sentence for content in self._read() for sentence in content["left_out"]]
            return Summary(len(self._names), tuple(refusals), ())

        def parts() -> Iterator[Sequence[prediction_files.Row]]:
            for content in self._read():
                refusals.extend(content["left_out"])
                nonfinite.extend(row["path"] for row in content["rows"] if row["predicted"] is None)
                yield content["rows"]

        prediction_files.write_table(self._paths.table, parts(), self._trained.class_names)
        content = {
            "files": len(self._names),
            "left_out": refusals,
            "nonfinite": len(nonfinite),
            "nonfinite_files": nonfinite,
            "table": digests.of_file(self._paths.table),
        }
        if self._patch_files:
            content["attention"] = self._digest_patches(self._names)
            log.info("written: attention and patch logits, in %s", self._paths.attention)
        digest = digests.of_json([there[part] for part in range(self._count)])
        records.write(self._paths.record, content, {**self._made_from, "files": digest}, indent=1)
        log.info("written: %s, %d rows", self._paths.table, len(self._names) - len(refusals))
        return Summary(len(self._names), tuple(refusals), tuple(nonfinite))


def _remove(folder: pathlib.Path) -> None:
    """Removes the folder of the parts, in which nothing but a lock is left."""
    with contextlib.suppress(OSError):
        (folder / run_folder.LOCK_NAME).unlink(missing_ok=True)
        folder.rmdir()


def _refuse_absent(paths: Sequence[pathlib.Path]) -> None:
    """Refuses files of which none exists."""
    if paths and not any(os.path.lexists(path) for path in paths):
        raise UserError(f"no image could be read: the image {paths[0]} does not exist")


def predict_run(
    workdir: str,
    images: Sequence[str],
    out: str,
    *,
    checkpoint: str = "latest",
    batch_size: int | None = None,
    attention: bool = False,
    trust_code: bool = False,
    stop: preemption.Stop | None = None,
) -> Summary:
    """Writes a table of a run's predictions for files; see `run`.

    Args:
      workdir: folder of the run.
      images: files and folders.
      out: the table, `.csv` or `.parquet`.
      checkpoint: "latest", "best" or a step.
      batch_size: pictures that the devices take at once; None: as in the run's config, but 64 at most.
      attention: as of `run`.
      trust_code: whether code that the run's config names by reference is imported.
      stop: from `preemption.watch`; None: SIGTERM is not cared for.

    Raises:
      UserError: there is no such run or checkpoint, or as of `run`.
      Preemption: as of `run`.
    """
    from lossattn_jax.predict import trained_run

    prediction_files.paths_of(out)
    paths = own_images.find(images)
    _refuse_absent(paths)  # before the seconds that the network takes to be loaded
    trained = trained_run.load(workdir, checkpoint, batch_size=batch_size, trust_code=trust_code)
    log.info("devices: %s", devices.describe())
    return _predict_files(trained, paths, out, stop, attention=attention)
