"""The record of a run's data set."""

import dataclasses

import pytest

from lossattn_jax.checkpoint import data_set_record
from lossattn_jax.data import get_spec
from lossattn_jax.errors import UserError


def test_every_field_comes_back(tmp_path):
    spec = dataclasses.replace(get_spec("coco"), fit="crop", canvas=72, reference="my.code:spec")
    data_set_record.write(tmp_path, spec)
    assert data_set_record.read(tmp_path) == spec


def test_a_run_of_before_has_no_record(tmp_path):
    assert data_set_record.read(tmp_path) is None


def test_an_edited_record_is_refused(tmp_path):
    data_set_record.write(tmp_path, get_spec("cifar10"))
    path = tmp_path / data_set_record.RECORD_NAME
    path.write_text(path.read_text().replace("airplane", "aeroplane"))
    with pytest.raises(UserError, match="does not say which data set the run belongs to"):
        data_set_record.read(tmp_path)
