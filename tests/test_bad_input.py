"""What every command makes of wrong input: one sentence, exit code 2, and nothing written.

Commands run in this process, which takes milliseconds each; some of the slow tests run them in others and
see the same.
"""

import pathlib
import re

import pytest

from tests.support import bad_input

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "--config={root}/configs/digit_scenes.py"
TRAIN = ("train.py", CONFIG, "--workdir={w}/new", *bad_input.OVERRIDES)


def of_run(command):
    return ("-m", f"lossattn_jax.{command}")


RUN_AND_OUT = ("--workdir={w}/run", "--out={w}/written")
EVALUATE, EXPLAIN, EXPORT = of_run("evaluate"), of_run("explain"), of_run("export_maps")
COMPARE, TABLE, CONVERT = (
    of_run("compare_explainers"),
    of_run("explain.explanation_table"),
    of_run("convert"),
)
PREPARE, MODELS, REPLAY = of_run("data.prepare"), of_run("models"), of_run("replay")
FROM = (*CONVERT, CONFIG, "--workdir={w}/new", *bad_input.OVERRIDES)
TO_TABLE = ("--table={w}/t.md", "--record={w}/t.json")

# What is wrong with a value of the config: key, value, and what is said of it.
VALUES = [
    ("seed", "-1", "config.seed is -1, but must be between 0 and 2147483647"),
    ("seed", "9999999999", "config.seed is 9999999999, but must be between"),
    ("seed", "1.5", "config.seed"),
    ("profile", "5:2", "config.profile is '5:2', but must be empty or START:STOP"),
    ("data.name", "imagenet", "is 'imagenet', but must be one of: digit_scenes"),
    ("data.name", "../../etc", "config.data.name is '../../etc', but must be"),
    ("data.dir", "{w}/good.npz", "{w}/good.npz"),
    ("data.mode", "disk", "config.data.mode is 'disk', but must be one of: auto, memory, stream"),
    ("data.on_device", "yes", "config.data.on_device is 'yes', but must be one of"),
    ("data.crop_padding", "17", "config.data.crop_padding is 17, but must be between 0 and 16"),
    ("data.num_labels", "-10", "config.data.num_labels is -10, but must be"),
    ("data.held_out", "-10", "config.data.held_out is -10, but must be"),
    ("model.backbone", "alexnet", "config.model.backbone is 'alexnet'"),
    ("model.head", "tail", "config.model.head is 'tail'"),
    ("model.pooling", "sum", "config.model.pooling is 'sum', but must be one of: mean, mi_net"),
    ("model.width", "nan", "config.model.width is nan, but must be a positive number"),
    ("model.width", "0", "config.model.width is 0.0, but must be a positive number"),
    ("model.width", "1e12", "config.model.width is 1000000000000.0, but must be"),
    ("model.threshold", "1.5", "config.model.threshold is 1.5, but must be between 0 and 1"),
    ("model.threshold", "nan", "config.model.threshold is nan, but must be between 0 and 1"),
    ("model.dtype", "float16", "config.model.dtype is 'float16', but must be one of: float32"),
    ("loss.patch_weight", "-0.1", "config.loss.patch_weight is -0.1, but must be a number, at"),
    ("loss.patch_weight", "nan", "config.loss.patch_weight is nan, but must be a number, at"),
    ("loss.label_smoothing", "1", "config.loss.label_smoothing is 1.0, but must be at least 0"),
    ("optimizer.name", "lion", "config.optimizer.name is 'lion', but must be one of: sgd"),
    ("optimizer.learning_rate", "nan", "config.optimizer.learning_rate is nan, but must be"),
    ("optimizer.learning_rate", "1e999", "config.optimizer.learning_rate is inf, but must be"),
    ("optimizer.learning_rate", "-1", "config.optimizer.learning_rate is -1.0, but must be"),
    (
        "optimizer.milestones",
        "(9,3)",
        "config.optimizer.milestones is (9, 3), but must be a rising",
    ),
    (
        "optimizer.restart_epochs",
        "-1",
        "config.optimizer.restart_epochs is -1, but must be a whole number, at least 0",
    ),
    ("optimizer.warmup_epochs", "1e9", "config.optimizer.warmup_epochs is 1000000000.0, but must"),
    ("optimizer.schedule", "linear", "config.optimizer.schedule is 'linear', but must be one of"),
    ("train.epochs", "0", "config.train.epochs is 0, but must be a whole number, at least 1"),
    ("train.epochs", "many", "train.epochs=many"),
    ("train.epochs", "nan", "train.epochs=nan"),
    (
        "train.batch_size",
        "-32",
        "config.train.batch_size is -32, but must be a whole number, at least 1",
    ),
    ("train.accumulate", "3", "config.train.accumulate is 3, but must divide"),
    ("train.max_skipped", "0", "config.train.max_skipped is 0, but must be a whole number"),
    ("eval.batch_size", "0", "config.eval.batch_size is 0, but must be a number, at least 1"),
    ("log.pictures", "65", "config.log.pictures is 65, but must be between 0 and 64"),
    ("checkpoint.keep", "0", "config.checkpoint.keep is 0, but must be a number, at least 1"),
    ("model.widht", "2", "config.model.widht is not a config key; did you mean config.model.width"),
    ("modell.width", "2", "config.modell.width is not a config key"),
]

CASES = [
    *(((*TRAIN, f"--config.{key}={value}"), told) for key, value, told in VALUES),
    (
        ("-m", "lossattn_jax", "trian"),
        "'trian' is not a command of lossattn; the nearest is: lossattn train",
    ),
    (
        ("-m", "lossattn_jax", "mil", "cw"),
        "'mil cw' is not a command of lossattn; the nearest is: lossattn mil cv",
    ),
    (
        ("-m", "lossattn_jax", "--workdir={w}/run"),
        "is not a command of lossattn; there are: prepare, train",
    ),
    (
        ("-m", "lossattn_jax", "\x1b[2J"),
        r"'\x1b[2J' is not a command of lossattn; there are: prepare",
    ),
    # train.py: files and flags
    (TRAIN, "data set digit_scenes is not prepared (as array_record) in {w}/no_data"),
    (("train.py", "--workdir={w}/new"), "--config"),
    (("train.py", CONFIG), "--workdir"),
    (("train.py", "--config={w}/absent.py", "--workdir={w}/new"), "'{w}/absent.py' does not exist"),
    (
        ("train.py", "--config={w}", "--workdir={w}/new"),
        "the config file '{w}' is not a regular file",
    ),
    (("train.py", "--config={w}/good.npz", "--workdir={w}/new"), "{w}/good.npz is not Python"),
    (("train.py", "--config={w}/bytes.py", "--workdir={w}/new"), "{w}/bytes.py is not Python"),
    (("train.py", "--config={w}/latin.py", "--workdir={w}/new"), "{w}/latin.py is not Python"),
    (("train.py", "--config={w}/class.py", "--workdir={w}/new"), "has no function get_config"),
    (
        ("train.py", "--config={w}/none.py", "--workdir={w}/new"),
        "{w}/none.py makes None, but must make a",
    ),
    (
        ("train.py", "--config={w}/raises.py", "--workdir={w}/new"),
        "{w}/raises.py makes no config (KeyError",
    ),
    (("train.py", "--config={w}/imports.py", "--workdir={w}/new"), "absent_module"),
    ((*TRAIN, "--coordinator=here:1"), "--num_processes and --process_id are missing"),
    (
        (*TRAIN, "--coordinator=here", "--num_processes=2", "--process_id=0"),
        "--coordinator is 'here'",
    ),
    (
        (*TRAIN, "--coordinator=a:1", "--num_processes=2", "--process_id=2"),
        "--process_id is 2, but",
    ),
    ((*TRAIN, "--num_processes=0"), "num_processes"),
    ((*TRAIN, "fast"), "the argument 'fast' is not a flag"),
    ((*TRAIN, "--speed=2"), "Unknown command line flag 'speed'"),
    # evaluate: runs and checkpoints
    (EVALUATE, "--workdir"),
    ((*EVALUATE, "--workdir={w}/nowhere"), "{w}/nowhere is not a workdir of a run"),
    ((*EVALUATE, "--workdir={w}/good.npz"), "{w}/good.npz"),
    ((*EVALUATE, "--workdir={w}/no_images"), "{w}/no_images is not a workdir of a run"),
    (
        (*EVALUATE, "--workdir={w}/cut_config"),
        "{w}/cut_config/config.json cannot be read as a config",
    ),
    ((*EVALUATE, "--workdir={w}/list_config"), "{w}/list_config/config.json cannot be read"),
    ((*EVALUATE, "--workdir={w}/binary_config"), "{w}/binary_config/config.json cannot be read"),
    ((*EVALUATE, "--workdir={w}/alien_config"), "has the key colour, which this version"),
    ((*EVALUATE, "--workdir={w}/typed_config"), "{w}/typed_config/config.json has the key seed.a"),
    ((*EVALUATE, "--workdir={w}/nan_config"), "{w}/nan_config/config.json"),
    ((*EVALUATE, "--workdir={w}/no_checkpoint"), "there is no checkpoint in {w}/no_checkpoint yet"),
    ((*EVALUATE, "--workdir={w}/half_checkpoint"), "{w}/half_checkpoint"),
    ((*EVALUATE, "--workdir={w}/foreign_checkpoint"), "checkpoint 7 in {w}/foreign_checkpoint"),
    ((*EVALUATE, "--workdir={w}/cut_checkpoint"), "checkpoint 0 in {w}/cut_checkpoint"),
    ((*EVALUATE, "--workdir={w}/file_checkpoint"), "{w}/file_checkpoint"),
    ((*EVALUATE, "--workdir={w}/other_network"), "checkpoint 0 in {w}/other_network is of another"),
    ((*EVALUATE, "--workdir={w}/other_head"), "checkpoint 0 in {w}/other_head is of another model"),
    (("-m", "lossattn_jax.predict", "--workdir={w}/nowhere"), "--"),
    (("-m", "lossattn_jax.predict", *RUN_AND_OUT, "--images={w}"), "--out is {w}/written, but"),
    (
        ("-m", "lossattn_jax.predict", *RUN_AND_OUT, "--images={w}/run", "--out={w}/p.csv"),
        "{w}/run",
    ),
    (
        ("-m", "lossattn_jax.predict", *RUN_AND_OUT, "--images={w}/run", "--attention=h5"),
        "--attention=h5",
    ),
    (
        ("-m", "lossattn_jax.predict", *RUN_AND_OUT, "--images=http://a.b/c", "--out={w}/p.csv"),
        "the image is http://a.b/c, but must be on this machine",
    ),
    (("-m", "lossattn_jax.export_model", "--workdir={w}/run"), "--out"),
    (("-m", "lossattn_jax.export_model", "--workdir={w}/nowhere", "--out={w}/o"), "nowhere"),
    (("-m", "lossattn_jax.export_model", *RUN_AND_OUT, "--checkpoint=x"), "checkpoint is 'x'"),
    (("-m", "lossattn_jax.compare_runs", "{w}/run"), "run"),
    (("-m", "lossattn_jax.compare_runs", "{w}/run", "{w}/run"), "run"),
    (("-m", "lossattn_jax.compare_runs", "{w}/run", "{w}/nowhere"), "nowhere"),
    (("-m", "lossattn_jax.export_tokens", "--workdir={w}/run"), "--out"),
    (("-m", "lossattn_jax.export_tokens", "--workdir={w}/nowhere", "--out={w}/o"), "nowhere"),
    (("-m", "lossattn_jax.export_tokens", *RUN_AND_OUT, "--checkpoint=x"), "checkpoint is 'x'"),
    ((*EVALUATE, "--workdir={w}/other_classes"), "checkpoint 0 in {w}/other_classes is of another"),
    (
        (*EVALUATE, "--workdir={w}/run", "--checkpoint=9"),
        "checkpoint is '9', but must be latest, best",
    ),
    ((*EVALUATE, "--workdir={w}/run", "--checkpoint=../0"), "checkpoint is '../0', but must be"),
    ((*EVALUATE, "--workdir={w}/run", "--checkpoint=best"), "no checkpoint in {w}/run was tested"),
    ((*EVALUATE, "--workdir={w}/run", "--split=all"), "split"),
    ((*EVALUATE, "--workdir={w}/run", "--batch_size=0"), "batch_size"),
    ((*EVALUATE, "--workdir={w}/run", "--batch_size=1e9"), "batch_size"),
    ((*EVALUATE, "--workdir={w}/run"), "is not prepared (as array_record) in {w}/no_data"),
    ((*EVALUATE, "--workdir={w}/run", "--data_dir={w}/good.npz"), "{w}/good.npz"),
    # explain: images
    ((*EXPLAIN, "--workdir={w}/nowhere"), "{w}/nowhere is not a workdir of a run"),
    ((*EXPLAIN, "--workdir={w}/run", "--images={w}/absent.png"), "{w}/absent.png does not exist"),
    ((*EXPLAIN, "--workdir={w}/run", "--images={w}/broken.png"), "{w}/broken.png cannot be read"),
    ((*EXPLAIN, "--workdir={w}/run", "--images={w}/empty.jpg"), "{w}/empty.jpg cannot be read"),
    ((*EXPLAIN, "--workdir={w}/run", "--images={w}/page.png"), "{w}/page.png cannot be read"),
    ((*EXPLAIN, "--workdir={w}/run", "--images={w}/endless.png"), "{w}/endless.png cannot be read"),
    ((*EXPLAIN, "--workdir={w}/run", "--images={w}/program.eps"), "{w}/program.eps cannot be read"),
    ((*EXPLAIN, "--workdir={w}/run", "--images={w}/no_images"), "{w}/no_images has no image file"),
    ((*EXPLAIN, "--workdir={w}/run", "--images={w}/broken_images"), "no image could be read"),
    ((*EXPLAIN, "--workdir={w}/run", "--num=0"), "num"),
    ((*EXPLAIN, "--workdir={w}/run", "--num=1000000"), "num is 1000000, but a report shows 1 to"),
    ((*EXPLAIN, "--workdir={w}/run", "--pick=best"), "pick"),
    ((*EXPLAIN, "--workdir={w}/run", "--fit=stretch"), "fit"),
    (
        (*EXPLAIN, "--workdir={w}/run", "--data_dir={w}/nowhere"),
        "is not prepared (as array_record) in {w}/nowhere",
    ),
    ((*EXPLAIN, "--workdir={w}/cut_checkpoint"), "checkpoint 0 in {w}/cut_checkpoint"),
    # export_maps, compare_explainers
    ((*EXPORT, "--workdir={w}/run"), "--out"),
    ((*EXPORT, "--workdir={w}/nowhere", "--out={w}/new"), "{w}/nowhere is not a workdir of a run"),
    (
        (*EXPORT, "--workdir={w}/run", "--out={w}/new"),
        "is not prepared (as array_record) in {w}/no_data",
    ),
    ((*EXPORT, "--workdir={w}/run", "--out={w}/new", "--num=-1"), "num"),
    ((*EXPORT, "--workdir={w}/run", "--out={w}/new", "--checkpoint=x"), "checkpoint is 'x', but"),
    ((*COMPARE, "--workdir={w}/nowhere"), "{w}/nowhere is not a workdir of a run"),
    ((*COMPARE, "--workdir={w}/run", "--explainers=magic"), "'magic'"),
    ((*COMPARE, "--workdir={w}/run", "--explainers="), "explainers"),
    ((*COMPARE, "--workdir={w}/run", "--num=0"), "num"),
    ((*COMPARE, "--workdir={w}/run", "--batch_size=-4"), "batch_size"),
    ((*COMPARE, "--workdir={w}/run"), "is not prepared (as array_record) in {w}/no_data"),
    # explanation_table
    ((*TABLE, *TO_TABLE), "--runs"),
    ((*TABLE, "--runs=", *TO_TABLE), "runs"),
    ((*TABLE, "--runs={w}/nowhere", *TO_TABLE), "{w}/nowhere is not a workdir of a run"),
    ((*TABLE, "--runs={w}/run", *TO_TABLE), "{w}/run has no evaluation_test.json"),
    ((*TABLE, "--runs={w}/half_measured", *TO_TABLE), "evaluation_test.json in {w}/half_measured"),
    ((*TABLE, "--runs={w}/odd_measured", *TO_TABLE), "in {w}/odd_measured cannot be read"),
    ((*TABLE, "--runs={w}/list_measured", *TO_TABLE), "in {w}/list_measured cannot be read"),
    ((*TABLE, "--runs={w}/measured,{w}/measured", *TO_TABLE), "has the config and the seed of"),
    (
        (*TABLE, "--runs={w}/measured", "--explainer=magic", *TO_TABLE),
        "the explainer 'magic' was not",
    ),
    (
        (*TABLE, "--runs={w}/measured", "--compare=luck", *TO_TABLE),
        "compare has 'luck', but must be",
    ),
    (
        (*TABLE, "--runs={w}/measured", "--table={w}/good.npz/t.md", "--record={w}/t.json"),
        "{w}/good.npz/t.md cannot be written",
    ),
    # convert
    ((*CONVERT, "--workdir={w}/new"), "exactly one of --from and --to is needed"),
    ((*FROM, "--from={w}/good.npz", "--to={w}/x.npz"), "exactly one of --from and --to is needed"),
    ((*CONVERT, "--from={w}/good.npz", "--workdir={w}/new"), "--from needs --config"),
    ((*FROM, "--from={w}/absent.npz"), "there is no file {w}/absent.npz"),
    ((*FROM, "--from={w}/run"), "{w}/run must end in one of: .pt, .pth, .npz, .safetensors"),
    ((*FROM, "--from={w}/evil.pt"), "{w}/evil.pt"),
    ((*FROM, "--from={w}/evil.npz"), "{w}/evil.npz is damaged, or holds anything but"),
    ((*FROM, "--from={w}/objects.npz"), "{w}/objects.npz is damaged, or holds anything but"),
    ((*FROM, "--from={w}/empty.npz"), "{w}/empty.npz is damaged"),
    ((*FROM, "--from={w}/empty.pt"), "{w}/empty.pt"),
    ((*FROM, "--from={w}/empty.safetensors"), "{w}/empty.safetensors is damaged"),
    ((*FROM, "--from={w}/cut.safetensors"), "{w}/cut.safetensors is damaged"),
    ((*FROM, "--from={w}/long.safetensors"), "{w}/long.safetensors is damaged"),
    ((*FROM, "--from={w}/cut.npz"), "{w}/cut.npz is damaged"),
    ((*FROM, "--from={w}/lacking.npz"), "{w}/lacking.npz: the weights lack"),
    ((*FROM, "--from={w}/more.npz"), "{w}/more.npz: the weights have 'surplus'"),
    ((*FROM, "--from={w}/shapes.npz"), "of the weights has shape (2, 2), but this network's has"),
    ((*FROM, "--from={w}/text.npz"), "of the weights has dtype <U1, but must hold numbers"),
    ((*FROM, "--from={w}/huge.npz"), "holds numbers beyond the range of float32"),
    ((*FROM, "--from={w}/good.npz", "--config.data.name=cifar100"), "of the weights has shape"),
    (
        (*FROM, "--from={w}/good.npz", "--workdir={w}/run"),
        "the workdir {w}/run holds a run already",
    ),
    (
        (*FROM, "--from={w}/good.npz", "--workdir={w}/good.npz/x"),
        "{w}/good.npz/x cannot be written",
    ),
    ((*CONVERT, "--to={w}/x.pt", "--workdir={w}/run"), "{w}/x.pt must end in one of: .npz, .safe"),
    ((*CONVERT, "--to={w}/nowhere/x.npz", "--workdir={w}/run"), "there is no folder {w}/nowhere"),
    ((*CONVERT, "--to={w}/folder.npz", "--workdir={w}/run"), "{w}/folder.npz"),
    ((*CONVERT, "--to={w}/x.npz", "--workdir={w}/nowhere"), "{w}/nowhere is not a workdir"),
    ((*CONVERT, "--to={w}/x.npz", "--workdir={w}/cut_checkpoint"), "checkpoint 0 in {w}/cut_check"),
    # prepare, models, replay
    (PREPARE, "--dataset is missing; allowed are: "),
    ((*PREPARE, "--dataset=imagenet"), "is 'imagenet', but must be one of: digit_scenes"),
    ((*PREPARE, "--dataset=cifar10", "--extra"), "data set 'cifar10' has no 'extra' split"),
    ((*PREPARE, "--dataset=svhn_full", "--archives={w}/nowhere"), "archives is '{w}/nowhere', but"),
    (
        (*PREPARE, "--dataset=svhn_full", "--archives={w}/good.npz"),
        "archives is '{w}/good.npz', but",
    ),
    ((*MODELS, "small"), "the argument 'small' is not a flag; see --help"),
    ((*MODELS, "--list", "all"), "the argument 'all' is not a flag"),
    ((*MODELS, "--lists"), "Unknown command line flag 'lists'"),
    (REPLAY, "--dump"),
    ((*REPLAY, "--dump={w}/nowhere"), "{w}/nowhere"),
    ((*REPLAY, "--dump={w}/good.npz"), "{w}/good.npz"),
]

# Where the images of `scenes_dir` are there, so that a command comes further; {d} stands for it.
HERE = ("train.py", CONFIG, "--config.model.width=0.125", "--config.data.dir={d}")
NEW = (*HERE, "--workdir={w}/new")
WITH_DATA = [
    (
        (*HERE, "--workdir={w}/run", "--config.model.width=0.5"),
        "config.model.width is 0.5, but the run",
    ),
    ((*HERE, "--workdir={w}/cut_config"), "{w}/cut_config/config.json cannot be read as a config"),
    ((*HERE, "--workdir={w}/alien_config"), "{w}/alien_config/config.json has the key colour"),
    ((*HERE, "--workdir={w}/good.npz/run"), "the workdir {w}/good.npz/run cannot be written"),
    ((*HERE, "--workdir={w}/good.npz"), "{w}/good.npz"),
    ((*NEW, "--config.init_from={w}/nowhere"), "config.init_from is '{w}/nowhere', but"),
    ((*NEW, "--config.init_from={w}/good.npz"), "config.init_from is '{w}/good.npz', but"),
    (
        (*NEW, "--config.init_from={w}/cut_checkpoint"),
        "config.init_from is '{w}/cut_checkpoint', but",
    ),
    ((*NEW, "--config.init_from={w}/run", "--config.model.width=0.25"), "has another backbone"),
    (
        (*NEW, "--config.train.batch_size=100000"),
        "config.train.batch_size is 100000, but must be between 1 and",
    ),
    ((*NEW, "--config.data.num_labels=15"), "config.data.num_labels is 15, but must be 0 (all) or"),
    ((*NEW, "--config.data.num_labels=100000"), "config.data.num_labels is 100000, but must be at"),
    ((*NEW, "--config.data.held_out=15"), "config.data.held_out is 15, but must be 0 (none) or"),
    ((*NEW, "--config.profile=5:999999"), "config.profile is '5:999999', but must end by the last"),
    ((*EXPORT, "--workdir={w}/run", "--data_dir={d}", "--out={w}/good.npz"), "{w}/good.npz"),
    (
        (*EXPORT, "--workdir={w}/run", "--data_dir={d}", "--out={w}/good.npz/maps"),
        "{w}/good.npz/maps",
    ),
    (
        (*EXPORT, "--workdir={w}/run", "--data_dir={d}", "--out={w}/broken_images"),
        "is not a store of",
    ),
    (
        (*EXPLAIN, "--workdir={w}/run", "--data_dir={d}", "--out={w}/good.npz/page"),
        "{w}/good.npz/page",
    ),
    ((*EVALUATE, "--workdir={w}/run", "--data_dir={d}", "--batch_size=-1"), "batch_size"),
    ((*COMPARE, "--workdir={w}/run", "--data_dir={d}", "--explainers=attention,x"), "'x'"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, compilation_cache):
    folder = tmp_path_factory.mktemp("world")
    weights = bad_input.write_runs(folder)
    bad_input.write_weights(folder, weights)
    bad_input.write_configs(folder)
    bad_input.write_images(folder)
    bad_input.write_measured(folder)
    (folder / "folder.npz").mkdir()
    return folder


@pytest.mark.parametrize(("arguments", "sentence"), CASES)
def test_wrong_input_is_refused(world, arguments, sentence):
    bad_input.refused(arguments, sentence, world)


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "sentence"), WITH_DATA)
def test_wrong_input_beside_right_data_is_refused(world, scenes_dir, arguments, sentence):
    before = bad_input.contents(scenes_dir)
    (world / "new").mkdir(exist_ok=True)  # which config.init_from is read after
    arguments = [argument.replace("{d}", str(scenes_dir)) for argument in arguments]
    bad_input.refused(arguments, sentence, world)
    assert bad_input.contents(scenes_dir) == before


def test_every_command_has_its_cases():
    from tests import test_bad_input_bags

    commands = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for path in ROOT.glob("lossattn_jax/**/*.py")
        if re.search(r"^if __name__ == ", path.read_text(), re.MULTILINE)
    }
    commands.remove("lossattn_jax.commands")  # for developers: it takes nothing
    tried = [
        arguments[1] if arguments[0] == "-m" else "lossattn_jax.train"
        for arguments, _ in CASES + test_bad_input_bags.CASES
    ]
    assert commands <= set(tried)
    assert {command: tried.count(command) for command in commands if tried.count(command) < 3} == {}


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "sentence"), CASES[::18])
def test_a_process_of_its_own_refuses_alike(world, run_python, arguments, sentence):
    before = bad_input.contents(world)
    finished = run_python(*(argument.format(w=world, root=ROOT) for argument in arguments))
    bad_input.check(finished, sentence.format(w=world, root=ROOT))
    assert bad_input.contents(world) == before
