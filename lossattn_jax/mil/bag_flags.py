"""Flags that several commands for bags have: tables of bags, features, the positive class."""

from collections.abc import Collection, Mapping

from absl import flags
from ml_collections import ConfigDict

from lossattn_jax.commands import command
from lossattn_jax.data.bags.bag_table import TableColumns
from lossattn_jax.data.bags.columns import Choice
from lossattn_jax.data.bags.feature_files import FORMATS, FeatureFormat, find_formats

LABELS, POSITIVE, FEATURES, IGNORE = "labels", "positive", "features", "ignore"
DATA_DIR, DOWNLOAD, FILE_FORMAT = "data_dir", "download", "file_format"
MEMORY, MAX_INSTANCES, CLASS_WEIGHT = "memory", "max_instances", "class_weight"
PATIENCE = "patience"
INSTANCES_PER_DEVICE = "instances_per_device"

# Columns that a table may be read without, though it has them.
_OPTIONAL = ("group", "split", "fold", "path")
# What each column of a table has.
_COLUMNS = {
    "bag": "ids of bags; bag_id, bag or slide_id where not given",
    "label": "labels; bag_label or label where not given; A,B,C for columns of several labels of a bag",
    "group": "groups that are not divided between training and test, such as patients; of a folder's table "
    "group, patient, patient_id or case_id where not given, empty for none",
    "split": "train, validation or test; of a folder's table split where not given, empty for none",
    "fold": "numbers of the folds in which bags are tested; of a folder's table fold where not given, empty "
    "for none",
    "path": "feature files; path where not given, empty for none",
}


def define_table(parts: Collection[str] = tuple(_COLUMNS)) -> None:
    """Defines the flags of a table of bags: --labels and a --PART_column for each part."""
    flags.DEFINE_string(LABELS, None, "table of the bags of a folder (CSV, TSV, Parquet)")
    command.show_in_help(LABELS)
    for part in parts:
        name, meaning = f"{part}_column", f"of the table, {_COLUMNS[part]}"
        if part in _OPTIONAL:
            command.define_text_or_empty(name, meaning)
        else:
            flags.DEFINE_string(name, None, meaning)
        command.show_in_help(name)


def define_features() -> None:
    """Defines the flags that choose features of files whose columns have names."""
    flags.DEFINE_list(
        FEATURES,
        [],
        "names and patterns of columns that are features; all of numbers without a role",
    )
    flags.DEFINE_list(IGNORE, [], "names and patterns of columns that are no features")
    for name in (FEATURES, IGNORE):
        command.show_in_help(name)


def define_data() -> None:
    """Defines the flags that say where benchmarks are."""
    flags.DEFINE_string(DATA_DIR, "data/mil", "folder of the benchmarks, or of TFDS")
    flags.DEFINE_bool(DOWNLOAD, False, "whether to fetch a benchmark that is not there")
    for name in (DATA_DIR, DOWNLOAD):
        command.show_in_help(name)


def define_format() -> None:
    """Defines the flag --file_format."""
    flags.DEFINE_string(
        FILE_FORMAT,
        None,
        f"of a folder's feature files: {', '.join(FORMATS)}, or your own, package.module:attribute; what "
        "their endings say where not given",
    )
    command.show_in_help(FILE_FORMAT)


def define_memory() -> None:
    """Defines the flag --memory."""
    flags.DEFINE_float(
        MEMORY, None, "GiB that bags which are read one by one may take; half of what is free"
    )
    command.show_in_help(MEMORY)


def define_devices() -> None:
    """Defines the flag --instances_per_device."""
    flags.DEFINE_integer(
        INSTANCES_PER_DEVICE,
        None,
        "instances of a bag above which it is split over all devices; where not given, what fits into a "
        "quarter of a device's memory, and on CPUs no bag is split",
    )
    command.show_in_help(INSTANCES_PER_DEVICE)


def define_instances() -> None:
    """Defines the flag --max_instances."""
    flags.DEFINE_integer(
        MAX_INSTANCES,
        None,
        "that an epoch sees of a bag, drawn anew; the config's where not given",
    )
    command.show_in_help(MAX_INSTANCES)


def define_class_weight() -> None:
    """Defines the flag --class_weight."""
    flags.DEFINE_string(
        CLASS_WEIGHT,
        None,
        "balanced: weigh classes in inverse proportion to their bags in training; the config's where not "
        "given",
    )
    command.show_in_help(CLASS_WEIGHT)


def define_patience() -> None:
    """Defines the flag --patience."""
    flags.DEFINE_integer(
        PATIENCE,
        None,
        "with --select=validation: epochs of networks without a better one on the held-out bags, after which "
        "a training ends; the config's where not given, 0 for none",
    )
    command.show_in_help(PATIENCE)


def set_training(config: ConfigDict) -> None:
    """Puts the values of the flags --max_instances, --class_weight and --patience into a config."""
    if flags.FLAGS.patience is not None:
        config.validation.patience = flags.FLAGS.patience
    for name in (MAX_INSTANCES, CLASS_WEIGHT):
        value = flags.FLAGS[name].value
        if value is not None:
            config.train[name] = value


def columns() -> TableColumns:
    """The names of the table's columns that the flags give."""
    values = flags.FLAGS
    names = {part: f"{part}_column" for part in _COLUMNS}
    return TableColumns(
        **{part: values[name].value for part, name in names.items() if name in values}
    )


def choice() -> Choice:
    """The choice of features that the flags make."""
    values = flags.FLAGS
    return Choice(tuple(values.features), tuple(values.ignore))


def formats() -> Mapping[str, FeatureFormat]:
    """The formats that the flag --file_format allows.

    Raises:
      UserError: there is none of that name.
    """
    return find_formats(flags.FLAGS.file_format)
