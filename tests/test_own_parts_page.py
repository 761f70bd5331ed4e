"""docs/own_parts.md: its file and its commands, as a reader has them."""

import csv
import json
import pathlib
import re
import shlex
import sys

import pytest

from lossattn_jax.data.digit_photos import Options, write_photos
from reliability import in_process

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "own_parts.md").read_text()
SOURCE, COMMANDS = re.findall(r"```\w*\n(.*?)```", PAGE, re.DOTALL)
# A reader trains longer.
SHORTER = [
    "--config.train.epochs=1",
    "--config.optimizer.warmup_epochs=0",
    "--config.log.pictures=0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_parts.py").write_text(SOURCE)
    (folder / "pictures").mkdir()
    write_photos(folder / "pictures", Options(train=40, test=20, sides=(64, 90)))
    return folder


@pytest.mark.slow
def test_every_command_of_the_page_works(folder):
    lines = COMMANDS.strip().splitlines()
    assert len(lines) == 10
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "lossattn"
        shorter = SHORTER if words[0] == "train" else []
        sys.modules.pop("my_parts", None)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(folder)
            finished = in_process.run(["-m", "lossattn_jax", *words, *shorter], folder)
        assert finished.returncode == 0, (line, finished.stderr)
    rows = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 20
    measured = json.loads((folder / "runs/mine/evaluation_test.json").read_text())
    right = [pathlib.PurePath(row["path"]).parts[-2] == row["predicted"] for row in rows]
    assert sum(right) / len(right) == pytest.approx(measured["accuracy"])
    assert 0 <= measured["pointing_accuracy"] <= 1  # images.csv has the boxes
    assert len(list((folder / "tokens" / "features").glob("*.h5"))) == 60
