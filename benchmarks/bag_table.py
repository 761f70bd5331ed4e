"""The results of `benchmarks.bags_against_torch`, as text."""

from typing import Any

# Of the paper, which the times of a whole job are given for.
JOB_EPOCHS = 100


def table(name: str, results: dict[str, Any]) -> str:
    """The results on one data set, as text.

    Args:
      name: of the data set.
      results: its part of what `run` returns.
    """
    data, limits, jax_side = results["data"], results["limits"], results["jax"]
    lines = [
        f"{name}: {data['bags']} bags of {data['features']} features, {data['mean_length']:.1f} "
        f"instances on average ({data['mean_padded_length']:.1f} with padding), {data['models']} models",
        f"  agreement: losses differ by {results['agreement']['loss']:.1e}, parameters by "
        f"{results['agreement']['parameters']:.1e} after {results['agreement']['steps']} steps",
        _row(
            "microseconds per model-step",
            "median (min to max)",
            f"{JOB_EPOCHS} epochs of all",
            "JAX is faster",
        ),
        _line(f"JAX, {results['jax']['devices']} device(s)", jax_side, None),
        *(_line(f"PyTorch, {way['way']}", way, way["speedup"]) for way in results["torch"]),
        f"  against the fastest plain loop ({results['fastest_torch']}): "
        f"{results['speedup']:.2f} times; JAX's {jax_side['compile_seconds']:.1f} s of compilation "
        "are in its job",
        f"  a step on one core takes {limits['measured_core_us']:.0f} us; Adam moves "
        f"{limits['optimiser_bytes_per_step'] / 1e6:.2f} MB, at {limits['copy_gbytes_per_second']:.1f} "
        f"GB/s {limits['optimiser_us']:.0f} us ({limits['optimiser_share']:.0%});",
        f"    products are {limits['flops_per_step'] / 1e6:.2f} MFLOP, at "
        f"{limits['product_gflops_per_second']:.1f} GFLOP/s {limits['products_us']:.0f} us "
        f"({limits['products_share']:.0%})",
    ]
    for group in results["models_at_once"]:
        lines.append(
            f"  {group['group']} model(s) at once on a device: "
            f"{group['us_per_step']['median']:.1f} us per model-step"
        )
    return "\n".join(lines)


def _line(name: str, side: dict[str, Any], speedup: float | None) -> str:
    us = side["us_per_step"]
    times = f"{us['median']:.1f} ({us['min']:.1f} to {us['max']:.1f})"
    ratio = "" if speedup is None else f"{speedup:.2f} times"
    return _row(name, times, f"{side['job_seconds']:.0f} s", ratio)


def _row(name: str, times: str, job: str, ratio: str) -> str:
    return f"  {name:<46}{times:<30}{job:<20}{ratio}".rstrip()
