"""Writes a report of where the instances of bags are that count.

python -m lossattn_jax.mil.explain --model=M --bags=slides --out=R
python -m lossattn_jax.mil.explain --model=M1,M2 --bags=slides --labels=labels.csv --tiles=tiles --out=R
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.data.bags.bag_folder import open_bags
from lossattn_jax.data.bags.bag_table import read_table
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.errors import UserError
from lossattn_jax.mil import bag_flags, bag_page, bag_report
from lossattn_jax.mil.ensemble import Ensemble


def main() -> None:
    """Runs the command; see the flags."""
    values = flags.FLAGS
    ensemble = Ensemble.load(
        values.model,
        memory_gib=values.memory,
        instances_per_device=values.instances_per_device,
        trust_code=values.trust_code,
    )
    table = None
    labels: Sequence[Any] | None = None
    if values.labels is not None:
        table = read_table(values.labels, bag_flags.columns())
        # One class alone is enough to predict for.
        labels, table = table.labels, dataclasses.replace(table, labels=None, label_names=None)
    bags = open_bags(values.bags, table, formats=bag_flags.formats())
    if values.split is not None:
        rows = _rows_of(values.split, bags)
        bags, labels = bags.select(rows), None if labels is None else [labels[row] for row in rows]
    nonfinite = bag_report.run(
        ensemble,
        bags,
        values.out,
        labels=labels,
        tiles=values.tiles,
        thumbnails=values.thumbnails,
        thumbnail_scale=values.thumbnail_scale,
        top=values.top,
    )
    print(f"The report is {values.out}/{bag_report.INDEX_NAME}")
    bag_report.refuse_nonfinite(nonfinite)


def _rows_of(split: str, bags: Bags) -> list[int]:
    """Positions of the bags of a split.

    Raises:
      UserError: the table does not say which these are, or there are none.
    """
    splits = bags.splits or ()
    rows = [row for row, word in enumerate(splits) if word == split]
    if not rows:
        raise UserError(
            f"--split={split} names no bag of {bags.name}: --labels has to name a table with a column of "
            "splits, train, validation or test"
        )
    return rows


if __name__ == "__main__":
    flags.DEFINE_list(
        "model", None, "folder of a model, or of several that predict together", required=True
    )
    flags.DEFINE_string("bags", None, "folder with a feature file for each bag", required=True)
    flags.DEFINE_string("out", None, "folder for the report", required=True)
    flags.DEFINE_string("tiles", None, "folder with pictures of instances, BAG/X_Y.png")
    flags.DEFINE_string("thumbnails", None, "folder with pictures of whole slides, BAG.png")
    flags.DEFINE_float(
        "thumbnail_scale",
        None,
        "units of coordinates that a pixel of a thumbnail is wide; where not given, a thumbnail is as wide "
        "as level0_width, an attribute of coords, says",
    )
    flags.DEFINE_string("split", None, "train, validation or test: bags of this split alone")
    flags.DEFINE_integer("top", bag_page.TOP, "how many of a bag's highest instances are listed")
    bag_flags.define_table(("bag", "label", "split", "path"))
    bag_flags.define_format()
    bag_flags.define_memory()
    bag_flags.define_devices()
    command.define_trust_code()
    command.run(main)
