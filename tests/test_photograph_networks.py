"""Networks for photographs, of small size, through every command that takes a run."""

import csv
import json

import h5py
import jax
import numpy as np
import pytest
import safetensors.numpy
import tensorstore
from jax import export

import lossattn_jax
from lossattn_jax import models
from lossattn_jax.checkpoint import runs, torch_names
from lossattn_jax.config import images as config_lib
from lossattn_jax.data import digit_photos
from lossattn_jax.models import vit
from lossattn_jax.models.parts import Backbone, PatchConvolution
from lossattn_jax.models.position_embeddings import Resampling
from reliability import in_process
from tests.support.torch_weights import reference_value

SIDE, TRAIN, TEST = 80, 20, 10
VARIANT = vit.Variant(16, 1, Resampling(antialias=True), depth=2)  # vit_s16, but shallow
SHALLOW = Backbone(
    lambda build: vit._make(VARIANT, build),
    plain_form="patches",
    patches=PatchConvolution(kernel=4, stride=2),
)
# Backbone, freeze, side of the map, and channels.
NETWORKS = {
    "vit": (f"{__name__}:SHALLOW", "", 5, 16),
    "frozen_resnet": ("resnet18_imagenet", "backbone", 3, 64),
}
WIDTHS = {"vit": 0.25, "frozen_resnet": 0.125}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    digit_photos.write_photos(folder, digit_photos.Options(TRAIN, TEST))
    return folder


def write_weights(path, backbone, width):
    """Random weights under torchvision's names, with the classifier that is left out."""
    model = models.build(backbone, "none", "loss_attention", width=width)
    slots = torch_names.backbone_layout(model, (SIDE, SIDE, 3)).slots
    shapes = {slot.key: slot.shape for slot in slots} | {"fc.weight": (1000, 64)}
    weights = {key: reference_value(key, tuple(shape), 0) for key, shape in shapes.items()}
    arrays = {key: value.astype(np.float32) for key, value in weights.items()}
    safetensors.numpy.save_file(arrays, path)
    return arrays


def read_zarr(path):
    kvstore = {"driver": "file", "path": str(path)}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_goes_through_every_command(name, photos, tmp_path):
    backbone, freeze, side, channels = NETWORKS[name]
    workdir = tmp_path / "run"

    def command(module, *flags):
        arguments = ["-m", f"lossattn_jax.{module}", f"--workdir={workdir}", "--trust_code"]
        finished = in_process.run([*arguments, *flags], tmp_path)
        assert finished.returncode == 0, finished.stderr

    config = {"data.dir": photos, "data.image_size": SIDE, "model.width": WIDTHS[name]}
    config |= {"train.freeze": freeze, "train.epochs": 1, "train.batch_size": 10}
    config |= {"optimizer.warmup_epochs": 0, "eval.batch_size": TEST, "log.pictures": 1}
    if freeze:
        weights = write_weights(tmp_path / "w.safetensors", backbone, WIDTHS[name])
        config["model.pretrained"] = tmp_path / "w.safetensors"
    flags = [f"--config.{key}={value}" for key, value in config.items()]
    file = config_lib.__file__.replace("lossattn_jax/config/images.py", "configs/own_images.py")
    command("train", f"--config={file}:{backbone}", *flags)
    if freeze:
        (first,) = jax.tree.leaves(runs.load(workdir).variables["params"]["backbone"]["conv1"])
        np.testing.assert_array_equal(first, weights["conv1.weight"].transpose(2, 3, 1, 0))

    command("evaluate")
    measured = json.loads((workdir / "evaluation_test.json").read_text())
    command("predict", f"--images={photos / 'test'}", "--out=table.csv")
    with (tmp_path / "table.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    paths = [row["path"] for row in rows]
    assert len(rows) == TEST
    right = [row["predicted"] == row["path"].split("/")[-2] for row in rows]
    assert measured["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)
    probabilities = np.array([[float(row[f"p_{digit}"]) for digit in range(10)] for row in rows])

    run = lossattn_jax.load(workdir, trust_code=True)
    predictions = run.predict(paths)
    assert predictions.attention.shape == (TEST, side * side)
    np.testing.assert_allclose(predictions.probabilities, probabilities, atol=1e-6)
    command("export_model", "--out=model.stablehlo")
    program = export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    images = np.stack([run.explain(path).image for path in paths])
    outputs = program.call(images)
    np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=1e-6)
    np.testing.assert_allclose(outputs["attention"], predictions.attention, atol=1e-6)

    command("export_maps", "--out=maps.zarr")
    np.testing.assert_allclose(
        read_zarr(tmp_path / "maps.zarr" / "probabilities"), probabilities, atol=1e-6
    )
    pixels = read_zarr(tmp_path / "maps.zarr" / "pixels")
    assert pixels.shape == (TEST, SIDE, SIDE) and np.isfinite(pixels).all()
    command("export_tokens", "--out=tokens")
    with h5py.File(tmp_path / "tokens" / "features" / "train_07.h5") as bag:
        assert bag["features"].shape == (side * side, channels)

    command("explain", "--num=4", "--out=report")
    command("explain", f"--images={paths[0]},{paths[1]}", "--out=own")
    for folder in ("report", "own"):
        assert (tmp_path / folder / "index.html").stat().st_size
    names = ("attention", "gradient_x_input", "grad_cam")
    few = [f"--explainers={','.join(names)}", "--metrics=pointing,mass_in_box,comprehensiveness"]
    command("compare_explainers", *few, f"--num={TEST}", f"--batch_size={TEST}")
    compared = json.loads((workdir / "compare_explainers.json").read_text())["explainers"]
    assert sorted(compared) == sorted(names)
    attention = compared["attention"]
    assert attention["pointing"] == pytest.approx(measured["pointing_accuracy"], abs=1e-6)
    jax.tree.map(lambda value: np.testing.assert_(np.isfinite(value)), compared)
