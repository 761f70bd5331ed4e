"""The HTML page of a report, all in one file.

Whatever names and labels hold.

`page.html` is its template, with `page.css` and `page.js` put in; here is what the template is given.
"""

import base64
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax.explain.explanations import Explanations
from lossattn_jax.explain.report import pictures, templates
from lossattn_jax.explain.report.plots import Plot
from lossattn_jax.models import PatchGrid

_TOP = 5  # image predictions shown
# How far weights times patch logits may be from the network's logits, as a share of the largest of them.
_EXACT = 1e-3


@dataclasses.dataclass(frozen=True)
class Content:
    """The content of a page.

    Attributes:
      title: its heading.
      facts: by name, what a reader has to know about the checkpoint and the data; the page
        has four digits of a number.
      intro: a sentence on which images are shown.
      explanations: N images.
      grid: places of the P patches.
      fields: `[P, H, W]` from `receptive_field.receptive_fields`.
      class_names: K names.
      kind: of image loss; see `losses`.
      attentions: by name `[N, P]`, the network's own first, then those of other thresholds.
      plots: of the whole split.
      thresholds: by name of the threshold the metrics of the whole split; empty where there is none.
      mosaics: pictures of tiled images.
      made_from: what the numbers follow from, as JSON; see `records`.
    """

    title: str
    facts: Mapping[str, str | float]
    intro: str
    explanations: Explanations
    grid: PatchGrid
    fields: np.ndarray
    class_names: Sequence[str]
    kind: str
    attentions: Mapping[str, np.ndarray]
    plots: Sequence[Plot] = ()
    thresholds: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    mosaics: Sequence[Plot] = ()
    made_from: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def render(content: Content) -> str:
    """Renders the page as HTML 5; it loads nothing."""
    e = content.explanations
    template = templates.environment().get_template("page.html")
    return template.render(
        title=content.title,
        facts=content.facts,
        plots=content.plots,
        thresholds=content.thresholds,
        metrics=list(dict.fromkeys(itertools.chain(*content.thresholds.values()))),
        mosaics=content.mosaics,
        intro=content.intro,
        labelled=e.labels is not None,
        map_choices=_map_choices(content),
        class_choices=_class_choices(content),
        classes=len(content.class_names),
        patches=e.attention.shape[1],
        cards=[_card(content, image) for image in range(len(e.names))],
        data=_data(content),
    )


def _map_choices(content: Content) -> list[tuple[str, str]]:
    first, *others = content.attentions
    choices = [("attention:0", f"attention, {first}" if others else "attention")]
    choices += [
        (f"attention:{place}", f"attention, {name}") for place, name in enumerate(others, 1)
    ]
    exact = is_exact(content.explanations)
    choices.append(("evidence:0", "evidence for" if exact else "weight times patch logit for"))
    choices.append(("probability:0", "patch predictions of"))
    return choices


def _class_choices(content: Content) -> list[tuple[str, str]]:
    label_choice = [] if content.explanations.labels is None else [("label", "the label")]
    classes = [(str(k), name) for k, name in enumerate(content.class_names)]
    return [("predicted", "the predicted class"), *label_choice, *classes]


def is_exact(e: Explanations) -> bool:
    """Whether the image's logits are the weighted patches' logits.

    Then a patch's part is no guess.
    """
    sums = np.einsum("npk,np->nk", e.patch_logits.astype(np.float64), e.attention)
    return bool(np.abs(sums - e.logits).max() <= _EXACT * np.abs(e.logits).max())


def _card(content: Content, image: int) -> dict[str, object]:
    """Makes the page's part on one image."""
    e, names = content.explanations, content.class_names
    attention, correct = e.attention[image], e.correct(image)
    highest = int(attention.argmax())
    below = int((np.cumsum(-np.sort(-attention)) < 0.9).sum())
    return {
        "name": e.names[image],
        "verdict": "" if correct is None else ("right" if correct else "wrong"),
        "picked": e.reasons[image] if e.reasons else "",
        "label": ", ".join(names[k] for k in e.classes(image)) or "nothing",
        "image": pictures.png(e.images[image]),
        "overlay": pictures.png(
            pictures.draw_attention(e.images[image], attention, content.fields)
        ),
        "row": highest // content.grid.cols + 1,
        "column": highest % content.grid.cols + 1,
        "highest": attention[highest],
        "holders": min(below + 1, len(attention)),
        "predicted": names[int(e.logits[image].argmax())],
        "bars": _bars(content, image),
    }


def _bars(content: Content, image: int) -> list[dict[str, object]]:
    """Makes the bars of one image's most probable classes."""
    e = content.explanations
    right = e.classes(image)
    return [
        {
            "name": content.class_names[k],
            "verdict": "" if e.labels is None else ("right" if k in right else "wrong"),
            "chance": e.probabilities[image, k],
            "percent": 100 * min(max(float(e.probabilities[image, k]), 0), 1),
        }
        for k in np.argsort(-e.probabilities[image], kind="stable")[:_TOP]
    ]


def _data(content: Content) -> dict[str, object]:
    """Makes the data that the page's script draws."""
    e, grid = content.explanations, content.grid
    scales = content.fields.max(axis=(1, 2)) / 65535
    safe = np.where(scales > 0, scales, 1.0)
    levels = (content.fields / safe[:, None, None]).round().astype("<u2")
    confidence, entropy = e.probabilities.max(axis=-1), e.entropy()
    return {
        "classes": list(content.class_names),
        "kind": content.kind,
        "rows": grid.rows,
        "cols": grid.cols,
        "height": e.images.shape[1],
        "width": e.images.shape[2],
        "fields": _encode(levels),
        "field_scales": scales.tolist(),
        "inferno": _encode(pictures.colours("inferno")),
        "diverging": _encode(pictures.colours("RdBu_r")),
        "opacity": pictures.OPACITY,
        "images": [
            {
                "name": e.names[image],
                "index": image if e.index is None else int(e.index[image]),
                "label": e.classes(image),
                "predicted": int(e.logits[image].argmax()),
                "correct": e.correct(image),
                "certainty": float(confidence[image]),
                "entropy": float(entropy[image]),
                "patch_logits": _encode(e.patch_logits[image].astype("<f4")),
                "attention": [
                    _encode(attention[image].astype("<f4"))
                    for attention in content.attentions.values()
                ],
            }
            for image in range(len(e.names))
        ],
    }


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
