"""Parts of the algorithm that runs have in common, gone through once.

Runs of one process that differ only in what comes later (rate, epochs, method, …) score the same prompts, decode the
same base answers and write the same pairs; those that differ only in who adapts (tau) or in what is accepted learn and
answer the same. `Shared` keeps what a part came to, under all that decides it: the model, the settings that the part
reads, the input's tokens and the shapes that it is padded to. So a run's records are the same with it as without; the
seconds of a part are those that it took the first time. Scores, base answers and pairs may outlive the process, but for
those that an object of the user's own has made; what adapters learned does not: a rule may be the user's own as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ttsi_jax.batching.inputs import Draft
from ttsi_jax.batching.waves import Pair
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.checkpoints.files import checksum
from ttsi_jax.checkpoints.int8 import storage
from ttsi_jax.checkpoints.peft import WEIGHTS
from ttsi_jax.config import Parts, RunConfig
from ttsi_jax.quality.confidence import CallEstimator
from ttsi_jax.runs.record import strict_json
from ttsi_jax.synthesis.pairs import Collection
from ttsi_jax.tasks import Call


class Kept(NamedTuple):
    """What a part returned, and what it changed in the draft."""

    value: Any
    fields: dict[str, Any]  # of the record
    seconds: dict[str, float]
    tokens: dict[str, int]
    pairs: list[Pair]
    held_out: Pair | None
    shown: Sequence[tuple[str, Sequence[Call]]]


def to_json(kept: Kept) -> str:
    """A part "base" or "pairs" as one line, without its line end."""
    value = kept.value and (kept.value[0].tolist(), kept.value[1])
    shown = [(request, [(call.name, call.arguments) for call in calls]) for request, calls in kept.shown]
    return json.dumps(kept._replace(value=value, shown=shown))


def from_json(line: str) -> Kept:
    """What `to_json` wrote."""
    value, fields, seconds, tokens, pairs, held_out, shown = json.loads(line)
    value = value and (np.array(value[0], np.float32), value[1])
    requests = [(request, [Call(*call) for call in calls]) for request, calls in shown]
    return Kept(value, fields, seconds, tokens, [*map(_pair, pairs)], held_out and _pair(held_out), requests)


def _pair(fields: Sequence[Any]) -> Pair:
    pair = Pair(*map(_tuples, fields))
    return pair._replace(copies=tuple(map(_pair, pair.copies)))


def _tuples(x: Any) -> Any:
    return tuple(map(_tuples, x)) if isinstance(x, list) else x


@dataclass(frozen=True)
class Shared:
    """What was kept so far, and the settings that each part is known by; an empty one keeps nothing.

    Attributes:
        kept: by part, the parts themselves, by a digest of settings and input; a part without a place is not kept.
        keys: of each part, what else decides it than the input.
        may_fail: pairs come from a teacher, who is asked again where an input got none.
    """

    kept: Mapping[str, MutableMapping[str, Kept]] = field(default_factory=dict)
    keys: tuple[tuple[str, str], ...] = ()
    may_fail: bool = False

    @staticmethod
    def between_runs(stored: MutableMapping[str, Kept] | None = None) -> Shared:
        """For the runs of one process, and of all that have `stored`, where scores, base answers and pairs go."""
        in_memory: dict[str, Kept] = {}
        stored = in_memory if stored is None else stored
        return Shared({"base": stored, "pairs": stored, "learned": in_memory})

    def of(self, config: RunConfig, parts: Parts, model: LanguageModel, extras: tuple[str, ...]) -> Shared:
        """The same, for a run with these settings and parts."""
        weights = (model.name, model.checksum, storage(model.params))
        start = config.adapt.start and (
            checksum([Path(config.adapt.start) / WEIGHTS]),
            config.adapt.scope,
            repr(config.adapt.lora),
        )
        sampled = config.seed if config.answer.samples else None
        base = (*weights, start, config.wave, config.n_decoded, repr(config.answer), config.gate.score, sampled)
        base = (*base, config.asks_channel)
        if isinstance(parts.estimator, CallEstimator):  # answers are judged where they are given
            base = (*base, config.gate.estimator)
            if parts.estimator.samples:
                base = (*base, config.gate.samples, config.synthesis.temperature, config.synthesis.top_p, config.seed)
        shows = config.method in ("tt-icl", "icl")
        samples = config.adapt.samples if "samples" in extras else None
        pairs = (
            *base,
            config.seed,
            config.source,
            parts.synthesizer.checksum if isinstance(parts.synthesizer, Collection) else None,
            repr(config.synthesis),
            repr(config.teacher),
            extras,
            samples,
            shows,
        )
        adapt = replace(config.adapt, accept=(), measure=())  # they decide what is measured
        measured = sorted({"kl", "seeds"} & {*config.adapt.accept, *config.adapt.measure})
        keys = {"base": base, "pairs": pairs, "learned": (*pairs, repr(adapt), measured)}
        if config.adapt.save or config.adapt.reset == "never":
            del keys["learned"]  # there the adapter itself is wanted
        if "distractors" in config.synthesis.augment:  # they come from all inputs of a run
            keys = {"base": base}
        kept = self.kept
        if ":" in config.answer.form + config.synthesis.form + config.gate.estimator:  # a user's own, which may change
            kept = dict.fromkeys(kept, kept.get("learned", {}))
        settings = tuple((part, strict_json(key)) for part, key in keys.items())
        return Shared(kept, settings, may_fail=config.source == "teacher")

    def once(
        self, part: str, draft: Draft, steps: Callable[[Draft], Generator[Any, Any, Any]]
    ) -> Generator[Any, Any, Any]:
        """Goes through a part, or takes what it came to in another run; what it returns."""
        settings, known = dict(self.keys).get(part), self.kept.get(part)
        if known is None or settings is None:
            return (yield from steps(draft))
        requests = () if part == "base" else draft.requests  # which answers do not read
        prompts = draft.prefix, draft.opened, requests, tuple(draft.names)
        decided_by = repr((part, settings, draft.example.id, draft.shape, draft.channel.sizes, *prompts))
        key = hashlib.sha256(decided_by.encode()).hexdigest()
        if key not in known:
            before = draft.record
            value = yield from steps(draft)
            changed = {name: new for name, new in vars(draft.record).items() if new != getattr(before, name)}
            seconds, tokens = (_new(changed.pop(name, {}), getattr(before, name)) for name in ("seconds", "tokens"))
            found = list(draft.pairs), draft.held_out, list(draft.shown)  # the draft's own lists grow
            if draft.pairs or not (part == "pairs" and self.may_fail):
                known[key] = Kept(value, changed, seconds, tokens, *found)
            return value
        kept = known[key]
        seconds, tokens = {**draft.record.seconds, **kept.seconds}, {**draft.record.tokens, **kept.tokens}
        draft.note(**kept.fields, seconds=seconds, tokens=tokens)
        draft.pairs, draft.held_out, draft.shown = list(kept.pairs), kept.held_out, list(kept.shown)
        return kept.value


def _new(figures: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    return {stage: figure for stage, figure in figures.items() if stage not in before}
