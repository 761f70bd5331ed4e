"""An exported network is called where this package is not, and gives the same numbers."""

import dataclasses
import hashlib
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export
from PIL import Image, ImageOps

import lossattn_jax
from lossattn_jax import models
from lossattn_jax.checkpoint import runs
from lossattn_jax.config import images as config_lib
from lossattn_jax.data.views import CROP
from lossattn_jax.export_model import calling_page, program
from lossattn_jax.kernels import convolution, winograd
from reliability import in_process
from tests.support import parameters, trained_runs

# Runs the page's own code, in a process that has nothing but JAX, NumPy and Pillow.
SCRIPT = """
import json, sys
page, *paths = json.load(sys.stdin)


class Refuser:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lossattn_jax", "flax", "tests", "absl"):
            raise ImportError(name + " is not here")


sys.meta_path.insert(0, Refuser())
exec(page)
for count in (1, len(paths)):
    outputs = predict(paths[:count])
    np.savez(f"{count}.npz", **outputs)
print(class_names)
"""


def export_run(run, folder):
    workdir = trained_runs.write(folder / "run", run)
    out = folder / "model.stablehlo"
    arguments = ["-m", "lossattn_jax.export_model", f"--workdir={workdir}", f"--out={out}"]
    finished = in_process.run(arguments, folder)
    assert finished.returncode == 0, finished.stderr
    return workdir, out


SPECS = {
    "squeeze": trained_runs.SPEC,
    "crop": dataclasses.replace(trained_runs.SPEC, fit=CROP, canvas=20),
    "several": dataclasses.replace(trained_runs.SPEC, multi_label=True),
}
SLOW = ("crop", "several")


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, id=name, marks=[pytest.mark.slow] * (name in SLOW))
        for name, spec in SPECS.items()
    ],
)
def test_the_pages_code_gives_what_predict_gives(spec, tmp_path):
    workdir, out = export_run(spec, tmp_path)
    paths = []
    for number, size in enumerate([(16, 16), (30, 21), (9, 40)]):
        (picture,) = trained_runs.arrays(1, size, seed=number)
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(picture).save(paths[-1])
    half = np.dstack([picture, np.where(picture[..., 0] > 60, 255, 0)]).astype(np.uint8)
    Image.fromarray(half).save(paths[-1])
    (code,) = re.findall(r"```python\n(.*?)```", out.with_name(f"{out.name}.md").read_text(), re.S)
    finished = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT],
        input=json.dumps([code, *paths]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == str(list(spec.class_names))
    expected = lossattn_jax.load(workdir).predict(paths)
    for count in (1, 3):
        with np.load(tmp_path / f"{count}.npz") as outputs:
            assert sorted(outputs) == sorted(program.OUTPUTS)
            for name in ("probabilities", "logits", "attention"):
                given = getattr(expected, name)[:count]
                assert outputs[name].shape == given.shape and outputs[name].dtype == np.float32
                np.testing.assert_allclose(outputs[name], given, rtol=1e-6, atol=1e-6)
            classes = outputs["patch_logits"].argmax(axis=-1)
            np.testing.assert_array_equal(classes, expected.patch_classes[:count])


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_the_pages_code_refuses_more_than_8_bits(tmp_path, suffix):
    """Pillow reads some of them as other grey levels, without a word."""
    page = (pathlib.Path(calling_page.__file__).parent / "page.md").read_text()
    (code,) = re.findall(r"(def read.*?)\$code", page, re.S)
    names = {"Image": Image, "ImageOps": ImageOps}
    exec(code.replace("$draft", "16") + "    return picture.mode", names)
    deep = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(deep)
    with pytest.raises(ValueError, match="deep.* has more than 8 bits a sample"):
        names["read"](deep)
    plain = tmp_path / f"plain.{suffix}"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(plain)
    assert names["read"](plain) == "RGB"


def test_the_record_says_what_the_program_is(tmp_path):
    _, out = export_run(trained_runs.SPEC, tmp_path)
    record = json.loads(out.with_name(f"{out.name}.json").read_text())
    assert record["class_names"] == list(trained_runs.SPEC.class_names)
    assert record["image_shape"] == [16, 16, 3] and record["platforms"] == ["cpu", "cuda", "tpu"]
    assert record["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert record["made_from"]["step"] == 3 and record["made_from"]["dataset"] == "toy"
    exported = export.deserialize(bytearray(out.read_bytes()))
    assert str(exported.in_avals[0].shape) == "(B, 16, 16, 3)"
    assert exported.platforms == ("cpu", "cuda", "tpu")
    with pytest.raises(ValueError, match="shape|Shape"):
        exported.call(np.zeros((2, 15, 16, 3), np.uint8))


def test_kernels_for_cpus_stay_out_of_programs_for_all(monkeypatch):
    def never(*arguments):
        raise AssertionError("a kernel for CPUs")

    (batch,) = export.symbolic_shape("B")
    x = jax.ShapeDtypeStruct((2, 8, 8, 128), np.float32)
    any_batch = jax.ShapeDtypeStruct((batch, 8, 8, 128), np.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), np.float32)
    monkeypatch.setattr(winograd, "convolve", never)
    monkeypatch.setattr(convolution, "_convolve_strided", never)
    for stride in (1, 2):

        def convolve(x, kernel, stride=stride):
            return convolution.convolve(x, kernel, stride, 1)

        with pytest.raises(AssertionError, match="a kernel for CPUs"):
            jax.eval_shape(convolve, x, kernel)  # else the test could not fail
        exported = export.export(jax.jit(convolve), platforms=program.PLATFORMS)(any_batch, kernel)
        assert "stablehlo.convolution" in exported.mlir_module()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "head", "pooling"),
    [("small", "capsule", "dynamic_routing"), ("small", "conv", "attention")],
)
def test_other_networks_are_exported_too(backbone, head, pooling):
    model = models.build(backbone, head, pooling, num_classes=3, width=0.1)
    variables = parameters.draw(model, np.zeros((1, 32, 32, 3), np.float32))
    options = config_lib.resolve(trained_runs.config())
    spec = dataclasses.replace(trained_runs.SPEC, image_shape=(32, 32, 3))
    run = runs.Run(options, spec, model, variables, 0)
    images = trained_runs.arrays(2, (32, 32))
    stored = program.make(run).serialize()
    outputs = export.deserialize(stored).call(images)
    expected = lossattn_jax.TrainedRun(run).predict(images)
    for name in ("probabilities", "logits", "attention"):
        np.testing.assert_allclose(outputs[name], getattr(expected, name), rtol=1e-6, atol=1e-6)
