"""Networks with outputs that are not finite: no metric of theirs is a number, and everyone counts them."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from flax import traverse_util
from PIL import Image

from lossattn_jax import data, devices, models
from lossattn_jax.checkpoint import run_folder, runs
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.config.images import default_config
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.evaluate import metric_registry, metrics
from lossattn_jax.evaluate.evaluation import evaluate, make_eval_step
from lossattn_jax.explain import comparison, map_export
from lossattn_jax.explain.metrics.maps import Protocol
from lossattn_jax.files import records
from lossattn_jax.models import Outputs
from reliability import in_process
from tests.support import parameters, shrunk

SPEC = data.DatasetSpec("toy", 3, ("a", "b", "c"), image_shape=(16, 16, 3), max_boxes=1)
CENTRES = jnp.array([[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]])
COUNT, BAD = 11, (1, 6, 7)
evaluation_sums = jax.jit(metric_registry.evaluation_sums)
NOT_METRICS = {"num_examples", "nonfinite"}


class Fragile:
    """A network whose patch logits are NaN where an image begins with black, as padding does."""

    def __init__(self, model, part="patch_logits", value=np.nan):
        self.model, self.part, self.value = model, part, value
        self.dtype, self.patch_grid = model.dtype, model.patch_grid

    def apply(self, variables, images, train):
        outputs = self.model.apply(variables, images, train=train)
        black = images[:, 0, 0, 0] <= -SPEC.mean[0] / SPEC.std[0] + 1e-3
        array = getattr(outputs, self.part)
        rows = black.reshape(-1, *[1] * (array.ndim - 1))
        return outputs.replace(**{self.part: jnp.where(rows, self.value, array)})


def make_run():
    model = models.build("small", num_classes=3, width=0.1)
    variables = parameters.draw(model, np.zeros((1, 16, 16, 3), np.float32))
    config = default_config()
    config.eval.batch_size = 4
    return runs.Run(config, SPEC, Fragile(model), variables, step=7)


def make_images():
    draw = np.random.default_rng(0)
    pixels = draw.integers(1, 256, (COUNT, 16, 16, 3)).astype(np.uint8)
    pixels[list(BAD), 0, 0, 0] = 0
    low = draw.uniform(0, 0.6, (COUNT, 2))
    boxes = np.concatenate([low, low + 0.4], axis=1).astype(np.float32)
    return data.ArrayDataset(
        SPEC, "test", pixels, draw.integers(0, 3, COUNT).astype(np.int32), boxes
    )


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture(scope="module")
def images():
    return make_images()


def good_outputs():
    draw = np.random.default_rng(1)
    logits, patches = draw.standard_normal((3, 2)), draw.standard_normal((3, 4, 2))
    arrays = (logits, patches, np.full((3, 4), 0.25))
    return Outputs(*(jnp.asarray(array, jnp.float32) for array in arrays))


@pytest.mark.parametrize("part", ["logits", "patch_logits", "attention"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_nonfinite_output_spoils_only_what_holds_it(part, value):
    outputs = good_outputs()
    array = getattr(outputs, part)
    bad = outputs.replace(**{part: array.at[(1,) + (0,) * (array.ndim - 1)].set(value)})
    labels, boxes = jnp.array([0, 1, 0]), jnp.array([[0, 0, 0.5, 0.5]] * 3)

    def measured(outputs, mask, boxes=boxes):
        sums = evaluation_sums(outputs, labels, jnp.array(mask), CENTRES, boxes)
        return metric_registry.evaluation_metrics(sums)

    whole = measured(bad, [1.0, 1.0, 1.0])
    assert (whole["nonfinite"], whole["num_examples"]) == (1, 3)
    assert all(math.isnan(number) for name, number in whole.items() if name not in NOT_METRICS)
    # Masked, it is as if it were not there: also in the calibration, where its bin is unknown.
    assert measured(bad, [1.0, 0.0, 1.0]) == measured(outputs, [1.0, 0.0, 1.0])
    # Means over images with a box do not hold an image without one.
    placed = measured(bad, [1.0, 1.0, 1.0], boxes.at[1].set(jnp.array(data.NO_BOX)))
    names = ("pointing_accuracy", "attention_in_box", "patches_in_box")
    expected = measured(outputs, [1.0, 0.0, 1.0])
    assert [placed[name] for name in names] == [expected[name] for name in names]
    assert math.isnan(placed["accuracy"]) and placed["nonfinite"] == 1


def test_finite_logits_whose_loss_has_no_sum_count_too():
    outputs = good_outputs()
    outputs = outputs.replace(logits=outputs.logits.at[:, 0].set(-3e38))
    sums = evaluation_sums(outputs, jnp.array([0, 0, 1]), jnp.ones(3), CENTRES)
    measured = metric_registry.evaluation_metrics(sums)
    assert measured["nonfinite"] == 2 and math.isnan(measured["loss"])


@pytest.mark.parametrize(
    ("backbone", "head", "pooling", "leaf"),
    [
        ("small", "conv", "attention", ("attention", "score", "bias")),
        ("small", "conv", "gated_attention", ("attention", "gate", "kernel")),
        ("vgg11_bn", "none", "none", ("backbone", "bn1", "bias")),
        ("capsnet", "none", "dynamic_routing", ("transform",)),
        ("deepcaps", "none", "biased_routing", ("head", "cell4", "around", "bias")),
        ("hitnet", "none", "hit_or_miss", ("head", "dense", "bias")),
    ],
)
def test_nan_inside_a_network_comes_out(backbone, head, pooling, leaf):
    model = models.build(backbone, head=head, pooling=pooling, num_classes=3, width=0.1)
    images = np.random.default_rng(2).standard_normal((2, 32, 32, 3)).astype(np.float32)
    variables = parameters.draw(model, images)
    flat = {k: np.array(a) for k, a in traverse_util.flatten_dict(variables).items()}
    flat[("params", *leaf)].reshape(-1)[-1] = np.nan
    variables = traverse_util.unflatten_dict(flat)
    outputs = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
    np.testing.assert_array_equal(metrics.outputs_finite(outputs), [False, False])


@pytest.mark.parametrize("batch_size", [4, 11])
def test_an_evaluation_counts_real_examples_alone(run, images, batch_size):
    variables = devices.replicate(run.variables)
    measured = evaluate(make_eval_step(run.model, SPEC), variables, images, batch_size)
    assert (measured["nonfinite"], measured["num_examples"]) == (len(BAD), COUNT)
    assert all(math.isnan(number) for name, number in measured.items() if name not in NOT_METRICS)
    fine = dataclasses.replace(images, images=images.images.clip(1))
    measured = evaluate(make_eval_step(run.model, SPEC), variables, fine, batch_size)
    assert "nonfinite" not in measured and np.isfinite(list(measured.values())).all()


def test_average_precision_of_several_labels_is_none_either(run, images):
    several = dataclasses.replace(SPEC, multi_label=True)
    labels = np.eye(3, dtype=np.uint8)[images.labels]
    images = dataclasses.replace(images, spec=several, labels=labels)
    step = make_eval_step(run.model, several)
    measured = evaluate(step, devices.replicate(run.variables), images, 4)
    assert measured["nonfinite"] == len(BAD)
    assert math.isnan(measured["map_all_point"]) and math.isnan(measured["map_11_point"])


DEVICES = """
from tests import test_nonfinite_outputs as here
run, images = here.make_run(), here.make_images()
step = here.make_eval_step(run.model, here.SPEC)
variables = here.devices.replicate(run.variables)
print(here.evaluate(step, variables, images, 8)["nonfinite"], here.jax.device_count())
"""


@pytest.mark.slow
def test_padding_of_several_devices_does_not_count(run_python):
    finished = run_python("-c", DEVICES, devices=4)
    assert finished.stdout.split() == [str(len(BAD)), "4"], finished.stderr


def test_an_export_has_no_prediction_and_no_even_attention(run, images, tmp_path):
    step = make_eval_step(run.model, SPEC)
    sentence = "for 3 of 11 images: in .* their prediction is -1"
    for _ in range(2):  # made, and found complete
        with pytest.raises(Incomplete, match=sentence):
            map_export.export(run, step, images, tmp_path / "maps.zarr", "/runs/toy")

    def read(name):
        kvstore = {"driver": "file", "path": str(tmp_path / "maps.zarr" / name)}
        opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True)
        return opened.result().read().result()

    bad = np.isin(np.arange(COUNT), BAD)
    np.testing.assert_array_equal(read("prediction")[bad], -1)
    assert (read("prediction")[~bad] >= 0).all()
    for name in ("attention", "probabilities"):
        assert np.isnan(read(name)[bad]).all() and np.isfinite(read(name)[~bad]).all()
    assert np.isnan(read("pixels")[bad]).all()
    assert np.isfinite(read("logits")).all()  # as the network gives them


@pytest.mark.slow
def test_a_comparison_of_explainers_has_none_of_them(run, images):
    protocol = Protocol(steps=4, road_shares=(0.3,))
    options = {"num": COUNT, "batch_size": 4, "protocol": protocol}
    (values,) = comparison.compare(run, images, ["attention"], **options).values()
    assert values["nonfinite"] == len(BAD)
    for name in ("pointing", "deletion", "stability", "patch_f_best_threshold", "localisation_ap"):
        assert math.isnan(values[name]), name
    told = json.loads(json.dumps(comparison._finite(values), allow_nan=False))
    assert told["curves"]["f"] == [None] * 9 and told["nonfinite"] == len(BAD)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, scenes_dir):
    """The workdir of a run with a NaN among its weights."""
    workdir = run_folder.make_workdir(tmp_path_factory.mktemp("damaged"))
    config = shrunk.config(scenes_dir, train__epochs=1, optimizer__warmup_epochs=0.5)
    model = runs.build_model(config.model, runs.spec_of(config.data))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    flat = traverse_util.flatten_dict(
        jax.tree.map(lambda s: np.full(s.shape, 0.1, s.dtype), shapes)
    )
    flat["params", "classifier", "bias"][3] = np.nan
    run_folder.write_config(config, workdir)
    items = {"variables": traverse_util.unflatten_dict(flat)}
    with checkpoint_lib.Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, items, {"accuracy": math.nan})
    return workdir


def test_the_command_evaluate_writes_null_and_ends_with_3(damaged):
    finished = in_process.run(["-m", "lossattn_jax.evaluate", f"--workdir={damaged}"], damaged)
    assert finished.returncode == 3
    assert "for 60 of 60 images of test: the metrics that hold them are null" in finished.stderr
    printed = json.loads(finished.stdout)
    stored = json.loads((damaged / "evaluation_test.json").read_text())
    assert printed == records.without_digests(stored)
    assert printed["nonfinite"] == printed["num_examples"] == 60
    told = ("accuracy", "loss", "pointing_accuracy", "attention_entropy", "calibration_error")
    assert [printed[name] for name in told] == [None] * len(told)


def test_a_non_finite_checkpoint_is_not_the_best(damaged):
    with pytest.raises(UserError, match="was tested with finite results; use latest"):
        runs.load(damaged, "best")


@pytest.mark.slow
def test_explain_says_of_how_many_there_is_nothing_to_explain(damaged, tmp_path):
    command = ["-m", "lossattn_jax.explain", f"--workdir={damaged}", f"--out={tmp_path / 'out'}"]
    finished = in_process.run(command, tmp_path)
    assert finished.returncode == 2
    assert "there is nothing to explain at step 0: " in finished.stderr
    assert "for 60 of 60 images of test" in finished.stderr
    Image.new("L", (9, 9)).save(tmp_path / "own.png")
    finished = in_process.run([*command, f"--images={tmp_path / 'own.png'}"], tmp_path)
    assert finished.returncode == 2 and "for 1 of 1 images (own.png)" in finished.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_training_records_null_and_ends_with_3(damaged, scenes_dir, tmp_path):
    flags = shrunk.flags(scenes_dir, train__epochs=1, optimizer__warmup_epochs=0.5)
    command = ["train.py", *flags, f"--workdir={tmp_path}", f"--config.init_from={damaged}"]
    finished = in_process.run(command, tmp_path)
    assert finished.returncode == 3
    assert "for 60 of 60 images of test after step 6: its metrics are null" in finished.stderr
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["kind"], line["accuracy"], line["nonfinite"]) == ("test", None, 60)
    with checkpoint_lib.Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [6] and checkpoints.best_step() is None
