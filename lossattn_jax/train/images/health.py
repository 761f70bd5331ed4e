"""Warnings of collapsed attention: even everywhere, or on one patch.

What is advised is what moved the entropy that way on digit scenes (results/explain/README.md): a higher
lambda or threshold lowers it, and the patch loss does so for learned attention too, which lies on fewer
patches than loss attention anyway.
"""

import math

from lossattn_jax.attention import poolings
from lossattn_jax.config.options import ImageOptions

# Mean entropy of attention over log P, above which it prefers nothing, and below which it is one patch's.
UNIFORM, ONE_PATCH = 0.98, 0.05
# Every network starts out uniform, so nothing is said in the first epoch, or tenth of the run.
_GRACE = 0.1


class AttentionWatch:
    """Watches a run's attention, and warns each time it collapses."""

    def __init__(self, options: ImageOptions, patches: int, steps_per_epoch: int):
        """Starts to watch.

        Args:
          options: of the run.
          patches: P.
          steps_per_epoch: updates in an epoch.
        """
        self._options = options
        self._highest = math.log(patches)
        self._grace = max(1.0, _GRACE * options.train.epochs) * steps_per_epoch
        self._pooling = poolings.POOLINGS.find(options.model.pooling)
        # Other poolings' attention has no parameters, or none that a loss or a threshold reaches.
        self._active = self._pooling.warns_of_collapse and patches > 1
        self._state = ""

    def look(self, entropy: float, step: int) -> str | None:
        """Looks at a mean over training images.

        Args:
          entropy: of attention, in nats.
          step: updates done.

        Returns:
          A sentence with what is wrong and what to try; None if nothing is, or it was said before.
        """
        if not self._active or step < self._grace or not math.isfinite(entropy):
            return None
        share = entropy / self._highest
        state = "uniform" if share > UNIFORM else "one patch" if share < ONE_PATCH else ""
        changes, self._state = state != self._state, state
        if not state or not changes:
            return None
        what = "is nearly uniform" if state == "uniform" else "lies nearly on one patch"
        return (
            f"attention {what}: its entropy is {entropy:.3f} of {self._highest:.3f} nats (log P) by step "
            f"{step}; {self._advice(state)}"
        )

    def _advice(self, state: str) -> str:
        loss, threshold = self._options.loss, self._options.model.threshold
        weight = loss.patch_weight
        if self._pooling.learns_scores and loss.patch != "on":
            if state == "uniform":
                return "try config.loss.patch=on, which makes attention choose patches that tell the label"
            return f"try config.model.pooling={poolings.DEFAULT}, which lies on more patches"
        if loss.patch == "off":
            return "config.loss.patch=off leaves its patches without a loss; auto gives them one"
        if state == "uniform":
            more = f"config.loss.patch_weight (lambda) above {weight:g}, such as {_times(weight, 10):g}"
            if self._pooling.threshold and threshold < 1:
                return f"try config.model.threshold above {threshold:g} (at most 1), or {more}"
            return f"try {more}, or a shorter config.loss.patch_ramp_epochs than {loss.patch_ramp_epochs:g}"
        less = (
            f"config.loss.patch_weight (lambda) below {weight:g}, such as {_times(weight, 0.1):g}"
        )
        if self._pooling.threshold and threshold > 0:
            return f"try config.model.threshold below {threshold:g}, or {less}"
        return f"try {less}"


def _times(weight: float, factor: float) -> float:
    return weight * factor if weight else 0.1
