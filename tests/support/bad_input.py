"""Files that commands should refuse, and the check that they do."""

import dataclasses
import gzip
import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
import safetensors.numpy

from lossattn_jax.checkpoint import conversion, weight_files
from lossattn_jax.checkpoint.run_folder import LOCK_NAME
from lossattn_jax.config import bags as bag_config
from lossattn_jax.models import build
from lossattn_jax.train import dumps
from lossattn_jax.train.bags.settings import Settings
from reliability import in_process

ROOT = pathlib.Path(__file__).parents[2]
OVERRIDES = ["--config.model.width=0.125", "--config.data.dir={w}/no_data"]
# What pickle would run: the text of a program in its oldest protocol.
MALICIOUS = b"cposix\nsystem\n(S'touch proof'\ntR."


def small_weights():
    """The weights of the small config's network as a state dict."""
    model = build(
        backbone="small", head="conv", pooling="loss_attention", num_classes=10, width=0.125
    )
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    return conversion.to_torch_state_dict(variables, model)


def _changed_json(path, **values):
    """As an earlier version has written it, without a digest."""
    content = {**json.loads(path.read_text()), **values}
    content.pop("digest", None)
    path.write_text(json.dumps(content))


def write_runs(world):
    """A run, and runs that are damaged, foreign, or of another network."""
    weights = small_weights()
    weight_files.write(weights, world / "good.npz")
    run = world / "run"
    arguments = ["-m", "lossattn_jax.convert", f"--config={ROOT}/configs/digit_scenes.py"]
    arguments += [
        f"--from={world}/good.npz",
        f"--workdir={run}",
        *(o.format(w=world) for o in OVERRIDES),
    ]
    made = in_process.run(arguments, world)
    assert made.returncode == 0, made.stderr

    def copy(name):
        return pathlib.Path(shutil.copytree(run, world / name))

    (copy("cut_config") / "config.json").write_text((run / "config.json").read_text()[:90])
    (copy("list_config") / "config.json").write_text("[1, 2]")
    (copy("binary_config") / "config.json").write_bytes(bytes(range(256)))
    _changed_json(copy("alien_config") / "config.json", colour="red")
    _changed_json(copy("typed_config") / "config.json", seed={"a": 1})
    _changed_json(copy("nan_config") / "config.json", seed=float("nan"))
    model = json.loads((run / "config.json").read_text())["model"]
    _changed_json(copy("other_network") / "config.json", model={**model, "width": 0.25})
    _changed_json(
        copy("other_head") / "config.json", model={**model, "head": "none", "pooling": "none"}
    )
    data = json.loads((run / "config.json").read_text())["data"]
    other_classes = copy("other_classes")
    _changed_json(other_classes / "config.json", data={**data, "name": "cifar100"})
    (other_classes / "data_set.json").unlink(missing_ok=True)  # as of runs of before
    shutil.rmtree(copy("no_checkpoint") / "checkpoints")
    half = copy("half_checkpoint") / "checkpoints"
    for name in ("_CHECKPOINT_METADATA", "_METADATA"):  # what is written last
        for path in list(half.rglob(name)):
            path.unlink()
    foreign = copy("foreign_checkpoint") / "checkpoints"
    shutil.rmtree(foreign / "0")
    (foreign / "7").mkdir()
    (foreign / "7" / "_CHECKPOINT_METADATA").write_text("{}")
    (foreign / "7" / "model.bin").write_bytes(b"of another program")
    for path in list((copy("cut_checkpoint") / "checkpoints").rglob("*")):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(path.read_bytes()[:1000])
    shutil.rmtree(copy("file_checkpoint") / "checkpoints")
    (world / "file_checkpoint" / "checkpoints").write_text("a file in the folder's place")
    return weights


def write_weights(world, weights):
    """Files of weights that are none, or others."""
    some = next(iter(weights))
    np.savez(world / "lacking.npz", **{k: v for k, v in weights.items() if k != some})
    np.savez(world / "more.npz", **weights, surplus=np.zeros(2))
    np.savez(world / "shapes.npz", **{**weights, some: np.zeros((2, 2))})
    np.savez(world / "text.npz", **{**weights, some: np.full(weights[some].shape, "a")})
    np.savez(world / "huge.npz", **{**weights, some: np.full(weights[some].shape, 1e300)})
    np.savez(world / "objects.npz", **{some: np.array([{}], object)})
    (world / "evil.pt").write_bytes(MALICIOUS)
    (world / "evil.npz").write_bytes(MALICIOUS)
    for name in ("empty.npz", "empty.safetensors", "empty.pt"):
        (world / name).write_bytes(b"")
    whole = safetensors.numpy.save(dict(weights))
    (world / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (world / "long.safetensors").write_bytes(b"\xff" * 8 + whole[8:])
    (world / "cut.npz").write_bytes((world / "good.npz").read_bytes()[:5000])


def write_configs(world):
    """Config files that are none."""
    for name, text in {
        "none.py": "def get_config():\n    return None\n",
        "raises.py": "def get_config():\n    raise KeyError('x')\n",
        "imports.py": "import absent_module\n\ndef get_config():\n    return absent_module.config\n",
        "bytes.py": "\0",
        "class.py": "class get_config:\n    pass\n",
    }.items():
        (world / name).write_text(text)
    (world / "latin.py").write_bytes(b"# \xe9\ndef get_config():\n    return 1\n")


def write_images(world):
    """Images that are none, and folders of them."""
    (world / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and so on")
    (world / "empty.jpg").write_bytes(b"")
    (world / "page.png").write_text("<html>no image</html>")
    # Pillow would hand it to Ghostscript, which runs what is in it.
    (world / "program.eps").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    )
    (world / "no_images").mkdir()
    (world / "broken_images").mkdir()
    (world / "broken_images" / "a.png").write_bytes(b"")
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\0\0\0"
    (world / "endless.png").write_bytes(header + bytes(64))


def write_measured(world):
    """Runs with what `evaluate` and `compare_explainers` leave, and with half of it."""
    told = {"dataset": "digit_scenes", "split": "test", "step": 0}
    files = {
        "evaluation_test.json": {**told, "num_examples": 9, "accuracy": 0.5},
        "compare_explainers.json": {
            **told,
            "images": 9,
            "explainers": {"attention": {"patch_recall": 0.5, "deletion": 0.5}},
        },
    }
    whole = {name: json.dumps(content) for name, content in files.items()}
    for run, changes in {
        "measured": {},
        "half_measured": {"evaluation_test.json": whole["evaluation_test.json"][:30]},
        "odd_measured": {
            "compare_explainers.json": json.dumps({**told, "explainers": {"attention": 3}})
        },
        "list_measured": {"compare_explainers.json": "[1]"},
    }.items():
        (world / run).mkdir()
        shutil.copy(world / "run" / "config.json", world / run)
        for name, text in {**whole, **changes}.items():
            (world / run / name).write_text(text)


def write_bag_runs(world):
    """Workdirs of experiments with bags, and records of them, right and wrong."""
    for name in ("other_bags", "cut_bags"):
        (world / name).mkdir()
    bag_config.write(bag_config.default_config(), world / "other_bags" / "config.json")
    (world / "cut_bags" / "config.json").write_text('{"folds": 10, ')
    (world / "folder.csv").mkdir()
    (world / "number.json").write_text("7")
    record = {
        **{"dataset": "own", "method": "loss_attention", "rule": "final", "folds": 2},
        **{"accuracy": 0.5, "over_folds": 0.1, "over_repeats": None, "auc": 0.5, "seconds": 1.0},
        **{"accuracies": [0.4, 0.6], "settings": {}, "epochs": {}},
    }
    (world / "summaries.json").write_text(json.dumps([record]))
    (world / "odd.json").write_text(json.dumps([{**record, "method": "magic", "rule": "luck"}]))
    network = {"num_classes": 2, "method": "loss_attention", "backbone": "dense"}
    content = {
        **{"training": "own", "update": "of model 0", "ids": ("b0",), "consistency": False},
        **{"network": {**network, "hidden": (2, 2, 2), "dropout": 0.5}, "seed": 0, "epoch": 0},
        "settings": dataclasses.asdict(Settings()),
    }
    trees = {"state": {"params": np.zeros(1)}, "batch": {"x": np.zeros((1, 3, 2), np.float32)}}
    dumps.write(world / "foreign_dump", "bags", content, trees, "")
    other = {**content, "settings": {"epochs": "many"}}
    dumps.write(world / "typed_dump", "bags", other, trees, "")
    dumps.write(world / "strange_dump", "sounds", content, trees, "")
    text = (world / "foreign_dump" / dumps.RECORD_NAME).read_text()
    for name, update in {
        "cut_dump": text[:90],
        "number_dump": "7",
        "edited_dump": text.replace('"epochs": 100', '"epochs": 200'),
        "pickled_dump": text,
        "evil_dump": text,
    }.items():
        (world / name).mkdir()
        shutil.copy(world / "foreign_dump" / dumps.ARRAYS_NAME, world / name)
        (world / name / dumps.RECORD_NAME).write_text(update)
    np.savez(world / "pickled_dump" / dumps.ARRAYS_NAME, **{"batch/x": np.array([{}], object)})
    (world / "evil_dump" / dumps.ARRAYS_NAME).write_bytes(MALICIOUS)


def write_bags(world):
    """Files of bags that are none."""
    table = "bag_label,bag_id,area\n" + "".join(f"{n % 2},b{n},{n}\n" for n in range(8))
    for name, text in {
        "good": table,
        "empty": "",
        "header": "bag_label,bag_id,area\n",
        "no_label": table.replace("bag_label", "kind"),
        "no_feature": "bag_label,bag_id\n1,a\n0,b\n",
        "twice": table.replace("bag_label,bag_id,area", "bag_label,bag_id,bag_id"),
        "ragged": table + "1,c\n",
        "words": table + "1,c,many\n",
        "nan": table + "1,c,nan\n",
        "infinite": table + "1,c,1e999\n",
        "huge": table + "1,c,1e39\n",
        "conflict": table + "1,b0,5\n",
        "no_id": table + "1,,5\n",
        "one_class": table.replace("\n0,", "\n1,"),
        "quote": table + '1,"c,5\n',
        "digits": table + f"{'9' * 5000},c,5\n",
        "escape": table + "1,c,\x1b[31mred\n",
        "own_label": "bag_label,bag_id,area,instance_label\n1,a,2,7\n0,b,3,0\n",
    }.items():
        (world / f"{name}.csv").write_text(text)
    (world / "binary.csv").write_bytes(bytes(range(256)))
    (world / "cut.csv.gz").write_bytes(gzip.compress(table.encode())[:30])
    (world / "plain.csv.gz").write_text(table)
    (world / "bad.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"\xff" * 99)
    (world / "bad.data").write_text("m1,c1,5,1.\nm2,c2,1.\n")
    (world / "bad.data.Z").write_bytes(b"\x1f\x9d\x90" + b"\xff" * 20)
    np.savez(world / "digits.npz", image=np.zeros((3, 8, 8), np.uint8), label=np.arange(3))
    right = np.zeros((70, 28, 28), np.uint8)
    np.savez(world / "right_digits.npz", image=right, label=np.arange(70) % 10)
    np.savez(world / "no_digits.npz", picture=np.zeros(3))
    np.savez(world / "pickled_digits.npz", image=np.array([{}], object), label=np.arange(1))


def contents(world):
    """Of every path below a folder what it is, and of files a hash of what is in them.

    But not the locks that commands take, in a folder or beside it, before they look at what is there: these
    files stay, empty.
    """
    return {
        str(path.relative_to(world)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in sorted(world.rglob("*"))
        if path.name != LOCK_NAME and not (path.name[0] == "." and path.suffix == ".lock")
    }


def refused(arguments, sentence, world):
    """Runs a command in the folder `world`, and checks that it refuses as a command should.

    Args:
      arguments: as of `in_process.run`; `{w}` stands for the folder, `{root}` for the repository.
      sentence: a part of the sentence, with the same.
      world: the folder.
    """
    before = contents(world)
    arguments = [argument.format(w=world, root=ROOT) for argument in arguments]
    finished = in_process.run(arguments, world)
    check(finished, sentence.format(w=world, root=ROOT))
    changed = dict(contents(world).items() ^ before.items())
    assert not changed, f"written: {sorted(changed)}"


def check(finished, sentence):
    """Whether a command ended as it should: exit code 2, nothing on stdout, one sentence on stderr."""
    assert finished.returncode == 2, finished
    lines = finished.stderr.splitlines()
    # Log lines begin with the time.
    told = [line for line in lines if not (line[2:3] == line[5:6] == ":")]
    assert len(told) == 1 and told[0].startswith("error: ") and told[0].endswith("."), (
        finished.stderr
    )
    assert sentence in told[0], f"{sentence!r} is not in {told[0]!r}"
    assert "Traceback" not in finished.stderr and finished.stdout == "", finished
    assert told[0].isprintable(), told[0]
