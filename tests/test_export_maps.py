"""The export of maps: the numbers of evaluation, whole after any interruption, and nothing overwritten."""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from lossattn_jax import data, devices, models
from lossattn_jax.attention import losses
from lossattn_jax.checkpoint import run_folder, runs
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.config.images import default_config, resolve
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate.evaluation import evaluate_run, forward_batches, make_eval_step
from lossattn_jax.explain import map_export, map_store, receptive_field
from reliability import damage as damage_lib
from tests.support import parameters, shrunk

SPEC = data.DatasetSpec("toy", 3, ("a", "b", "c"), image_shape=(16, 16, 3))
NUM, BATCH = 18, 4  # four full batches and half a one
OUTPUTS = ("logits", "patch_logits", "attention")

# Exports the run of these tests: OUTPUT [FAIL_AT [ADDRESS PROCESS]], the last two for one of two processes.
SCRIPT = """
import sys
import jax
output, fail_at, address, process = (sys.argv[1:] + ["0", "", "0"])[:4]
if address:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, int(process))
from tests import test_export_maps as here
run = here.make_run()
step = here.Steps(here.make_eval_step(run.model, run.spec), int(fail_at))
print("devices:", jax.device_count())
here.export_maps.export(run, step, here.make_images(), output, "/runs/toy")
print("calls:", step.calls)
"""


def make_run():
    model = models.build("small", num_classes=3, width=0.1)
    variables = parameters.draw(model, np.zeros((1, 16, 16, 3), np.float32))
    config = default_config()
    config.eval.batch_size = BATCH
    return runs.Run(resolve(config), SPEC, model, variables, step=7)


def make_images(num=NUM, kind=data.ArrayDataset):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (num, 16, 16, 3), np.uint8)
    return kind(SPEC, "test", pixels, draw.integers(0, 3, num).astype(np.int32))


def read(folder, name):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / name)}}
    return tensorstore.open(spec, open=True, create=False).result().read().result()


def contents(folder):
    """The digest of every file, by its place in the folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Steps:
    """An eval step that notes its calls, and fails in one of them."""

    def __init__(self, step, fail_at=None):
        self.step, self.fail_at, self.calls = step, fail_at, 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("pulled the plug")
        return self.step(*arguments)


def changed(options, section, **values):
    """Options with other values of one section."""
    part = dataclasses.replace(getattr(options, section), **values)
    return dataclasses.replace(options, **{section: part})


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.fixture(scope="module")
def eval_step(run):
    return make_eval_step(run.model, run.spec)


@pytest.fixture(scope="module")
def fields(run, images):
    """Measured once for all tests, by the function itself."""
    first = jnp.asarray(images.images[: receptive_field.PROBES])
    normal = data.normalise(first, SPEC.mean, SPEC.std)
    return receptive_field.receptive_fields(run.model, run.variables, normal)


@pytest.fixture
def measured(monkeypatch, fields):
    """The images that receptive fields were measured on, call by call."""
    calls = []

    def measure(model, variables, images):
        calls.append(np.asarray(images))
        return fields

    monkeypatch.setattr(receptive_field, "receptive_fields", measure)
    return calls


@pytest.fixture
def export(run, images, eval_step, measured):
    """`export_maps.export` of the run, with what a test changes."""

    def call(output, **changes):
        arguments = {
            "run": run,
            "eval_step": eval_step,
            "dataset": images,
            "output": output,
            "workdir": "/runs/toy",
        }
        return map_export.export(**{**arguments, **changes})

    return call


@pytest.fixture
def whole(export, tmp_path):
    """An uninterrupted export."""
    return export(tmp_path / "whole.zarr")


def test_the_numbers_are_those_of_evaluation_to_the_bit(run, images, eval_step, fields, whole):
    seen = []
    for batch, _, outputs in forward_batches(
        eval_step, devices.replicate(run.variables), images, run.options.eval.batch_size
    ):
        real = batch["mask"] > 0
        local = devices.gather(outputs)
        seen.append({name: getattr(local, name)[real] for name in OUTPUTS})
    for name in OUTPUTS:
        expected = np.concatenate([part[name] for part in seen])
        stored = read(whole, name)
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, expected)
    np.testing.assert_array_equal(read(whole, "index"), np.arange(NUM))
    np.testing.assert_array_equal(read(whole, "label"), images.labels)
    logits = read(whole, "logits")
    np.testing.assert_array_equal(read(whole, "prediction"), logits.argmax(axis=1))
    expected = losses.probabilities(losses.CROSS_ENTROPY, logits)
    np.testing.assert_allclose(read(whole, "probabilities"), expected, rtol=1e-6)
    np.testing.assert_array_equal(read(whole, "receptive_field"), fields)
    pixels = receptive_field.pixel_map(read(whole, "attention"), fields)
    np.testing.assert_allclose(read(whole, "pixels"), pixels, rtol=1e-6)
    assert read(whole, "done").all()


def test_the_store_says_what_it_is_and_is_laid_out_in_batches(whole):
    group = json.loads((whole / "zarr.json").read_text())
    assert (group["zarr_format"], group["node_type"]) == (3, "group")
    told = group["attributes"]
    assert (told["dataset"], told["split"], told["step"]) == ("toy", "test", 7)
    assert (told["workdir"], told["num_images"], told["batch_size"]) == ("/runs/toy", NUM, BATCH)
    assert (told["class_names"], told["image_shape"]) == (["a", "b", "c"], [16, 16, 3])
    grid = {"rows": 2, "cols": 2, "map_size": [4, 4], "kernel": 3, "stride": 1}
    assert told["patch_grid"] == grid
    assert {"jax", "lossattn_jax", "parameters", "chunk_rows"} <= told.keys()
    for name in sorted(map_store.ARRAYS.keys() - {"digest"}):  # which is of the last bits
        array = json.loads((whole / name / "zarr.json").read_text())
        chunk = array["chunk_grid"]["configuration"]["chunk_shape"]
        assert len(array["dimension_names"]) == len(chunk)
        if name == "receptive_field":
            assert chunk == array["shape"] == [4, 16, 16]
        else:
            assert (chunk[0], chunk[1:]) == (BATCH, array["shape"][1:])
            assert len(list((whole / name / "c").iterdir())) == 5


def test_receptive_fields_are_measured_on_a_splits_first_images(export, images, measured, tmp_path):
    export(tmp_path / "maps.zarr", num=3)
    (normal,) = measured
    expected = (images.images[: receptive_field.PROBES] / 255 - 0.5) / 0.25
    np.testing.assert_allclose(normal, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num", [3, 8, 9, 100])
def test_the_first_images_have_the_same_rows(export, eval_step, whole, tmp_path, num):
    steps = Steps(eval_step)
    folder = export(tmp_path / "part.zarr", num=num, eval_step=steps)
    count = min(num, NUM)
    assert steps.calls == -(-count // BATCH)
    for name in set(map_store.ARRAYS) - {"receptive_field"}:
        np.testing.assert_array_equal(read(folder, name), read(whole, name)[:count])


def test_an_interrupted_export_goes_on_to_the_same_files(
    export, eval_step, measured, whole, tmp_path
):
    folder = tmp_path / "maps.zarr"
    with pytest.raises(RuntimeError, match="plug"):
        export(folder, eval_step=Steps(eval_step, fail_at=3))
    np.testing.assert_array_equal(read(folder, "done"), np.arange(NUM) < BATCH)
    assert np.isnan(read(folder, "logits")[BATCH:]).all()
    # What a crash may leave of batches that are not done, the half one among them.
    for name, chunk in (("logits", "1/0"), ("pixels", "4/0/0"), ("label", "4"), ("done", "4")):
        path = folder / name / "c" / chunk
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"torn")
    (folder / "done" / "c" / "1").write_bytes(b"")
    measured.clear()
    steps = Steps(eval_step)
    export(folder, eval_step=steps)
    assert steps.calls == 4  # from the second of five batches on
    assert not measured  # read back
    assert contents(folder) == contents(whole)


def test_an_export_that_dies_again_and_again_ends_the_same(export, eval_step, whole, tmp_path):
    folder = tmp_path / "maps.zarr"
    for fail_at in (1, 2, 3, 3, 3):
        with pytest.raises(RuntimeError, match="plug"):
            export(folder, eval_step=Steps(eval_step, fail_at))
    export(folder)
    assert contents(folder) == contents(whole)


def test_a_killed_start_leaves_nothing_in_the_way(export, measured, whole, tmp_path):
    folder = tmp_path / "maps.zarr"
    folder.mkdir()
    (folder / f".zarr.json.{16 * '0'}.part").write_text('{"zarr_fo')
    export(folder)
    assert contents(folder) == contents(whole)
    # Killed after some arrays were made, and while the receptive fields were written.
    for name in ("done", "pixels"):
        for path in sorted((folder / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    (folder / "receptive_field" / "c" / "0" / "0" / "0").write_bytes(b"torn")
    measured.clear()
    export(folder)
    assert len(measured) == 1
    assert contents(folder) == contents(whole)


def test_a_folder_with_a_foreign_file_is_no_unfinished_store(export, tmp_path):
    folder = tmp_path / "maps.zarr"
    folder.mkdir()
    (folder / "download.part").write_text("mine")
    with pytest.raises(UserError, match="is not a store of maps: it has no zarr.json"):
        export(folder)
    (folder / "download.part").rename(folder / "zarr.json.part")
    export(folder)


def test_a_chunk_whose_bytes_are_no_booleans_is_made_again(export, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "maps.zarr")
    chunk = folder / "done" / "c" / "1"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\xff")
    export(folder)
    assert contents(folder) == contents(whole)


def test_a_finished_store_is_left_alone(export, measured, whole, caplog):
    before = contents(whole)
    measured.clear()
    steps = Steps(None)
    with caplog.at_level(logging.INFO, "lossattn_jax.explain.map_export"):
        assert export(whole, eval_step=steps) == whole
    assert steps.calls == 0 and not measured
    assert f"{whole} was complete: {NUM} images" in caplog.text
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num": 7}, r"\(num_images 18 instead of 7\)"),
        ({"batch_size": 6}, r"\(batch_size 4 instead of 6, chunk_rows 4 instead of 6\)"),
        ({"run": {"step": 8}}, r"\(step 7 instead of 8\)"),
        ({"run": {"variables": "others"}}, r"\(other parameters\)"),
        ({"dataset": {"split": "train"}}, r"\(split 'test' instead of 'train'\)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_a_store_of_another_export_is_refused(export, run, images, whole, changes, sentence):
    before = contents(whole)
    given = dict(changes)
    if "dataset" in given:
        given["dataset"] = dataclasses.replace(images, **given["dataset"])
    if "run" in given:
        others = jax.tree.map(lambda leaf: leaf + 1, run.variables)
        step = given["run"].get("step", run.step)
        variables = others if "variables" in given["run"] else run.variables
        given["run"] = dataclasses.replace(run, step=step, variables=variables)
    with pytest.raises(UserError, match=f"{sentence}; give another --out, or remove the store"):
        export(whole, **given)
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.threshold", 1.0),
        ("model.dtype", "bfloat16"),
        ("data.num_labels", 30),
        ("data.label_seed", 1),
    ],
)
def test_a_store_of_another_config_is_refused(export, run, whole, key, value):
    section, name = key.split(".")
    was = getattr(getattr(run.options, section), name)
    options = changed(run.options, section, **{name: value})
    sentence = re.escape(f"(config.{key} {was!r} instead of {value!r}); give another --out")
    with pytest.raises(UserError, match=sentence):
        export(whole, run=dataclasses.replace(run, options=options))


@pytest.mark.parametrize("changed", ["pixel", "label", "order", "box", "mean", "std", "network"])
def test_a_store_of_other_inputs_is_refused(export, run, images, whole, changed):
    """Each of one name, shape and size."""
    before = contents(whole)
    pixels, labels = images.images.copy(), images.labels.copy()
    pixels[-1, 0, 0, 0] ^= 1
    labels[0] = (labels[0] + 1) % 3
    threshold = dataclasses.replace(
        run, model=models.build("small", num_classes=3, width=0.1, threshold=1.0)
    )
    inputs = {
        "pixel": {"dataset": dataclasses.replace(images, images=pixels)},
        "label": {"dataset": dataclasses.replace(images, labels=labels)},
        "order": {"dataset": images.take(np.arange(NUM)[::-1])},
        "box": {"dataset": dataclasses.replace(images, boxes=np.zeros((NUM, 4), np.float32))},
        "network": {"run": threshold},
    }
    for key in ("mean", "std"):
        spec = dataclasses.replace(SPEC, **{key: (0.5, 0.25, 0.51)})
        inputs[key] = {"run": dataclasses.replace(run, spec=spec)}
    key = changed if changed in ("mean", "std", "network") else "data"
    with pytest.raises(UserError, match=rf"export \((other )?{key}.*\); give another --out"):
        export(whole, **inputs[changed])
    assert contents(whole) == before


def test_keys_that_only_training_reads_do_not_matter(export, eval_step, run, whole):
    options = changed(run.options, "train", epochs=7)
    options = changed(options, "optimizer", learning_rate=0.5)
    options = changed(options, "data", dir="/elsewhere", mode="stream")
    steps = Steps(eval_step)
    export(whole, run=dataclasses.replace(run, options=options), eval_step=steps)
    assert steps.calls == 0


def test_a_store_of_an_earlier_format_is_not_gone_on_with(export, whole):
    path = whole / "zarr.json"
    path.write_text(path.read_text().replace(map_store.FORMAT, "lossattn_jax maps 1"))
    with pytest.raises(UserError, match="in the format 'lossattn_jax maps 1' .*another --out"):
        export(whole)


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("notes.txt", "mine", "is not a store of maps: it has no zarr.json; give another --out"),
        ("zarr.json", "{", r"zarr\.json cannot be read .* or remove the store to start anew"),
        ("zarr.json", "[]", "is not a store of maps; give another --out"),
        (
            "zarr.json",
            '{"zarr_format": 3, "node_type": "group", "attributes": {}}',
            "is not a store",
        ),
        ("zarr.json", '{"zarr_format": 3, "node_type": "array"}', "is not a store of maps; give"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_stays(export, tmp_path, file, text, sentence):
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=sentence):
        export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert (tmp_path / file).read_text() == text


def test_what_cannot_be_written_is_a_sentence(export, whole, tmp_path):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "maps.zarr"):
        with pytest.raises(UserError, match="cannot be written: (File exists|Not a directory)"):
            export(output)
    # In the middle, where TensorStore meets it.
    folder = tmp_path / "maps.zarr"
    export(folder, num=4)
    (folder / "done" / "c" / "0").unlink()
    chunk = folder / "logits" / "c" / "0" / "0"
    chunk.unlink()
    chunk.mkdir()
    with pytest.raises(UserError, match=r"maps\.zarr cannot be written: .*logits/c/0/0") as caught:
        export(folder, num=4)
    assert "tensorstore_spec" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "calls"),
    [
        (lambda store, other: (store / "attention/c/2/0").unlink(), 3),
        (lambda store, other: (store / "pixels/c/4/0/0").write_bytes(b"torn"), 1),
        (lambda store, other: (store / "digest/c/3/0").unlink(), 2),
        # Parts of another export, or of other images of this one, are whole in themselves.
        (lambda store, other: copy(other, store, "logits/c/1/0", "logits/c/1/0"), 4),
        (
            lambda store, other: copy(store, store, "patch_logits/c/0/0/0", "patch_logits/c/3/0/0"),
            2,
        ),
        (lambda store, other: set_to_zero(store, "receptive_field"), 5),
    ],
)
def test_a_damaged_store_is_made_again_from_the_damage_on(
    export, eval_step, run, whole, tmp_path, damage, calls, caplog
):
    draw = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: leaf * draw.uniform(1, 2, leaf.shape), run.variables)
    other = export(tmp_path / "other.zarr", run=dataclasses.replace(run, variables=variables))
    before = contents(whole)
    damage(whole, other)
    assert contents(whole) != before
    steps = Steps(eval_step)
    export(whole, eval_step=steps)
    assert steps.calls == calls and contents(whole) == before
    assert f"the store {whole} is damaged: images from {(5 - calls) * BATCH} on" in caplog.text
    caplog.clear()
    export(whole, eval_step=steps)
    assert steps.calls == calls and not caplog.records


def change(name, place=0.5):
    return lambda content, sibling: damage_lib.CHANGES[name](content, place)


# What a disk, a copy or a person may do to a file; of its content and a sibling's.
DAMAGES = {
    **{name: change(name) for name in damage_lib.CHANGES},
    "zeros from the middle": lambda content, sibling: content[: len(content) // 2].ljust(
        len(content), b"\0"
    ),
    "first bit": change("bit", 0),
    "last bit": change("bit", 1),
    "longer": lambda content, sibling: content + b"\0",
    "sibling": lambda content, sibling: sibling,
    "removed": lambda content, sibling: None,
}


def survives(export, store, path, damage):
    """Whether a store with a damaged file is refused, or the same again after the export.

    The file is as it was afterwards.
    """
    before = values(store)
    whole = path.read_bytes()
    others = [
        p for p in sorted(path.parent.rglob("*")) + sorted(store.rglob(path.name)) if p.is_file()
    ]
    content = DAMAGES[damage](whole, next(c for p in others if (c := p.read_bytes()) != whole))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    try:
        export(store)
    except UserError as error:
        assert "cannot be written" not in str(error)
        assert str(error).endswith("give another --out, or remove the store to start anew")
        return "refused"
    else:
        return "made again" if values(store) == before else "silent"
    finally:
        path.write_bytes(whole)


def values(store):
    return {name: read(store, name).tobytes() for name in map_store.ARRAYS}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_metadata_are_refused(export, whole, damage):
    for name in ("zarr.json", "logits/zarr.json"):
        assert survives(export, whole, whole / name, damage) == "refused"


@pytest.mark.parametrize("name", ["logits/c/1/0", "done/zarr.json"])
def test_a_fifo_is_refused_and_nobody_waits_for_its_writer(export, whole, name):
    (whole / name).unlink()
    os.mkfifo(whole / name)
    with pytest.raises(UserError, match=f"{name} cannot be read: it is not a regular file"):
        export(whole)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_of_any_file_passes(export, whole, damage):
    results = {
        str(path.relative_to(whole)): survives(export, whole, path, damage)
        for path in sorted(whole.rglob("*"))
        if path.is_file()
    }
    assert len(results) > 50
    assert {path for path, result in results.items() if result == "silent"} == set()


def test_a_second_export_is_refused_and_leaves_the_first_alone(export, whole):
    before = contents(whole)
    with run_folder.lock_workdir(whole, beside=True):
        with pytest.raises(
            UserError, match="whole.zarr is being written by another command already"
        ):
            export(whole)
    assert contents(whole) == before
    export(whole)


def copy(source, target, chunk, place):
    (target / place).write_bytes((source / chunk).read_bytes())


def set_to_zero(folder, name):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / name)}}
    tensorstore.open(spec, open=True).result()[...].write(0).result()


def test_a_lost_array_is_not_made_anew(export, whole):
    (whole / "pixels" / "zarr.json").unlink()
    with pytest.raises(UserError, match=r"pixels/zarr\.json cannot be read .*: it is damaged or"):
        export(whole)


def test_few_batches_are_kept_and_writing_stays_close_behind(export, eval_step, tmp_path):
    alive, most = weakref.WeakValueDictionary(), []

    @dataclasses.dataclass(frozen=True)
    class Watched(data.ArrayDataset):
        def read(self, indices, with_boxes=False, **options):
            batch = super().read(indices, with_boxes, **options)
            alive[len(most)] = batch["image"]
            most.append(len(alive))
            return batch

    folder, behind = tmp_path / "maps.zarr", []

    def watching(*arguments):
        started = len(behind)
        behind.append(started * BATCH - int(read(folder, "done").sum()))
        return eval_step(*arguments)

    export(folder, dataset=make_images(80, Watched), eval_step=watching)
    assert len(behind) == 20
    assert max(behind) <= 2 * BATCH
    assert max(most) <= 8


def test_progress_is_told(export, whole, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(map_export, "_LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "lossattn_jax.explain.map_export"):
        export(tmp_path / "maps.zarr")
    for done in (4, 8, 12, 16, 18):
        assert f"{done} of {NUM} images  " in caplog.text
    assert "images/s  0:00:0" in caplog.text and " left" in caplog.text
    assert f"written: {tmp_path / 'maps.zarr'}, {NUM} images, 0.0 MB" in caplog.text


def test_images_with_several_labels_keep_all_of_them(export, run, eval_step, fields, tmp_path):
    spec = dataclasses.replace(SPEC, multi_label=True)
    labels = np.random.default_rng(0).integers(0, 2, (6, 3)).astype(np.uint8)
    several = dataclasses.replace(make_images(6), spec=spec, labels=labels)
    several_run = dataclasses.replace(run, spec=spec)
    step = make_eval_step(run.model, spec)
    folder = export(tmp_path / "maps.zarr", run=several_run, dataset=several, eval_step=step)
    stored = read(folder, "label")
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, labels)
    expected = jax.nn.sigmoid(read(folder, "logits"))
    np.testing.assert_allclose(read(folder, "probabilities"), expected, rtol=1e-6)


def test_a_run_is_streamed_whatever_its_config_says(run, images, measured, monkeypatch, tmp_path):
    opened = []

    def open_split(*arguments, **_):
        opened.append(arguments)
        return images

    monkeypatch.setattr(runs, "load", lambda workdir, checkpoint, trust_code=False: run)
    monkeypatch.setattr(runs, "open_split", open_split)
    assert run.options.data.mode == "auto"
    map_export.export_run("/runs/toy", str(tmp_path / "maps.zarr"), "train", num=2)
    assert opened == [(run.options.data, SPEC, "train", None, "stream")]


@pytest.mark.slow
def test_four_devices_write_the_same(whole, run_python, tmp_path):
    finished = run_python("-c", SCRIPT, tmp_path / "maps.zarr", devices=4)
    assert finished.returncode == 0, finished.stderr
    assert "devices: 4" in finished.stdout
    for name in sorted(map_store.ARRAYS.keys() - {"digest"}):  # which is of the last bits
        found, expected = read(tmp_path / "maps.zarr", name), read(whole, name)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_write_a_share_each_and_go_on_together(whole, run_python, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    folder = tmp_path / "maps.zarr"
    for fail_at in ("3", "0"):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            started = [
                pool.submit(run_python, "-c", SCRIPT, folder, fail_at, address, place)
                for place in ("0", "1")
            ]
        for process in started:
            assert ("pulled the plug" in process.result().stderr) == (fail_at == "3")
        np.testing.assert_array_equal(
            read(folder, "done"), np.arange(NUM) < (BATCH if fail_at == "3" else NUM)
        )
    assert "calls: 4" in started[0].result().stdout
    assert len(list((folder / "done" / "c").iterdir())) == 9  # of the tenth no row is an image
    for name in sorted(map_store.ARRAYS.keys() - {"digest"}):  # which is of the last bits
        found, expected = read(folder, name), read(whole, name)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_the_command_exports_a_run(scenes_dir, run_python, tmp_path):
    workdir, whole = tmp_path / "run", tmp_path / "whole.zarr"
    config = shrunk.config(scenes_dir)
    spec = runs.spec_of(config.data)
    model = runs.build_model(config.model, spec)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, *spec.image_shape))))
    run_folder.write_config(config, run_folder.make_workdir(workdir))
    with checkpoint_lib.Checkpoints(workdir) as checkpoints:
        variables = jax.tree.map(np.asarray, init(jax.random.key(0)))
        checkpoints.save(3, {"variables": variables}, None)
    command = ["-m", "lossattn_jax.export_maps", f"--workdir={workdir}"]
    for sentence in (f"written: {whole}, 60 images", f"{whole} was complete: 60 images"):
        finished = run_python(*command, f"--out={whole}")
        assert finished.returncode == 0, finished.stderr
        assert sentence in finished.stderr
    right = (read(whole, "prediction") == read(whole, "label")).mean()
    assert right == pytest.approx(evaluate_run(str(workdir))["accuracy"], abs=1e-6)
    # Streamed as the command does it, and interrupted.
    run = runs.load(workdir)
    test_set = runs.open_dataset(run, "test", mode="stream")
    step = make_eval_step(run.model, run.spec)
    part = tmp_path / "part.zarr"
    with pytest.raises(RuntimeError, match="plug"):
        map_export.export(run, Steps(step, fail_at=3), test_set, part, workdir)
    map_export.export(run, step, test_set, part, workdir)
    assert contents(part) == contents(whole)
    refused = run_python(*command, f"--out={whole}", "--num=7")
    assert refused.returncode == 2
    assert "num_images 60 instead of 7" in refused.stderr and "Traceback" not in refused.stderr
