"""Files of an exported network: the program, its record, and the page on how to call it.

OUT             what `jax.export` serialised
OUT.json        a record: classes, sizes, digest of the program, and what it was made from
OUT.md          the page
"""

import dataclasses
import hashlib
import logging
import pathlib
from typing import Any

import jax
from jax import export

from lossattn_jax import files
from lossattn_jax.checkpoint import provenance, runs
from lossattn_jax.export_model import calling_page, program
from lossattn_jax.files import records

log = logging.getLogger(__name__)


def export_run(
    workdir: str,
    out: str,
    *,
    checkpoint: str = "latest",
    trust_code: bool = False,
) -> pathlib.Path:
    """Writes a run's network as a program for those who have JAX alone.

    Args:
      workdir: folder of the run.
      out: the program's file; its record and its page are beside it. What was exported there before is
        replaced.
      checkpoint: "latest", "best" or a step.
      trust_code: whether code that the run's config names by reference is imported.

    Returns:
      The program's file.

    Raises:
      UserError: there is no such run or checkpoint, its network does not allow batches of any size, or the
        files cannot be written.
    """
    path = pathlib.Path(out)
    run = runs.load(workdir, checkpoint, trust_code=trust_code)
    exported = program.make(run)
    content = bytes(exported.serialize())
    description = describe(run, exported, content)
    page = calling_page.render(run, path.name)
    with files.writing_out(out):
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)
        record = path.with_name(f"{path.name}.json")
        records.write(record, description, provenance.of_run(run), indent=1)
        files.write(path.with_name(f"{path.name}.md"), page.encode())
    log.info("written: %s, %.2f MB, with %s and a page beside it", path, len(content) / 1e6, record)
    return path


def describe(run: runs.Run, exported: export.Exported, content: bytes) -> dict[str, Any]:
    """Describes a program as JSON.

    Args:
      run: that it is of.
      exported: the program.
      content: its file's.
    """
    spec, view = run.spec, run.spec.view
    grid = run.model.patch_grid(spec.image_shape)
    return {
        "class_names": list(spec.class_names),
        "several_classes": spec.multi_label,
        "image_shape": list(spec.image_shape),
        "stored_shape": list(view.stored_shape),
        "fit": view.fit,
        "patch_grid": {**dataclasses.asdict(grid), "map_size": list(grid.map_size)},
        "inputs": [str(shape) for shape in exported.in_avals],
        "outputs": list(program.OUTPUTS),
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "jax": jax.__version__,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
