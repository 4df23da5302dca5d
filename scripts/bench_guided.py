"""What guided decoding costs beside unguided decoding, in lanes that are refilled, as a run uses them.

    python scripts/bench_guided.py --json guided.json

Both sides start from the same prompts, twice as many as there are lanes, and decode greedily. Each unguided row writes
as many tokens as the guided one of the same prompt, whatever these are, so both sides feed the same number of tokens to
rows that end one by one. What is not equal is the text. The host's part of a guided step is timed apart, for the tokens
that were written: masks are made while the device works, tokens are followed while it waits.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import tyro

from benchmarking import (
    Line,
    MachineLoad,
    Options,
    Seconds,
    alternate,
    choose_platform,
    describe,
    show,
    surroundings,
    told,
    write_json,
)


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """Compare guided with unguided decoding.

    Attributes:
        wave: lanes; twice as many rows decode in them.
        max_tokens: most tokens of a call.
        rounds: timed runs of each side.
    """

    wave: int = 16
    max_tokens: int = 128
    rounds: int = 3


@told
def main() -> int:
    settings = tyro.cli(Settings)
    choose_platform(settings.platform)
    from ttsi_jax.answering import TEXT, Slot
    from ttsi_jax.batching.guided import GuidedLanes
    from ttsi_jax.batching.inputs import Draft, assign_shapes, prepare
    from ttsi_jax.batching.lanes import Lanes, Work
    from ttsi_jax.batching.waves import Waves
    from ttsi_jax.checkpoints import load_model
    from ttsi_jax.config import RunConfig, find_parts
    from ttsi_jax.guided.grammar import call_schema
    from ttsi_jax.guided.masks import Grammars
    from ttsi_jax.model.generation import SlotTables
    from ttsi_jax.tasks import check_call, load_task, parse_calls
    from ttsi_jax.tasks.prompts import PromptEncoder

    model, rounds = load_model(settings.model, dtype=settings.dtype), 1 if settings.quick else settings.rounds
    config, load, run = model.config, MachineLoad(), RunConfig()
    task, encoder = load_task(settings.source(), limit=2 * settings.wave), PromptEncoder(model.tokenizer)
    synthesizer = find_parts(run, {}).synthesizer
    made = [prepare(one, task.name, encoder, run, config.context_length, synthesizer) for one in task.examples]
    drafts = [draft for draft in made if isinstance(draft, Draft)]
    assign_shapes(drafts, settings.wave)
    shape = max((draft.shape for draft in drafts), key=lambda shape: shape.prefix)
    waves = Waves(model, settings.wave, settings.max_tokens)
    prompts = []
    for start in range(0, len(drafts), settings.wave):
        some = drafts[start : start + settings.wave]
        rows = [draft.row(draft.answer)._replace(shape=shape._replace(common=())) for draft in some]
        prompts += waves.score(rows, [draft.names for draft in some])[1]

    start = time.perf_counter()
    grammars = Grammars(model.tokenizer, config.vocab_size, model.stop_ids)
    once = {"tokenizer for masks": time.perf_counter() - start}
    schemas = [call_schema(draft.example.tools) for draft in drafts]
    start = time.perf_counter()
    for schema in schemas:
        grammars.guide(schema, settings.max_tokens)
    once["a grammar, the first time"] = (time.perf_counter() - start) / len(schemas)

    def ended(lanes: Lanes | GuidedLanes, work: list[Work]) -> list[Any]:
        """What the rows said, in their order."""
        lanes.waiting.extend(one._replace(owner=index) for index, one in enumerate(work))
        said: list[Any] = [None] * len(work)
        while lanes.load:
            for one, own in lanes.advance(to_the_end=len(lanes.waiting) == 0)[1]:
                said[one.owner] = own
        return said

    def guided() -> list[Any]:
        guides = [grammars.guide(schema, settings.max_tokens) for schema in schemas]
        work = [Work(prompt, (), guide=guide) for prompt, guide in zip(prompts, guides, strict=True)]
        return ended(GuidedLanes(model, settings.wave, settings.max_tokens, waves.layout), work)

    start = time.perf_counter()
    written = guided()
    once["first guided run, with compiling"] = time.perf_counter() - start
    anything = jnp.ones((TEXT, config.vocab_size), bool)
    tables = SlotTables(jnp.zeros((TEXT, config.vocab_size), jnp.int8), anything, anything)
    scripts = [[Slot(TEXT, limit=own.n_tokens)] for own in written]

    def unguided() -> list[Any]:
        work = [Work(prompt, script) for prompt, script in zip(prompts, scripts, strict=True)]
        return ended(Lanes(model, settings.wave, settings.max_tokens, tables, (), waves.layout), work)

    start = time.perf_counter()
    n_tokens = sum(own.n_tokens for own in unguided())
    once["first unguided run, with compiling"] = time.perf_counter() - start
    assert n_tokens == sum(own.n_tokens for own in written), "both sides write equally many tokens"
    sides = alternate({"unguided": unguided, "guided": guided}, rounds, warm_up=False)
    per_token = {
        name: Seconds(own.median / n_tokens, own.low / n_tokens, own.high / n_tokens, own.n)
        for name, own in sides.items()
    }
    guides = [grammars.guide(schema, settings.max_tokens) for schema in schemas]
    ids = [encoder.fragment(own.texts[0]) for own in written]
    parts = {name: Seconds.of(own) for name, own in timed_parts(grammars, guides, ids, settings.wave).items()}
    cost = per_token["guided"].median / per_token["unguided"].median - 1

    found = surroundings(model, load=load.read())
    describe(found)
    milliseconds = lambda own: (f"{1e3 * own.median:.2f}", f"{1e3 * own.low:.2f}–{1e3 * own.high:.2f}")  # noqa: E731
    lines = [Line(f"{name}: a token of one row", milliseconds(own), "") for name, own in per_token.items()]
    lines += [Line(f"a step of the wave: {name}", milliseconds(own), "") for name, own in parts.items()]
    lines += [Line(f"once: {name}", (f"{1e3 * own:.1f}", ""), "") for name, own in once.items()]
    title = f"{len(drafts)} rows in {settings.wave} lanes, {n_tokens} tokens, vocabulary {config.vocab_size}"
    show(title, ("part", "ms", "least to most"), lines)
    print(f"guided decoding costs {100 * cost:.1f} % of unguided decoding; the goal is 25 %")
    calls = [parse_calls(own.texts[0])[0] for own in written]
    valid = [check_call(call, draft.example.tools) is None for call, draft in zip(calls, drafts, strict=True)]
    print(f"{sum(valid)} of {len(drafts)} calls are valid")
    print(f"{sum(own.cut for own in written)} of {len(drafts)} calls had to be closed at the limit")
    if settings.json:
        seconds = {"per_token": per_token, "parts": parts, "once": once}
        write_json(settings.json, {"environment": found, "ratios": {"cost": cost}, "seconds": seconds})
    return 0


def timed_parts(grammars: Any, guides: list[Any], ids: list[Any], size: int) -> dict[str, list[float]]:
    """Seconds per step of the host's share for the first wave, following the texts that were written."""
    taken: dict[str, list[float]] = {"masks (while the device works)": [], "tokens followed (the device waits)": []}
    masks, follow = taken.values()
    rows = list(zip(guides[:size], ids, strict=False))
    for step in range(max(len(own) for _, own in rows)):
        start = time.perf_counter()
        grammars.masks([guide for guide, _ in rows])
        middle = time.perf_counter()
        for guide, own in rows:
            if not guide.done and step < len(own):
                guide.take(own[step])
        masks.append(middle - start)
        follow.append(time.perf_counter() - middle)
    return taken


if __name__ == "__main__":
    sys.exit(main())
