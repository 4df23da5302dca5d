"""One input on its way through the loop: its token ids, its shapes, its random key and what is known of it so far.

Inputs that share a wave have equal shapes. A run has at most three of them, chosen by all its inputs before the first
one is read: where a run is resumed, and who shares a wave, then changes nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from ttsi_jax.batching.waves import Ids, Pair, Row, Shape, bucket
from ttsi_jax.config import RunConfig
from ttsi_jax.errors import InputError
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import begun, scored
from ttsi_jax.synthesis import REQUEST, SYNTHESIZERS, PairSource, Synthesizer
from ttsi_jax.tasks import Call, Example, Tool
from ttsi_jax.tasks.pieces import name_text
from ttsi_jax.tasks.prompts import (
    OPENING,
    PromptEncoder,
    answer_messages,
    asked,
    naming,
    render_tools,
    synthesis_messages,
)

PREFIX_STEP, SUFFIX_STEP = 32, 16  # lengths are rounded up to these
REQUEST_SIZES = 32  # smallest bucket of the requests in the noisy channel
CHARACTERS_PER_TOKEN = 16  # more than a text has, on average
BUCKET_COST = 32_768  # padded prefix tokens, read once, that another bucket's programs are worth: a minute on two cores
PROGRAMS = 5  # of a bucket; the noisy channel has one

# What an input's random key is used for; each use folds its own number into the key.
SYNTHESIS, ADAPTATION, ANSWER, SAMPLES, CHECKING, GATE = range(6)


class Channel(NamedTuple):
    """An input in the noisy channel: a prompt for each function, and the request after it."""

    prompts: tuple[tuple[Ids, Ids], ...] = ()  # how all begin, and the rest
    n_request: int = 0  # tokens of the input's own request
    sizes: tuple[int, ...] = ()  # rising, what the rests are padded to, see `assign_shapes`

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt, with the request."""
        return self.n_request + max((len(before) + len(rest) for before, rest in self.prompts), default=0)


@dataclass(eq=False)
class Draft:
    """An input between two stages."""

    example: Example
    prefix: Ids
    answer: Ids  # the answer prompt after the prefix
    opened: Ids  # the same with the answer's opening, after which candidates are scored
    requests: tuple[Ids, ...]  # the synthesis prompt after the prefix, or one for each function where it is named
    names: list[Ids]  # the candidates
    room: int  # most tokens of a prompt after the prefix, also with a new request instead of the input's own
    key: Array
    record: Record
    orders: tuple[Ids, ...] = ()  # the prefix with the functions in other orders
    channel: Channel = Channel()  # where it is asked
    shape: Shape = Shape(0, 0, 0, 0)  # see `assign_shapes`
    pairs: list[Pair] = field(default_factory=list)
    held_out: Pair | None = None  # not trained on
    shown: list[tuple[str, Sequence[Call]]] = field(default_factory=list)  # the pairs, where they go into the prompt

    def note(self, **values: Any) -> None:
        """Sets fields of the record."""
        self.record = replace(self.record, **values)

    def count(self, stage: str, n_tokens: int) -> None:
        """Adds to the record's tokens of a stage."""
        self.note(tokens={**self.record.tokens, stage: self.record.tokens.get(stage, 0) + n_tokens})

    def n_tokens(self, pair: Pair) -> int:
        """Those of all sequences that a step on the pair reads."""
        answers = filter(None, (pair.answer, pair.rejected, *pair.samples))
        return sum(len(pair.prefix or self.prefix) + len(pair.prompt) + len(own) for own in answers)

    def rename(self, stage: str, name: str) -> None:
        """Gives a stage another name in the record's seconds and tokens."""
        for figures in ("seconds", "tokens"):
            self.note(**{figures: {name if k == stage else k: v for k, v in getattr(self.record, figures).items()}})

    def tool(self, name: str | None) -> Tool:
        return next(tool for tool in self.example.tools if tool.name == name)

    def best(self, scores: np.ndarray) -> str:
        """The name of the candidate with the highest score."""
        return self.example.tools[int(np.argmax(scores))].name

    def row(self, suffix: Ids, *purpose: int, start: int | None = None) -> Row:
        """The input's place in a wave, with a prompt that continues its prefix and a key for the purpose.

        `start`: tokens of the suffix before what is decoded; by default all of them.
        """
        start = len(suffix) if start is None else start
        return Row(self.prefix, suffix, start, self.key_for(*purpose), self.shape)

    def in_orders(self, row: Row) -> list[Row]:
        """A row, and the same prompt with the functions in other orders."""
        rows = [row]
        for number, prefix in enumerate(self.orders, 1):
            shape = row.shape._replace(common=prefix if row.shape.common else ())
            rows.append(row._replace(prefix=prefix, key=jax.random.fold_in(row.key, number), shape=shape))
        return rows

    def key_for(self, *purpose: int) -> Array:
        """The random key of one use."""
        key = self.key
        for number in purpose:
            key = jax.random.fold_in(key, number)
        return key

    def finished(self) -> Record:
        """The record with its final answer, and what is right in it."""
        if not np.all(np.isfinite(np.array(self.record.log_likelihoods, float))) or self.record.text_base is None:
            return replace(self.record, error="the model gives a score that is not finite")
        return scored(self.record, self.example.gold)


def prepare(
    example: Example,
    task_name: str,
    encoder: PromptEncoder,
    config: RunConfig,
    context_length: int,
    synthesizer: PairSource,
) -> Draft | Record:
    """Tokenises an input; one that cannot run gives a record that says why."""
    record = begun(example, task_name)
    if record.error is not None:
        return record
    if record.unmatchable and config.unmatchable == "drop":
        example = replace(example, gold=None)
    n_characters = len(render_tools(example.tools)) + sum(len(message["content"]) for message in example.messages)
    if n_characters > CHARACTERS_PER_TOKEN * context_length:  # tokenising megabytes takes minutes
        error = f"the input has {n_characters} characters, far more than the model's context of {context_length} tokens"
        return replace(record, error=error)
    try:
        prefix = encoder.prefix(example)
        answer = encoder.suffix(example, answer_messages(example), prefix)
        orders = other_orders(example, answer, encoder, config.answer.orders)
        requests = request_prompts(example, encoder, config, synthesizer, prefix)
        asks = config.asks_channel or "channel" in config.synthesis.checks
        channel = channel_of(example, encoder) if asks else Channel()
    except InputError as error:
        return replace(record, error=str(error))
    record = replace(record, n_prompt_tokens=len(prefix) + len(answer))
    opened = answer + encoder.fragment(OPENING)
    names = [encoder.fragment(name_text(tool.name)) for tool in example.tools]
    without_query = max(0, len(opened) - len(encoder.fragment(example.query)))
    n_request = max(map(len, requests))
    room = max(len(opened), n_request, without_query + config.synthesis.max_tokens)
    n_prefix = max(map(len, (prefix, *orders)))
    prompts = {  # tokens, and how many may follow; of all that a method could read, so that all have the same inputs
        "the prompt": (n_prefix + len(opened), max(config.answer.max_tokens, *map(len, names))),
        "the prompt that asks for a pair": (n_prefix + n_request, config.n_decoded),
        "a function's prompt in the noisy channel": (channel.longest, 0),
    }
    what = max(prompts, key=lambda name: sum(prompts[name]))
    if sum(prompts[what]) > context_length:
        n_tokens, n_after = prompts[what]
        error = f"{what} has {n_tokens} tokens and {n_after} may follow; the model's context is {context_length}"
        return replace(record, error=error)
    key = example_key(config.seed, example.id)
    return Draft(example, prefix, answer, opened, requests, names, room, key, record, orders, channel)


def request_prompts(
    example: Example, encoder: PromptEncoder, config: RunConfig, synthesizer: PairSource, prefix: Ids
) -> tuple[Ids, ...]:
    """What asks the model for a pair, after the prefix: one prompt, or one for each function that may be named in it.

    Where pairs come from elsewhere it is the prompt of the library's own writer: an input is padded to the same shapes
    whoever writes, so that runs have its scores and base answer in common.
    """
    writer = synthesizer if isinstance(synthesizer, Synthesizer) else SYNTHESIZERS.get(config.synthesis_form, REQUEST)
    instruction, opening = writer.prompt(example)
    named = nameable(example, config.synthesis.label)
    instructions = [naming(instruction, tool) for tool in named] or [instruction]
    messages = [synthesis_messages(example, one) for one in instructions]
    return tuple(encoder.suffix(example, own, prefix, opening) for own in messages)


def nameable(example: Example, label: str) -> tuple[Tool, ...]:
    """The functions that pairs may be written for by name, under the setting `synthesis.label`; none: those that the
    model thinks of, or no function of the input is the one of its label."""
    gold = {call.name for call in example.gold or ()}
    chosen = {"scoring": (), "channel": example.tools, "gold": [one for one in example.tools if gold == {one.name}]}
    return tuple(chosen[label])


def channel_of(example: Example, encoder: PromptEncoder) -> Channel:
    """The input in the noisy channel. Raises what `PromptEncoder.channel` does."""
    return Channel(tuple(map(encoder.channel, example.tools)), len(encoder.fragment(asked(example))))


def channel_shape(channel: Channel, before: Ids, rest: int, request: int, n: int) -> Shape:
    """What a prompt of the noisy channel, which goes on with `rest` tokens after how all begin, and up to n requests of
    up to `request` tokens are padded to; how all begin is computed once."""
    # A pair may come with longer functions than any input of the run.
    suffix = next((size for size in channel.sizes if size >= rest), _round_up(rest, PREFIX_STEP))
    return Shape(_round_up(len(before), PREFIX_STEP), suffix, n, bucket(request, REQUEST_SIZES), before)


def other_orders(example: Example, answer: Ids, encoder: PromptEncoder, n: int) -> tuple[Ids, ...]:
    """The prefixes of up to n - 1 rotations of the functions, so that each of them comes first at most once."""
    found = []
    for first in range(1, min(n, len(example.tools))):
        rotated = replace(example, tools=example.tools[first:] + example.tools[:first])
        prefix = encoder.prefix(rotated)
        if encoder.suffix(rotated, answer_messages(rotated), prefix) == answer:
            found.append(prefix)
    return tuple(found)


def passes(config: RunConfig) -> int:
    """How often an input's prefix goes through the model: once where its cache serves all stages, and three times more
    in each step that trains on it (forward, and backward at twice the cost)."""
    trains = config.method in ("tt-si", "tt-d") and config.adapt.scope == "all"
    return 1 + trains * 3 * config.adapt.epochs * config.n_trained * config.adapt.adapters


def assign_shapes(drafts: Sequence[Draft], wave: int, passes: int = 1) -> None:
    """Gives every input its length bucket, and all of them together those of their functions in the noisy channel. A
    prefix that fills two waves or more gets waves of its own."""
    if not drafts:
        return
    lengths = [max(map(len, (draft.prefix, *draft.orders))) for draft in drafts]
    sizes = length_buckets(lengths, cost=BUCKET_COST // passes)
    counts = Counter(draft.prefix for draft in drafts)
    for below, size in zip((0, *sizes), sizes, strict=False):
        own = [draft for draft, length in zip(drafts, lengths, strict=True) if below < length <= size]
        shape = Shape(
            size,
            _round_up(max(draft.room for draft in own), SUFFIX_STEP),
            max(len(draft.names) for draft in own),
            max(len(name) for draft in own for name in draft.names),
        )
        for draft in own:
            draft.shape = shape._replace(common=draft.prefix if counts[draft.prefix] >= 2 * wave else ())
    if rests := [len(rest) for draft in drafts for _, rest in draft.channel.prompts]:
        found = length_buckets(rests, cost=BUCKET_COST // PROGRAMS)
        for draft in drafts:
            draft.channel = draft.channel._replace(sizes=found)


def length_buckets(lengths: Sequence[int], most: int = 3, cost: int = BUCKET_COST) -> tuple[int, ...]:
    """The sizes, rising, that prefixes are padded to: those with the least padding, where one more costs `cost`."""
    sizes, counts = np.unique([_round_up(length, PREFIX_STEP) for length in lengths], return_counts=True)

    def wasted(chosen: tuple[int, ...]) -> int:
        uppers = np.array(chosen)
        return int(((uppers[np.searchsorted(uppers, sizes)] - sizes) * counts).sum()) + cost * len(chosen)

    below = sizes[:-1].tolist()
    choices = ((*inner, int(sizes[-1])) for n in range(most) for inner in combinations(below, n))
    return min(choices, key=wasted)


def _round_up(length: int, step: int) -> int:
    return -(-length // step) * step


def example_key(seed: int, example_id: str) -> Array:
    """An input's own random key, from the run's seed and a stable hash of its id."""
    digest = hashlib.sha256(example_id.encode("utf-8", "surrogatepass")).digest()
    return jax.random.fold_in(jax.random.key(seed), int.from_bytes(digest[:4], "little"))
