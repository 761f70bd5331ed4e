"""Settings and data that several tests share."""

import gc
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import hypothesis
import jax
import jaxlib
import pytest

from lossattn_jax.kernels import cpu
from reliability import compiled_programs

ROOT = pathlib.Path(__file__).parents[1]

# Most of the time goes into compiling programs that run once: LLVM need not optimise them, and takes
# two thirds of the time without XLA's newer emitters of fusions, where there still are others (a jaxlib that
# does not know a flag ends the process). Flags that are given come last, and count.
COMPILE_FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jaxlib.__version__.startswith("0.10."):
    # And LLVM takes a program in one part rather than in many, each with a start of its own.
    COMPILE_FAST += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if platform.machine() == "x86_64":
        # Without those emitters LLVM ends the process on some processors with AVX-512 (a bag's network in
        # tests/mil/test_programs.py: "Cannot select X86ISD::SUBV_BROADCAST_LOAD").
        COMPILE_FAST += " --xla_cpu_max_isa=AVX2"
USERS_XLA_FLAGS = os.environ.get("XLA_FLAGS", "")
XLA_FLAGS = f"{COMPILE_FAST} {USERS_XLA_FLAGS}".strip()
os.environ["XLA_FLAGS"] = XLA_FLAGS

# Tracing makes millions of small objects that stay: to look for garbage after every 700 of them takes a
# twelfth of the time.
gc.set_threshold(20_000, 50, 100)

# Thousands of small files are written and removed: a fifth of the time of such tests on a disk. Containers
# have 64 MiB of it by default, which is too little.
RAM, ENOUGH = pathlib.Path("/dev/shm"), 4 * 2**30
if RAM.is_dir() and os.access(RAM, os.W_OK) and shutil.disk_usage(RAM).free > ENOUGH:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(RAM))

# The programs of this process are to be those of the commands that tests run, to the bit.
cpu.tune()

# A shape that fits by accident is a bug waiting for a batch of another size.
jax.config.update("jax_numpy_rank_promotion", "raise")
# An array of another dtype than meant, which JAX would make of two that differ, is a bug that no value shows.
jax.config.update("jax_numpy_dtype_promotion", "strict")

# For mutation tests: the same examples every time, and none made smaller once a mutant is found out.
hypothesis.settings.register_profile(
    "mutation", derandomize=True, phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
)


@pytest.fixture(scope="session")
def users_xla_flags():
    """XLA's flags as users have them: programs round as in their trainings, and compile slowly."""
    return USERS_XLA_FLAGS


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs that several tests compile, also in processes of their own, are compiled once."""
    # Some run the same tests again: .ci/run under the next Python, mutation tests a thousand times. There all
    # programs are kept between the runs.
    kept = os.environ.get("TESTS_COMPILATION_CACHE")
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers
    folder = pathlib.Path(kept) if kept else base / "compilation_cache"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0 if kept else 0.1)
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """A process of tests holds no more programs than it can."""
    yield
    compiled_programs.release_many()


@pytest.fixture(scope="session")
def run_python(compilation_cache):
    """Runs `python ARGS` in the repository's root; returns the finished process."""

    def run(*args, devices=1, xla_flags=XLA_FLAGS, **options):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "XLA_FLAGS": f"{xla_flags} --xla_force_host_platform_device_count={devices}",
        }
        return subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def scenes_dir(tmp_path_factory, run_python):
    """A data folder with a small digit_scenes: 200 training and 60 test images."""
    folder = tmp_path_factory.mktemp("scenes")
    script = (
        "from lossattn_jax.data.prepare import prepare\n"
        f"prepare('digit_scenes', {str(folder)!r}, builder_kwargs=dict(num_train=200, num_test=60))"
    )
    prepared = run_python("-c", script)
    assert prepared.returncode == 0, prepared.stderr
    return folder


@pytest.fixture(scope="session")
def tiny_imagenet_dir(tmp_path_factory):
    """A data folder with a tiny tiny_imagenet: 12 training and 5 test images."""
    from lossattn_jax.data.prepare import prepare
    from tests.support import tiny_tiny_imagenet

    archives, folder = (tmp_path_factory.mktemp(name) for name in ("archives", "tiny_imagenet"))
    tiny_tiny_imagenet.write(archives / tiny_tiny_imagenet.NAME, tiny_tiny_imagenet.files())
    prepare("tiny_imagenet", str(folder), archives=str(archives))
    return str(folder)


@pytest.fixture(scope="session")
def svhn_full_dir(tmp_path_factory):
    """A data folder with a tiny svhn_full: 4 training and 2 test images."""
    from lossattn_jax.data.prepare import prepare
    from tests.support import tiny_svhn_full

    archives, folder = (tmp_path_factory.mktemp(name) for name in ("archives", "svhn_full"))
    tiny_svhn_full.write(archives, ["train", "test"])
    prepare("svhn_full", str(folder), archives=str(archives))
    return str(folder)


@pytest.fixture(scope="session")
def coco_dir(tmp_path_factory, run_python):
    """A data folder with a tiny coco: 5 training and 3 test images, see `tiny_coco`."""
    from tests.support import tiny_coco

    folder = tmp_path_factory.mktemp("coco")
    tiny_coco.prepare(folder, tmp_path_factory.mktemp("download"), run_python)
    return str(folder)
