"""A record's beginning and its end: what is known of the input, and what is right in its calls and picks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ttsi_jax.runs.record import Record
from ttsi_jax.tasks import (
    Call,
    CallSyntaxError,
    Example,
    GoldCall,
    NoCallError,
    Task,
    call_correct,
    micro_f1,
    parse_calls,
    read_calls,
    tool_correct,
    unmatchable,
)
from ttsi_jax.tasks.faults import fingerprint
from ttsi_jax.tasks.prompts import own_turns


def plain(calls: Sequence[Call] | None) -> list[dict[str, Any]] | None:
    """Calls as they stand in a record."""
    return None if calls is None else [asdict(call) for call in calls]


def read_plain(calls: Sequence[Mapping[str, Any]] | None) -> list[Call] | None:
    """The reverse of `plain`."""
    return None if calls is None else [Call(**call) for call in calls]


def first_values(call: GoldCall) -> dict[str, Any]:
    """The arguments of a right call, each with the first value that is accepted; without those it may leave out."""
    return {name: values[0] for name, values in call.arguments.items() if name not in call.optional}


def begun(example: Example, task_name: str) -> Record:
    """The record of an input that nothing was done with yet; one that cannot run has its error."""
    if example.problem is not None:
        return Record(example.id, task_name, "", error=example.problem)
    return Record(
        example.id,
        task_name,
        example.query if len(own_turns(example)) == 1 else [*example.messages],
        candidates=[tool.name for tool in example.tools],
        fingerprint=fingerprint(example),
        unmatchable=unmatchable(example),
        error=None if example.tools else "the input has no candidate function",
    )


def scored(record: Record, gold: Sequence[GoldCall] | None) -> Record:
    """The record with its final answer and pick, and, where there is a label, whether they and the base's are right."""
    uses_adapter = record.adapted and not record.reverted
    calls = record.adapted_calls if uses_adapter else record.base_calls
    pick = record.pick if uses_adapter else record.pick_base
    record = replace(record, calls=calls, pick=pick)
    if gold is None:
        return record
    texts = record.text_base, record.text_adapted if uses_adapter else record.text_base
    base, final = (
        judged(read_plain(own), text, gold) for own, text in zip((record.base_calls, calls), texts, strict=True)
    )
    right_base, right = (_n_right(own, gold) for own in record.samples)
    names = {call.name for call in gold}
    return replace(
        record,
        gold=[{"name": call.name, "arguments": first_values(call)} for call in gold],
        samples_right_base=right_base,
        samples_right=right,
        pick_correct_base=record.pick_base in names if gold else None,  # where no call is right, no pick can be
        pick_correct=pick in names if gold else None,
        tool_correct_base=tool_correct(base, gold),
        tool_correct=tool_correct(final, gold),
        call_correct_base=call_correct(base, gold),
        call_correct=call_correct(final, gold),
    )


def judged(calls: Sequence[Call] | None, text: str | None, gold: Sequence[GoldCall]) -> Sequence[Call] | None:
    """An answer's calls; where no call is right, there is none in an answer in words either."""
    return [] if calls is None and not gold and _in_words(text) else calls


def _n_right(samples: Sequence[str | None], gold: Sequence[GoldCall]) -> int | None:
    """How many of some sampled answers make the right calls; None where there are none."""
    right = (call_correct(judged(read_calls(text), text, gold), gold) for text in samples)
    return sum(right) if samples else None


def _in_words(text: str | None) -> bool:
    """Whether an answer does not even begin a call."""
    if text is None:
        return False
    try:
        parse_calls(text)
    except CallSyntaxError as error:
        return isinstance(error, NoCallError)
    return False


def f1(records: Sequence[Record], task: Task) -> dict[str, Any]:
    """Hammer's micro F1 of names and of arguments, for the base's answers and the final ones."""
    gold = {example.id: example.gold or () for example in task.examples}
    labelled = [record for record in records if record.gold is not None]
    return {
        "f1_base": micro_f1((read_plain(record.base_calls), gold[record.id]) for record in labelled),
        "f1": micro_f1((read_plain(record.calls), gold[record.id]) for record in labelled),
    }
