"""The methods for bags.

They are the fourteen of the AAAI 2020 paper's Table 1 (`PAPER_NAMES`), baselines of others, and a user's own.

A method is one entry of `METHODS`. Of the user's own, `package.module:attribute` is a `BagClassifier` or a
`Method`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax.attention import poolings
from lossattn_jax.errors import UserError
from lossattn_jax.mil.bag_kernels import MIGraph, MIKernel
from lossattn_jax.mil.diverse_density import EMDD
from lossattn_jax.mil.embeddings import MiFV, MiVLAD
from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.mil.svm import MISVM, MiSVM
from lossattn_jax.registry import Registry, is_function, is_reference, source_digest

# The benchmarks that the paper prints accuracies of, in its order.
PAPER_BENCHMARKS = ("musk1", "musk2", "fox", "tiger", "elephant")


@dataclasses.dataclass(frozen=True)
class Method:
    """A method for bags.

    It is a classifier that is fitted fold by fold, or a network that is trained on all folds at once.

    Attributes:
      title: as tables have it; of the paper's as it prints it.
      classical: makes the method, or None for a network.
      paper: the paper's accuracy on each of `PAPER_BENCHMARKS`, in their order: mean of ten folds, five
        times. None where it has none, as for what comes after the last; tables then have a dash.
      network: the method of `bag_networks.BagNetwork` that is trained; None for a classical one.
    """

    title: str
    classical: Callable[..., BagClassifier] | None
    paper: tuple[float | None, ...] = ()
    network: str | None = None

    def __post_init__(self) -> None:
        """Refuses more accuracies than data sets with a `ValueError`."""
        if len(self.paper) > len(PAPER_BENCHMARKS):
            raise ValueError(
                f"{self.title} has {len(self.paper)} accuracies of the paper, but may have one for each of "
                f"{', '.join(PAPER_BENCHMARKS)}"
            )

    def paper_accuracy(self, dataset: str) -> float | None:
        """The paper's accuracy on a data set; None where it has none."""
        return dict(zip(PAPER_BENCHMARKS, self.paper, strict=False)).get(dataset)

    def make(self, **settings: Any) -> BagClassifier:
        """Makes the method, ready for `fit`.

        Args:
          **settings: of its class, beyond the defaults.
        """
        if self.classical is not None:
            return self.classical(**settings)
        return NetworkClassifier(method=self.trained_network, **settings)

    @property
    def trained_network(self) -> str:
        """Returns `network`, of a method that is one.

        Raises:
          UserError: it is none.
        """
        if self.network is None:
            raise UserError(f"{self.title} has neither a classifier nor a network")
        return self.network

    @property
    def unequal_classes(self) -> bool:
        """Whether one of two classes has to be positive."""
        return self.make().unequal_classes

    @property
    def weighs_classes(self) -> bool:
        """Whether the losses or errors of bags may be weighed by class."""
        return "class_weight" in self.make().get_params(deep=False)

    @property
    def takes_images(self) -> bool:
        """Whether instances may be images, and not only vectors."""
        return self.network is not None

    def check_options(self, values: Mapping[str, float], name: str) -> None:
        """Refuses options that the method has not.

        Args:
          values: by name.
          name: of the method, for the sentence.

        Raises:
          UserError: there is no such option, or a value is not allowed.
        """
        if self.network is not None:
            poolings.BAG_POOLINGS.find(self.network).complete_options(values, name)
        elif values:
            raise UserError(
                f"the option {next(iter(values))!r} of {name} must be left out: it has none"
            )

    def check_settings(self, names: Iterable[str], name: str) -> None:
        """Refuses settings that the method's class has not.

        Args:
          names: of the settings.
          name: of the method, for the sentence.

        Raises:
          UserError: there is one.
        """
        parameters = inspect.signature(self.classical or NetworkClassifier).parameters.values()
        if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
            return
        own = {one.name for one in parameters} - ({"method"} if self.network else set())
        for unknown in sorted(set(names) - own):
            raise UserError(
                f"{unknown!r} is no setting of the method {name!r}, which has {', '.join(sorted(own))}"
            )

    @property
    def takes_several_labels(self) -> bool:
        """Whether bags may have any number of labels."""
        if self.network is None:
            return False
        return poolings.BAG_POOLINGS.find(self.network).several_labels

    def memory(self, lengths: np.ndarray, labels: np.ndarray) -> int:
        """Estimates the bytes that fitting takes; 0 for networks.

        See `BagClassifier.memory`.
        """
        return self.make().memory(lengths, labels)


def _of_network(name: str, pooling: poolings.Pooling) -> Method:
    paper = pooling.paper
    if paper is None:
        return Method(pooling.title or name, None, network=name)
    return Method(paper.title, None, paper.accuracy, network=name)


def _adopt(reference: str, part: Any) -> Method:
    """Makes a method of a user's class or pooling."""
    if isinstance(part, poolings.Pooling) or is_function(part):
        return _of_network(reference, poolings.BAG_POOLINGS.find(reference))
    if not (isinstance(part, type) and issubclass(part, BagClassifier)):
        raise UserError(
            f"the method {reference!r} is a {type(part).__name__}, but must be a subclass of "
            "lossattn_jax.mil.estimator.BagClassifier, a lossattn_jax.mil.methods.Method, or a pooling"
        )
    try:
        part()
    except TypeError as error:
        raise UserError(
            f"the method {reference!r} cannot be made without arguments ({error}), as every method must"
        ) from None
    return Method(part.__name__, part)


METHODS = Registry(
    "method",
    Method,
    {
        "mi_svm": Method("mi-SVM", MiSVM, (0.874, 0.836, 0.582, 0.784, 0.822)),
        "mi_svm_bag": Method("MI-SVM", MISVM, (0.779, 0.843, 0.578, 0.840, 0.843)),
        "mi_kernel": Method("MI-Kernel", MIKernel, (0.880, 0.893, 0.603, 0.842, 0.843)),
        "em_dd": Method("EM-DD", EMDD, (0.849, 0.869, 0.609, 0.730, 0.771)),
        "mi_graph": Method("mi-Graph", MIGraph, (0.889, 0.903, 0.620, 0.860, 0.869)),
        "mi_vlad": Method("miVLAD", MiVLAD, (0.871, 0.872, 0.620, 0.811, 0.850)),
        "mi_fv": Method("miFV", MiFV, (0.909, 0.884, 0.621, 0.813, 0.852)),
        **{name: _of_network(name, pooling) for name, pooling in poolings.BAG_POOLINGS.items()},
    },
    adopt=_adopt,
)
NAMES = tuple(METHODS)
PAPER_NAMES = tuple(
    name for name, method in METHODS.items() if method.paper
)  # the rows of its table


# Words for several of them.
ALL, PAPER = "all", "paper"
_GROUPS = {ALL: NAMES, PAPER: PAPER_NAMES}


def expand_names(names: Sequence[str]) -> tuple[str, ...]:
    """Expands words for several methods, and drops repeated names."""
    every = (other for name in names for other in _GROUPS.get(name, (name,)))
    return tuple(dict.fromkeys(every))


def get(name: str) -> Method:
    """Looks up a method.

    Args:
      name: one of `NAMES`, or `package.module:attribute` of the user's own.

    Raises:
      UserError: there is none of that name.
    """
    return METHODS.find(name)


def make(name: str, **settings: Any) -> BagClassifier:
    """Makes a method, ready for `fit`.

    Args:
      name: as `get` takes it.
      **settings: of its class, beyond the defaults.

    Raises:
      UserError: there is no such method, it has no such setting, or a value is impossible.
    """
    method = get(name)
    method.check_settings(settings, name)
    classifier = method.make(**settings)
    classifier.check_params()
    return classifier


def refuse_weights(names: Sequence[str], class_weight: str | None) -> None:
    """Refuses weights of classes for methods that have none.

    Args:
      names: as `get` takes them.
      class_weight: of `BagTrainOptions`; None: none are wanted.

    Raises:
      UserError: one sentence for all methods.
    """
    without = [] if class_weight is None else [n for n in names if not get(n).weighs_classes]
    if without:
        weigh = "weighs" if len(without) == 1 else "weigh"
        raise UserError(
            f"--class_weight is {class_weight}, but {', '.join(without)} {weigh} no classes; leave it out"
        )


def refuse_drawn_instances(names: Sequence[str], max_instances: int) -> None:
    """Refuses to draw instances for methods that see all of them.

    Args:
      names: as `get` takes them.
      max_instances: of `BagTrainOptions`; 0: none are drawn.

    Raises:
      UserError: one sentence for all methods.
    """
    without = [name for name in names if get(name).network is None] if max_instances else []
    if without:
        see = "sees" if len(without) == 1 else "see"
        raise UserError(
            f"config.train.max_instances is {max_instances}, but {', '.join(without)} {see} all instances at "
            "once; leave it out, or take networks"
        )


def refuse_several_labels(names: Sequence[str], bags: str, class_weight: str | None) -> None:
    """Refuses methods that take one label of a bag, where bags have several.

    Args:
      names: as `get` takes them.
      bags: name of the data set.
      class_weight: of `BagTrainOptions`; None: none are wanted.

    Raises:
      UserError: one sentence for all methods, or classes are to be weighed.
    """
    without = [name for name in names if not get(name).takes_several_labels]
    if without:
        able = ", ".join(name for name in NAMES if get(name).takes_several_labels)
        raise UserError(
            f"the bags of {bags} have several labels each, but {', '.join(without)} "
            f"{'takes' if len(without) == 1 else 'take'} one; take {able}, or one column of labels"
        )
    if class_weight is not None:
        raise UserError(
            f"--class_weight is {class_weight}, but the bags of {bags} have several labels each, whose "
            "losses are not weighed; leave it out"
        )


def code_digest(name: str) -> str | None:
    """Digests the file of a user's own method; None for the package's."""
    return source_digest(name) if is_reference(name) else None
