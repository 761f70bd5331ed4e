"""The benchmark of throughput: operations, the ceiling, and records."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import flag_values, network_flops, product_ceiling, throughput
from lossattn_jax.errors import UserError
from lossattn_jax.models import costs


def test_operations_of_a_convolution_and_its_gradients():
    batch, side, before, after, kernel = 2, 8, 3, 5, 3
    images = jax.ShapeDtypeStruct((batch, side, side, before), jnp.float32)
    weights = jax.ShapeDtypeStruct((kernel, kernel, before, after), jnp.float32)
    maps = jax.ShapeDtypeStruct((batch, side, side, after), jnp.float32)

    def convolution(images, weights):
        return jax.lax.conv_general_dilated(
            images, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def gradients(images, weights, cotangent):
        return jax.vjp(convolution, images, weights)[1](cotangent)

    # Of 3 taps a place, the outer one falls outside at either end.
    taps = (kernel * side - 2) ** 2
    one = 2 * batch * before * after * taps
    assert costs.of_program(convolution, images, weights) == one
    # The same pairs of a pixel and a weight meet in both gradients.
    assert costs.of_program(gradients, images, weights, maps) == 2 * one


def test_operations_of_the_papers_network():
    config = throughput.network_config("resnet18", "conv", "loss_attention", 1.0, "float32", 128)
    flop = network_flops.per_image(config)
    # 72 GFLOP with the zeros of the padding, which are not counted here.
    assert flop["training"] == pytest.approx(72e9, rel=0.03)
    # Backward twice forward, but for the gradient of the images, which nobody needs.
    assert flop["training"] == pytest.approx(3 * flop["evaluation"], rel=0.01)


def rounded(array, bits):
    """float32 with so many bits of the fraction, rounded to the nearest."""
    dropped = 23 - bits
    whole = array.view(np.uint32).astype(np.uint64) + (1 << (dropped - 1))
    return (whole >> dropped << dropped).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize(("bits", "name"), [(23, "float32"), (10, "TF32"), (7, "bfloat16")])
def test_the_error_of_a_product_tells_its_precision(bits, name):
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((256, 256), np.float32) for _ in range(2))
    exact = left.astype(np.float64) @ right.astype(np.float64)
    factors = (left, right) if bits == 23 else (rounded(left, bits), rounded(right, bits))
    error = np.linalg.norm(factors[0] @ factors[1] - exact) / np.linalg.norm(exact)
    assert product_ceiling.precision(error) == name
    assert product_ceiling.precision(product_ceiling.product_error(64)) == "float32"


def test_rows_are_written_as_they_come(tmp_path, monkeypatch, capsys):
    path = tmp_path / "x" / "throughput.json"
    written = []

    def measure(config, ceiling, plan):
        written.append(len(json.loads(path.read_text())["rows"]) if path.exists() else None)
        part = {
            "images_per_second": {"median": 100.0 * config.model.width, "min": 1.0, "max": 200.0},
            "flop_per_image": 1e9,
            "tflops_per_second": 0.1,
            "ceiling_share": 0.1e12 / ceiling,
        }
        return {
            **{key: config.model[key] for key in throughput.NETWORK},
            "batch_size": config.train.batch_size,
            "training": part,
            "evaluation": part,
            "memory": {"state": 10**9, "temporary": 2 * 10**9},
        }

    monkeypatch.setattr(throughput, "measure", measure)
    record = throughput.run(str(path), widths=[0.5, 1.0], sides=[32, 64])
    assert json.loads(path.read_text()) == record
    assert written == [None, 1]
    ceiling = record["ceilings"]["float32"]
    assert ceiling["tflops_per_second"] == max(ceiling["all"].values()) > 0
    assert [throughput.row_config(row).model.width for row in record["rows"]] == [0.5, 1.0]
    assert [row["batch_size"] for row in record["rows"]] == [16, 16]  # CPUs' default
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("resnet18 backbone, conv head, loss_attention pooling; ")
    assert lines[-1].split()[:4] == ["1", "float32", "16", "100.0"]
    assert lines[-1].endswith("3.00")


@pytest.mark.slow
def test_a_network_is_measured(tmp_path):
    plan = throughput.Plan(warmup=1, steps=2, repeats=2)
    record = throughput.run(
        str(tmp_path / "throughput.json"),
        backbone="small",
        widths=[0.05],
        batch_sizes=[4],
        plan=plan,
        sides=[64],
    )
    assert record["devices"] == jax.device_count()
    (row,) = record["rows"]
    ceiling = record["ceilings"]["float32"]
    rate = row["training"]["images_per_second"]
    assert len(rate["all"]) == 2
    np.testing.assert_allclose(
        rate["all"], [4 / each for each in row["seconds_per_step"]["all"]], rtol=1e-9
    )
    for part in (row["training"], row["evaluation"]):
        reached = part["flop_per_image"] * part["images_per_second"]["median"]
        assert part["tflops_per_second"] == pytest.approx(reached / 1e12)
        share = part["tflops_per_second"] / ceiling["tflops_per_second"]
        assert part["ceiling_share"] == pytest.approx(share)
    # Parameters and momentum, float32, are the least that the state holds.
    assert row["memory"]["state"] > 8 * row["parameters"] > 0


def test_what_cannot_be_measured_is_an_error(tmp_path):
    with pytest.raises(UserError, match="model.dtype is 'float16', but must be one of"):
        throughput.run(str(tmp_path / "x.json"), dtypes=["float16"])
    assert flag_values.parse_numbers("width", ["0.5", "1"], float) == [0.5, 1.0]
    assert flag_values.parse_numbers("seeds", ["0"], int, zero=True) == [0]
    for values in (["0"], ["-1"], ["1.5"], ["x"], []):
        with pytest.raises(UserError, match="--batch_size is .* whole numbers above 0"):
            flag_values.parse_numbers("batch_size", values, int)
