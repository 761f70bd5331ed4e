"""Two streams: the highest instance, and attention to it (DSMIL, Li et al. 2021).

"Dual-stream multiple instance learning network for whole slide image classification with self-supervised
contrastive learning", CVPR 2021.
"""

import jax
import jax.numpy as jnp

from lossattn_jax.attention import pooling
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import INSTANCES, Option, Patches, Pooling


def critical_attention(
    queries: jax.Array,
    patch_logits: jax.Array,
    mask: jax.Array | None = None,
    temperature: float = 1.0,
) -> jax.Array:
    """Computes each class' attention by queries' products with its critical instance's.

    `U(h_n, h_m) = softmax_n(<q_n, q_m>)`, where m is the instance of the class' highest logit.

    Args:
      queries: `[B, N, Q]` q, any float dtype.
      patch_logits: `[B, N, K]`, any float dtype.
      mask: `[B, N]`, True or 1 for a real instance. None: all are real.
      temperature: divides the products; 1 in the paper.

    Returns:
      `[B, K, N]` float32; all 0 in a row with no instance.
    """
    logits, queries = patch_logits.astype(jnp.float32), queries.astype(jnp.float32)
    if mask is not None:
        real = mask.astype(bool)[:, :, None]
        logits = jnp.where(real, logits, jnp.finfo(jnp.float32).min)
        queries = jnp.where(real, queries, 0.0)
    critical = jnp.argmax(logits, axis=1)
    own = jnp.take_along_axis(queries, critical[..., None], axis=1)
    products = jnp.einsum("bnq,bkq->bkn", queries, own, precision=jax.lax.Precision.HIGHEST)
    of_class = jax.vmap(pooling.softmax_attention, in_axes=(1, None), out_axes=1)
    return of_class(products / temperature, mask)


def _two_streams(patches: Patches) -> Outputs:
    """Averages the scores of the highest instance and of a weighted bag.

    With features h_n of a layer over instances, for each class: the first stream is `max_n W_0 h_n`, whose
    instance m is the critical one; the second has `q_n = W_q h_n`, `v_n = W_v h_n`, and `W_b b`,
    `b = sum_n U(h_n, h_m) v_n` (see `critical_attention`). Predicted is the mean of both. The paper has one
    class and its score; here each class has its own critical instance, b and row of W_b, and the attention
    is that of the predicted class.

    The authors' code divides the products of queries by the root of their width, and trains each stream by a
    loss of its own: the options temperature and separate_losses do that.
    """
    options, features, patch_logits = patches.options, patches.features, patches.patch_logits
    width = features.shape[-1]
    queries = patches.dense(int(options["query"]), width, "query")(features)
    by_class = critical_attention(queries, patch_logits, patches.mask, options["temperature"])
    # W_v of the weighted sum is the weighted sum of W_v h_n, for the weights sum to 1.
    summaries = jax.vmap(pooling.weighted_sum, in_axes=(None, 1), out_axes=1)(features, by_class)
    bags = patches.dense(width, width, "information")(summaries)
    each = patches.dense(patches.num_classes, width, "bag_classifier")(bags)
    of_bag = jnp.diagonal(each, axis1=1, axis2=2)
    highest = pooling.max_pool(patch_logits, patches.mask)
    if options["separate_losses"]:
        streams = jax.nn.log_softmax(jnp.stack([highest, of_bag]))
        patches.replace_loss(-jnp.mean(streams, axis=0))
    logits = (highest + of_bag) / 2
    predicted = jnp.argmax(logits, axis=-1)[:, None, None]
    attention = jnp.take_along_axis(by_class, predicted, axis=1)[:, 0]
    return Outputs(logits, patch_logits, attention)


# Queries are as wide as in the published code.
DSMIL = Pooling(
    _two_streams,
    takes=(INSTANCES,),
    warns_of_collapse=True,
    learns_scores=True,
    widths=(512,),
    one_label=True,
    title="DSMIL",
    options={
        "query": Option(128, least=1, whole=True),  # width of q
        "temperature": Option(1.0, least=1e-3),
        "separate_losses": Option(0, most=1, whole=True),  # 1: of each stream, not of their mean
    },
)
