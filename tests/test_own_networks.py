"""Poolings, backbones and heads of a user's own, from a file outside the package, through the commands."""

import json
import sys

import jax
import numpy as np
import pytest

from lossattn_jax import models
from lossattn_jax.checkpoint import conversion, runs
from lossattn_jax.data import DATASETS
from lossattn_jax.errors import UserError
from lossattn_jax.mil import BagNetwork, methods
from reliability import in_process
from tests.support import own_networks, parameters

OWN = own_networks.NAME
PARTS = {
    "model.backbone": f"{OWN}:Backbone",
    "model.head": f"{OWN}:Head",
    "model.pooling": f"{OWN}:SCORED",
    "loss.name": f"{OWN}:BRIER",
}
TRAINING = {
    "train.epochs": 1,
    "train.batch_size": 40,
    "eval.batch_size": 30,
    "optimizer.warmup_epochs": 0.0,
    "log.pictures": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the module, which is found as in a shell that stands there."""
    folder = tmp_path_factory.mktemp("own_networks")
    own_networks.write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop(OWN, None)


def succeeded(finished):
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def train(folder, data_dir, **values):
    given = {**TRAINING, **PARTS, "data.dir": data_dir, **values}
    overrides = [f"--config.{key}={value}" for key, value in given.items()]
    flags = ["--config=digit_scenes", "--workdir=run", *overrides]
    return in_process.run(["-m", "lossattn_jax.train", *flags], folder)


@pytest.mark.slow
def test_parts_from_a_file_outside_go_through_the_commands(folder, scenes_dir):
    succeeded(train(folder, scenes_dir))
    finished = train(folder, scenes_dir, **{"train.epochs": 2})
    succeeded(finished)
    assert "from step 5" in finished.stderr
    assert "patch loss on" in finished.stderr  # which the entry asks for
    assert (
        json.loads((folder / "run" / "config.json").read_text())["model"]["pooling"]
        == f"{OWN}:SCORED"
    )

    def run(module, *flags):
        flags = ("--workdir=run", "--trust_code", *flags)
        return in_process.run(["-m", f"lossattn_jax.{module}", *flags], folder)

    measured = json.loads(succeeded(run("evaluate")))
    assert 0 <= measured["accuracy"] <= 1
    assert 0 < measured["loss"] <= 2  # as Brier's score is
    succeeded(run("explain", "--num=2", "--out=report"))
    assert (folder / "report" / "index.html").exists()
    succeeded(
        run(
            "compare_explainers",
            "--num=4",
            "--explainers=attention,grad_cam",
            "--out=compared.json",
        )
    )
    compared = json.loads((folder / "compared.json").read_text())["explainers"]
    for explainer in ("attention", "grad_cam"):
        for stage in ("classifier", "head", "backbone"):
            assert -1 <= compared[explainer][f"similarity_{stage}"] <= 1
        assert 0 < compared[explainer]["deletion"] < 1
    refused = run("convert", "--to=weights.npz")
    assert (
        refused.returncode == 2 and "Backbone is not a backbone of models.build" in refused.stderr
    )


def test_a_pooling_from_a_file_outside_is_a_method_for_bags(folder):
    random = np.random.default_rng(0)
    rows = ["bag_id,bag_label,a,b"]
    for bag in range(12):
        for value in random.normal(3 * (bag % 2), 1, (2, 2)):
            rows.append(f"b{bag},{bag % 2},{value[0]:.3f},{value[1]:.3f}")
    (folder / "bags.csv").write_text("\n".join(rows) + "\n")
    flags = ["--dataset=bags.csv", f"--method={OWN}:SCORED", "--workdir=mil"]
    flags += ["--folds=2", "--repeats=1", "--config.train.epochs=2"]
    flags += [f"--config.model.backbone={OWN}:layers"]
    first = succeeded(in_process.run(["-m", "lossattn_jax.mil", *flags], folder))
    assert f"{OWN}:SCORED" in first
    assert succeeded(in_process.run(["-m", "lossattn_jax.mil", *flags], folder)) == first


def test_only_a_pooling_with_names_is_converted(folder):
    model = models.build("small", "conv", f"{OWN}:NAMED", width=0.125)
    variables = parameters.draw(model, np.zeros((1, 32, 32, 3), np.float32))
    state = conversion.to_torch_state_dict(variables, model)
    assert state["scores.0.weight"].shape == (1, 16)
    again = conversion.from_torch_state_dict(state, model)
    jax.tree.map(np.testing.assert_array_equal, again, dict(variables))
    model = models.build("small", "conv", f"{OWN}:SCORED", width=0.125)
    with pytest.raises(UserError, match="own_scores has no name in PyTorch; .*Pooling.torch_names"):
        conversion.to_torch_state_dict(variables, model)


def test_a_function_pools_patches_and_instances_alike(folder):
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    model = models.build("small", "conv", f"{OWN}:score", width=0.125)
    out = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], images)
    assert out.logits.shape == (2, 10) and out.attention.shape == (2, 36)
    network = BagNetwork(method=f"{OWN}:score")
    variables = parameters.draw(network, images[:, 0])
    out = jax.jit(network.apply)(variables, images[:, 0])
    assert network.widths == (256, 128, 64) and "own_scores" in variables["params"]
    assert BagNetwork(method=f"{OWN}:SCORED").widths == (6, 5, 4)
    np.testing.assert_allclose(out.attention.sum(axis=1), 1, rtol=1e-5)
    bags, labels = [np.ones((2, 3)), np.zeros((1, 3))] * 3, [1, 0] * 3
    fitted = methods.make(f"{OWN}:score", hidden=(2, 2, 2)).fit(bags, labels)
    assert fitted.predict_proba(bags).shape == (6, 2)


def test_a_pooling_that_takes_no_instances_is_no_method_for_bags():
    method = "lossattn_jax.attention.poolings.loss_attention:LOSS_ATTENTION"
    with pytest.raises(
        UserError, match="must be a pooling that takes instances: this one takes patc"
    ):
        methods.make(method, positive=1).fit([np.ones((2, 3)), np.zeros((1, 3))], [1, 0])


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"pooling": "NOTHING"}, "which is a int, but must be a .*Pooling, or a function"),
        ({"pooling": "Head"}, "which is a .*, but must be a .*Pooling, or a function"),
        ({"backbone": "score"}, "which is a function, but must be a .*Backbone or a class of"),
        ({"head": "Backbone"}, "has no method grid"),
        ({"head": "SCORES"}, "has no attribute 'SCORES'; the nearest is 'SCORED'"),
    ],
)
def test_what_is_no_such_part_is_refused(folder, parts, sentence):
    with pytest.raises(UserError, match=sentence):
        models.build(**{name: f"{OWN}:{part}" for name, part in parts.items()})


@pytest.mark.parametrize(
    ("data_set", "name", "fits"),
    [
        ("cifar10", "margin", "cross_entropy"),
        ("cifar10", "sigmoid", "cross_entropy"),
        ("coco", "cross_entropy", "sigmoid"),
        ("coco", f"{OWN}:BRIER", "sigmoid"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(folder, data_set, name, fits):
    model = models.build("small", "conv", width=0.125)
    assert runs.loss_kind(model, DATASETS[data_set]) == fits
    assert runs.loss_kind(model, DATASETS[data_set], fits) == fits
    with pytest.raises(
        UserError, match=f"config.loss.name is '{name}', but must be auto or {fits}"
    ):
        runs.loss_kind(model, DATASETS[data_set], name)
