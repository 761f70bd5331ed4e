"""The fourteen methods of the AAAI 2020 paper's Table 1, by name."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lossattn_jax.attention import poolings
from lossattn_jax.errors import UserError
from lossattn_jax.mil.bag_kernels import MIGraph, MIKernel
from lossattn_jax.mil.diverse_density import EMDD
from lossattn_jax.mil.embeddings import MiFV, MiVLAD
from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.mil.svm import MISVM, MiSVM
from lossattn_jax.registry import is_reference

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


def _of_network(name: str, pooling: poolings.Pooling) -> Method:
    published = pooling.published
    return (
        Method(name, None)
        if published is None
        else Method(published.title, None, published.accuracy)
    )


METHODS: Mapping[str, Method] = {
    "mi_svm": Method("mi-SVM", MiSVM, (0.874, 0.836, 0.582, 0.784, 0.822)),
    "mi_svm_bag": Method("MI-SVM", MISVM, (0.779, 0.843, 0.578, 0.840, 0.843)),
    "mi_kernel": Method("MI-Kernel", MIKernel, (0.880, 0.893, 0.603, 0.842, 0.843)),
    "em_dd": Method("EM-DD", EMDD, (0.849, 0.869, 0.609, 0.730, 0.771)),
    "mi_graph": Method("mi-Graph", MIGraph, (0.889, 0.903, 0.620, 0.860, 0.869)),
    "mi_vlad": Method("miVLAD", MiVLAD, (0.871, 0.872, 0.620, 0.811, 0.850)),
    "mi_fv": Method("miFV", MiFV, (0.909, 0.884, 0.621, 0.813, 0.852)),
    **{name: _of_network(name, pooling) for name, pooling in poolings.METHODS.items()},
}
NAMES = tuple(METHODS)


def get(name: str) -> Method:
    """The row of a method; of a pooling that is named by reference, one without figures.

    Raises:
      UserError: there is none of that name.
    """
    if is_reference(name):
        poolings.METHODS.find(name)
        return Method(name, None)
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
