"""What guided decoding costs beside unguided decoding, on a wave of a task's prompts.

    python scripts/bench_guided.py --json guided.json

Both sides read the same prompts and decode greedily. The unguided loop runs as many steps as the guided one took, so
seconds are compared per step of a whole wave; what is not equal is the text, and that guided rows end one by one. The
parts of a guided step are timed apart, each waiting for its result: masks and followed tokens are the host's work.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarking import (
    Line,
    Load,
    Options,
    Seconds,
    alternate,
    choose_platform,
    describe,
    show,
    surroundings,
    write_json,
)


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """Compare guided with unguided decoding.

    Attributes:
        wave: rows.
        max_tokens: most tokens of a call.
        rounds: timed runs of each side.
    """

    wave: int = 16
    max_tokens: int = 128
    rounds: int = 3


def main() -> int:
    settings = tyro.cli(Settings)
    choose_platform(settings)
    from ttsi_jax.answering import TEXT
    from ttsi_jax.checkpoints import load_model
    from ttsi_jax.guided import decoding
    from ttsi_jax.guided.grammar import call_schema
    from ttsi_jax.guided.masks import Grammars
    from ttsi_jax.model.decoder import tokens_after
    from ttsi_jax.model.generation import Arrivals, Rows, Sampling, Script, SlotTables, decode_wave, nothing_decoding
    from ttsi_jax.model.scoring import Candidates, score_wave
    from ttsi_jax.tasks import check_call, load_task, parse_calls
    from ttsi_jax.tasks.prompts import PromptEncoder, answer_messages

    model, rounds = load_model(settings.model, dtype=settings.dtype), 1 if settings.quick else settings.rounds
    config, params, load = model.config, model.params, Load()
    examples = load_task(settings.source(), limit=settings.wave).examples
    n, encoder = len(examples), PromptEncoder(model.tokenizer)
    prompts = [encoder.encode(example, answer_messages(example)) for example in examples]
    size = -(-max(map(len, prompts)) // 32) * 32
    ids, lengths = np.zeros((n, size), np.int32), np.array([len(own) for own in prompts], np.int32)
    for row, own in enumerate(prompts):
        ids[row, : len(own)] = own
    tokens = jax.vmap(tokens_after)(jnp.asarray(ids), jnp.asarray(lengths))
    nothing = Candidates(jnp.zeros((n, 1, 1), jnp.int32), jnp.zeros((n, 1), jnp.int32))
    read = jax.block_until_ready(score_wave(config, params, tokens, jnp.asarray(lengths), nothing).prompted)
    rows, keys = Rows(read), jax.random.split(jax.random.key(0), n)
    greedy = Sampling(jnp.zeros(n), jnp.ones(n))

    start = time.perf_counter()
    grammars = Grammars(model.tokenizer, config.vocab_size, model.stop_ids)
    once = {"tokenizer for masks": time.perf_counter() - start}
    start = time.perf_counter()
    for example in examples:
        grammars.guide(call_schema(example.tools), settings.max_tokens)
    once["a grammar, the first time"] = (time.perf_counter() - start) / n

    def guides() -> list[Any]:
        return [grammars.guide(call_schema(example.tools), settings.max_tokens) for example in examples]

    def guided() -> list[Any]:
        own = guides()
        return decoding.decode_guided(config, params, rows, own, keys, greedy, n_steps=settings.max_tokens)

    start = time.perf_counter()
    written = guided()
    once["first guided run, with compiling"] = time.perf_counter() - start
    n_steps = max(len(own.ids) for own in written)
    ones = jnp.ones((n, 1), jnp.int32)
    anything = jnp.ones((TEXT, config.vocab_size), bool)
    tables = SlotTables(jnp.zeros((TEXT, config.vocab_size), jnp.int8), anything, anything)
    arrivals = Arrivals(rows, jnp.arange(n), jnp.arange(n), jnp.int32(n))
    script = Script(ones * TEXT, ones * 0, ones * n_steps, ones[:, 0])

    def unguided() -> None:
        lanes = nothing_decoding(rows, settings.max_tokens, 1)
        jax.block_until_ready(
            decode_wave(config, params, lanes, arrivals, script, tables, keys, greedy, jnp.int32(n)).generated
        )

    start = time.perf_counter()
    unguided()
    once["first unguided run, with compiling"] = time.perf_counter() - start
    sides = alternate({"unguided": unguided, "guided": guided}, rounds, warm_up=False)
    per_step = {
        name: Seconds(own.median / n_steps, own.low / n_steps, own.high / n_steps, own.n) for name, own in sides.items()
    }
    parts = {
        name: Seconds.of(own) for name, own in timed_parts(settings, grammars, guides(), written, decoding).items()
    }
    cost = per_step["guided"].median / per_step["unguided"].median - 1

    found = surroundings(model, load=load.read())
    describe(found)
    milliseconds = lambda own: (f"{1e3 * own.median:.2f}", f"{1e3 * own.low:.2f}–{1e3 * own.high:.2f}")  # noqa: E731
    lines = [Line(f"{name}: a step of the wave", milliseconds(own), "") for name, own in per_step.items()]
    lines += [Line(f"of that, {name}", milliseconds(own), "") for name, own in parts.items()]
    lines += [Line(f"once: {name}", (f"{1e3 * own:.1f}", ""), "") for name, own in once.items()]
    show(f"{n} rows, {n_steps} steps, vocabulary {config.vocab_size}", ("part", "ms", "least to most"), lines)
    print(f"guided decoding costs {100 * cost:.1f} % of unguided decoding; the goal is 25 %")
    texts = [str(model.tokenizer.decode(own.ids, clean_up_tokenization_spaces=False)) for own in written]
    valid = [check_call(parse_calls(text)[0], own.tools) is None for text, own in zip(texts, examples, strict=True)]
    print(f"{sum(valid)} of {n} calls are valid")
    print(f"{sum(own.cut for own in written)} of {n} calls had to be closed at the limit")
    if settings.json:
        seconds = {"per_step": per_step, "parts": parts, "once": once}
        write_json(settings.json, {"environment": found, "ratios": {"cost": cost}, "seconds": seconds})
    return 0


def timed_parts(
    settings: Settings, grammars: Any, rows: list[Any], written: list[Any], decoding: Any
) -> dict[str, list[float]]:
    """Seconds per step of the host's share, for the tokens that were written."""
    taken: dict[str, list[float]] = {"masks (while the device works)": [], "tokens followed (the device waits)": []}
    masks, follow = taken.values()
    for step in range(max(len(own.ids) for own in written)):
        start = time.perf_counter()
        grammars.masks(rows)
        middle = time.perf_counter()
        for guide, own in zip(rows, written, strict=True):
            if not guide.done:
                guide.take(own.ids[step])
        masks.append(middle - start)
        follow.append(time.perf_counter() - middle)
    return taken


if __name__ == "__main__":
    sys.exit(main())
