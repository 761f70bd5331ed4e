"""Predicts for bags with models that stay.

    python -m lossattn_jax.mil.predict --model=M --bags=slides --out=P
    python -m lossattn_jax.mil.predict --model=M1,M2 --bags=slides --labels=labels.csv --out=P --instances

Rerunning the same command goes on with the bags that are not there yet; those of other models are refused.
"""

import dataclasses

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.data.bags.bag_folder import open_bags
from lossattn_jax.data.bags.bag_table import read_table
from lossattn_jax.mil import bag_flags, prediction_run
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
    table, labels = None, None
    if values.labels is not None:
        table = read_table(values.labels, bag_flags.columns())
        # One class alone is enough to predict for.
        labels, table = table.labels, dataclasses.replace(table, labels=None, label_names=None)
    bags = open_bags(values.bags, table, formats=bag_flags.formats())
    scores = prediction_run.run(
        ensemble, bags, values.out, labels=labels, instances=values.instances
    )
    if labels is not None:
        print(scores.as_text())
    prediction_run.refuse_nonfinite(scores)


if __name__ == "__main__":
    flags.DEFINE_list(
        "model", None, "folder of a model, or of several that predict together", required=True
    )
    flags.DEFINE_string("bags", None, "folder with a feature file for each bag", required=True)
    flags.DEFINE_string("out", None, "folder for the predictions", required=True)
    flags.DEFINE_bool("instances", False, "write what the models say of each instance, as HDF5")
    bag_flags.define_table(("bag", "label", "path"))
    bag_flags.define_format()
    bag_flags.define_memory()
    bag_flags.define_devices()
    command.define_trust_code()
    command.run(main)
