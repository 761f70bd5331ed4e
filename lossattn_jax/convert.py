"""Converts weights from and to PyTorch; `checkpoint.conversion` as a command:

    python -m lossattn_jax.convert --from=weights.pt --config=configs/tip.py:resnet18_mean --workdir=DIR
    python -m lossattn_jax.convert --to=weights.safetensors --workdir=DIR [--checkpoint=best]

The first makes a run that `evaluate` and `explain` read, the second writes a run's weights. The names
are those of `lossattn_jax.checkpoint.torch_names`.
"""

from absl import flags
from ml_collections import config_flags

from lossattn_jax.checkpoint.conversion import (
    convert_file,
    export_file,
    from_torch_state_dict,
    to_torch_parameters,
    to_torch_state_dict,
)
from lossattn_jax.commands import command
from lossattn_jax.errors import UserError

__all__ = [
    "convert_file",
    "export_file",
    "from_torch_state_dict",
    "to_torch_parameters",
    "to_torch_state_dict",
]


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    source, target = values["from"].value, values.to
    if (source is None) == (target is None):
        raise UserError("exactly one of --from and --to is needed")
    if source is None:
        export_file(values.workdir, target, values.checkpoint, trust_code=values.trust_code)
    elif values.config is None:
        raise UserError("--from needs --config, which describes the network")
    else:
        convert_file(source, values.config, values.workdir)


if __name__ == "__main__":
    flags.DEFINE_string("from", None, "weights to read: .pt, .pth, .npz or .safetensors")
    flags.DEFINE_string("to", None, "file of weights to write: .npz or .safetensors")
    flags.DEFINE_string("workdir", None, "folder of the run to make or to read", required=True)
    flags.DEFINE_string("checkpoint", "latest", "what --to writes: latest, best or a step")
    config_flags.DEFINE_config_file(
        "config", None, f"with --from: {command.CONFIG_HELP}", lock_config=True
    )
    command.define_trust_code()
    command.run(main)
