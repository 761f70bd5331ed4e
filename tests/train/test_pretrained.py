"""Runs that start from published weights of their backbone: what they hold, and how they resume."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from lossattn_jax.checkpoint import pretrained, provenance, run_folder, runs, store
from lossattn_jax.config import images as config_lib
from lossattn_jax.config import options as options_lib
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests, records
from lossattn_jax.models import vit
from lossattn_jax.models.parts import Backbone, PatchConvolution
from lossattn_jax.models.position_embeddings import Resampling
from lossattn_jax.train.images import checkpoint_items
from lossattn_jax.train.images import job as jobs
from tests.support import toys
from tests.support.torch_weights import reference_value

# On the toys' images, of 4x4 pixels: a map of 2x2.
VARIANT = vit.Variant(2, 1, Resampling(antialias=True), depth=1)
BACKBONE = Backbone(
    lambda build: vit._make(VARIANT, build), patches=PatchConvolution(kernel=1, stride=1)
)
CHANNELS = 16


@pytest.fixture
def run(monkeypatch):
    """Trains a small vision transformer on toys, with changes of the config."""
    monkeypatch.setattr(runs, "spec_of", lambda config: toys.SPEC)
    monkeypatch.setattr(runs, "open_split", lambda *_: toys.train_set({}))

    def config(**changes):
        fixed = {
            "model.backbone": f"{__name__}:BACKBONE",
            "model.head": "none",
            "model.pooling": "mean",
            "model.width": CHANNELS / vit.HEAD_CHANNELS,
            "train.epochs": 1,
        }
        result = toys.settings()
        result.update_from_flattened_dict({**fixed, **changes})
        return result

    return config


def shapes(side):
    """Shapes of the weights by their names, with places of a grid of that side."""
    wide = vit.EXPANSION * CHANNELS
    of_block = {
        "norm1": (CHANNELS,),
        "attn.qkv": (3 * CHANNELS, CHANNELS),
        "attn.proj": (CHANNELS, CHANNELS),
        "norm2": (CHANNELS,),
        "mlp.fc1": (wide, CHANNELS),
        "mlp.fc2": (CHANNELS, wide),
    }
    layers = {f"blocks.0.{name}": shape for name, shape in of_block.items()}
    layers |= {"patch_embed.proj": (CHANNELS, 3, 2, 2), "norm": (CHANNELS,), "head": (5, CHANNELS)}
    by_name = {f"{name}.weight": shape for name, shape in layers.items()}
    by_name |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    places = {"pos_embed": (1, 1 + side * side, CHANNELS), "cls_token": (1, 1, CHANNELS)}
    return by_name | places


def write(path, seed=0, side=3):
    weights = {key: reference_value(key, shape, seed) for key, shape in shapes(side).items()}
    arrays = {key: value.astype(np.float32) for key, value in weights.items()}
    safetensors.numpy.save_file(arrays, path)
    return arrays


def first_variables(config, workdir):
    job = jobs.open_job(config, workdir)
    with store.Checkpoints(job.workdir) as checkpoints:
        return jobs.first_state(job, checkpoints)[0].variables


def begin(config, workdir):
    """Starts a run and makes its first update: a checkpoint whose parameters are twice the first ones."""
    job = jobs.open_job(config, workdir)
    with store.Checkpoints(job.workdir) as checkpoints:
        state, sums = jobs.first_state(job, checkpoints)
        run_folder.write_config(job.options, job.workdir)
        params = jax.tree.map(lambda leaf: 2 * leaf, state.params)
        state = dataclasses.replace(state, step=np.int32(1), params=params)
        checkpoints.save(1, checkpoint_items.of_training(state, sums), {"accuracy": 0.5})


def test_a_run_starts_from_the_files_backbone(run, tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "weights.safetensors"
    arrays = write(path)
    drawn = first_variables(run(), tmp_path / "drawn")
    read = first_variables(run(**{"model.pretrained": str(path)}), tmp_path / "read")
    assert jax.tree.map(np.shape, drawn) == jax.tree.map(np.shape, read)
    backbone = read["params"]["backbone"]
    np.testing.assert_array_equal(
        backbone["block0"]["qkv"]["kernel"], arrays["blocks.0.attn.qkv.weight"].T
    )
    np.testing.assert_array_equal(backbone["positions"][:, 0], arrays["pos_embed"][:, 0])
    jax.tree.map(
        np.testing.assert_array_equal, drawn["params"]["classifier"], read["params"]["classifier"]
    )
    assert "left out: head.bias, head.weight" in caplog.text
    assert "resampled: pos_embed from (1, 10, 16) to (1, 5, 16)" in caplog.text
    record = records.read(tmp_path / "read" / pretrained.RECORD_NAME)
    assert record.made_from == {"weights": digests.of_file(path)}
    assert record.content["left_out"] == ["head.bias", "head.weight"]
    assert not (tmp_path / "drawn" / pretrained.RECORD_NAME).exists()


def test_a_run_resumes_without_the_file_and_not_with_another(run, tmp_path):
    path, other = tmp_path / "weights.safetensors", tmp_path / "other.safetensors"
    write(path)
    write(other, seed=1)
    workdir = tmp_path / "run"
    begin(run(**{"model.pretrained": str(path)}), workdir)
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["model"]["pretrained"] == str(path)

    with pytest.raises(UserError, match="was started from another file: leave config.model.pretr"):
        first_variables(run(**{"model.pretrained": str(other)}), workdir)
    moved = path.rename(tmp_path / "moved.safetensors")
    trained = first_variables(run(**{"model.pretrained": str(moved)}), workdir)
    moved.unlink()
    for gone in (str(moved), ""):
        again = first_variables(run(**{"model.pretrained": gone}), workdir)
        jax.tree.map(np.testing.assert_array_equal, trained, again)
    start = write(path)["blocks.0.attn.qkv.weight"].T
    np.testing.assert_array_equal(
        trained["params"]["backbone"]["block0"]["qkv"]["kernel"], 2 * start
    )


def test_a_run_of_drawn_weights_does_not_go_on_with_a_file(run, tmp_path):
    path = tmp_path / "weights.safetensors"
    write(path)
    workdir = tmp_path / "run"
    # A start that came to no checkpoint leaves a record, which the next one takes away.
    first_variables(run(**{"model.pretrained": str(path)}), workdir)
    begin(run(), workdir)
    with pytest.raises(UserError, match="was started without such a file"):
        first_variables(run(**{"model.pretrained": str(path)}), workdir)


def test_mistakes_are_sentences(run, tmp_path):
    absent = tmp_path / "absent.pth"
    with pytest.raises(UserError, match="config.model.pretrained: there is no file"):
        first_variables(run(**{"model.pretrained": str(absent)}), tmp_path / "run")
    both = run(**{"model.pretrained": "a.pth", "init_from": "other"})
    with pytest.raises(UserError, match="must be empty with config.init_from"):
        config_lib.resolve(both)
    odd = run(**{"model.backbone": "vit_s16"})
    with pytest.raises(UserError, match="both sides must be multiples of 16"):
        jobs.open_job(odd, tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


def test_where_the_file_lies_decides_no_outputs():
    plain = options_lib.ImageOptions()
    read = options_lib.ImageOptions(model=options_lib.ModelOptions(pretrained="a.pth"))
    assert provenance.of_config(plain) == provenance.of_config(read)
