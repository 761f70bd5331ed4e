"""A made-up report, whose every text tries to leave its place in the page."""

import numpy as np

from lossattn_jax.explain.explanations import Explanations
from lossattn_jax.explain.report import page, pictures
from lossattn_jax.explain.report.plots import Plot
from lossattn_jax.models import PatchGrid

NASTY = '</script><img src=x onerror="alert(1)">&{{data}}{% include "page.js" %}{#$\\x$\'"'
GRID = PatchGrid(rows=2, cols=3, map_size=(4, 5), kernel=2, stride=1)
NAMES = [NASTY, "dog", "cow"]


def content(count=4, labelled=True, nasty=NASTY, names=NAMES):
    draw = np.random.default_rng(0)
    patch_logits = draw.normal(size=(count, 6, 3)).astype(np.float32)
    attention = draw.dirichlet(np.ones(6), count).astype(np.float32)
    logits = np.einsum("npk,np->nk", patch_logits, attention).astype(np.float32)
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    labels = logits.argmax(axis=-1).astype(np.int32)
    labels[1] = (labels[1] + 1) % 3
    fields = draw.uniform(size=(6, 8, 10)).astype(np.float32)
    fields[0, :4] = 0
    return page.Content(
        title=f"Title {nasty}",
        facts={f"fact {nasty}": f"value {nasty}"},
        intro=f"Intro {nasty}",
        explanations=Explanations(
            names=tuple(f"test {place} {nasty}" for place in range(count)),
            images=draw.integers(0, 256, (count, 8, 10, 3)).astype(np.uint8),
            labels=labels if labelled else None,
            boxes=None,
            logits=logits,
            probabilities=chances,
            patch_logits=patch_logits,
            attention=attention,
            index=np.arange(count)[::-1] if labelled else None,
            reasons=("least certain", "most diffuse") * (count // 2) if labelled else (),
        ),
        grid=GRID,
        fields=fields,
        class_names=names,
        kind="cross_entropy",
        attentions={"threshold 0.1/g": attention, f"threshold 1/g {nasty}": attention[:, ::-1]},
        plots=[
            Plot(
                "entropy",
                f"Plot {nasty}",
                pictures.png(np.zeros((2, 2, 3), np.uint8)),
                f"Alt {nasty}",
            )
        ],
        thresholds={"threshold 0.1/g": {"accuracy": 0.5}, "threshold 1/g": {"accuracy": 0.25}},
    )
