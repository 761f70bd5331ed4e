"""The package as it is released: built, checked, and used from another folder in fresh environments.

`make release` runs this; each environment takes minutes and a gigabyte, which is removed again.
"""

import glob
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from lossattn_jax import __version__

ROOT = pathlib.Path(__file__).parents[1]
TOOLS = os.environ.get("RELEASE_PYTHON")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        TOOLS is None,
        reason="RELEASE_PYTHON names no Python with build and twine; see make release",
    ),
]

# Three classes of bags of patches, which a layer and the classifier can tell apart.
MODELS = """
import jax, jax.numpy as jnp, numpy as np, optax
from flax import linen, nnx
from jax import export
import lossattn_jax

rng = np.random.default_rng(0)
labels = np.arange(24) % 3
patches = rng.normal(size=(24, 36, 8)).astype(np.float32)
patches[np.arange(24), rng.integers(0, 36, 24), labels] += 6

def predict(layer, classifier, x):
    features = jnp.tanh(layer(x))
    patch_logits = classifier(features)
    attention = lossattn_jax.attention.pooling.loss_attention(patch_logits, grid=36)
    logits = classifier(lossattn_jax.attention.pooling.weighted_sum(features, attention))
    return logits, patch_logits, attention

def loss_of(outputs):
    return lossattn_jax.attention.losses.loss_attention_loss(*outputs, labels, patch_weight=0.1).total.mean()

class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return predict(linen.Dense(16), linen.Dense(3), x)

class NNX(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(8, 16, rngs=rngs)
        self.classifier = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return predict(self.layer, self.classifier, x)

model, adam = Linen(), optax.adam(0.03)
params = model.init(jax.random.key(0), patches)
state = adam.init(params)

@jax.jit
def linen_step(params, state):
    loss, gradient = jax.value_and_grad(lambda p: loss_of(model.apply(p, patches)))(params)
    changes, state = adam.update(gradient, state)
    return optax.apply_updates(params, changes), state, loss

linen_losses = []
for _ in range(30):
    params, state, loss = linen_step(params, state)
    linen_losses.append(float(loss))

own = NNX(nnx.Rngs(0))
optimizer = nnx.Optimizer(own, adam, wrt=nnx.Param)

@nnx.jit
def nnx_step(own, optimizer):
    loss, gradient = nnx.value_and_grad(lambda m: loss_of(m(patches)))(own)
    optimizer.update(own, gradient)
    return loss

nnx_losses = [float(nnx_step(own, optimizer)) for _ in range(30)]
for losses in (linen_losses, nnx_losses):
    assert losses[-1] < 0.5 * losses[0], losses
logits, _, attention = own(patches)
assert (np.asarray(logits).argmax(1) == labels).mean() > 0.9
np.testing.assert_allclose(attention.sum(axis=1), 1, rtol=1e-5)

network = lossattn_jax.models.build("small", "none", "none", width=0.125)
images = jnp.ones((2, 32, 32, 3))
variables = network.init(jax.random.key(3), images)
program = jax.jit(lambda images: network.apply(variables, images, train=False))
again = export.export(program)(images).serialize()
np.testing.assert_array_equal(export.deserialize(again).call(images).logits, program(images).logits)
"""


def run(*command, cwd, code=0):
    """Runs a command as a stranger's shell would, and returns what it printed."""
    own = ("PYTHONPATH", "VIRTUAL_ENV", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(cwd) / "programs")
    finished = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert finished.returncode == code, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished.stdout if code == 0 else finished.stderr


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The wheel and the archive of sources, of the tree as it is."""
    python = ROOT / TOOLS
    for tool in ("build", "twine"):
        if subprocess.run([python, "-m", tool, "--version"], capture_output=True).returncode:
            pytest.skip(f"{python} has no {tool}; see make release")
    folder = tmp_path_factory.mktemp("dist")
    run(python, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (wheel,), (sources,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sources


def interpreter(version):
    """A working Python of this version, also where pyenv hides it; None where there is none."""
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    for candidate in (f"python{version}", *glob.glob(f"{root}/versions/{version}.*/bin/python")):
        python = shutil.which(candidate)
        query = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if (
            python
            and subprocess.run(query, capture_output=True, text=True).stdout == f"{version}\n"
        ):
            return python
    return None


def test_what_is_built_can_be_published(distributions):
    printed = run(ROOT / TOOLS, "-m", "twine", "check", "--strict", *distributions, cwd=ROOT)
    assert printed.count("PASSED") == 2


def test_what_is_built_is_complete(distributions):
    wheel, sources = distributions
    assert wheel.name == f"lossattn_jax-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = packed.read(metadata).decode()
    tracked = subprocess.run(
        ["git", "ls-files", "lossattn_jax", "configs"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    if tracked:
        expected = {name.replace("configs/", "lossattn_jax/configs/", 1) for name in tracked}
        assert {name for name in names if ".dist-info/" not in name} == expected
    assert "lossattn_jax/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert "\nLicense-Expression: Apache-2.0\n" in described
    with tarfile.open(sources) as packed:
        members = {name.partition("/")[2] for name in packed.getnames()}
    required = {
        "LICENSE",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
    }
    assert required | {"configs/digit_scenes.py", "tests/test_release.py", "train.py"} <= members


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_a_fresh_environment_trains_evaluates_and_explains(
    distributions, scenes_dir, tmp_path, version
):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    try:
        run(python, "-m", "venv", environment, cwd=elsewhere)
        fresh = environment / "bin" / "python"
        run(fresh, "-m", "pip", "install", "--quiet", distributions[0], cwd=elsewhere)
        use(fresh, environment / "bin" / "lossattn", scenes_dir, elsewhere)
    finally:
        shutil.rmtree(environment, ignore_errors=True)


def use(python, lossattn, scenes_dir, folder):
    """Does what a newcomer does, without TensorFlow and PyTorch."""
    absent = (
        "import importlib.util as u, sys; sys.exit(any(map(u.find_spec, ['tensorflow', 'torch'])))"
    )
    run(python, "-c", absent, cwd=folder)
    run(python, "-c", MODELS, cwd=folder)
    printed = run(lossattn, "--version", cwd=folder)
    assert (
        f"lossattn_jax {__version__}\n" in printed and "\nJAX 0." in printed and "device" in printed
    )
    printed = run(lossattn, "prepare", "--dataset=cifar10", "--data_dir=new", cwd=folder, code=2)
    assert "pip install 'lossattn_jax[prepare]'" in printed and not (folder / "new").exists()

    small = [
        "--config.train.epochs=4",
        "--config.train.batch_size=20",
        "--config.model.width=0.125",
    ]
    data = f"--config.data.dir={scenes_dir}"
    run(lossattn, "train", "--config=digit_scenes", data, *small, "--workdir=run", cwd=folder)
    measured = json.loads(run(lossattn, "evaluate", "--workdir=run", cwd=folder))
    assert measured["num_examples"] == 60 and 0 <= measured["accuracy"] <= 1
    run(lossattn, "explain", "--workdir=run", "--num=4", cwd=folder)
    assert "<html" in (folder / "run" / "report" / "index.html").read_text()

    rows = ["bag_label,bag_id,a,b"]
    for bag in range(20):
        rows += [f"{bag % 2},bag{bag},{place + 3 * (bag % 2)},{bag / 7}" for place in range(3)]
    (folder / "own.csv").write_text("\n".join(rows) + "\n")
    few = ["--folds=2", "--repeats=1", "--config.train.epochs=2", "--workdir=bags"]
    bags = [lossattn, "mil", "cv", "--dataset=own.csv", "--method=loss_attention,mi_kernel", *few]
    printed = run(*bags, cwd=folder)
    assert "| own | Loss-Attention | " in printed and "| own | MI-Kernel | " in printed


def test_the_helper_finds_this_python():
    assert interpreter(f"{sys.version_info[0]}.{sys.version_info[1]}") is not None
