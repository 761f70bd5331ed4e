"""What README shows works."""

import pathlib
import re

import jax
import numpy as np
from flax import linen as nn

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_the_three_lines_for_ones_own_model_run():
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    features = jax.random.normal(jax.random.key(0), (2, 36, 16))

    class Own(nn.Module):
        @nn.compact
        def __call__(self, features, labels):
            names = {"classifier": nn.Dense(10), "features": features, "labels": labels}
            exec(snippet, names)
            return names["logits"], names["attention"], names["loss"]

    labels = np.array([3, 7])
    (logits, attention, loss), _ = Own().init_with_output(jax.random.key(1), features, labels)
    assert logits.shape == (2, 10)
    np.testing.assert_allclose(attention.sum(axis=1), 1, rtol=1e-5)
    assert loss.shape == (2,)


def test_the_first_commands_are_the_demo_and_the_tests():
    first = re.search(r"```\n(.*?)```", README, re.DOTALL).group(1).split("\n")
    assert first[0].startswith("make demo ")
    assert first[1].startswith("make test ")
    makefile = (pathlib.Path(__file__).parents[1] / "Makefile").read_text()
    assert "\ndemo:" in makefile and "\ntest:" in makefile


def test_every_module_in_the_table_exists():
    package = pathlib.Path(__file__).parents[1] / "lossattn_jax"
    table = README[README.index("| module | subject |") :]
    names = re.findall(r"`([a-z_]+(?:/|\.py))`", table)
    assert len(names) >= 12
    for name in names:
        assert (package / name).exists(), name


def test_links_lead_somewhere_and_nothing_is_left_to_fill_in():
    root = pathlib.Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert "://" in target or (root / target).exists(), target
    assert not re.search(r"TODO|[A-Z]+_(TIME|TABLE)", README)
