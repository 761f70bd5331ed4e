"""The fourteen methods of the AAAI 2020 paper's Table 1, by name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lossattn_jax.errors import UserError
from lossattn_jax.mil.bag_kernels import MIGraph, MIKernel
from lossattn_jax.mil.diverse_density import EMDD
from lossattn_jax.mil.embeddings import MiFV, MiVLAD
from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.mil.svm import MISVM, MiSVM

DATASETS = ("musk1", "musk2", "fox", "tiger", "elephant")


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
      title: as the paper prints it.
      classical: makes the method, or None for a network.
      paper: the paper's accuracy on each of `DATASETS`, in their order: mean of ten folds, five times. None
        where it has none, as for what comes after the last; tables then have a dash.
    """

    title: str
    classical: Callable[..., BagClassifier] | None
    paper: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        """Raises `ValueError` where there are more accuracies than data sets."""
        if len(self.paper) > len(DATASETS):
            raise ValueError(
                f"{self.title} has {len(self.paper)} accuracies of the paper, but may have one for each of "
                f"{', '.join(DATASETS)}"
            )

    def printed(self, dataset: str) -> float | None:
        """The paper's accuracy on a data set; None where it has none."""
        return dict(zip(DATASETS, self.paper, strict=False)).get(dataset)


METHODS: Mapping[str, Method] = {
    "mi_svm": Method("mi-SVM", MiSVM, (0.874, 0.836, 0.582, 0.784, 0.822)),
    "mi_svm_bag": Method("MI-SVM", MISVM, (0.779, 0.843, 0.578, 0.840, 0.843)),
    "mi_kernel": Method("MI-Kernel", MIKernel, (0.880, 0.893, 0.603, 0.842, 0.843)),
    "em_dd": Method("EM-DD", EMDD, (0.849, 0.869, 0.609, 0.730, 0.771)),
    "mi_graph": Method("mi-Graph", MIGraph, (0.889, 0.903, 0.620, 0.860, 0.869)),
    "mi_vlad": Method("miVLAD", MiVLAD, (0.871, 0.872, 0.620, 0.811, 0.850)),
    "mi_fv": Method("miFV", MiFV, (0.909, 0.884, 0.621, 0.813, 0.852)),
    "mi_net": Method("mi-Net", None, (0.889, 0.858, 0.613, 0.824, 0.858)),
    "mi_net_bag": Method("MI-Net", None, (0.887, 0.859, 0.622, 0.830, 0.862)),
    "mi_net_ds": Method("MI-Net with DS", None, (0.894, 0.874, 0.630, 0.845, 0.872)),
    "mi_net_rc": Method("MI-Net with RC", None, (0.898, 0.873, 0.619, 0.836, 0.857)),
    "attention": Method("Attention", None, (0.892, 0.858, 0.615, 0.839, 0.868)),
    "gated_attention": Method("Gated-Attention", None, (0.900, 0.863, 0.603, 0.845, 0.857)),
    "loss_attention": Method("Loss-Attention", None, (0.917, 0.911, 0.712, 0.897, 0.900)),
}
NAMES = tuple(METHODS)


def get(name: str) -> Method:
    """The row of a method.

    Raises:
      UserError: there is none of that name.
    """
    if name not in METHODS:
        raise UserError(f"the method {name!r} is not known; allowed are {', '.join(NAMES)}")
    return METHODS[name]


def make(name: str, **settings: Any) -> BagClassifier:
    """A method, ready for `fit`.

    Args:
      name: one of `NAMES`.
      **settings: of its class, beyond the defaults.

    Raises:
      UserError: there is no such method.
    """
    classical = get(name).classical
    if classical is not None:
        return classical(**settings)
    return NetworkClassifier(method=name, **settings)
