"""The shipped digit_scenes config, shrunk until a run takes seconds."""

from benchmarks import shipped_configs

CONFIG = shipped_configs.FOLDER / "digit_scenes.py"

OVERRIDES = {
    "model.width": 0.125,
    "train.epochs": 3,
    "train.batch_size": 32,
    "eval.batch_size": 24,
    "log.every_steps": 2,
    "log.pictures": 2,
    "optimizer.warmup_epochs": 1.0,
}


def load(path):
    """The config of a file of configs/, which may have an argument behind a colon."""
    file, _, argument = str(path).partition(":")
    return shipped_configs.load(file).get_config(*([argument] if argument else []))


def config(data_dir, path=CONFIG, **overrides):
    """The config with `OVERRIDES`, and with `section__key=value` besides."""
    shrunk = load(path)
    extra = {key.replace("__", "."): value for key, value in overrides.items()}
    for key, value in {**OVERRIDES, "data.dir": str(data_dir), **extra}.items():
        section, _, name = key.rpartition(".")
        (shrunk[section] if section else shrunk)[name] = value
    return shrunk


def flags(data_dir, path=CONFIG, **overrides):
    """The same as command-line flags of train.py."""
    extra = {key.replace("__", "."): value for key, value in overrides.items()}
    values = {**OVERRIDES, "data.dir": str(data_dir), **extra}
    return [f"--config={path}", *(f"--config.{key}={value}" for key, value in values.items())]
