"""Exports outputs and maps of a split as a Zarr store:

python -m lossattn_jax.export_maps --workdir=runs/digit_scenes --split=train --out=maps.zarr
"""

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.data.subset import SPLITS
from lossattn_jax.explain.map_export import export, export_run

__all__ = [
    "export",
    "export_run",
]


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    export_run(
        values.workdir,
        values.out,
        split=values.split,
        num=values.num,
        checkpoint=values.checkpoint,
        batch_size=values.batch_size,
        data_dir=values.data_dir,
        trust_code=values.trust_code,
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_string("out", None, "folder of the store, new or to go on with", required=True)
    flags.DEFINE_enum("split", "test", SPLITS, "where the images come from")
    flags.DEFINE_integer("num", None, "number of images; default: all", lower_bound=1)
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step")
    flags.DEFINE_integer(
        "batch_size", None, "images per batch; default: as in the run", lower_bound=1
    )
    flags.DEFINE_string("data_dir", None, "folder of the data sets; default: as in the run")
    command.define_trust_code()
    command.run(main, processes=True)
