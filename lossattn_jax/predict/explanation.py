"""What a network says of one picture, with its reasons, for a notebook."""

import dataclasses
from typing import Any

import numpy as np

from lossattn_jax.explain import receptive_field
from lossattn_jax.explain.report import pictures, templates
from lossattn_jax.models import PatchGrid

_TOP = 5  # classes shown
_LEAST_WIDTH = 160  # pixels of a picture on the screen


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """What a network says of a picture, and where it looks.

    In a notebook it shows itself.

    Attributes:
      name: of the picture.
      image: `[H, W, 3]` uint8, as the network saw it.
      class_names: K names.
      logits: `[K]` float32.
      probabilities: `[K]` float32.
      predicted: label, as in `Predictions`.
      attention: `[P]` float32, summing to 1.
      patch_logits: `[P, K]` float32.
      patch_probabilities: `[P, K]` float32.
      grid: places of the P patches, in row-major order.
    """

    name: str
    image: np.ndarray
    class_names: tuple[str, ...]
    logits: np.ndarray
    probabilities: np.ndarray
    predicted: str
    attention: np.ndarray
    patch_logits: np.ndarray
    patch_probabilities: np.ndarray
    grid: PatchGrid

    @property
    def evidence(self) -> np.ndarray:
        """Each patch's weight times its logits, `[P, K]` float32.

        With the loss attention of the TIP 2021 paper they add up to the logits of the picture.
        """
        return self.attention[:, None] * self.patch_logits

    def attention_map(self) -> np.ndarray:
        """Spreads the attention over the patches' windows, `[H, W]` float64.

        A patch sees more than its window; `lossattn explain` measures what.
        """
        return self._spread(self.attention)

    def evidence_map(self, class_name: str) -> np.ndarray:
        """Spreads a class' evidence over the patches' windows, `[H, W]` float64."""
        return self._spread(self.evidence[:, self.class_names.index(class_name)])

    def __repr__(self) -> str:
        chance = float(self.probabilities.max())
        return (
            f"<Explanation of {self.name}: {self.predicted or 'no class'}, highest probability {chance:.3f}, "
            f"{self.grid.patches} patches>"
        )

    def _spread(self, values: np.ndarray) -> np.ndarray:
        return receptive_field.pixel_map(values, self.grid.coverage(self.image.shape[:2]))

    def _repr_html_(self) -> str:
        """Shows picture, attention, and the evidence for the most probable classes."""
        highest = int(self.attention.argmax())
        order = np.argsort(-self.probabilities, kind="stable")[:_TOP]
        maps = [self.evidence_map(self.class_names[place]) for place in order]
        strongest = max(float(np.abs(map_).max()) for map_ in maps)
        template: Any = templates.environment().get_template("explanation.html")
        return template.render(
            name=self.name,
            predicted=self.predicted,
            image=pictures.png(self.image),
            overlay=pictures.png(pictures.overlay(self.image, self.attention_map())),
            row=highest // self.grid.cols + 1,
            column=highest % self.grid.cols + 1,
            highest=float(self.attention[highest]),
            width=max(self.image.shape[1], _LEAST_WIDTH),
            classes=[
                {
                    "name": self.class_names[place],
                    "chance": float(self.probabilities[place]),
                    "map": pictures.png(pictures.draw_signed(map_, strongest)),
                }
                for place, map_ in zip(order, maps, strict=True)
            ],
        )
