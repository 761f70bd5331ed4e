"""Max pooling of features and of logits, MI-Net and mi-Net (Wang et al. 2018)."""

import jax
import jax.numpy as jnp

from lossattn_jax.attention import pooling
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import (
    INSTANCES,
    MAP,
    PATCHES,
    PaperRow,
    Patches,
    Pooling,
)


def _max(patches: Patches) -> Outputs:
    """Pools the highest value of each feature (MI-Net).

    Of several layers the sum (residual connections).
    """
    patch_logits = patches.classifier(sum(patches.layers[:-1], patches.features))  # of one width
    summary = sum(_pool(patches, layer) for layer in patches.layers)
    return Outputs(patches.classifier(summary), patch_logits, _share(patches, patches.layers))


def _deeply_supervised(patches: Patches) -> Outputs:
    """Max-pools each layer, each with a classifier.

    The mean of their probabilities is predicted.
    """
    logits, patch_logits = [], []
    for number, layer in enumerate(patches.layers, start=1):
        classifier = patches.dense(patches.num_classes, layer.shape[-1], f"classifier{number}")
        logits.append(jax.nn.log_softmax(classifier(_pool(patches, layer))))
        patch_logits.append(jax.nn.log_softmax(classifier(layer)))
    patches.supervise(jnp.stack(logits, axis=1))
    return Outputs(_mean(logits), _mean(patch_logits), _share(patches, patches.layers))


def _pool_by_maximum(patches: Patches) -> Outputs:
    """Scores classes by their highest instance, class 0 by 0.

    So class 0 is predicted where no instance speaks for another. With two classes that is mi-Net's sigmoid.
    """
    features = patches.features
    classifier = patches.dense(patches.num_classes - 1, features.shape[-1], "classifier")
    scores = classifier(features)
    background = jnp.zeros((*scores.shape[:-1], 1), jnp.float32)
    patch_logits = jnp.concatenate([background, scores], axis=-1)
    logits = jnp.concatenate([background[:, 0], _pool(patches, scores)], axis=-1)
    return Outputs(logits, patch_logits, _share(patches, [scores]))


def _highest_logits(patches: Patches) -> Outputs:
    """Scores each class by its highest instance.

    `z_k = max_n w_k^T h_n + b_k`: the classical max pooling of instances' predictions. MI-Net pools features
    before they are classified, and mi-Net keeps the score of class 0 at 0.
    """
    patch_logits = patches.patch_logits
    return Outputs(_pool(patches, patch_logits), patch_logits, _share(patches, [patch_logits]))


def _pool(patches: Patches, values: jax.Array) -> jax.Array:
    """The highest of each channel of `values` `[B, P, D]`."""
    return pooling.max_pool(values, patches.mask, patches.axis_name)


def _share(patches: Patches, layers: list[jax.Array]) -> jax.Array:
    """Each patch's share of the maxima of all layers' channels."""
    side_by_side = layers[0] if len(layers) == 1 else jnp.concatenate(layers, axis=-1)
    return pooling.max_attention(side_by_side, patches.mask, patches.axis_name)


def _mean(log_probabilities: list[jax.Array]) -> jax.Array:
    """Logarithm of the mean of probabilities."""
    return jax.nn.logsumexp(jnp.stack(log_probabilities), axis=0) - jnp.log(
        float(len(log_probabilities))
    )


MAX = Pooling(
    _max,
    takes=(MAP, PATCHES, INSTANCES),
    dropout_at_pooling=True,
    scores_by_attention=False,
    splits_patches=True,
    paper=PaperRow("mi_net_bag", "MI-Net", (0.887, 0.859, 0.622, 0.830, 0.862)),
)
INSTANCE_MAX = Pooling(
    _highest_logits,
    takes=(INSTANCES,),
    scores_by_attention=False,
    splits_patches=True,
    title="Max pooling of instances",
)
MI_NET = Pooling(
    _pool_by_maximum,
    takes=(INSTANCES,),
    dropout_at_pooling=True,
    unequal_classes=True,
    scores_by_attention=False,
    splits_patches=True,
    paper=PaperRow("mi_net", "mi-Net", (0.889, 0.858, 0.613, 0.824, 0.858)),
)
MI_NET_DS = Pooling(
    _deeply_supervised,
    takes=(INSTANCES,),
    loss="deep_supervision",
    all_layers=True,
    dropout_at_pooling=True,
    scores_by_attention=False,
    splits_patches=True,
    paper=PaperRow("mi_net_ds", "MI-Net with DS", (0.894, 0.874, 0.630, 0.845, 0.872)),
)
MI_NET_RC = Pooling(
    _max,
    takes=(INSTANCES,),
    all_layers=True,
    dropout_at_pooling=True,
    scores_by_attention=False,
    splits_patches=True,
    widths=(128, 128, 128),
    paper=PaperRow("mi_net_rc", "MI-Net with RC", (0.898, 0.873, 0.619, 0.836, 0.857)),
)
