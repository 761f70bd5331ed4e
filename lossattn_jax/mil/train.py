"""Trains a model for bags that stays, with all that predicting needs.

    python -m lossattn_jax.mil.train --bags=slides --labels=labels.csv --positive=tumor --workdir=M
    python -m lossattn_jax.mil.train --dataset=own.csv --method=mi_svm --workdir=M2

Bags of a folder are read one by one where they are large. With a column `split` of the table the model is
trained on the bags of train, and tested on those of test.
"""

from absl import flags

from lossattn_jax.attention import poolings
from lossattn_jax.commands import command
from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import sources
from lossattn_jax.errors import UserError
from lossattn_jax.mil import bag_flags, methods, model_training, prediction_run, selection


def main() -> None:
    """Runs the command; see the flags."""
    values = flags.FLAGS
    config = values.config
    bag_flags.set_training(config)
    options = config_lib.resolve(config)
    request = model_training.Request(
        method=values.method,
        select=values.select,
        memory_gib=values.memory,
        instances_per_device=values.instances_per_device,
    )
    methods.get(request.method)
    bags = sources.open_all(
        _name_bags(),
        sources.Request(
            values.data_dir,
            options,
            values.download,
            values.positive,
            bag_flags.choice(),
            labels=values.labels,
            columns=bag_flags.columns(),
            file_format=values.file_format,
        ),
    )
    scores = model_training.run(bags, request, options, values.workdir)
    if scores is not None:
        print(f"test: {scores.as_text()}")
        prediction_run.refuse_nonfinite(scores)


def _name_bags() -> str:
    """The data set or the folder."""
    values = flags.FLAGS
    if (values.bags is None) == (values.dataset is None):
        raise UserError(
            "--bags=FOLDER or --dataset=NAME says what to train on: name one of the two"
        )
    return values.dataset if values.bags is None else values.bags


if __name__ == "__main__":
    flags.DEFINE_string("bags", None, "folder with a feature file for each bag")
    flags.DEFINE_string(
        "dataset",
        None,
        f"instead of --bags a file of bags (CSV), one of {', '.join(sources.SOURCES)}, or your own, "
        "package.module:attribute",
    )
    bag_flags.define_table()
    bag_flags.define_features()
    bag_flags.define_data()
    bag_flags.define_format()
    bag_flags.define_instances()
    bag_flags.define_class_weight()
    bag_flags.define_patience()
    bag_flags.define_memory()
    bag_flags.define_devices()
    flags.DEFINE_list("positive", [], "the positive class of two, where its words do not say it")
    flags.DEFINE_string(
        "method",
        poolings.DEFAULT,
        f"one of {', '.join(methods.NAMES)}; or your own, package.module:attribute",
    )
    flags.DEFINE_string(
        "select",
        selection.FINAL,
        "how epochs and settings are chosen: final, the last epoch; or validation, on part of the bags",
    )
    flags.DEFINE_string("workdir", None, "folder for the model", required=True)
    command.define_config(config_lib.__file__, config_lib.SCHEMA)
    command.run(main, config_lib.SCHEMA)
