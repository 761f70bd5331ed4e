"""What commands set for CPUs."""

import os
import platform

import jaxlib
import pytest

from lossattn_jax.kernels import cpu

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
FUSIONS = f"{FLAG}=-individual_convolution"
SCHEDULER = "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"


@pytest.mark.parametrize(
    ("version", "given", "expected"),
    [
        ("0.10.2", "", f"{FUSIONS} {SCHEDULER}"),
        ("0.12.0", "--xla_other=1", f"--xla_other=1 {FUSIONS} {SCHEDULER}"),
        ("0.12.0", f"{FLAG}= --xla_other=1", f"{FLAG}= --xla_other=1 {SCHEDULER}"),
        ("0.13.0", "--xla_other=1", "--xla_other=1"),
        ("0.9.1", "", ""),
    ],
)
def test_cpu_settings_suit_the_version_and_leave_the_users_alone(
    monkeypatch, version, given, expected
):
    monkeypatch.setattr(jaxlib, "__version__", version)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setenv("XLA_FLAGS", given)
    cpu.tune()
    assert os.environ["XLA_FLAGS"] == expected
