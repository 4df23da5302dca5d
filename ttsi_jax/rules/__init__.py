# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""The gallery of losses and update rules; each is written for ONE example, and `ttsi_jax.adaptation` lifts it."""

from collections.abc import Callable

from ttsi_jax.rules.interface import Loss, UpdateRule
from ttsi_jax.rules.losses import (
    answer_cross_entropy,
    dpo,
    entropy,
    kl_anchored,
    reinforce,
    self_distillation,
)
from ttsi_jax.rules.updates import (
    adamw,
    by_projection,
    lion,
    lora_plus,
    muon,
    optax_rule,
    ridge,
    sgd,
    sign_sgd,
    warmup_cosine,
)

LOSSES: dict[str, Loss] = {
    "answer_cross_entropy": answer_cross_entropy,
    "kl_anchored": kl_anchored,
    "entropy": entropy,
    "self_distillation": self_distillation,
    "dpo": dpo,
    "reinforce": reinforce,
}
RULES: dict[str, Callable[..., UpdateRule]] = {  # functions whose first argument is the rate, with a default
    "adamw": adamw,
    "sgd": sgd,
    "sign_sgd": sign_sgd,
    "lion": lion,
    "muon": muon,
    "lora_plus": lora_plus,
    "ridge": ridge,
}

__all__ = [
    "LOSSES",
    "RULES",
    "adamw",
    "answer_cross_entropy",
    "by_projection",
    "dpo",
    "entropy",
    "kl_anchored",
    "lion",
    "lora_plus",
    "muon",
    "optax_rule",
    "reinforce",
    "ridge",
    "self_distillation",
    "sgd",
    "sign_sgd",
    "warmup_cosine",
]
