"""Asking the model: reading prompts, and decoding what it says after them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from ttsi_jax.answering import Answerer
from ttsi_jax.batching.inputs import ANSWER, Draft, channel_shape
from ttsi_jax.batching.lanes import GREEDY, Prompt, Said, Work
from ttsi_jax.batching.schedule import Decode, Score, Together, Wanting
from ttsi_jax.batching.waves import Ids, Row
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.config import Parts, RunConfig
from ttsi_jax.guided.masks import Grammars, Guide
from ttsi_jax.model.generation import Sampling
from ttsi_jax.synthesis import Synthesizer
from ttsi_jax.tasks import Tool
from ttsi_jax.tasks.prompts import OPENING, PromptEncoder, any_number

NOT_FINITE = "a score is not finite"


class Asking:
    """What a step may ask for, with the settings of a run bound."""

    def __init__(self, config: RunConfig, parts: Parts, encoder: PromptEncoder, model: LanguageModel):
        self.config, self.parts, self.encoder = config, parts, encoder
        self.stop, self.context_length = model.stop_ids[:1], model.config.context_length
        guided = parts.answerer.schema is not None
        self.grammars = Grammars(model.tokenizer, model.config.vocab_size, model.stop_ids) if guided else None
        self.n_opening = len(encoder.fragment(OPENING))

    def read(self, draft: Draft, stage: str, row: Row) -> Wanting:
        """The candidates' log-likelihoods [N] after a row's prompt, and the prompt for decoding."""
        log_likelihoods, prompt = yield Score(draft, stage, row, draft.names)
        draft.count(stage, len(row.prefix) + len(row.suffix))
        return log_likelihoods, prompt

    def read_all(self, draft: Draft, stage: str, rows: Sequence[Row]) -> Wanting:
        """What `read` gives for several rows, which are read side by side."""
        return (yield Together([self.read(draft, stage, row) for row in rows]))

    def decode(self, draft: Draft, stage: str, work: Work) -> Wanting:
        """What the model said."""
        said: Said = yield Decode(draft, stage, work)
        draft.count(stage, said.n_tokens)
        return said

    def request_likelihoods(
        self, draft: Draft, requests: Sequence[str], stage: str, tools: Sequence[Tool] = (), most: int = 1
    ) -> Wanting:
        """log P(request | function) of each of these functions (by default the input's), float32 [R, N] in nats: the
        noisy channel. Each function is read once, with all R requests after it, padded to the `most` there may be.

        A small model tells what was asked for from what it could have been asked for much better than it writes the
        function's name after a list of all (Min et al., arXiv 2108.04106).
        """
        asked = [self.encoder.fragment(request) for request in requests]
        prompts = [*map(self.encoder.channel, tools)] or draft.channel.prompts
        n_request = max(map(len, asked))

        def read(before: Ids, rest: Ids) -> Wanting:
            shape = channel_shape(draft.channel, before, len(rest), n_request, most)
            row = Row(before, rest, len(rest), draft.key, shape)
            log_likelihoods, _ = yield Score(draft, stage, row, asked)
            draft.count(stage, len(before) + len(rest) + sum(map(len, asked)))
            return log_likelihoods

        return np.stack((yield Together([read(*prompt) for prompt in prompts])), axis=1)

    def likeliest(self, draft: Draft) -> Tool:
        """The function that makes the input's request likeliest."""
        return draft.example.tools[int(np.argmax(np.array(draft.record.channel, np.float32)))]

    def scores(self, draft: Draft, log_likelihoods: np.ndarray) -> np.ndarray:
        """The candidates' scores [N] float32 after the input's own prompt, from their log-likelihoods."""
        if self.config.gate.score == "channel":
            return np.array(draft.record.channel, np.float32)
        if self.config.gate.score == "sum":
            return log_likelihoods
        return log_likelihoods / np.array([len(name) for name in draft.names], np.float32)

    def answer_row(self, draft: Draft) -> Row:
        """The input with its answer prompt."""
        return self.opened_row(draft, draft.opened, self.parts.answerer, ANSWER)

    def opened_row(self, draft: Draft, suffix: Ids, answerer: Answerer, *purpose: int) -> Row:
        """A prompt that ends with an answer's opening; the answer starts before that where the model writes it."""
        return draft.row(suffix, *purpose, start=len(suffix) - (0 if answerer.opened else self.n_opening))

    def guide(
        self, draft: Draft, part: Answerer | Synthesizer, limit: int, among: Sequence[Tool] | None = None
    ) -> Guide | None:
        """Through what the model may write, of at most `limit` tokens: one call `among` some functions, by default as
        many as may be right of the input's own. None: anything. Raises InputError where no call is so short."""
        if self.grammars is None or part.schema is None:
            return None
        several = among is None and any_number(draft.example) and isinstance(part, Answerer) and part.several
        return self.grammars.guide((several or part.schema)(among or draft.example.tools), limit)

    def fill_in(
        self,
        answerer: Answerer,
        draft: Draft,
        prompt: Prompt,
        tool: Tool,
        stage: str,
        sampling: Sampling = GREEDY,
        among: Sequence[Tool] | None = None,
    ) -> Wanting:
        """The answer with this tool (None where a logit was not finite), and which of its free slots were cut; `among`
        as in `guide`. Raises what that does."""
        script = answerer.script(self.encoder, tool, self.config.answer)
        guide = self.guide(draft, answerer, self.config.answer.max_tokens, among)
        said = yield from self.decode(draft, stage, Work(prompt, script, sampling, guide=guide))
        return answerer.text(tool, said.texts) if said.finite else None, said.cut

    def fill_in_all(
        self,
        answerer: Answerer,
        draft: Draft,
        prompt: Prompt,
        tool: Tool,
        stage: str,
        samplings: Sequence[Sampling],
        among: Sequence[Tool] | None = None,
    ) -> Wanting:
        """The texts of several answers with this tool, decoded side by side; each has its own random numbers."""
        prompts = [prompt._replace(key=jax.random.fold_in(prompt.key, number)) for number in range(len(samplings))]
        own = zip(prompts, samplings, strict=True)
        filled = yield Together([self.fill_in(answerer, draft, prompt, tool, stage, how, among) for prompt, how in own])
        return [text for text, _ in filled]

    def samplings(self, n: int) -> list[Sampling]:
        """Of n answers to a pair's request."""
        return [Sampling(self.config.synthesis.temperature, self.config.synthesis.top_p)] * n
