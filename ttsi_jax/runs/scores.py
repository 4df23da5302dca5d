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
    tool_correct,
    unmatchable,
)
from ttsi_jax.tasks.faults import fingerprint


def plain(calls: Sequence[Call] | None) -> list[dict[str, Any]] | None:
    """Calls as they stand in a record."""
    return None if calls is None else [asdict(call) for call in calls]


def read_plain(calls: Sequence[Mapping[str, Any]] | None) -> list[Call] | None:
    """The reverse of `plain`."""
    return None if calls is None else [Call(**call) for call in calls]


def begun(example: Example, task_name: str) -> Record:
    """The record of an input that nothing was done with yet; one that cannot run has its error."""
    if example.problem is not None:
        return Record(example.id, task_name, "", error=example.problem)
    return Record(
        example.id,
        task_name,
        example.query,
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
    base, final = read_plain(record.base_calls), read_plain(calls)
    if not gold:  # no call is right: neither is one in an answer in words
        base = [] if base is None and _in_words(record.text_base) else base
        final = [] if final is None and _in_words(record.text_adapted if uses_adapter else record.text_base) else final
    names = {call.name for call in gold}
    first_values = ({key: values[0] for key, values in call.arguments.items()} for call in gold)
    return replace(
        record,
        gold=[{"name": call.name, "arguments": values} for call, values in zip(gold, first_values, strict=True)],
        pick_correct_base=record.pick_base in names if gold else None,  # where no call is right, no pick can be
        pick_correct=pick in names if gold else None,
        tool_correct_base=tool_correct(base, gold),
        tool_correct=tool_correct(final, gold),
        call_correct_base=call_correct(base, gold),
        call_correct=call_correct(final, gold),
    )


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
