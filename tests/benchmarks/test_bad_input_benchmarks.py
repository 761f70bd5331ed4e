"""What the benchmarks make of wrong input: see `test_bad_input`."""

import importlib.util
import json

import pytest

from tests.support import bad_input


def of(name, *flags):
    return ("-m", f"benchmarks.{name}", *flags)


OUT = "--out={w}/new.json"
ANY = ("small_convolutions", "step_memory", "throughput", "input_rate")
SCHEDULE = of("short_schedule", "--out={w}/new", "--data_dir={w}/nowhere")
PICTURES = ("--files_dir={w}/nowhere", "--data_dir={w}")
LINK = ("--link=1e9", "--latency=0")
SCALING = of("scaling", *LINK)

CASES = [
    *((of(name), "out") for name in ANY),
    *((of(name, "--out={w}/file/new.json"), "{w}/file/new.json cannot be written") for name in ANY),
    *(
        (of(name, "--out={w}"), "{w} is a folder, but must be a file for the results")
        for name in ANY
    ),
    (of("small_convolutions", "--out={w}/" + 300 * "x"), "cannot be written: File name too long"),
    (of("small_convolutions", OUT, "--bags=0"), "bags"),
    (of("small_convolutions", OUT, "--length=-1"), "length"),
    (of("small_convolutions", OUT, "--repeats=nan"), "repeats"),
    (of("step_memory", OUT, "--batch_size=0"), "batch_size"),
    (of("throughput", OUT, "--backbone=alexnet"), "backbone"),
    (
        of("throughput", OUT, "--backbone=capsnet"),
        "config.model.backbone 'capsnet' with head 'conv'",
    ),
    (of("throughput", OUT, "--dtype=float16"), "config.model.dtype is 'float16', but must be"),
    (of("throughput", OUT, "--width=nan"), "config.model.width is nan, but must be"),
    (of("throughput", OUT, "--width=wide"), "--width is 'wide', but must be numbers above 0"),
    (of("throughput", OUT, "--batch_size=0"), "--batch_size is '0', but must be whole numbers"),
    (of("throughput", OUT, "--warmup=0"), "warmup"),
    (
        of("input_rate", OUT, "--batch_sizes=1.5"),
        "--batch_sizes is '1.5', but must be whole numbers",
    ),
    (of("input_rate", OUT, "--batch_sizes="), "--batch_sizes is '', but must be whole numbers"),
    (of("input_rate", OUT, "--dataset=imagenet"), "dataset"),
    (of("input_rate", OUT, "--images=0"), "images"),
    (
        of("input_rate", OUT, "--data_dir={w}/nowhere"),
        "is not prepared (as array_record) in {w}/now",
    ),
    (of("files_against_tfds", OUT, "--data_dir={w}"), "files_dir"),
    (of("files_against_tfds", *PICTURES), "out"),
    (of("files_against_tfds", "--out={w}", *PICTURES), "{w} is a folder, but must be a file for"),
    (of("files_against_tfds", OUT, *PICTURES, "--updates=0"), "updates"),
    (of("files_against_tfds", OUT, *PICTURES), "the folder of images {w}/nowhere is not there"),
    (of("short_schedule"), "out"),
    (of("short_schedule", "--out={w}/file"), "{w}/file/short_schedule.json cannot be written"),
    ((*SCHEDULE, "--poolings=maximum"), "--poolings has 'maximum', but may have: loss_attention"),
    ((*SCHEDULE, "--poolings="), "--poolings names none, but may have: loss_attention"),
    ((*SCHEDULE, "--seeds=a,b"), "--seeds is 'a,b', but must be whole numbers from 0"),
    ((*SCHEDULE, "--seeds=-1"), "--seeds is '-1', but must be whole numbers from 0"),
    ((*SCHEDULE, "--dataset=coco"), "dataset"),
    ((*SCHEDULE, "--learning_rate=nan"), "config.optimizer.learning_rate is nan, but must be"),
    ((*SCHEDULE, "--width=0"), "config.model.width is 0.0, but must be"),
    ((*SCHEDULE, "--minutes=nan"), "--minutes is nan, but must be a number, at least 0"),
    (of("mil_assumption", OUT), "workdir"),
    (of("mil_assumption", OUT, "--workdir={w}/x", "--datasets=fox"), "--datasets has 'fox', but"),
    (of("mil_assumption", OUT, "--workdir={w}/x", "--method=clamp"), "'clamp'"),
    (
        of("mil_assumption", OUT, "--workdir={w}/x", "--learning_rate=nan"),
        "config.optimizer.learning_rate is nan, but must be",
    ),
    (of("scaling"), "--"),
    ((*SCALING, "--steps={w}/absent.json"), "{w}/absent.json, which cannot be read: No such file"),
    ((*SCALING, "--steps={w}"), "{w}, which cannot be read: Is a directory"),
    *(
        ((*SCALING, f"--steps={{w}}/{name}"), f"{{w}}/{name}, but must be a file of python -m")
        for name in ("file", "cut.json", "list.json", "deep.json", "bytes.json", "no_rows.json")
    ),
    ((*SCALING, "--steps={w}/several.json"), "measured on 4 devices, but must be of one"),
    ((*SCALING, "--steps={w}/one.json"), "{w}/one.json does not say how much memory a device has"),
    ((*SCALING, "--steps={w}/one.json", "--devices=0"), "--devices is '0', but must be whole"),
    ((*SCALING, "--steps={w}/one.json", "--memory=nan"), "--memory is nan, but must be a finite"),
    (
        of("scaling", "--steps={w}/one.json", "--link=inf", "--latency=0"),
        "--link is inf, but must be",
    ),
    (of("scaling", "--steps={w}/one.json", "--link=0", "--latency=0"), "link"),
    (
        of("scaling", "--steps={w}/one.json", "--link=1", "--latency=nan"),
        "--latency is nan, but must",
    ),
]
# These say first that they need PyTorch, where it is not.
OF_TORCH = [
    (of("against_torch"), "out"),
    (of("against_torch", "--out={w}"), "{w} is a folder, but must be a file for the results"),
    (of("against_torch", OUT, "--networks=alexnet"), "--networks has 'alexnet', but allowed are"),
    (of("against_torch", OUT, "--networks="), "--networks names none, but allowed are"),
    (of("against_torch", OUT, "--width=nan"), "config.model.width is nan, but must be"),
    (of("against_torch", OUT, "--batch_size=1"), "batch_size"),
    (of("bags_against_torch"), "out"),
    (of("bags_against_torch", OUT, "--datasets="), "--datasets names none, but must name one"),
    (of("bags_against_torch", OUT, "--datasets=mnist_bags"), "mnist_bags has bags of images, but"),
    (of("bags_against_torch", OUT, "--datasets=fox", "--data_dir={w}"), "fox is not in {w}"),
    (of("bags_against_torch", OUT, "--datasets={w}/absent.csv"), "{w}/absent.csv does not exist"),
    (of("bags_against_torch", OUT, "--folds=1"), "folds"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    row = {"seconds_per_step": {"median": 0.5}}
    one = {"devices": 1, "memory_limit": None, "rows": [row]}
    for name, text in {
        "file": "no folder",
        "cut.json": json.dumps(one)[:40],
        "list.json": "[1]",
        "deep.json": "[" * 100_000,
        "no_rows.json": json.dumps({**one, "rows": []}),
        "several.json": json.dumps({**one, "devices": 4}),
        "one.json": json.dumps(one),
    }.items():
        (folder / name).write_text(text)
    (folder / "bytes.json").write_bytes(bytes(range(256)))
    return folder


@pytest.mark.parametrize(("arguments", "sentence"), CASES)
def test_wrong_input_is_refused(world, arguments, sentence):
    bad_input.refused(arguments, sentence, world)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.parametrize(("arguments", "sentence"), OF_TORCH)
def test_wrong_input_of_comparisons_is_refused(world, arguments, sentence):
    bad_input.refused(arguments, sentence, world)
