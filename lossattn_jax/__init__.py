"""Loss-based attention for images and bags, in JAX and Flax.

The classifier's own weights score every patch of an image (Shi et al., IEEE TIP 2021) or every
instance of a bag (Shi et al., AAAI 2020): one set of parameters gives the patch weights, the patch
predictions and the image prediction.
"""

__version__ = "0.1.0"
