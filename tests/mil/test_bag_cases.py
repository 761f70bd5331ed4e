"""Inputs that people have had trouble with, and their right values."""

import pathlib

import numpy as np
import pytest

from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import bag_files
from lossattn_jax.errors import UserError
from lossattn_jax.mil import experiment

CASES = pathlib.Path(__file__).parents[3] / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="needs shared/cases")


def accuracies(workdir, files, names, **options):
    """The accuracies of four folds, to three digits, for each file and method."""
    config = config_lib.default_config()
    config.folds, config.repeats = 4, 1
    summaries = experiment.run(
        [str(file) for file in files],
        names.split(","),
        ["final"],
        config,
        str(workdir),
        "nowhere",
        **options,
    )
    return [round(summary.accuracy, 3) for summary in summaries]


def table(change=lambda label, f0: (label, f0), bags=20):
    """Bags of three instances, one of which is far from the others in a positive bag."""
    random = np.random.default_rng(0)
    lines = ["bag_label,bag_id,f0,f1"]
    for bag in range(bags):
        for place in range(3):
            label, f0 = change(bag % 2, random.normal() + 4 * (bag % 2 and place == 1))
            lines.append(f"{label},b{bag},{f0!r},{random.normal()!r}")
    return "\n".join(lines) + "\n"


def test_an_offset_changes_no_accuracy(tmp_path):
    offsets = (0.0, 1.7e9, -3e7)
    for number, offset in enumerate(offsets):
        text = table(lambda label, f0, offset=offset: (label, float(f0 + offset)))
        (tmp_path / f"o{number}.csv").write_text(text)
    files = [tmp_path / f"o{number}.csv" for number in range(len(offsets))]
    found = accuracies(tmp_path / "run", files, "mi_svm_bag,mi_kernel")
    assert found[:2] == found[2:4] == found[4:] and min(found) > 0.8


@needs_cases
def test_an_offset_of_a_unix_time(tmp_path):
    files = [CASES / "float32_offset" / f"{name}.csv" for name in ("base", "offset")]
    assert accuracies(tmp_path, files, "mi_svm_bag,mi_kernel") == [1.0] * 4


@needs_cases
def test_words_for_classes(tmp_path):
    files = [CASES / "label_names" / f"{name}.csv" for name in ("tumor_normal", "cancer_healthy")]
    names = "mi_svm,mi_svm_bag,em_dd,mi_kernel"
    with pytest.raises(
        UserError, match="which class is positive is not known of tumor_normal .*, c"
    ):
        accuracies(tmp_path, files, names)
    found = accuracies(tmp_path, files, names, positive=["tumor", "cancer"])
    assert found == [0.975, 1.0, 0.975, 1.0] * 2


@needs_cases
def test_labels_that_are_missing(tmp_path):
    folder = CASES / "missing_label"
    with pytest.raises(UserError, match="line 14 of .*nan_label.csv has the label 'nan', which"):
        accuracies(tmp_path, [folder / "nan_label.csv"], "mi_svm")
    assert accuracies(tmp_path, [folder / "labelled.csv"], "mi_svm") == [1.0]


@needs_cases
def test_forms_of_a_table():
    one, *others = (
        bag_files.read(CASES / "csv_forms" / f"{name}.csv")
        for name in ("semicolon", "tab", "index")
    )
    assert one.instances.shape == (65, 4) and len(one) == 20
    for other in others:
        assert (other.ids, other.features) == (one.ids, one.features)
        np.testing.assert_array_equal(other.instances, one.instances)
        np.testing.assert_array_equal(other.labels, one.labels)
