"""Made-up runs of any size, with every kind of input that a report must show."""

from dataclasses import replace
from random import Random
from typing import Any

from ttsi_jax.runs.functions import Listed
from ttsi_jax.runs.groups import Run
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.summary import summarise

CITIES = ("Oslo", "Lima", "Kyoto", "Accra", "Quito", "Turin")
TOOLS = ("get_weather", "book_table", "find_route", "convert_units", "send_note", "play_song")
STAGES = ("score", "base_answer", "synthesize", "adapt", "answer")


def record(number: int, seed: int = 0) -> Record:
    """An input of one of the kinds certain, fixed, broken, reverted, unchanged, unreadable and failed."""
    rng = Random(f"{number}, {seed}")
    city, tool = Random(number).choice(CITIES), Random(number).choice(TOOLS)
    names = [tool, *rng.sample([name for name in TOOLS if name != tool], 3)]
    rng.shuffle(names)
    weights = [rng.random() ** 4 + 1e-3 for _ in names]
    probabilities = sorted((weight / sum(weights) for weight in weights), reverse=True)
    certainty = probabilities[0] - probabilities[1]
    if rng.random() < probabilities[0]:  # such a model is calibrated
        names.sort(key=lambda name: name != tool)
    right, wrong = _call(tool, city, 2), _call(rng.choice(names), rng.choice(CITIES), 2)
    base_is_right = rng.random() < 0.35 + 0.6 * certainty
    base = [right] if base_is_right else None if rng.random() < 0.2 else [wrong]
    own = Record(
        f"input-{number:05}", "made-up", f"Please use {tool.replace('_', ' ')} for two in {city}, case {number}.",
        n_prompt_tokens=300, candidates=names, log_likelihoods=[-1.0] * 4, probabilities=probabilities,
        uncertainty=certainty, uncertain=certainty < 0.95, pick_base=names[0], pick=names[0],
        text_base=str(base), base_calls=base, calls=base, gold=[right], seconds=dict.fromkeys(STAGES, 0.2),
    )  # fmt: skip
    if number % 97 == 96:
        return replace(
            own, candidates=[], probabilities=[], uncertainty=None, uncertain=None, error="no function given"
        )
    if own.uncertain:
        pairs = [{"query": f"And in {rng.choice(CITIES)}?", "calls": [right], "accepted": True, "reason": None}]
        if number % 3 == 0:
            pairs.insert(0, {"query": "", "calls": [], "accepted": False, "reason": "the request is empty"})
        adapted = [right] if rng.random() < 0.55 else [wrong]
        reverted = number % 41 == 40
        own = replace(
            own, adapted=True, synthetic=pairs, losses=[2 * 0.7**step for step in range(5)], text_adapted=str(adapted),
            adapted_calls=adapted, calls=base if reverted else adapted, reverted=reverted,
            reason="training diverged" if reverted else None,
        )  # fmt: skip
    return replace(
        own,
        pick_correct_base=names[0] == tool,
        pick_correct=names[0] == tool,
        tool_correct_base=_tool(base, tool),
        tool_correct=_tool(own.calls, tool),
        call_correct_base=base == [right],
        call_correct=own.calls == [right],
    )


def run(n: int, seed: int = 0, **config: Any) -> Run:
    records = [record(number, seed) for number in range(n)]
    config = {"task": "made-up", "model": "tiny", "method": "tt-si", "gate": {"tau": 0.95}, "seed": seed} | config
    return Run(config, records, summarise(records), list(map(listed, records)))


def listed(own: Record) -> Listed:
    """The functions of an input, which no other one has."""
    schema = {"city": {"type": "string", "description": "Where to."}, "seats": {"type": "integer"}}
    parameters = {"type": "object", "properties": schema, "required": list(schema)}
    made = [{"name": name, "description": f"To {name}, as {own.id} may.", "parameters": parameters} for name in TOOLS]
    return {"functions": made, "inputs": [own.id]}


def base_run(n: int, **config: Any) -> Run:
    """The same inputs, answered by the base alone."""
    records = [
        replace(
            own, adapted=False, reverted=False, synthetic=[], losses=[], calls=own.base_calls, text_adapted=None,
            adapted_calls=None, reason=None, tool_correct=own.tool_correct_base, call_correct=own.call_correct_base,
        )
        for own in map(record, range(n))
    ]  # fmt: skip
    functions = list(map(listed, records))
    return run(0, method="base", **config)._replace(records=records, summary=summarise(records), functions=functions)


def _call(name: str, city: str, seats: int) -> dict[str, Any]:
    return {"name": name, "arguments": {"city": city, "seats": seats}}


def _tool(calls: list[dict[str, Any]] | None, tool: str) -> bool:
    return calls is not None and [call["name"] for call in calls] == [tool]
