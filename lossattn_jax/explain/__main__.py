"""Reports where a network looks, in its data set or elsewhere:

python -m lossattn_jax.explain --workdir=runs/digit_scenes
python -m lossattn_jax.explain --workdir=runs/digit_scenes --images=a.png,folder --out=report
"""

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.data import own_images
from lossattn_jax.data.subset import SPLITS
from lossattn_jax.errors import UserError
from lossattn_jax.explain.run_report import PICKS, explain_run


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    if values["images"].present and not values.images:
        raise UserError(
            "--images is empty, but must name files or folders; leave it out for images of the split"
        )
    explain_run(
        values.workdir,
        values.images,
        num=values.num,
        split=values.split,
        pick=values.pick,
        fit=values.fit,
        checkpoint=values.checkpoint,
        out=values.out,
        data_dir=values.data_dir,
        trust_code=values.trust_code,
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_list("images", [], "image files and folders; default: images of the split")
    flags.DEFINE_integer("num", 64, "number of images of the split", lower_bound=1)
    flags.DEFINE_enum("split", "test", SPLITS, "where the images come from")
    flags.DEFINE_enum("pick", "hardest", PICKS, "which images of the split")
    flags.DEFINE_enum("fit", "resize", own_images.FITS, "how --images get the network's size")
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step")
    flags.DEFINE_string("out", None, "folder to write; default: report in the workdir")
    flags.DEFINE_string("data_dir", None, "folder of the data sets; default: as in the run")
    command.define_trust_code()
    command.run(main, processes=True)
