"""Runs a command's main in this process, without Python's start."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

from absl import app, flags
from absl import logging as absl_logging

from lossattn_jax.commands.imports import NEW_NAMES
from reliability import compiled_programs
from reliability.processes import ROOT, End

app.define_help_flags()  # which absl does once, for the first command


def run(arguments: Sequence[str], folder: str | os.PathLike[str], collect: bool = False) -> End:
    """Runs `["train.py", ...]` or `["-m", MODULE, ...]` in a folder.

    What a command changes of the process (flags, loggers, signals, XLA's flags, where it is) is put back.
    What it fails with is printed as a traceback, and gives the exit code 1.

    Args:
      arguments: of Python.
      folder: where it runs.
      collect: whether its garbage is collected, which else may complain during the next command, and its
        programs where they are too many.
    """
    module = arguments[0] == "-m"
    name, *rest = arguments[1:] if module else arguments
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        _as_new(),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        # Of runpy, about a module imported before.
        warnings.filterwarnings("ignore", "'[a-z_.]+' found in sys.modules after", RuntimeWarning)
        sys.argv = [name, *rest]
        try:
            if module:
                if (
                    name in NEW_NAMES
                ):  # runpy would ask the new name's loader for the old one, were it imported
                    sys.modules.pop(name, None)
                runpy.run_module(name, run_name="__main__", alter_sys=False)
            else:
                runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
        if collect:
            compiled_programs.release_many()
            gc.collect()
    return End(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _as_new() -> Iterator[None]:
    """Puts back what a command changes, and hides our flags from it.

    Another test may have imported modules that define some.
    """
    loggers = [logging.getLogger(name) for name in (None, "lossattn_jax", "absl")]
    settings = [(log, log.handlers[:], log.level, log.propagate) for log in loggers]
    verbosity, argv, environment = absl_logging.get_verbosity(), sys.argv, dict(os.environ)
    handler = signal.getsignal(signal.SIGTERM)
    before, was_parsed = _our_flags(), flags.FLAGS.is_parsed()
    flags.FLAGS.remove_flag_values([flag.name for _, flag in before])
    flags.FLAGS.unparse_flags()
    try:
        yield
    finally:
        flags.FLAGS.remove_flag_values([flag.name for _, flag in _our_flags()])
        for module, flag in before:
            flags.FLAGS[flag.name] = flag
            flags.FLAGS.register_flag_by_module(module, flag)
        if not was_parsed:
            flags.FLAGS.unparse_flags()
        signal.signal(signal.SIGTERM, handler)
        absl_logging.set_verbosity(verbosity)
        for log, handlers, level, propagate in settings:
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)


def _our_flags() -> list[tuple[str, flags.Flag]]:
    """Flags of our modules and overrides of configs, each with its module.

    absl calls a main module as its process is called, or by its file where `lossattn` runs it, and says that
    it defined the overrides itself.
    """
    return [
        (module, flag)
        for module, own in flags.FLAGS.flags_by_module_dict().items()
        for flag in own
        if module.startswith(
            ("lossattn_jax", "benchmarks", "reliability", str(ROOT / "lossattn_jax"))
        )
        or module == sys.argv[0]
        or module.endswith("train.py")
        or flag.name.startswith("config.")
    ]
