"""One input on its way through the loop: its token ids, its shapes, its random key and what is known of it so far.

Shapes are powers of two times a smallest size. Inputs that share a wave have equal shapes, and each input's depend on
that input alone, so that who shares the wave never changes a result.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax import Array

from ttsi_jax.config import RunConfig
from ttsi_jax.errors import InputError
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import scored
from ttsi_jax.tasks import Example, Tool
from ttsi_jax.tasks.pieces import name_text
from ttsi_jax.tasks.prompts import (
    NEW_PAIR,
    NEW_REQUEST,
    OPENING,
    PromptEncoder,
    answer_messages,
    request_opening,
    synthesis_messages,
)
from ttsi_jax.waves import PREFIX_SIZES, SUFFIX_SIZES, Ids, Pair, Row, bucket, candidate_shape, training_shape

# What an input's random key is used for; each use folds its own number into the key.
SYNTHESIS, ADAPTATION, ANSWER = 0, 1, 2


@dataclass(eq=False)
class Draft:
    """An input between two stages."""

    example: Example
    prefix: Ids
    answer: Ids  # the answer prompt after the prefix
    opened: Ids  # the same with the answer's opening, after which candidates are scored
    request: Ids  # the synthesis prompt after the prefix
    names: list[Ids]  # the candidates
    synthesis_room: int  # bucket of the synthesis prompt, and of a prompt with a new request instead of the input's own
    key: Array
    record: Record
    pairs: list[Pair] = field(default_factory=list)

    def note(self, **values: Any) -> None:
        """Sets fields of the record."""
        self.record = replace(self.record, **values)

    def tool(self, name: str | None) -> Tool:
        return next(tool for tool in self.example.tools if tool.name == name)

    def best(self, scores: np.ndarray) -> str:
        """The name of the candidate with the highest score."""
        return self.example.tools[int(np.argmax(scores))].name

    @property
    def room(self) -> int:
        """Bucket of the answer prompt, opened or not."""
        return bucket(len(self.opened), SUFFIX_SIZES)

    def row(self, suffix: Ids, room: int, *purpose: int) -> Row:
        """The input's place in a wave, with a prompt that continues its prefix and a key for the purpose."""
        key = self.key
        for number in purpose:
            key = jax.random.fold_in(key, number)
        return Row(self.prefix, suffix, room, key)

    def scoring_shape(self) -> tuple[int, ...]:
        return (bucket(len(self.prefix), PREFIX_SIZES), *candidate_shape([self.names]), self.room)

    def synthesis_shape(self) -> tuple[int, ...]:
        return (bucket(len(self.prefix), PREFIX_SIZES), *candidate_shape([self.names]), self.synthesis_room)

    def training_shape(self) -> tuple[int, ...]:
        return (*self.scoring_shape(), *training_shape([self.prefix], [self.pairs]))

    def finished(self) -> Record:
        """The record with its final answer, and what is right in it."""
        if not np.all(np.isfinite(np.array(self.record.log_likelihoods, float))):
            return replace(self.record, error="the model gives a score that is not finite")
        return scored(self.record, self.example.gold)


def prepare(
    example: Example, task_name: str, encoder: PromptEncoder, config: RunConfig, context_length: int
) -> Draft | Record:
    """Tokenises an input; one that cannot run gives a record that says why."""
    record = Record(example.id, task_name, example.query, candidates=[tool.name for tool in example.tools])
    if not example.tools:
        return replace(record, error="the input has no candidate function")
    writes_pair = config.synthesis_form == "pair"
    instruction, opening = (NEW_PAIR, "") if writes_pair else (NEW_REQUEST, request_opening(example))
    try:
        prefix = encoder.prefix(example)
        answer = encoder.suffix(example, answer_messages(example), prefix)
        request = encoder.suffix(example, synthesis_messages(example, instruction), prefix, opening)
    except InputError as error:
        return replace(record, error=str(error))
    record = replace(record, n_prompt_tokens=len(prefix) + len(answer))
    opened = answer + encoder.fragment(OPENING)
    names = [encoder.fragment(name_text(tool.name)) for tool in example.tools]
    synthesis_room = bucket(max(len(request), len(opened) + config.synthesis.max_tokens), SUFFIX_SIZES)
    n_decoded = max(config.answer.max_tokens, *map(len, names))
    longest = len(prefix) + max(len(opened), len(request)) + n_decoded
    if longest > context_length:
        n_prompt = record.n_prompt_tokens
        error = f"the prompt has {n_prompt} tokens and {n_decoded} may follow; the model's context is {context_length}"
        return replace(record, error=error)
    return Draft(
        example, prefix, answer, opened, request, names, synthesis_room, example_key(config.seed, example.id), record
    )


def example_key(seed: int, example_id: str) -> Array:
    """An input's own random key, from the run's seed and a stable hash of its id."""
    digest = hashlib.sha256(example_id.encode("utf-8", "surrogatepass")).digest()
    return jax.random.fold_in(jax.random.key(seed), int.from_bytes(digest[:4], "little"))


def next_wave(waiting: list[Draft], shape: Callable[[Draft], Hashable], size: int, last: bool) -> list[Draft]:
    """Takes the first `size` inputs of equal shape out of `waiting`; if there are not so many of any, none.

    With `last` no more will come: then a wave may have fewer.
    """
    groups: dict[Hashable, list[Draft]] = defaultdict(list)
    for draft in waiting:
        groups[shape(draft)].append(draft)
    full = (group[:size] for group in groups.values() if len(group) >= size)
    wave = next(full, next(iter(groups.values()), []) if last else [])
    waiting[:] = [draft for draft in waiting if draft not in wave]
    return wave
