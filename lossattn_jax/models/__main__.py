"""Prints the networks of the paper's tables, or costs: `python -m lossattn_jax.models`."""

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.errors import UserError
from lossattn_jax.models import BACKBONES, HEADS, costs, table


def main() -> None:
    """The command; its flag `--list` is what it does anyway."""
    values = flags.FLAGS
    if values.image_size is None:
        for name in ("time", "backbones", "heads"):
            if values[name].present:
                raise UserError(f"--{name} is about costs, which need --image_size, such as 224")
        print("\n".join(table.lines()))
        return
    backbones = values.backbones or list(BACKBONES)
    for line in costs.lines(values.image_size, backbones, values.heads, values.time):
        print(line, flush=True)


if __name__ == "__main__":
    flags.DEFINE_bool("list", True, "print the networks, their parameters and the paper's numbers")
    flags.DEFINE_integer(
        "image_size",
        None,
        "print what each network costs for images of so many pixels a side, instead",
        lower_bound=1,
    )
    flags.DEFINE_list("backbones", [], f"of which costs are printed; all: {', '.join(BACKBONES)}")
    flags.DEFINE_list("heads", ["none", "conv"], f"likewise, of: {', '.join(HEADS)}")
    flags.DEFINE_bool("time", False, "also compile each network and measure its time for an image")
    command.run(main)
