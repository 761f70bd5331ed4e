import json
import math
import os

import numpy as np
import pytest

from lossattn_jax.errors import UserError
from lossattn_jax.files import digests, records

CONTENT = {"accuracy": 0.1 + 0.2, "bags": [{"id": "a", "weights": [1 / 3, 2.0]}], "note": None}
MADE_FROM = {"instances": digests.of_arrays({"x": np.arange(3.0)}), "config": {"seed": 0}}


@pytest.fixture
def path(tmp_path):
    records.write(tmp_path / "record.json", CONTENT, MADE_FROM)
    return tmp_path / "record.json"


def test_a_record_is_read_as_it_was_written(path):
    record = records.read(path)
    assert record == records.Record(CONTENT, MADE_FROM)
    assert record.content["accuracy"] == 0.1 + 0.2  # all digits


def test_a_record_may_be_a_part_of_a_larger_file(path):
    parts = [records.complete(CONTENT, MADE_FROM), records.complete({"a": 1.5}, {})]
    first, second = (records.from_json(part, "part") for part in json.loads(json.dumps(parts)))
    assert first == records.read(path) and first.digest == json.loads(path.read_text())["digest"]
    assert second == records.Record({"a": 1.5}, {})
    with pytest.raises(records.DamagedRecord, match="part is not as it was written"):
        records.from_json(parts[1] | {"a": 2.5}, "part")


def test_a_record_is_gone_on_with_where_its_inputs_are_the_same(path, caplog):
    assert records.find(path, MADE_FROM) == records.Record(CONTENT, MADE_FROM)
    assert records.find(path.with_name("absent.json"), MADE_FROM) is None
    other = {**MADE_FROM, "config": {"seed": 1}}
    sentence = "record.json was made from other inputs .*config .* use another workdir"
    with pytest.raises(UserError, match=sentence):
        records.find(path, other)
    assert not caplog.records
    path.write_text(path.read_text()[:-9])
    assert records.find(path, other) is None
    assert "it is made again" in caplog.text
    path.write_text(json.dumps(CONTENT))
    with pytest.raises(UserError, match="was written before results carried digests"):
        records.find(path, MADE_FROM)


def test_nothing_is_left_beside_a_record(path):
    records.write(path, CONTENT, MADE_FROM)
    assert os.listdir(path.parent) == ["record.json"]


def test_a_link_is_replaced_and_not_followed(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / "record.json").symlink_to(target)
    records.write(tmp_path / "record.json", CONTENT, MADE_FROM)
    assert target.read_text() == "mine"
    assert records.read(tmp_path / "record.json").content == CONTENT


def test_files_have_the_mode_of_new_files(path):
    (path.parent / "other").write_text("")
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode


def test_numbers_that_are_not_finite_are_null_and_counted(tmp_path):
    content = {"a": [1.0, math.nan, (math.inf, -math.inf)], "b": np.float64("nan"), "c": "nan"}
    records.write(tmp_path / "r.json", content, {})
    text = json.loads((tmp_path / "r.json").read_text())
    assert text["a"] == [1.0, None, [None, None]] and text["b"] is None and text["c"] == "nan"
    assert text["nonfinite"] == 4


def test_a_count_of_ones_own_stays(tmp_path):
    records.write(tmp_path / "r.json", {"a": math.nan, "nonfinite": 7}, {})
    assert records.read(tmp_path / "r.json").content == {"a": None, "nonfinite": 7}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace("0.3000", "0.9900"),
        lambda text: text.replace('"seed": 0', '"seed": 1'),
        lambda text: text.replace('"a"', '"b"'),
        lambda text: json.dumps({**json.loads(text), "more": 1}),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "digest"}),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "made_from"}),
        lambda text: "[1]",
        lambda text: "[" * 100_000,
        lambda text: text.replace("a", "\udcff"),
    ],
)
def test_damage_is_found(path, damage):
    text = damage(path.read_text())
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(records.DamagedRecord, match=str(path)):
        records.read(path)


def test_the_same_content_with_other_spaces_is_whole(path):
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3, sort_keys=True))
    assert records.read(path).content == CONTENT


def test_a_record_of_before_there_were_digests_has_no_inputs(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(CONTENT))
    record = records.read(tmp_path / "old.json")
    assert record == records.Record(CONTENT, None)
    assert "before results carried digests" in records.difference(record.made_from, MADE_FROM)


def test_a_missing_record_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        records.read(tmp_path / "none.json")


def test_differences_are_named():
    assert records.difference(MADE_FROM, dict(MADE_FROM)) is None
    other = digests.of_arrays({"x": np.arange(3.0) + 1})
    assert records.difference(MADE_FROM, MADE_FROM | {"instances": other}) == "other instances"
    assert records.difference({"seed": 0}, {"seed": 1}) == "seed 0 instead of 1"
    assert records.difference({"seed": 0}, {}) == "seed 0 instead of None"
    assert records.difference({"words": [1, 2]}, {"words": (1, 2)}) is None
    before, now = ({str(key): value for key in range(5)} for value in (0, 1))
    assert records.difference(before, now).endswith("2 0 instead of 1, 2 more")


def test_digests_of_arrays_see_values_names_shapes_and_types():
    x = np.arange(6, dtype=np.float32)
    digest = digests.of_arrays({"x": x, "y": x})
    assert digest == digests.of_arrays({"y": x.copy(), "x": x})
    others = [{"x": x}, {"x": x, "z": x}, {"x": x, "y": x.reshape(2, 3)}]
    others += [{"x": x, "y": x.astype(np.int32)}, {"x": x, "y": x[::-1]}]
    assert digest not in {digests.of_arrays(other) for other in others}
