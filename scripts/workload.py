"""The work that the benchmarks measure: models, inputs of exact lengths, and the library's own path over them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.answering import TEXT, Slot
from ttsi_jax.batching.inputs import PREFIX_STEP, SUFFIX_STEP, example_key
from ttsi_jax.batching.lanes import Prompt
from ttsi_jax.batching.lanes import Work as Decode
from ttsi_jax.batching.waves import Ids, Pair, Row, Shape, Waves
from ttsi_jax.checkpoints import LanguageModel, load_model
from ttsi_jax.checkpoints.config import from_hf
from ttsi_jax.errors import InputError
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import abstract_params
from ttsi_jax.model.lora import Adapter, init_adapter
from ttsi_jax.rules import adamw, answer_cross_entropy
from ttsi_jax.tasks import load_task
from ttsi_jax.tasks.prompts import NEW_PAIR, OPENING, PromptEncoder, answer_messages, synthesis_messages

_QWEN2 = {"model_type": "qwen2", "vocab_size": 151936, "max_position_embeddings": 32768, "rope_theta": 1e6}
SHAPES: dict[str, dict[str, Any]] = {  # config.json of models whose weights a benchmark can do without
    "tiny": {
        "model_type": "llama", "vocab_size": 288, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 8192,
        "rope_theta": 1e4, "tie_word_embeddings": True,
    },
    "smollm2-135m": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "rope_theta": 1e5, "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": _QWEN2 | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "qwen2.5-1.5b": _QWEN2 | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "qwen2.5-7b": _QWEN2 | {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "qwen2.5-72b": _QWEN2 | {
        "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip


# Models


def random_model(shape: str, dtype: str | None = None) -> LanguageModel:
    """A model of a known shape with random weights, whose words are its token ids.

    Args:
        shape: a key of `SHAPES`.
        dtype: float32 or bfloat16; by default float32 on the CPU and bfloat16 elsewhere.

    Raises:
        InputError: for another shape.
    """
    if shape not in SHAPES:
        raise InputError(f"no shape is called '{shape}'; known: {', '.join(SHAPES)}")
    config = from_hf(SHAPES[shape] | {"rms_norm_eps": 1e-5})
    leaves, tree = jax.tree.flatten(abstract_params(config, dtype or default_dtype()))

    @jax.jit
    def fill(key: jax.Array) -> list[jax.Array]:
        keys = jax.random.split(key, len(leaves))
        draw = lambda k, x: (jax.random.normal(k, x.shape) * x.shape[-1] ** -0.5).astype(x.dtype)  # noqa: E731
        return [jnp.ones(x.shape, x.dtype) if x.ndim == 1 else draw(k, x) for k, x in zip(keys, leaves, strict=True)]

    params = jax.tree.unflatten(tree, fill(jax.random.key(0)))
    return LanguageModel(config, params, numbers(config), (), f"random {shape}", "random")


def default_dtype() -> str:
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def numbers(config: DecoderConfig) -> PreTrainedTokenizerFast:
    """A tokenizer whose word for a token is its id, so that a text tells exactly which tokens were said."""
    tokenizer = Tokenizer(WordLevel({str(index): index for index in range(config.vocab_size)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


# Inputs


@dataclass(frozen=True)
class Work:
    """How much one input asks for, in tokens; both sides of a comparison do exactly this much.

    Attributes:
        prefix: instructions and tool list.
        suffix: the request, in the prompts of all phases and in the training sequence (answer included).
        candidates, name: number of candidate functions, and tokens of each one's name.
        trained: the training sequence's last tokens, which the loss is on.
        steps: training steps.
        synthesis, answer: tokens decoded.
        lr: learning rate.
    """

    prefix: int = 550
    suffix: int = 100
    candidates: int = 5
    name: int = 6
    trained: int = 40
    steps: int = 5
    synthesis: int = 128
    answer: int = 96
    lr: float = 1e-4

    @property
    def packed(self) -> int:
        """Tokens of all names, read together behind the prompt."""
        return self.candidates * self.name

    @property
    def projected(self) -> int:
        """Tokens after which scoring needs logits: those of names but the last, the prompt's last, and the one that
        decoding goes on from."""
        return 2 + self.candidates * (self.name - 1)


class Input(NamedTuple):
    """One uncertain input."""

    id: str
    prefix: Ids
    request: Ids  # the answer prompt after the prefix, with the answer's opening
    synthesis: Ids  # the synthesis prompt after the prefix
    names: tuple[Ids, ...]
    pair: Pair


def make_inputs(work: Work, model: LanguageModel, source: str, start: int, n: int) -> list[Input]:
    """Inputs `start` to `start + n` of an endless series: real prompts cut to size, or (source "random") random ids."""
    if source == "random":
        return [_random_input(work, model.config.vocab_size, index) for index in range(start, start + n)]
    task, encoder = load_task(source), PromptEncoder(model.tokenizer)
    return [_real_input(work, encoder, task.examples, index) for index in range(start, start + n)]


def _random_input(work: Work, vocab_size: int, index: int) -> Input:
    rng = np.random.default_rng(index)
    draw = lambda n: tuple(rng.integers(3, vocab_size, n).tolist())  # noqa: E731
    names = tuple(draw(work.name) for _ in range(work.candidates))
    pair = Pair(draw(work.suffix - work.trained), draw(work.trained))
    return Input(f"random-{index}", draw(work.prefix), draw(work.suffix), draw(work.suffix), names, pair)


def _real_input(work: Work, encoder: PromptEncoder, examples: Sequence[Any], index: int) -> Input:
    """The tools of several examples, so that there are enough of them; prompts are cut in their middle."""
    turned = [*examples[index % len(examples) :], *examples[: index % len(examples)]]
    tools: dict[str, Any] = {}
    for example in islice(turned, 1 + max(work.prefix // 100, work.candidates)):
        tools |= {tool.name: tool for tool in example.tools}
    example = turned[0].__class__(turned[0].id, turned[0].messages, tuple(tools.values()), turned[0].gold)
    prompt = encoder.encode(example, answer_messages(example)) + encoder.fragment(OPENING)
    synthesis = encoder.encode(example, synthesis_messages(example, NEW_PAIR))
    names = tuple((encoder.fragment(name + '"') * work.name)[: work.name] for name in islice(tools, work.candidates))
    answer = encoder.fragment(f'{{"name": "{next(iter(tools))}", "arguments": {{}}}}')
    trained = (answer * work.trained)[: work.trained]
    pair = Pair(prompt[work.trained - work.suffix :], trained)
    return Input(
        f"{example.id}-{index}", prompt[: work.prefix], prompt[-work.suffix :], synthesis[-work.suffix :], names, pair
    )


def load(model: str, random_weights: str | None, dtype: str | None) -> tuple[LanguageModel, LanguageModel]:
    """The model to make inputs with, and the same one whose words are its token ids and which never stops."""
    found = random_model(random_weights, dtype) if random_weights else load_model(model, dtype=dtype)
    return found, found._replace(tokenizer=numbers(found.config), stop_ids=())


def initial_adapter(config: DecoderConfig, input_id: str) -> Adapter:
    """The adapter that `Waves.adapt` starts an input's training with."""
    return init_adapter(jax.random.split(example_key(0, input_id))[0], config, AdaptConfig().lora)


# The library's path


class Clock:
    """Seconds by name of the stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


class Found(NamedTuple):
    """What a side computed for one input, to compare with the other side's."""

    scores: list[float]  # [N] nats
    losses: list[float]  # [steps] nats, before each step
    adapted_scores: list[float]  # [N] nats, with the adapter
    synthesis: list[int]
    answer: list[int]


class JaxSide:
    """Inputs through `Waves`, as a run takes them."""

    def __init__(self, model: LanguageModel, work: Work, wave: int, common: Ids = ()):
        """`common`: the prefix, where all inputs have the same one."""
        self.work, self.common = work, common
        self.waves = Waves(model, wave, max(work.synthesis, work.answer))
        self.rule = adamw(work.lr)

    def shape(self) -> Shape:
        work = self.work
        up = lambda n, step: -(-n // step) * step  # noqa: E731
        return Shape(
            up(work.prefix, PREFIX_STEP), up(work.suffix, SUFFIX_STEP), work.candidates, work.name, self.common
        )

    def rows(self, inputs: Sequence[Input], phase: str = "request") -> list[Row]:
        """The inputs' places in a wave, with the prompt of a phase (a field of `Input`)."""
        shape = self.shape()
        return [
            Row(one.prefix, getattr(one, phase), len(getattr(one, phase)), example_key(0, one.id), shape)
            for one in inputs
        ]

    def config(self, scope: str) -> AdaptConfig:
        return AdaptConfig(scope=scope, epochs=self.work.steps, lr=self.work.lr)  # type: ignore[arg-type]

    def read(self, rows: list[Row], inputs: Sequence[Input]) -> tuple[list[np.ndarray], list[Prompt]]:
        return jax.block_until_ready(self.waves.score(rows, [one.names for one in inputs]))

    def decode(self, prompts: Sequence[Prompt], n_tokens: int) -> list[list[int]]:
        """What each row says after its prompt, with the adapter that it was read with."""
        said = self.waves.decode([Decode(prompt, [Slot(TEXT, limit=n_tokens)]) for prompt in prompts])
        return [[int(word) for word in own.texts[0].split()] for own in said]

    def train(self, rows: list[Row], inputs: Sequence[Input], scope: str) -> tuple[np.ndarray, list, list[Prompt]]:
        """Trains and reads the rows with what was learned: losses [E, steps], scores, prompts."""
        return jax.block_until_ready(
            self.waves.adapt(
                rows, [[one.pair] for one in inputs], [one.names for one in inputs], max_pairs=1, rule=self.rule,
                loss=answer_cross_entropy, config=self.config(scope),
            )
        )  # fmt: skip

    def improve(self, inputs: Sequence[Input], clock: Clock, scopes: Sequence[str] = ("all", "suffix")) -> Found:
        """Takes a wave through all stages; returns what the first input found, in the first scope."""
        work, rows, writing = self.work, self.rows(inputs), self.rows(inputs, "synthesis")
        with clock("score"):
            scores, _ = self.read(rows, inputs)
        with clock("synthesize"):
            _, prompts = self.read(writing, inputs)
            synthesis = self.decode(prompts, work.synthesis)
        found = []
        for scope in scopes:
            with clock(f"train {scope}"):
                losses, adapted_scores, prompts = self.train(rows, inputs, scope)
            with clock(f"decode {scope}"):
                answers = self.decode(prompts, work.answer)
            own = scores[0].tolist(), losses[0].tolist(), adapted_scores[0].tolist()
            found.append(Found(*own, synthesis[0], answers[0]))
        return found[0]

    def answer(self, inputs: Sequence[Input]) -> None:
        """Scores the candidates of a wave and answers, with the base."""
        rows = self.rows(inputs)
        _, prompts = self.read(rows, inputs)
        self.decode(prompts, self.work.answer)
