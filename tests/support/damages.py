"""Ways in which a kept file may come to harm, and workdirs of bags to try them on."""

import contextlib
import json
import os
import pathlib

import numpy as np

from lossattn_jax.checkpoint.run_folder import LOCK_NAME
from lossattn_jax.config import bags as config_lib
from lossattn_jax.mil import experiment
from reliability import damage

METHODS = ("mi_kernel", "mi_graph")
NAMES = ("own", "two")


def write_bags(path, seed=0, words=("0", "1"), id_of="b{:02d}".format):
    """CSV of twelve bags of one to three instances; returns the path."""
    random = np.random.default_rng(seed)
    lines = ["bag_label,bag_id,f0,f1"]
    for bag in range(12):
        for _ in range(1 + bag % 3):
            first, second = random.normal(1.0 * (bag % 2), 1.0, 2)
            lines.append(f"{words[bag % 2]},{id_of(bag)},{first:.4f},{second:.4f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def run(paths, workdir, methods=METHODS, **changes):
    config = config_lib.default_config()
    config.folds, config.repeats = 3, 1
    for key, value in changes.items():
        config[key] = value
    names = [str(path) for path in paths]
    return experiment.run(names, methods, ["final"], config, str(workdir), "nowhere")


def contents(folder):
    """For each file of a folder its content; of JSON without what depends on how long a fold took."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != LOCK_NAME:
            content = path.read_bytes()
            if path.suffix == ".json":
                with contextlib.suppress(ValueError):
                    content = _timeless(json.loads(content))
            files[str(path.relative_to(folder))] = content
    return files


def _timeless(value):
    value = {k: v for k, v in value.items() if k not in ("seconds", "digest")}
    if "accuracies" in value or "metrics" in value:
        del value["made_from"]  # digests of folds
    return value


def _change(name, place=0.5):
    return lambda path: path.write_bytes(damage.CHANGES[name](path.read_bytes(), place))


def _edit(change):
    def edit(path):
        with contextlib.suppress(ValueError):
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))

    return edit


def _halve(content):
    for key in ("bags", "accuracies"):
        if isinstance(content.get(key), list):
            content[key] = content[key][: len(content[key]) // 2]


def _swap_probabilities(content):
    for bag in content.get("bags") or ():
        if isinstance(bag, dict):
            bag["probabilities"].reverse()


def _replace_by(other):
    return lambda path: path.write_bytes(other(path).read_bytes())


def _sibling(path):
    """Another file of the same kind: of the next fold, else of another method or data set."""
    fold = path.with_name(path.name.replace("fold0", "fold1"))
    others = [fold, _of_other_method(path), path.parent.parent / "two" / path.name]
    return next((one for one in others if one != path and one.is_file()), path)


def _of_other_method(path):
    parts = list(path.parts)
    for first, second in (METHODS, METHODS[::-1]):
        if first in parts:
            parts[parts.index(first)] = second
            break
    return pathlib.Path(*parts)


def _in_place(make):
    def replace(path):
        path.unlink()
        make(path)

    return replace


def _link(path):
    target = path.with_name("elsewhere")
    target.write_text("mine")
    path.symlink_to(target)


DAMAGES = {
    **{name: _change(name) for name in damage.CHANGES},
    "bit at 1/7": _change("bit", 1 / 7),
    "bit at 6/7": _change("bit", 6 / 7),
    "sibling": _replace_by(_sibling),
    "other method": _replace_by(_of_other_method),
    "accuracy 0.99": _edit(lambda content: content.update(accuracy=0.99)),
    "accuracy 7.5": _edit(lambda content: content.update(accuracy=7.5)),
    "half the bags": _edit(_halve),
    "probabilities swapped": _edit(_swap_probabilities),
    "no digest": _edit(lambda content: content.pop("digest", None)),
    "before digests": _edit(
        lambda content: [content.pop(k, None) for k in ("digest", "made_from")]
    ),
    "seed": _edit(lambda content: content.update(seed=7)),
    "list": lambda path: path.write_text("[1, 2]"),
    "nested": lambda path: path.write_text('{"a":' * 100_000),
    "text": lambda path: path.write_text("\ufeffsomething else\n"),
    "gone": os.unlink,
    "link": _in_place(_link),
    "fifo": _in_place(os.mkfifo),
    "folder": _in_place(os.mkdir),
}
