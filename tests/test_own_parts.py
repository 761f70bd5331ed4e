"""Parts of a user's own, from a file outside the package: data sets, bags, methods, explainers, metrics."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lossattn_jax.checkpoint import runs
from lossattn_jax.config import config_json
from lossattn_jax.config.images import default_config
from lossattn_jax.errors import UntrustedCode
from lossattn_jax.files import digests, records
from lossattn_jax.train import dumps
from reliability import in_process
from tests.support import own_parts

ROOT = pathlib.Path(__file__).parents[1]
TRAINING = {
    "data.name": "own_parts:SHAPES",
    "data.dir": "data",
    "model.width": 0.125,
    "train.epochs": 1,
    "train.batch_size": 16,
    "eval.batch_size": 8,
    "optimizer.warmup_epochs": 0.0,
    "log.pictures": 0,
}
SPLIT = ["--num=8", "--batch_size=8"]
# Commands that open the run, by their modules.
OPENING = {
    "evaluate": ["--workdir=run"],
    "explain": ["--workdir=run", "--num=4", "--out=report"],
    "compare_explainers": ["--workdir=run", *SPLIT, "--explainers=attention", "--metrics=deletion"],
    "export_maps": ["--workdir=run", "--out=maps.zarr"],
    "convert": ["--workdir=run", "--to=weights.npz"],
    "predict": ["--workdir=run", "--images=picture.png", "--out=predictions.csv"],
    "export_model": ["--workdir=run", "--out=model.stablehlo"],
    "explain.explanation_table": ["--runs=run", "--table=t.md", "--record=t.json"],
}


def run(folder, module, *flags):
    """Runs a command in a folder whose modules it finds, as `python -m` does."""
    sys.modules.pop(own_parts.NAME, None)
    (folder / own_parts.IMPORTED).unlink(missing_ok=True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(folder)
            return in_process.run(["-m", f"lossattn_jax.{module}", *flags], folder)
    finally:
        sys.modules.pop(own_parts.NAME, None)


def train(folder, *flags, **values):
    given = {**TRAINING, **{key.replace("__", "."): value for key, value in values.items()}}
    overrides = [f"--config.{key}={value}" for key, value in given.items()]
    return run(folder, "train", "--config=digit_scenes", "--workdir=run", *overrides, *flags)


def succeeded(finished):
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def refused(finished, sentence):
    assert finished.returncode == 2 and sentence in finished.stderr, finished.stderr
    assert finished.stderr.count("\n") == 1 or "error: " in finished.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the module and a run on its images."""
    folder = tmp_path_factory.mktemp("own")
    own_parts.write(folder)
    (folder / "picture.png").touch()  # is not read where code is not trusted
    finished = run(folder, "data.prepare", "--dataset=own_parts:SHAPES", "--data_dir=data")
    path = folder / "data" / "own_shapes" / "1.0.0"
    assert succeeded(finished).endswith(f"own_parts:SHAPES is ready in {path}\n")
    succeeded(train(folder))
    return folder


def test_own_images_are_trained_and_resumed(folder):
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["data"]["name"] == "own_parts:SHAPES"
    succeeded(train(folder))
    refused(train(folder, data__name="own_parts:OTHER"), "own_parts has no attribute 'OTHER'")


@pytest.mark.parametrize("module", OPENING)
def test_stored_code_is_imported_only_where_trusted(folder, module):
    finished = run(folder, module, *OPENING[module])
    sentence = f"config.data.name in run{os.sep}config.json is 'own_parts:SHAPES', which is code"
    refused(finished, sentence)
    assert "--trust_code" in finished.stderr
    assert not (folder / own_parts.IMPORTED).exists()


@pytest.mark.parametrize(
    ("kind", "content", "key"),
    [
        (
            "images",
            {"config": {"data.name": "own_parts:SHAPES"}, "examples": 2},
            "config.data.name",
        ),
        ("bags", {"network": {"method": "own_parts:Pool"}, "settings": {}}, "network.method"),
        # One that hides behind another of the same name, and one that is deep in the record.
        (
            "bags",
            {"network": {"method": "own_parts:Pool"}, "settings": {"method": "mean"}},
            "network.method",
        ),
        (
            "bags",
            {"network": {}, "settings": {"optimizer": {"name": "own_parts:Sgd"}}},
            "settings.optimizer.name",
        ),
    ],
)
def test_a_dump_that_names_code_is_not_replayed(folder, kind, content, key):
    trees = {"batch": {"index": np.arange(2)}, "state": {}}
    dumps.write(folder / f"dump_{kind}", kind, content, trees, "")
    for module in ("replay", "mil.replay"):
        finished = run(folder, module, f"--dump=dump_{kind}")
        refused(finished, f"{key} in dump_{kind}{os.sep}dump.json is 'own_parts:")
        assert "--trust_code" in finished.stderr
        assert not (folder / own_parts.IMPORTED).exists()


def test_ids_of_bags_that_look_like_code_are_no_code(folder):
    content = {"network": {"method": "mean"}, "settings": {}, "ids": ["slide:s01"]}
    dumps.write(folder / "dump_ids", "bags", content, {"batch": {"index": np.arange(2)}}, "")
    refused(run(folder, "replay", "--dump=dump_ids"), "does not hold an update of the network")


@pytest.mark.parametrize(
    "module",
    [
        "evaluate",
        "convert",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("explain", "export_maps")),
    ],
)
def test_trusted_code_is_imported(folder, module):
    succeeded(run(folder, module, *OPENING[module], "--trust_code"))
    if module == "evaluate":
        result = json.loads((folder / "run" / "evaluation_test.json").read_text())
        assert result["num_examples"] == 8


def test_another_run_that_names_code_needs_trust_to_start_from(folder, tmp_path):
    own_parts.write(tmp_path)
    shutil.copytree(folder / "data", tmp_path / "data")
    config = default_config()
    config.data.name = "other_code:SHAPES"
    (tmp_path / "first").mkdir()
    config_json.write(config, tmp_path / "first" / "config.json")
    finished = train(tmp_path, init_from="first")
    refused(finished, "is 'other_code:SHAPES', which is code that this command would import")
    refused(train(tmp_path, "--trust_code", init_from="first"), "no module 'other_code'")


def test_a_run_of_other_code_is_not_continued(folder, tmp_path):
    own_parts.write(tmp_path)
    shutil.copytree(folder / "data", tmp_path / "data")
    shutil.copytree(folder / "run", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    stored = json.loads(path.read_text())
    stored["model"]["pooling"] = "other_code:Pooling"
    del stored[records.DIGEST]
    stored[records.DIGEST] = digests.of_json(stored)
    path.write_text(json.dumps(stored))
    finished = train(tmp_path)
    refused(
        finished, "config.model.pooling is 'loss_attention', but the run in run has 'other_code:"
    )


def test_python_asks_for_trust_too(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / own_parts.IMPORTED).unlink(missing_ok=True)
    with pytest.raises(UntrustedCode, match="own_parts:SHAPES") as error:
        runs.load(folder / "run")
    assert (error.value.key, error.value.value) == ("config.data.name", "own_parts:SHAPES")
    assert not (folder / own_parts.IMPORTED).exists()
    assert runs.load(folder / "run", trust_code=True).spec.key == "own_parts:SHAPES"
    assert runs.load(folder / "run", trust_code={"own_parts:SHAPES"}).step == 2


def test_paths_that_look_like_references_are_none(tmp_path):
    config = default_config()
    config.data.dir = config.init_from = "disk:folder"
    config_json.write(config, tmp_path / "config.json")
    assert config_json.read(tmp_path / "config.json") == config


@pytest.mark.slow
def test_own_explainers_and_metrics_are_compared(folder):
    names = "--explainers=attention,own_parts:corner"
    metrics = "--metrics=deletion,own_parts:QUARTER,own_parts:IN_BOX"
    flags = ["--workdir=run", *SPLIT, names, metrics, "--trust_code"]
    table = succeeded(run(folder, "compare_explainers", *flags))
    assert table.splitlines()[0] == "| metric | attention | own_parts:corner |"
    rows = {line.split(" |")[0][2:] for line in table.splitlines()[2:]}
    times = {"ms_per_image ↓", "forward_passes ↓", "times_attention ↓"}
    assert rows == {"deletion ↓", "own_parts:QUARTER ↑", "own_parts:IN_BOX ↑"} | times
    stored = json.loads((folder / "run" / "compare_explainers.json").read_text())
    assert stored["own_metrics"] == {"own_parts:QUARTER": True, "own_parts:IN_BOX": True}
    assert stored["explainers"]["own_parts:corner"]["own_parts:QUARTER"] == 1
    succeeded(run(folder, "evaluate", "--workdir=run", "--trust_code"))
    options = [*OPENING["explain.explanation_table"], "--explainer=own_parts:corner"]
    options += ["--compare=own_parts:QUARTER", "--trust_code"]
    written = succeeded(run(folder, "explain.explanation_table", *options))
    assert "| own_parts:QUARTER ↑ | 1.000 |" in written
    # Its numbers and their directions are in the files.
    assert not (folder / own_parts.IMPORTED).exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--explainers=own_parts:NUMBER"], "'own_parts:NUMBER' is a int, but must be a function"),
        (["--explainers=own_parts:flat"], "'own_parts:flat' gives patches of shape None, but must"),
        (["--explainers=own_parts:round"], "own_parts has no attribute 'round'"),
        (["--explainers=attentoin"], "'attentoin', but must be one of: attention, "),
        (["--metrics=own_parts:WHOLE"], "'own_parts:WHOLE' gives the shape (), but must give a"),
        (["--metrics=own_parts:corner"], "which is a function, but must be a lossattn_jax.explain"),
    ],
)
def test_wrong_explainers_and_metrics_are_a_sentence(folder, flags, sentence):
    finished = run(folder, "compare_explainers", "--workdir=run", *SPLIT, "--trust_code", *flags)
    refused(finished, sentence)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "own_parts:NUMBER",
            "dataset is 'own_parts:NUMBER', which is a int, but must be a lossatt",
        ),
        ("own_parts:CONTRADICTORY", "has 2 of class_names, but must have 3"),
        ("no_parts:SHAPES", "there is no module 'no_parts'"),
    ],
)
def test_wrong_data_sets_are_a_sentence(folder, name, sentence):
    refused(run(folder, "data.prepare", f"--dataset={name}", "--data_dir=data"), sentence)


def test_own_bags_and_methods_are_cross_validated(folder):
    method, folds = "--method=own_parts:Threshold,mi_kernel", ["--folds=3", "--repeats=1"]
    bags = "--dataset=own_parts:BAGS,own_parts:bags"
    flags = [bags, method, *folds, "--workdir=mil"]
    table = succeeded(run(folder, "mil", *flags))
    assert "| BAGS | Threshold | 1.000 |" in table and "| BAGS | MI-Kernel |" in table
    again = run(folder, "mil", *flags)
    assert succeeded(again) == table
    assert "own_parts" not in json.loads((folder / "mil" / "config.json").read_text())
    # What is there is told without the module.
    written = run(folder, "mil.tables", "--runs=mil", "--table=m.md", "--record=m.json")
    assert "| Threshold | 1.000 (-) |" in succeeded(written) + (folder / "m.md").read_text()
    assert not (folder / own_parts.IMPORTED).exists()
    written = run(folder, "mil.tables", "--runs=m.json", "--table=n.md", "--record=n.json")
    succeeded(written)
    assert (folder / "n.md").read_text() == (folder / "m.md").read_text()


def test_folds_of_a_method_that_has_changed_are_refused(tmp_path):
    own_parts.write(tmp_path)
    flags = ["--dataset=own_parts:BAGS", "--method=own_parts:Threshold", "--folds=2"]
    flags += ["--repeats=1", "--workdir=mil"]
    succeeded(run(tmp_path, "mil", *flags))
    with (tmp_path / "own_parts.py").open("a") as file:
        file.write("\nNUMBER = 4\n")
    refused(run(tmp_path, "mil", *flags), "code")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--dataset=own_parts:NUMBER"], "'own_parts:NUMBER' is a int, but must be a lossattn_jax"),
        (["--method=own_parts:SHAPES"], "'own_parts:SHAPES' is a DatasetSpec, but must be a subcl"),
        (["--method=own_parts:NeedsMore"], "cannot be made without arguments"),
        (["--method=mi_svn"], "'mi_svn', but must be one of "),
    ],
)
def test_wrong_bags_and_methods_are_a_sentence(folder, flags, sentence):
    given = {"dataset": "own_parts:BAGS", "workdir": "wrong"}
    given |= dict(flag.removeprefix("--").split("=") for flag in flags)
    refused(run(folder, "mil", *(f"--{key}={value}" for key, value in given.items())), sentence)
    assert not (folder / "wrong").exists()


def test_the_installed_command_finds_modules_where_it_is_called(folder, tmp_path):
    script = tmp_path / "lossattn"
    script.write_text("from lossattn_jax.__main__ import main\nmain()\n")
    finished = subprocess.run(
        [sys.executable, script, "prepare", "--dataset=own_parts:NUMBER"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    refused(finished, "'own_parts:NUMBER', which is a int, but must be a lossattn_jax")
