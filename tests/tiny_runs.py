"""A small model on disk and a small task to take through the whole loop, and objects for `package.module:object`.

The model is random, but after the head of an assistant's turn it says one of a few whole answers, each a token of its
own, and then stops. Which one depends on the prompt, on the adapter and on sampling, as with a real model.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from checkpoints.tiny_models import SPECIAL, hf_settings, hf_tensors, write_hf
from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.answering import AnswerConfig
from ttsi_jax.checkpoints import LanguageModel, load_model
from ttsi_jax.config import RunConfig
from ttsi_jax.rules import adamw
from ttsi_jax.rules.interface import UpdateRule
from ttsi_jax.runs.record import Record
from ttsi_jax.synthesis import SynthesisConfig
from ttsi_jax.tasks import Example, GoldCall, Task, Tool, normalise_parameters
from ttsi_jax.tasks.prompts import NEW_PAIR, NEW_REQUEST, SYSTEM, render_tools
from ttsi_jax.uncertainty import GateConfig


def tool(name: str, required: list[str] | None = None, /, **properties: dict[str, Any]) -> Tool:
    names = list(properties) if required is None else required
    schema = {"type": "object", "properties": properties, "required": names}
    return Tool(name, f"To {name}.", normalise_parameters(schema))


STRING, INTEGER, NUMBER, BOOLEAN = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))
ADD = tool("add", a=INTEGER, b=INTEGER)
GREET = tool("greet", ["name"], name=STRING, loud=BOOLEAN)
CONVERT = tool("convert", amount=NUMBER, unit={"type": "string", "enum": ["m", "ft"]})
ORDER = tool("order", items={"type": "array", "items": STRING}, options={"type": "object"})
PING = tool("ping")
SWITCH = tool("switch", on=BOOLEAN)
MARKED = replace(GREET, description="To greet ~~")  # see `diverging`
EVERY_TOOL = (ADD, GREET, CONVERT, ORDER, PING, SWITCH)

ANSWERS = (
    '{"name": "add", "arguments": {"a": 1, "b": 2}}',
    '{"name": "greet", "arguments": {"name": "Bo"}}',
    'greet(name="Al")',
    "I cannot help.",
    '{"request": "Sum of 4 and 5?", "call": {"name": "add", "arguments": {"a": 4, "b": 5}}}',
    '{"request": "Say hi to Cy", "call": {"name": "greet", "arguments": {"name": "Cy", "loud": true}}}',
    '{"request": "Add two and 2", "call": {"name": "add", "arguments": {"a": "two", "b": 2}}}',
    '{"request": "", "call": {"name": "add", "arguments": {"a": 4, "b": 5}}}',
)


def example(id: str, query: str, tools: tuple[Tool, ...] = (ADD, GREET), gold: Any = "add") -> Example:
    """`gold` is the name of the right function, called without arguments, or what an example holds."""
    gold = (GoldCall(gold, {}),) if isinstance(gold, str) else gold
    return Example(id, ({"role": "user", "content": query},), tools, gold)


EXAMPLES = (
    example("one", "What is 1 and 2?", gold=(GoldCall("add", {"a": (1,), "b": (2, "two")}),)),
    example(
        "two", "Please greet Bo", gold=(GoldCall("greet", {"name": ("Bo",), "loud": (True,)}, frozenset({"loud"})),)
    ),
    example("three", "Turn it on", (SWITCH, CONVERT, PING), gold="switch"),
    example("four", "Hello there – ü", (GREET, ADD), gold=None),
    example("five", "12 m in ft, and greet Di", (CONVERT, GREET, ADD), gold=()),
    example("six", "Is the server up? Ping it", (PING, SWITCH), gold="ping"),
    example("seven", "Order tea and milk", (ORDER, ADD, SWITCH), gold="order"),
)
TASK = Task("tiny", EXAMPLES)


def write_model(directory: Path, **changes: Any) -> Path:
    """The model as a Hugging Face directory, with changes of its shape; a few rows of its vocabulary have no token."""
    tokenizer = _tokenizer()
    settings = hf_settings(
        "llama", vocab_size=tokenizer.get_vocab_size() + 5, hidden_size=32, intermediate_size=48, head_dim=8,
        num_hidden_layers=1, max_position_embeddings=4096, tie_word_embeddings=False,
    ) | changes  # fmt: skip
    tensors = hf_tensors(settings)
    for name, value in tensors.items():
        tensors[name] = 1 + value / 10 if value.ndim == 1 else value if "embed" in name else value / 4
    rng = np.random.default_rng(0)
    asked, said = rng.normal(size=(2, 32)).astype(np.float32)
    embed, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    answers = [tokenizer.token_to_id(_as_token(text)) for text in ANSWERS]
    embed[tokenizer.token_to_id(_as_token("\n"))] = 1.5 * asked
    head[answers] = 0.7 * asked + 0.5 * rng.normal(size=(len(answers), 32)).astype(np.float32)
    embed[answers] += 4 * said
    head[SPECIAL.index("<|im_end|>")] += 0.5 * said
    head[[tokenizer.token_to_id(_as_token(text)) for text in ('"', "\n", ",", "}", "]")]] *= (
        4  # values and lines end soon
    )
    write_hf(directory, settings, tensors)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def _as_token(text: str) -> str:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]


def _tokenizer() -> Tokenizer:
    """A byte-level tokenizer with merges from our prompts, and a token for each answer that no text is cut into."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=520, initial_alphabet=sorted(alphabet), special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator([SYSTEM, NEW_REQUEST, NEW_PAIR, render_tools(EVERY_TOOL)] * 2, trainer)
    described = json.loads(tokenizer.to_str())
    vocabulary = described["model"]["vocab"]
    vocabulary |= {_as_token(text): len(vocabulary) + index for index, text in enumerate(ANSWERS)}
    return Tokenizer.from_str(json.dumps(described))


@lru_cache
def tiny_model() -> LanguageModel:
    """The model of `write_model`, loaded."""
    with TemporaryDirectory() as directory:
        return load_model(write_model(Path(directory) / "tiny"))


def settings(form: str = "keys", scope: str = "suffix", method: str = "tt-si", **changes: Any) -> RunConfig:
    """A configuration in which a run takes little time, and a step changes much."""
    config = RunConfig(
        method=method,
        gate=GateConfig(tau=1.1),
        synthesis=SynthesisConfig(form="request", max_tokens=8),
        adapt=AdaptConfig(scope=scope, epochs=3, lr=3e-2, rank=2),
        answer=AnswerConfig(form=form, max_tokens=24, value_tokens=4),
        wave=4,
    )
    return replace(config, **changes)


def gate(**changes: Any) -> dict[str, GateConfig]:
    """The gate of `settings` with changes, as an argument of `settings`."""
    return {"gate": replace(settings().gate, **changes)}


def numbered(n: int) -> list[Example]:
    """So many inputs, which differ in their ids and requests."""
    found = []
    for index in range(n):
        one = EXAMPLES[index % len(EXAMPLES)]
        messages = ({"role": "user", "content": f"{one.query} ({index})"},)
        found.append(replace(one, id=f"input {index}", messages=messages))
    return found


def task_of(*examples: Example) -> Task:
    return Task("tiny", examples)


def with_template(check: str) -> LanguageModel:
    """The model, with a statement about a message `m` before each turn of its chat template."""
    tokenizer = copy.deepcopy(tiny_model().tokenizer)
    start = "{% for m in messages %}"
    tokenizer.chat_template = tokenizer.chat_template.replace(start, start + check)
    return tiny_model()._replace(tokenizer=tokenizer)


def with_tokens_beyond() -> LanguageModel:
    """The model, with a tokenizer that was given tokens <0> to <5>, the last of them beyond the embedding."""
    tokenizer = copy.deepcopy(tiny_model().tokenizer)
    tokenizer.add_tokens([f"<{number}>" for number in range(6)])
    return tiny_model()._replace(tokenizer=tokenizer)


def timeless(record: Record) -> Record:
    return replace(record, seconds={})


def untimed(found: Iterable[Record]) -> dict[str, Record]:
    return {record.id: timeless(record) for record in found}


# What tests name as `tiny_runs:object`.


def least(log_likelihoods, mask):  # noqa: ANN001, ANN201
    """An estimator: no input is ever certain."""
    return jnp.zeros(())


def diverging(lr: float) -> UpdateRule:
    """AdamW whose loss is not a number for an input whose tools are described with a tilde."""
    rule = adamw(lr)

    def step(loss_fn, adapter, state, batch, key):  # noqa: ANN001, ANN202
        adapter, state, metrics = rule.step(loss_fn, adapter, state, batch, key)
        marked = jnp.any(batch.tokens.ids == TILDE)
        return adapter, state, metrics | {"loss": jnp.where(marked, jnp.nan, metrics["loss"])}

    return UpdateRule(rule.init, step)


def proximal(lr: float = 0.1) -> UpdateRule:
    """Gradient descent that is drawn back to the start, which its state keeps."""

    def init(adapter, n_steps):  # noqa: ANN001, ANN202
        return {"start": adapter, "lr": jnp.float32(lr)}

    return UpdateRule(init, _draw_back)


def _draw_back(loss_fn, adapter, state, batch, key):  # noqa: ANN001, ANN202
    (loss, aux), gradient = jax.value_and_grad(loss_fn, has_aux=True)(adapter, batch, key)
    step = lambda x, g, start: x - state["lr"] * (g + 0.1 * (x - start))  # noqa: E731
    return jax.tree.map(step, adapter, gradient, state["start"]), state, {**aux, "loss": loss}


def _tilde() -> int:
    return _tokenizer().token_to_id("~")


TILDE = _tilde()
READY_RULE = adamw(3e-2)
