"""G: writing pairs, labelling and checking them, and making training sequences of the good ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np

from ttsi_jax.answering import KEYS, LINE, TEXT, Answerer, Slot, call_ids
from ttsi_jax.batching.inputs import CHECKING, SAMPLES, SYNTHESIS, Draft, nameable
from ttsi_jax.batching.lanes import Prompt, Work
from ttsi_jax.batching.schedule import Ask, Together, Wanting
from ttsi_jax.batching.waves import Ids, Pair
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.config import Parts, RunConfig
from ttsi_jax.errors import InputError
from ttsi_jax.model.generation import Sampling
from ttsi_jax.quality.checks import ANSWERING, ASKING, Evidence, examine, examine_again
from ttsi_jax.quality.confidence import call_tokens
from ttsi_jax.quality.grounding import ungrounded
from ttsi_jax.rules.extras import corrupted, reward
from ttsi_jax.rules.interface import needed
from ttsi_jax.steps.asking import NOT_FINITE
from ttsi_jax.steps.gating import Gating
from ttsi_jax.steps.reading import best_first
from ttsi_jax.synthesis import Synthesizer, Synthetic
from ttsi_jax.synthesis.augment import AUGMENTATIONS
from ttsi_jax.tasks import Call, Tool, mistyped, read_calls
from ttsi_jax.tasks.prompts import OPENING, PromptEncoder, answer_messages, naming

NO_ROOM = "the pair does not fit the model's context"
CUT = "a value was cut"
NO_GOLD = "no function of the input is the one of its label"


class Writing(Gating):
    """Training examples for one input."""

    def __init__(self, config: RunConfig, parts: Parts, encoder: PromptEncoder, model: LanguageModel):
        super().__init__(config, parts, encoder, model)
        self.in_context = config.method in ("tt-icl", "icl")  # pairs are shown, not trained on
        self.functions: Sequence[Tool] = ()  # of all inputs, for distractors
        self.extras = () if self.in_context else needed(parts.loss)

    def write_pairs(self, draft: Draft) -> Wanting:
        """Writes pairs until there are enough, the tries are used up, or there can be no more."""
        settings, n_written, ended = self.config.synthesis, 0, False
        n = settings.k + settings.held_out
        room = lambda: n - len(draft.pairs) - bool(draft.held_out)  # noqa: E731
        while room() and n_written < max(n, settings.candidates) * settings.tries and not ended:
            attempts = range(n_written, n_written + settings.candidates)
            pairs = yield from self.write(draft, attempts)
            if self.named(draft):  # a request for another function needs no label
                pairs = yield from self.ask_channel(draft, pairs)
            pairs = yield Together([self.examine(draft, pair) for pair in pairs])
            if not self.named(draft):
                pairs = yield from self.ask_channel(draft, pairs)
            pairs = yield Together([self.answer_again(draft, *own) for own in zip(pairs, attempts, strict=True)])
            if len(pairs) > 1:
                pairs = yield from best_first(draft, pairs, partial(self.training_pair, draft), settings.diversity)
            for pair in pairs:
                again = examine_again(pair, self.evidence(draft, pair), settings.checks, room())
                pair = self.keep_if_good(draft, again)
                if pair.reason is None and not draft.held_out and "samples" in self.extras:
                    yield from self.sample_answers(draft, pair)
            n_written, ended = n_written + settings.candidates, any(pair.last for pair in pairs)
        if not draft.pairs:
            last = draft.record.synthetic[-1]["reason"]
            draft.note(reason=last if ended else f"no usable pair in {n_written} tries")

    def write(self, draft: Draft, attempts: Sequence[int]) -> Wanting:
        """A pair of each attempt, from the model, which reads once what asks for them, or from elsewhere; every attempt
        has its own random numbers."""
        synthesizer, gold = self.parts.synthesizer, self.config.synthesis.label == "gold"
        if gold and self.named(draft) is None:
            return [Synthetic("", (), NO_GOLD, last=True)] * len(attempts)
        if isinstance(synthesizer, Synthesizer):
            _, prompt = yield from self.read(draft, "synthesize", draft.row(self.request(draft), SYNTHESIS))
            prompts = [prompt._replace(key=draft.key_for(SYNTHESIS, number)) for number in attempts]
            parts = [self.decode_pair(draft, synthesizer, own) for own in prompts]
        else:
            parts = [ask(draft, number) for number in attempts]
        pairs: list[Synthetic] = yield Together(parts)
        pairs = [pair._replace(seen=True) for pair in pairs] if gold else pairs
        early = [name for name in self.config.synthesis.checks if name == "copy"]  # which needs no label
        return [pair if pair.calls else examine(pair, self.evidence(draft, pair), early) for pair in pairs]

    def decode_pair(self, draft: Draft, synthesizer: Synthesizer, prompt: Prompt) -> Wanting:
        """The pair that the model writes after the prompt."""
        settings = self.config.synthesis
        slot = Slot(TEXT, limit=self.config.answer.max_tokens)
        if synthesizer.line:
            slot = Slot(LINE, limit=settings.max_tokens)
        try:
            named = self.named(draft)
            guide = self.guide(draft, synthesizer, slot.limit, [named] if named else None)
        except InputError as error:
            return Synthetic("", (), str(error))
        work = Work(prompt, [slot], Sampling(settings.temperature, settings.top_p), guide=guide)
        said = yield from self.decode(draft, "synthesize", work)
        if not said.finite:
            return Synthetic("", (), NOT_FINITE)
        pair = synthesizer.read(said.texts[0])
        if said.cut and (synthesizer.line or guide) and not pair.reason:
            what = "request" if synthesizer.line else "pair"
            pair = pair._replace(reason=f"the {what} was cut at {slot.limit} tokens")
        return pair

    def examine(self, draft: Draft, pair: Synthetic) -> Wanting:
        """The pair, labelled, and checked without asking the model about it."""
        settings = self.config.synthesis
        if not (pair.calls or pair.reason):
            pair = yield from self.label(draft, pair)
        tool, told = self.named(draft), settings.label == "gold" or isinstance(self.parts.synthesizer, Synthesizer)
        if tool and told and any(call.name != tool.name for call in pair.calls):  # others may write for any function
            pair = pair._replace(reason=pair.reason or f"it was to be written for '{tool.name}'")
        if settings.skip_values and len(pair.calls) == 1:
            pair = skipping(pair, pair.tools or draft.example.tools)
        return examine(pair, self.evidence(draft, pair), [name for name in settings.checks if name not in ASKING])

    def request(self, draft: Draft) -> Ids:
        """The prompt to write a pair, for the function that is named in it where one is."""
        named = nameable(draft.example, self.config.synthesis.label)
        return draft.requests[named.index(self.named(draft)) if named else 0]

    def named(self, draft: Draft) -> Tool | None:
        """The function that pairs are written for and labelled with; None: the one that scoring picks for each."""
        named = nameable(draft.example, self.config.synthesis.label)
        return self.likeliest(draft) if len(named) > 1 else next(iter(named), None)

    def label(self, draft: Draft, pair: Synthetic) -> Wanting:
        """The pair with the call that the model answers its request with, of the function that was named where one was:
        guided, where answers are; else the function that its scoring picks, and each value decoded after its key."""
        answerer = KEYS if self.parts.answerer.schema is None else self.parts.answerer
        try:
            text, cut, _ = yield from self.reply(draft, pair, answerer, SYNTHESIS, tool=self.named(draft))
        except InputError as error:
            return pair._replace(reason=str(error))
        calls = tuple(read_calls(text) or ())
        if cut and calls and self.config.synthesis.skip_values and answerer is KEYS:  # whose slots are the arguments
            names = [*calls[0].arguments]
            pair, cut = pair._replace(skipped=tuple(names[place] for place in cut if place < len(names))), ()
        return pair._replace(calls=calls, reason=NOT_FINITE if text is None else CUT if cut else None)

    def reply(
        self,
        draft: Draft,
        pair: Synthetic,
        answerer: Answerer,
        *purpose: int,
        tool: Tool | None = None,
        n_samples: int = 0,
    ) -> Wanting:
        """The model's own answer to a new request (None where a score or logit was not finite), which of its free slots
        were cut, and sampled answers. `tool`: its function, where the model does not choose one. Raises what
        `label_prompt` and `guide` do."""
        row = self.opened_row(draft, self.label_prompt(draft, pair), answerer, *purpose)
        log_likelihoods, prompt = yield from self.read(draft, "synthesize", row)
        if tool is None and self.config.gate.score == "channel":  # of this request, not of the input's own
            [scores] = yield from self.request_likelihoods(draft, [pair.query], "synthesize")
        else:
            scores = self.scores(draft, log_likelihoods)
        among, tool = [tool] if tool else draft.example.tools, tool or draft.tool(draft.best(scores))
        text, cut = yield from self.fill_in(answerer, draft, prompt, tool, "synthesize", among=among)
        samplings = self.samplings(n_samples)
        samples = yield from self.fill_in_all(answerer, draft, prompt, tool, "synthesize", samplings, among)
        return text if np.all(np.isfinite(log_likelihoods)) else None, cut, samples

    def label_prompt(self, draft: Draft, pair: Synthetic) -> Ids:
        """The answer prompt of a new request, after the prefix.

        Raises:
            InputError: the chat template refuses the request, or it is too long.
        """
        messages = answer_messages(draft.example, pair.asked())
        suffix = self.encoder.suffix(draft.example, messages, draft.prefix, OPENING)
        room = self.context_length - len(draft.prefix) - self.config.n_decoded
        if len(suffix) > min(draft.room, room):
            raise InputError("the request is too long")
        return suffix

    def evidence(self, draft: Draft, pair: Synthetic) -> Evidence:
        """What checks know without asking the model."""
        synthesizer, example = self.parts.synthesizer, draft.example
        kept = [other["query"] for other in draft.record.synthetic if other["accepted"]]
        told, named = synthesizer.prompt(example)[0] if isinstance(synthesizer, Synthesizer) else "", self.named(draft)
        told = naming(told, named) if told and named else told
        return Evidence(example.query, pair.tools or example.tools, kept, told, named and named.name)

    def ask_channel(self, draft: Draft, pairs: Sequence[Synthetic]) -> Wanting:
        """The pairs after the check `channel`, where it is made: of all that are about the same functions at once."""
        if "channel" not in self.config.synthesis.checks:
            return pairs
        checked, most = [self.fitting(draft, pair) for pair in pairs], self.config.synthesis.candidates
        # An empty request, which `schema` drops, is equally likely for every function.
        unchecked = [place for place, pair in enumerate(checked) if pair.query and not pair.reason]
        for tools, group in groupby(unchecked, lambda place: pairs[place].tools):
            places = [*group]
            requests = [pairs[place].query for place in places]
            scores = yield from self.request_likelihoods(draft, requests, "synthesize", tools, most)
            among = tools or draft.example.tools
            for place, own in zip(places, scores, strict=True):
                evidence = self.evidence(draft, pairs[place])._replace(function=among[int(np.argmax(own))].name)
                checked[place] = examine(pairs[place], evidence, ["channel"])
        return checked

    def fitting(self, draft: Draft, pair: Synthetic) -> Synthetic:
        """The pair, dropped where its request is too long to be read after a function of it."""
        if pair.reason:
            return pair
        prompts = [*map(self.encoder.channel, pair.tools)] or draft.channel.prompts
        longest = max(len(before) + len(rest) for before, rest in prompts) + len(self.encoder.fragment(pair.query))
        return pair._replace(reason=NO_ROOM) if longest > self.context_length else pair

    def answer_again(self, draft: Draft, pair: Synthetic, number: int) -> Wanting:
        """The pair after the checks for which the model answers its request again, where they are made."""
        settings = self.config.synthesis
        checks = [name for name in settings.checks if name in ANSWERING]
        if pair.reason or not checks:
            return pair
        if pair.tools:
            return pair._replace(reason="it is about other functions than the input's, so it cannot be asked again")
        purpose, n = (CHECKING, number), settings.labels * ("agreement" in checks)
        try:
            text, _, samples = yield from self.reply(draft, pair, self.parts.answerer, *purpose, n_samples=n)
        except InputError as error:
            return pair._replace(reason=str(error))
        again = {"reread": read_calls(text), "relabelled": [*map(read_calls, samples)]}
        return examine(pair, self.evidence(draft, pair)._replace(**again), checks)

    def keep_if_good(self, draft: Draft, pair: Synthetic) -> Synthetic:
        """Records a pair with the outcome of its checks, and makes a training sequence of a good one."""
        if pair.reason is None:
            try:
                sequence = self.training_pair(draft, pair)
                if len(draft.pairs) < self.config.synthesis.k:
                    if self.in_context:
                        draft.shown = [*draft.shown, (pair.asked(), pair.calls)]
                    draft.pairs.append(sequence._replace(copies=self.copies(draft, pair)))
                else:
                    draft.held_out = sequence
                draft.note(seen=draft.record.seen or pair.seen)
            except InputError as error:
                pair = pair._replace(reason=str(error))
        draft.note(synthetic=[*draft.record.synthetic, pair.record()])
        return pair

    def training_pair(self, draft: Draft, pair: Synthetic) -> Pair:
        """The training sequence of a pair.

        Raises:
            InputError: the chat template refuses the request, or the sequence is too long for the model.
        """
        if self.in_context and len(draft.pairs) < self.config.synthesis.k:
            self.shown_prompt(draft, [*draft.shown, (pair.asked(), pair.calls)])
        prompt = self.encoder.suffix(draft.example, answer_messages(draft.example, pair.asked()), draft.prefix)
        wrong = corrupted(pair, pair.tools or draft.example.tools) if "rejected" in self.extras else None
        answer, learned = self.taught(pair, pair.calls[0])
        rejected = () if wrong is None else call_ids(self.encoder, wrong) + self.stop
        if len(draft.prefix) + len(prompt) + max(len(answer), len(rejected)) > self.context_length:
            raise InputError(NO_ROOM)
        return Pair(prompt, answer, learned, rejected)

    def taught(self, pair: Synthetic, call: Call) -> tuple[Ids, tuple[bool, ...]]:
        """The answer that is a pair's call, its own or another spelling of it, and which of its tokens are learned."""
        tokens, places = call_tokens(call, self.encoder.fragment), [*pair.calls[0].arguments]
        skipped = {places.index(name) for name in pair.skipped}
        return tokens.ids + self.stop, (*(role not in skipped for role in tokens.roles), *(True for _ in self.stop))

    def copies(self, draft: Draft, pair: Synthetic) -> tuple[Pair, ...]:
        """The same pair among other functions, as the settings ask; one that does not fit is left out."""
        found = []
        for number, name in enumerate(self.config.synthesis.augment):
            seeds = [self.config.seed, int(draft.record.fingerprint or "0", 16), len(draft.pairs), number]
            tools, call = AUGMENTATIONS[name](
                pair.tools or draft.example.tools, pair.calls[0], self.functions, np.random.default_rng(seeds)
            )
            example = replace(draft.example, tools=tools)
            prefix = self.encoder.prefix(example)
            prompt = self.encoder.suffix(example, answer_messages(example, pair.query), prefix)
            copy = Pair(prompt, *self.taught(pair, call), prefix=prefix)
            if len(prefix) + len(prompt) + len(copy.answer) <= self.context_length:
                found.append(copy)
        return tuple(found)

    def shown_prompt(self, draft: Draft, shown: Sequence[tuple[str, Sequence[Call]]]) -> Ids:
        """The answer prompt after the prefix, with examples before the request. Raises what `training_pair` does."""
        messages = answer_messages(draft.example, shown=shown)
        suffix = self.encoder.suffix(draft.example, messages, draft.prefix, OPENING)
        if len(draft.prefix) + len(suffix) + self.config.n_decoded > self.context_length:
            raise InputError(NO_ROOM)
        return suffix

    def sample_answers(self, draft: Draft, pair: Synthetic) -> Wanting:
        """Samples answers to the request of the newest pair, with the pair's function, and rewards them."""
        answerer = self.parts.answerer
        suffix = draft.pairs[-1].prompt + (self.encoder.fragment(OPENING) if answerer.opened else ())
        tools = {tool.name: tool for tool in pair.tools or draft.example.tools}
        samplings, tool = self.samplings(self.config.adapt.samples), tools[pair.calls[0].name]
        try:
            self.guide(draft, answerer, self.config.answer.max_tokens, [tool])
            fits = len(suffix) <= draft.room
        except InputError:  # no call of the function is so short
            fits = False
        if not fits:
            for _ in samplings:
                self.add_sample(draft, pair, "")
            return
        _, prompt = yield from self.read(draft, "synthesize", draft.row(suffix, SAMPLES, len(draft.pairs)))
        for text in (yield from self.fill_in_all(answerer, draft, prompt, tool, "synthesize", samplings, [tool])):
            self.add_sample(draft, pair, text or "")

    def add_sample(self, draft: Draft, pair: Synthetic, text: str) -> None:
        """Adds a sampled answer to the input's newest pair, and to its record."""
        calls, newest, entry = read_calls(text), draft.pairs[-1], draft.record.synthetic[-1]
        ids = (call_ids(self.encoder, calls[0]) if calls else self.encoder.fragment(text)) + self.stop
        value = reward(calls, pair, pair.tools or draft.example.tools)
        if not text or len(draft.prefix) + len(newest.prompt) + len(ids) > self.context_length:
            ids, value = (), 0.0
        draft.pairs[-1] = newest._replace(samples=(*newest.samples, ids), rewards=(*newest.rewards, value))
        samples = [*entry.get("samples", []), {"text": text, "reward": value}]
        draft.note(synthetic=[*draft.record.synthetic[:-1], {**entry, "samples": samples}])


def ask(draft: Draft, attempt: int) -> Wanting:
    """A pair from elsewhere."""
    return (yield Ask(draft, "synthesize", attempt))


def skipping(pair: Synthetic, tools: Sequence[Tool]) -> Synthetic:
    """The pair with the arguments whose values are not learned, also because they do not follow from its request or
    are not of their type."""
    [call] = pair.calls
    unsafe = {*pair.skipped, *mistyped(call, tools), *ungrounded(call, pair.query, tools)}
    return pair._replace(skipped=tuple(name for name in call.arguments if name in unsafe))
