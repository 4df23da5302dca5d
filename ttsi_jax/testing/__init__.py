# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""Contract checks for what a researcher writes, on a tiny random model: seconds, no download.

>>> from ttsi_jax.rules import sgd
>>> check_rule(sgd)
>>> def total(log_likelihoods, mask):
...     return log_likelihoods.sum()
>>> try:
...     check_estimator(total)
... except ContractError as error:
...     print(error)
estimator 'total' is not within [0, 1]: one candidate, log-likelihoods [-1.0], give -1.
"""

from ttsi_jax.testing.contract import ContractError
from ttsi_jax.testing.estimators import check_estimator
from ttsi_jax.testing.rules import check_loss, check_rule
from ttsi_jax.testing.tiny import tiny_language_model, tiny_model

__all__ = ["ContractError", "check_estimator", "check_loss", "check_rule", "tiny_language_model", "tiny_model"]
