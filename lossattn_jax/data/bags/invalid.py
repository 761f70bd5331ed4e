"""Errors of the estimators for bags that are a user's mistake and, to scikit-learn, what it expects."""

from sklearn.exceptions import NotFittedError

from lossattn_jax.errors import UserError


class InvalidInput(UserError, ValueError, TypeError):
    """Bags, labels or parameters that an estimator cannot take."""


class NotFitted(UserError, NotFittedError):
    """An estimator that is to predict has not been fitted."""
