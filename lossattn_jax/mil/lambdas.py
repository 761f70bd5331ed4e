"""Measures loss attention on bags of digits for several lambdas.

    python -m lossattn_jax.mil.lambdas --config=configs/mil_mnist.py --data_dir=DIR --workdir=runs/lambdas

DIR is a folder of TFDS data sets with MNIST, or an .npz file with the arrays image and label.
"""

from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.config import bags as config_lib
from lossattn_jax.data.bags import sources
from lossattn_jax.kernels import cpu
from lossattn_jax.mil import lambda_sweep

_ALLOWED_NAMES = [name for name, source in sources.SOURCES.items() if source.is_generated]
DATASET = flags.DEFINE_string(
    "dataset", "mnist_bags", f"which bags to generate: {', '.join(_ALLOWED_NAMES)}; or your own"
)
LAMBDAS = flags.DEFINE_list("lambdas", [str(value) for value in lambda_sweep.LAMBDAS], "to try")
REPEATS = flags.DEFINE_integer("repeats", None, "draws of bags; the config's where not given")
WORKDIR = flags.DEFINE_string("workdir", None, "folder for the results", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of TFDS, or an .npz file", required=True)
CONFIG = command.define_config(config_lib.__file__, config_lib.SCHEMA)


def main() -> None:
    """Runs the command; its flags are above."""
    cpu.one_device_per_core()
    config = CONFIG.value
    config.repeats = config.repeats if REPEATS.value is None else REPEATS.value
    sweeps = lambda_sweep.run(
        config,
        WORKDIR.value,
        DATA_DIR.value,
        DATASET.value,
        lambda_sweep.parse_lambdas(LAMBDAS.value),
    )
    lambda_sweep.refuse_nonfinite(sweeps)


if __name__ == "__main__":
    command.run(main, config_lib.SCHEMA)
