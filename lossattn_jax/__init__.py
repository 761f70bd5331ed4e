"""Loss-based attention for images and bags, in JAX and Flax.

The classifier's own weights score every patch of an image (Shi et al., IEEE TIP 2021) or every
instance of a bag (Shi et al., AAAI 2020): one set of parameters gives the patch weights, the patch
predictions and the image prediction.

`lossattn_jax.attention.pooling` and the other submodules are imported when they are first wanted.
"""

from typing import TYPE_CHECKING

from lossattn_jax.commands import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:  # the parts that README shows, for editors and type checkers
    from lossattn_jax import data as data
    from lossattn_jax import mil as mil
    from lossattn_jax import models as models
    from lossattn_jax import train as train
    from lossattn_jax.attention import losses as losses
    from lossattn_jax.attention import pooling as pooling
    from lossattn_jax.attention import routing as routing
    from lossattn_jax.checkpoint import conversion as convert
    from lossattn_jax.evaluate import evaluation as evaluate
    from lossattn_jax.explain import explainers as explainers
    from lossattn_jax.explain import receptive_field as receptive_field
    from lossattn_jax.explain import run_report as explain
    from lossattn_jax.explain.metrics import faithfulness as faithfulness
    from lossattn_jax.explain.metrics import localisation as localisation
    from lossattn_jax.explain.metrics import map_agreement as map_agreement
else:
    __getattr__, __dir__ = lazy.attach(__name__)
