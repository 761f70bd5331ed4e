"""What outputs follow from: every network and checkpoint has its own digest, the same in every process."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import data, models
from lossattn_jax.checkpoint import provenance
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.config.images import default_config
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests

DESCRIBE = """
from lossattn_jax import models
from lossattn_jax.checkpoint import provenance
from lossattn_jax.files import digests
print(digests.of_json(provenance._describe(models.build("resnet18", num_classes=10))))
"""


def network(**changes):
    settings = {"backbone": "small", "num_classes": 3, "threshold": 0.1, "width": 0.1}
    return digests.of_json(provenance._describe(models.build(**{**settings, **changes})))


def test_networks_that_compute_otherwise_have_other_digests():
    changes = [
        {},
        {"threshold": 1.0},
        {"dtype": jnp.bfloat16},
        {"width": 0.2},
        {"num_classes": 4},
        {"pooling": "mean"},
        {"pooling": "max"},
        {"head": "capsule"},
        {"backbone": "vgg11_bn"},
        {"backbone": "resnet18"},
        {"backbone": "resnet50"},
        {"backbone": "resnet50", "bottleneck_relu_before_add": True},
    ]
    assert len({network(**change) for change in changes}) == len(changes)
    assert network() == network(dtype=jnp.dtype("float32"))


@pytest.mark.slow
def test_a_digest_is_the_same_in_another_process(run_python):
    finished = run_python("-c", DESCRIBE)
    expected = digests.of_json(provenance._describe(models.build("resnet18", num_classes=10)))
    assert finished.stdout.strip() == expected, finished.stderr


def test_variables_differ_by_names_shapes_dtypes_and_bytes():
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    trees = [
        {"params": {"a": kernel}},
        {"params": {"b": kernel}},
        {"params": {"a": kernel.reshape(3, 2)}},
        {"params": {"a": kernel.view(np.int32)}},
        {"params": {"a": kernel + 1}},
        {"params": {"a": kernel, "b": kernel}},
    ]
    assert len({provenance.of_variables(tree) for tree in trees}) == len(trees)
    on_device = {"params": {"a": jnp.asarray(kernel)}}
    assert provenance.of_variables(trees[0]) == provenance.of_variables(on_device)


def test_a_checkpoint_says_the_digest_of_its_variables(tmp_path):
    variables = {"params": {"a": np.arange(6, dtype=np.float32)}, "batch_stats": {}}
    with checkpoint_lib.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"variables": variables}, None)
    assert provenance.of_checkpoint(tmp_path, 3) == provenance.of_variables(variables)
    assert provenance.of_checkpoint(tmp_path, 4) is None
    (checkpoint_lib.folder(tmp_path, 3) / "digests" / "metadata").write_text("{}")
    assert provenance.of_checkpoint(tmp_path, 3) is None


def test_the_config_is_told_by_keys():
    told = provenance.of_config(default_config())
    assert told["config.model.threshold"] == 0.1
    assert json.loads(json.dumps(told)) == told
    sections = {key.split(".")[1] for key in told}
    assert sections == {"model", "data"} and "config.data.dir" not in told
    every = provenance.of_config(default_config(), ("",))
    assert every["config.optimizer.milestones"] == [100, 150]


def test_processes_with_other_images_are_told(monkeypatch):
    spec = data.get_spec("digit_scenes")
    images = data.ArrayDataset(
        spec, "test", np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int32)
    )
    assert provenance.of_data(images, images) == [images.digest()] * 2
    monkeypatch.setattr(provenance.devices, "same_everywhere", lambda number: False)
    with pytest.raises(UserError, match="the test images of digit_scenes are others for another"):
        provenance.of_data(images)
