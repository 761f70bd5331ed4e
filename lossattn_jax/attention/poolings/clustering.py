"""Gated attention whose instances are clustered in training (CLAM, Lu et al. 2021).

"Data-efficient and weakly supervised computational pathology on whole-slide images", Nature Biomedical
Engineering 5, 555-570.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lossattn_jax.attention import losses, pooling
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import INSTANCES, Option, Patches, Pooling
from lossattn_jax.attention.scorers import AttentionScores


class Extremes(NamedTuple):
    """The instances of highest and of lowest scores.

    Attributes:
      places: `[B, 2 k]` int32, first those of the k highest scores.
      real: `[B, 2 k]` bool, False where a bag has fewer.
    """

    places: jax.Array
    real: jax.Array


def find_extremes(scores: jax.Array, mask: jax.Array | None, count: int) -> Extremes:
    """Finds the instances of the k highest and the k lowest scores.

    Of a bag with fewer than 2 k instances it is half of them each, so that with different scores none is
    among both; the paper's slides have thousands, and it says nothing of fewer.

    Args:
      scores: `[B, N]` float.
      mask: `[B, N]`, True or 1 for a real instance. None: all are real.
      count: k.
    """
    real = jnp.ones(scores.shape, bool) if mask is None else mask.astype(bool)
    count = min(count, scores.shape[1])
    scores = jax.lax.stop_gradient(scores)
    places = [jax.lax.top_k(jnp.where(real, sign * scores, -jnp.inf), count)[1] for sign in (1, -1)]
    half = jnp.sum(real, axis=1, keepdims=True) // 2
    within = jnp.arange(count)[None] < jnp.minimum(half, count)
    return Extremes(jnp.concatenate(places, axis=1), jnp.concatenate([within, within], axis=1))


def clustering_losses(
    cluster_scores: jax.Array,
    real: jax.Array,
    margin: float,
    temperature: float,
    *,
    subtyping: bool,
) -> jax.Array:
    """Computes the loss of instances for each label of the bag.

    The instances of highest attention shall be in the cluster of the bag's class, those of lowest attention
    not: the mean of their smooth SVM losses. With `subtyping` the classes exclude one another, so that the
    former shall not be in the clusters of the other classes: the mean over all classes then.

    Args:
      cluster_scores: `[B, 2 k, K, 2]`: the scores p of the instances of `Extremes`, of each class' cluster,
        for "not in it" and "in it".
      real: `[B, 2 k]` bool, as of `Extremes`.
      margin, temperature: of the smooth SVM loss.
      subtyping: see above.

    Returns:
      `[B, K]` float32; 0 for a bag with fewer than two instances.
    """
    count, classes = cluster_scores.shape[1] // 2, cluster_scores.shape[2]
    each = losses.smooth_svm_losses(cluster_scores, margin, temperature)
    weights = real.astype(jnp.float32)[:, :, None]
    highest, lowest = weights[:, :count], weights[:, count:]
    inside = jnp.sum(each[:, :count, :, 1] * highest, axis=1)
    inside += jnp.sum(each[:, count:, :, 0] * lowest, axis=1)
    of_class = inside / jnp.maximum(jnp.sum(weights, axis=1), 1.0)
    if not subtyping:
        return of_class
    outside = jnp.sum(each[:, :count, :, 0] * highest, axis=1)
    outside /= jnp.maximum(jnp.sum(highest, axis=1), 1.0)
    return (of_class - outside + jnp.sum(outside, axis=-1, keepdims=True)) / classes


def _clam(patches: Patches) -> Outputs:
    """Weighs instances by gated attention, and clusters some of them in training.

    The single attention branch, CLAM-SB. With features h_n of a layer over instances:
    `a_n = softmax_n(W_a (tanh(V h_n) * sigmoid(U h_n)))`, `h = sum_n a_n h_n`, of which the
    classifier predicts. Each class has a cluster, `p_kn = W_inst,k h_n`, two scores. The loss is
    `c1 CE(z, y) + c2 L_patch`, with c2 = 1 - c1 and L_patch as of `clustering_losses`.
    """
    _ = patches.patch_logits
    options, features = patches.options, patches.features
    scores = AttentionScores(int(options["attention_hidden"]), True, name="attention")(features)
    out = patches.weigh(pooling.softmax_attention(scores, patches.mask))
    extremes = find_extremes(scores, patches.mask, int(options["clustered"]))
    chosen = jnp.take_along_axis(features, extremes.places[..., None], axis=1)
    chosen = jnp.where(extremes.real[..., None], chosen, 0.0)
    clusters = patches.dense(2 * patches.num_classes, features.shape[-1], "clusters")
    of_instances = clustering_losses(
        clusters(chosen).reshape(*chosen.shape[:2], patches.num_classes, 2),
        extremes.real,
        options["margin"],
        options["temperature"],
        subtyping=bool(options["subtyping"]),
    )
    of_bag = -jax.nn.log_softmax(out.logits)
    weight = options["bag_weight"]
    patches.replace_loss(weight * of_bag + (1 - weight) * of_instances)
    return out


# The values of the paper's Methods and its published code; of slides with normal and tumour tissue, hence no
# subtyping.
CLAM = Pooling(
    _clam,
    takes=(INSTANCES,),
    warns_of_collapse=True,
    learns_scores=True,
    widths=(512,),
    one_label=True,
    title="CLAM-SB",
    options={
        "attention_hidden": Option(256, least=1, whole=True),  # outputs of V and U
        "clustered": Option(8, least=1, whole=True),  # k, the paper's B
        "bag_weight": Option(0.7, most=1),  # c1
        "margin": Option(1.0),  # alpha
        "temperature": Option(1.0, least=1e-3),  # tau
        "subtyping": Option(0, most=1, whole=True),  # 1: classes exclude one another
    },
)
