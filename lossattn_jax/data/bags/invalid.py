"""Errors of estimators for bags: a user's mistake and a scikit-learn error."""

from sklearn.exceptions import NotFittedError

from lossattn_jax.errors import UserError


class InvalidInput(UserError, ValueError, TypeError):
    """An estimator refuses bags, labels or parameters."""


class NotFitted(UserError, NotFittedError):
    """An estimator predicts before it is fitted."""
