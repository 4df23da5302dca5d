# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""Test-time self-improvement for tool-calling language models, in pure JAX (arXiv 2510.07841).

>>> import ttsi_jax as ttsi
>>> model = ttsi.tiny_language_model()  # random; or ttsi.load_model("smollm2-135m-instruct")
>>> schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
>>> tools = tuple(ttsi.Tool(name, "", schema) for name in ("forecast", "traffic"))
>>> rain = ttsi.Example("w1", ({"role": "user", "content": "Rain in Oslo?"},), tools, None)
>>> task = ttsi.Task("mine", (rain,))  # or ttsi.load_task("bfcl:multiple", limit=24)
>>> config = ttsi.RunConfig(method="base", answer=ttsi.AnswerConfig(form="keys", max_tokens=24), wave=1)
>>> result = ttsi.run(model, task, config)  # and out="runs/first" keeps it
>>> [record.candidates for record in result.records]
[['forecast', 'traffic']]
"""

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.answering import AnswerConfig, Answerer, Slot
from ttsi_jax.checkpoints import LanguageModel, load_model, load_peft, save_peft
from ttsi_jax.checkpoints.adapters import export_adapter, load_adapter
from ttsi_jax.config import RunConfig
from ttsi_jax.errors import InputError, ModelFileError
from ttsi_jax.loop import Result, run
from ttsi_jax.model.cache import PADDING
from ttsi_jax.model.lora import Adapter, LoraConfig, LowRank, init_adapter
from ttsi_jax.quality.presets import PRESETS
from ttsi_jax.rules import (
    adamw,
    answer_cross_entropy,
    by_projection,
    dpo,
    entropy,
    kl_anchored,
    lion,
    lora_plus,
    muon,
    optax_rule,
    reinforce,
    ridge,
    self_distillation,
    sgd,
    sign_sgd,
)
from ttsi_jax.rules.interface import Batch, Forward, Loss, LossFn, Outputs, RuleStep, UpdateRule, needs
from ttsi_jax.runs.record import Record
from ttsi_jax.synthesis import SynthesisConfig, Synthesizer, Synthetic, recorded
from ttsi_jax.tasks import Call, Example, GoldCall, Task, Tool, load_task
from ttsi_jax.testing import ContractError, check_estimator, check_loss, check_rule, tiny_language_model, tiny_model
from ttsi_jax.uncertainty import Estimator, GateConfig, margin, relative_softmax

__version__ = "0.2.0"

__all__ = [
    "PADDING",
    "PRESETS",
    "AdaptConfig",
    "Adapter",
    "AnswerConfig",
    "Answerer",
    "Batch",
    "Call",
    "ContractError",
    "Estimator",
    "Example",
    "Forward",
    "GateConfig",
    "GoldCall",
    "InputError",
    "LanguageModel",
    "LoraConfig",
    "Loss",
    "LossFn",
    "LowRank",
    "ModelFileError",
    "Outputs",
    "Record",
    "Result",
    "RuleStep",
    "RunConfig",
    "Slot",
    "SynthesisConfig",
    "Synthesizer",
    "Synthetic",
    "Task",
    "Tool",
    "UpdateRule",
    "adamw",
    "answer_cross_entropy",
    "by_projection",
    "check_estimator",
    "check_loss",
    "check_rule",
    "dpo",
    "entropy",
    "export_adapter",
    "init_adapter",
    "kl_anchored",
    "lion",
    "load_adapter",
    "load_model",
    "load_peft",
    "load_task",
    "lora_plus",
    "margin",
    "muon",
    "needs",
    "optax_rule",
    "recorded",
    "reinforce",
    "relative_softmax",
    "ridge",
    "run",
    "save_peft",
    "self_distillation",
    "sgd",
    "sign_sgd",
    "tiny_language_model",
    "tiny_model",
]
