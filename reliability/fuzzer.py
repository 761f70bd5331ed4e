"""Gives changed files to readers, which have to read or refuse them.

    python -m reliability.fuzzer --reader=csv --minutes=10 --out=results/reliability/fuzz_csv.json

A reader has to return a result or raise a `UserError`. Another exception, a crash of the process, more
memory than `_MEMORY` or more than `_SECONDS` of computing is a finding, whose file is kept.
"""

import collections
import contextlib
import ctypes
import importlib.util
import logging
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import flags

from benchmarks import flag_values, machine
from lossattn_jax.commands import command
from lossattn_jax.errors import UserError
from reliability import fuzz_inputs

log = logging.getLogger("lossattn_jax.reliability")

_MEMORY = (
    2 << 30
)  # bytes of address space that a reader may have besides what the process had before
_SECONDS = 5.0  # of computing, for one file of a few kB
_MOST_FILES = 20  # files of findings of one kind
_FINE = ("result", "refused")
_PACKAGES = ("numpy", "scipy", "pillow", "safetensors", "h5py", "pyarrow", "tensorstore", "jax")

Reader = Callable[[pathlib.Path], Any]


def bags() -> tuple[dict[str, bytes], Reader]:
    """Valid files of bags and of digits, and their readers."""
    from lossattn_jax.data.bags import bag_files, image_bags

    def read(path: pathlib.Path) -> None:
        if path.suffix == ".npz":
            image_bags.load_digits(path, "train")
        else:
            bag_files.read(path)

    return fuzz_inputs.bag_files(), read


def features() -> tuple[dict[str, bytes], Reader]:
    """Valid feature files, and what reads all that they have."""
    from lossattn_jax.data.bags import feature_files

    with tempfile.TemporaryDirectory() as place:
        files = fuzz_inputs.feature_files(pathlib.Path(place))

    def read(path: pathlib.Path) -> None:
        with _store_of(path, files) as whole:
            reader = feature_files.open_file(whole)
            length = reader.shape[0]
            reader.read(0, min(length, 3))
            reader.read(max(length - 3, 0), length)
            reader.read_coords()
            feature_files.read_attributes(whole)

    return files, read


@contextlib.contextmanager
def _store_of(path: pathlib.Path, files: Mapping[str, bytes]) -> Iterator[pathlib.Path]:
    """Gives a file its place in a store beside the others; other files are as they are."""
    store, mark, _ = path.name.partition(fuzz_inputs.IN_STORE)
    if not mark:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            if name.startswith(store + mark):
                place = pathlib.Path(folder, *name.split(fuzz_inputs.IN_STORE))
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(path.read_bytes() if name == path.name else content)
        yield pathlib.Path(folder, store)


def labels() -> tuple[dict[str, bytes], Reader]:
    """Valid tables of bags, and their reader."""
    from lossattn_jax.data.bags import bag_table

    def read(path: pathlib.Path) -> None:
        bag_table.read_table(path)

    return fuzz_inputs.label_tables(), read


def bag_models() -> tuple[dict[str, bytes], Reader]:
    """Files of a stored method for bags, and what reads the model and applies it.

    Digests are made right again of what is JSON, as one would who edits a model.
    """
    import json

    import numpy as np

    from lossattn_jax import mil
    from lossattn_jax.files import records
    from lossattn_jax.mil import methods, stored_models

    draw = np.random.default_rng(0)
    bags = [draw.normal(size=(size, 3)) for size in (2, 3, 2, 4, 3, 2)]
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in ("mi_kernel", "mi_svm"):
            folder = pathlib.Path(place, name)
            methods.make(name).fit(bags, np.arange(6) % 2).save(folder)
            for path in (folder / stored_models.RECORD_NAME, folder / stored_models.ARRAYS_NAME):
                files[f"{name}{fuzz_inputs.IN_STORE}{path.name}"] = path.read_bytes()

    def read(path: pathlib.Path) -> None:
        with _store_of(path, files) as folder:
            record = folder / stored_models.RECORD_NAME
            with contextlib.suppress(
                ValueError, RecursionError, TypeError, AttributeError, KeyError
            ):
                content = json.loads(record.read_bytes())
                made_from = content.pop(records.MADE_FROM)
                content.pop(records.DIGEST)
                records.write(record, content, made_from)
            mil.load(folder).predict_proba(bags[:2])

    return files, read


def images() -> tuple[dict[str, bytes], Reader]:
    """Valid images and their reader, for every fit."""
    from lossattn_jax.data import own_images
    from lossattn_jax.data.views import View

    def read(path: pathlib.Path) -> None:
        for fit in own_images.FITS:
            own_images.read([path], View((32, 32, 3)), fit)

    return fuzz_inputs.image_files(), read


def state_dicts() -> tuple[dict[str, bytes], Reader]:
    """Valid files of a small network's weights, and their reader.

    It converts them to our variables, too.
    """
    import jax

    from lossattn_jax import models
    from lossattn_jax.checkpoint import conversion, weight_files

    model = models.build(
        backbone="small", head="conv", pooling="loss_attention", num_classes=3, width=0.125
    )
    variables = model.init(jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)), train=False)
    arrays = conversion.to_torch_state_dict(variables, model)

    def read(path: pathlib.Path) -> None:
        conversion.from_torch_state_dict(weight_files.read(path), model)

    return fuzz_inputs.weight_files(arrays), read


READERS: Mapping[str, Callable[[], tuple[dict[str, bytes], Reader]]] = {
    "bag_model": bag_models,
    "csv": bags,
    "features": features,
    "image": images,
    "labels": labels,
    "state_dict": state_dicts,
}


def outcome(reader: Reader, path: pathlib.Path) -> str:
    """Reads a file: "result", "refused", or the kind of a finding.

    Args:
      reader: the reader.
      path: of the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader(path)
    except UserError as error:
        return "refused" if command.one_line(str(error)) else "no sentence"
    except BaseException as error:  # also what pyo3 makes of a panic, which is no Exception
        where = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in where if "lossattn_jax" in frame.filename] or where
        return f"{type(error).__name__} below {ours[-1].name}: {str(error)[:120]}"
    return "result"


def run(
    reader: str, minutes: float, out: str, seed: int = 0, keep: str | None = None
) -> dict[str, Any]:
    """Gives changed files to a reader for a time and records outcomes.

    Args:
      reader: of `READERS`.
      minutes: on the clock.
      out: JSON file for the results.
      seed: of the changes.
      keep: folder for the files of findings; None: beside `out`, with its name.

    Returns:
      What is in the file: how many `inputs`, `outcomes` by kind, and of each finding the numbers of inputs.

    Raises:
      UserError: an unknown reader, or the file cannot be written.
    """
    if reader not in READERS:
        raise UserError(f"reader is {reader!r}, but must be one of: {', '.join(READERS)}")
    path = machine.prepare(out)
    folder = pathlib.Path(keep) if keep else path.with_suffix("")
    record = machine.header("reliability.fuzzer", (*_PACKAGES, *_torch()))
    began = time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    endings: dict[str, collections.Counter[str]] = {}
    findings: dict[str, list[int]] = {}
    context = multiprocessing.get_context("spawn")
    at = context.Value(ctypes.c_int64, 0)
    with tempfile.TemporaryDirectory() as place:
        while (seconds_left := began + 60 * minutes - time.monotonic()) > 0:
            reading, writing = context.Pipe(duplex=False)
            worker = context.Process(
                target=_work, args=(reader, seed, seconds_left, place, at, writing)
            )
            worker.start()
            writing.close()
            for number, name, kind, content in _receive(reading, worker, at, pathlib.Path(place)):
                counts[kind] += 1
                ending = name.partition(".")[2]
                endings.setdefault(ending, collections.Counter())[kind] += 1
                if kind not in _FINE:
                    findings.setdefault(kind, []).append(number)
                    if len(findings[kind]) <= _MOST_FILES:
                        log.warning("input %d (%s): %s", number, name, kind)
                        folder.mkdir(parents=True, exist_ok=True)
                        (folder / f"{number}-{name}").write_bytes(content)
    record |= {
        "reader": reader,
        "seed": seed,
        "inputs": sum(counts.values()),
        "seconds": time.monotonic() - began,
        "cpu_seconds": sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]),
        "limits": {"bytes": _MEMORY, "cpu_seconds": _SECONDS},
        "outcomes": dict(counts),
        "outcomes_by_ending": {ending: dict(own) for ending, own in sorted(endings.items())},
        "findings": findings,
    }
    machine.write(record, path)
    print(f"{reader}: {record['inputs']} inputs, {dict(counts)}")
    return record


def _work(
    reader: str,
    seed: int,
    seconds: float,
    place: str,
    at: Any,
    writing: multiprocessing.connection.Connection,
) -> None:
    """A process that gives files to a reader, from `at` on.

    It may end with any of them.
    """
    files, read_file = READERS[reader]()
    # Once each, so that libraries take what they need before the memory is bounded.
    for name, content in files.items():
        with contextlib.suppress(UserError):
            read_file(_write(place, name, content))
        pathlib.Path(place, name).unlink()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        name, content = fuzz_inputs.change_file(files, seed, at.value)
        path = _write(place, name, content)
        # Nobody handles this signal: it ends the process, in whatever library it is.
        signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
        kind = outcome(read_file, path)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        writing.send((at.value, name, kind, b"" if kind in _FINE else content))
        path.unlink()
        at.value += 1


def _write(place: str, name: str, content: bytes) -> pathlib.Path:
    path = pathlib.Path(place, name)
    path.write_bytes(content)
    return path


def _receive(
    reading: multiprocessing.connection.Connection, worker: Any, at: Any, place: pathlib.Path
) -> Iterator[tuple[int, str, str, bytes]]:
    """The outcomes of the files that a process read until its end.

    Of each number, name, outcome and, of findings, content.
    """
    with contextlib.suppress(EOFError):
        while True:
            yield reading.recv()
    worker.join()
    if worker.exitcode:
        name = signal.Signals(-worker.exitcode).name if worker.exitcode < 0 else "exit"
        if name == "SIGVTALRM":
            kind = f"more than {_SECONDS:g} s"
        else:
            kind = f"the process ended ({name}, {worker.exitcode})"
        for path in place.iterdir():  # the one that it did not come to remove
            yield at.value, path.name, kind, path.read_bytes()
            path.unlink()
        at.value += 1


def _torch() -> tuple[str, ...]:
    return ("torch",) if importlib.util.find_spec("torch") else ()


def main() -> None:
    """The command; see the flags."""
    run(**flag_values.arguments(run))


if __name__ == "__main__":
    flags.DEFINE_enum("reader", None, list(READERS), "which reader", required=True)
    flags.DEFINE_float("minutes", 10.0, "on the clock", lower_bound=0.01)
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_integer("seed", 0, "of the changes", lower_bound=0)
    flags.DEFINE_string("keep", None, "folder for files of findings; default: as --out is called")
    command.run(main)
