"""Test-time self-improvement for tool-calling language models, in pure JAX (arXiv 2510.07841).

>>> import ttsi_jax as ttsi
>>> model = ttsi.load_model("smollm2-135m-instruct")
>>> task = ttsi.load_task("bfcl:multiple", limit=24)
>>> config = ttsi.RunConfig(answer=ttsi.AnswerConfig(form="keys"), adapt=ttsi.AdaptConfig(scope="suffix"))
>>> result = ttsi.run(model, task, config, out="runs/first")
>>> result.summary["pick_accuracy_base"], result.summary["pick_accuracy"]
"""

from ttsi_jax.adaptation import AdaptConfig, Batch, Forward, Loss, LossFn, Outputs, UpdateRule
from ttsi_jax.answering import AnswerConfig
from ttsi_jax.checkpoints import LanguageModel, load_model, load_peft, save_peft
from ttsi_jax.config import RunConfig
from ttsi_jax.errors import InputError, ModelFileError
from ttsi_jax.loop import Result, run
from ttsi_jax.model.lora import Adapter, LoraConfig, LowRank, init_adapter
from ttsi_jax.rules import adamw, answer_cross_entropy, optax_rule
from ttsi_jax.runs.record import Record
from ttsi_jax.synthesis import SynthesisConfig
from ttsi_jax.tasks import Call, Example, GoldCall, Task, Tool, load_task
from ttsi_jax.uncertainty import Estimator, GateConfig, margin, relative_softmax

__version__ = "0.1.0"

__all__ = [
    "AdaptConfig",
    "Adapter",
    "AnswerConfig",
    "Batch",
    "Call",
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
    "RunConfig",
    "SynthesisConfig",
    "Task",
    "Tool",
    "UpdateRule",
    "adamw",
    "answer_cross_entropy",
    "init_adapter",
    "load_model",
    "load_peft",
    "load_task",
    "margin",
    "optax_rule",
    "relative_softmax",
    "run",
    "save_peft",
]
