"""The HTML page of a report: everything in one file, whatever names and labels hold."""

import base64
import dataclasses
import html
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax.explain.explanations import Explanations
from lossattn_jax.explain.report import pictures
from lossattn_jax.explain.report.summary import Plot
from lossattn_jax.models import PatchGrid

_TOP = 5  # image predictions shown
# How far weights times patch logits may be from the network's logits, as a share of the largest of them.
_EXACT = 1e-3
_ASSETS = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Content:
    """What a page shows.

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
    """The page as HTML 5 in UTF-8; loads nothing from anywhere."""
    e = content.explanations
    unknown = e.labels is None
    parts = {
        "title": _text(content.title),
        "style": _asset("page.css"),
        "facts": "\n".join(
            f"<div><dt>{_text(name)}</dt><dd>{_text(_fact(value))}</dd></div>"
            for name, value in content.facts.items()
        ),
        "summary": _summary(content),
        "intro": _text(content.intro),
        "filter_hidden": " hidden" if unknown else "",
        "maps": _options(_map_choices(content)),
        "classes": _options(_class_choices(content)),
        "count": f"{len(e.names)} images",
        "cards": "\n".join(_card(content, image) for image in range(len(e.names))),
        # Inside a script element nothing is escaped; only "<" could end it.
        "data": json.dumps(_data(content), separators=(",", ":")).replace("<", "\\u003c"),
        "script": _asset("page.js"),
    }
    # In one pass, so that what is put in is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8").strip()


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _options(choices: Sequence[tuple[str, str]]) -> str:
    return "\n".join(
        f'<option value="{_text(value)}">{_text(name)}</option>' for value, name in choices
    )


def _map_choices(content: Content) -> list[tuple[str, str]]:
    names = list(content.attentions)
    first, others = names[0], names[1:]
    choices = [("attention:0", f"attention, {first}" if others else "attention")]
    choices += [
        (f"attention:{place}", f"attention, {name}") for place, name in enumerate(others, 1)
    ]
    if is_exact(content.explanations):
        choices.append(("evidence:0", "evidence for"))
    else:
        choices.append(("evidence:0", "weight times patch logit for"))
    choices.append(("probability:0", "patch predictions of"))
    return choices


def _class_choices(content: Content) -> list[tuple[str, str]]:
    known = [] if content.explanations.labels is None else [("label", "the label")]
    classes = [(str(k), name) for k, name in enumerate(content.class_names)]
    return [("predicted", "the predicted class"), *known, *classes]


def is_exact(e: Explanations) -> bool:
    """Whether the image's logits are the patches' logits, weighted: then a patch's part is no guess."""
    summed = np.einsum("npk,np->nk", e.patch_logits.astype(np.float64), e.attention)
    return bool(np.abs(summed - e.logits).max() <= _EXACT * np.abs(e.logits).max())


def _figure(plot: Plot) -> str:
    return (
        f'<figure><img src="{_uri(plot.png)}" alt="{_text(plot.alt)}">'
        f"<figcaption>{_text(plot.title)}</figcaption></figure>"
    )


def _fact(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"


def _summary(content: Content) -> str:
    sections = []
    if content.plots:
        figures = "\n".join(map(_figure, content.plots))
        sections.append(
            f"<section><h2>The whole split</h2>\n<div class=plots>{figures}</div></section>"
        )
    if content.thresholds:
        sections.append(
            "<section><h2>Thresholds</h2>\n<p>The same weights with another threshold t: a patch keeps "
            "what its attention exceeds t/g by.</p>\n"
            f'<div class="scroll" tabindex="0" role="region" aria-label="Thresholds">{_table(content)}</div>'
            "</section>"
        )
    if content.mosaics:
        figures = "\n".join(map(_figure, content.mosaics))
        sections.append(
            f'<section><h2>Tiled images</h2>\n<div class="plots mosaic">{figures}</div></section>'
        )
    return "\n".join(sections)


def _table(content: Content) -> str:
    rows = {name: None for metrics in content.thresholds.values() for name in metrics}
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in content.thresholds)
    lines = []
    for row in rows:
        cells = "".join(
            f"<td>{metrics[row]:.4f}</td>" if row in metrics else "<td>-</td>"
            for metrics in content.thresholds.values()
        )
        lines.append(f'<tr><th scope="row">{_text(row.replace("_", " "))}</th>{cells}</tr>')
    return f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _card(content: Content, image: int) -> str:
    e, names = content.explanations, content.class_names
    predicted = int(e.logits[image].argmax())
    label = ", ".join(names[k] for k in e.classes(image)) or "nothing"
    correct = e.correct(image)
    verdict = "" if correct is None else ("right" if correct else "wrong")
    tags = f'<span class="tag {verdict}">{verdict}</span>' if verdict else ""
    if e.picked:
        tags += f'<span class="tag soft">{_text(e.picked[image])}</span>'
    labelled = f", labelled {label}" if verdict else ""
    caption = f"image: {label}" if verdict else "image"
    attention = e.attention[image]
    top = int(attention.argmax())
    where = f"row {top // content.grid.cols + 1}, column {top % content.grid.cols + 1}"
    held = int((np.cumsum(-np.sort(-attention)) < 0.9).sum()) + 1
    held = min(held, len(attention))
    goal = "label" if verdict else "predicted class"
    name = _text(e.names[image])
    overlay = _uri(pictures.png(pictures.attended(e.images[image], attention, content.fields)))
    return f"""<article id="image-{image}" aria-labelledby="name-{image}">
<h3 id="name-{image}">{name}{tags}</h3>
<div class="panels">
<figure class="image">
<img src="{_uri(pictures.png(e.images[image]))}" alt="The image {name}{_text(labelled)}.">
<figcaption>{_text(caption)}</figcaption></figure>
<figure class="logits"><img src="data:," alt="Patch logits of {name}: a row for each class, a column for \
each patch; red speaks for the class, blue against it.">
<figcaption>patch logits: {len(names)} classes x {len(attention)} patches</figcaption></figure>
<figure class="map"><img src="{overlay}" alt="Attention of {name}, pixel by pixel: highest at the patch in \
{where}, {attention[top]:.3f}.">
<figcaption>attention</figcaption></figure>
<figure class="grid"><div class="patches" role="group" aria-label="Patches of {name}; arrow keys move"></div>
<figcaption>patches: predicted class, stronger with more weight</figcaption>
</figure>
<figure class="weights"><svg role="img" viewBox="0 0 144 60" aria-label="Weights of the patches of {name}, \
highest first: {held} of {len(attention)} hold 90 %; the highest has \
{attention[top] * len(attention):.1f} times the even weight. Green patches predict the {goal}."></svg>
<figcaption>weights, highest first; {held} of {len(attention)} hold 90 %</figcaption></figure>
<figure class="prediction">{_bars(content, image)}
<figcaption>prediction: {_text(names[predicted])}</figcaption></figure>
</div>
<p class="told" aria-live="polite"></p>
</article>"""


def _bars(content: Content, image: int) -> str:
    e = content.explanations
    order = np.argsort(-e.probabilities[image], kind="stable")[:_TOP]
    right = e.classes(image)
    rows = []
    for k in order:
        chance = float(e.probabilities[image, k])
        colour = "" if e.labels is None else (" right" if k in right else " wrong")
        rows.append(
            f'<li class="{colour.strip()}"><span class="name">{_text(content.class_names[k])}</span>'
            f'<span class="track"><span class="fill" style="width:{100 * min(max(chance, 0), 1):.1f}%">'
            f'</span></span><span class="value">{chance:.3f}</span></li>'
        )
    return f'<ol class="bars">{"".join(rows)}</ol>'


def _data(content: Content) -> dict[str, object]:
    """What the page's script draws from."""
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
        "fields": _packed(levels),
        "field_scales": scales.tolist(),
        "inferno": _packed(pictures.colours("inferno")),
        "diverging": _packed(pictures.colours("RdBu_r")),
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
                "patch_logits": _packed(e.patch_logits[image].astype("<f4")),
                "attention": [
                    _packed(attention[image].astype("<f4"))
                    for attention in content.attentions.values()
                ],
            }
            for image in range(len(e.names))
        ],
    }


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
