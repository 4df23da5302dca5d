"""Contract checks for what a researcher writes, on a tiny random model: seconds, no download.

>>> from ttsi_jax.rules import sgd
>>> check_rule(sgd)
>>> check_estimator(lambda log_likelihoods, mask: jnp.sum(log_likelihoods))  # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
ttsi_jax.testing.contract.ContractError: estimator '<lambda>' is not within [0, 1]: ...
"""

import jax.numpy as jnp

from ttsi_jax.testing.contract import ContractError
from ttsi_jax.testing.estimators import check_estimator
from ttsi_jax.testing.rules import check_loss, check_rule
from ttsi_jax.testing.tiny import tiny_language_model, tiny_model

__all__ = ["ContractError", "check_estimator", "check_loss", "check_rule", "jnp", "tiny_language_model", "tiny_model"]
