"""What is right in a record: its calls and picks against the label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ttsi_jax.runs.record import Record
from ttsi_jax.tasks import Call, GoldCall, Task, call_correct, micro_f1, tool_correct


def plain(calls: Sequence[Call] | None) -> list[dict[str, Any]] | None:
    """Calls as they stand in a record."""
    return None if calls is None else [asdict(call) for call in calls]


def read_plain(calls: Sequence[Mapping[str, Any]] | None) -> list[Call] | None:
    """The reverse of `plain`."""
    return None if calls is None else [Call(**call) for call in calls]


def scored(record: Record, gold: Sequence[GoldCall] | None) -> Record:
    """The record with its final answer and pick, and, where there is a label, whether they and the base's are right."""
    uses_adapter = record.adapted and not record.reverted
    calls = record.adapted_calls if uses_adapter else record.base_calls
    pick = record.pick if uses_adapter else record.pick_base
    record = replace(record, calls=calls, pick=pick)
    if gold is None:
        return record
    base, final, names = read_plain(record.base_calls), read_plain(calls), {call.name for call in gold}
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


def f1(records: Sequence[Record], task: Task) -> dict[str, Any]:
    """Hammer's micro F1 of names and of arguments, for the base's answers and the final ones."""
    gold = {example.id: example.gold or () for example in task.examples}
    labelled = [record for record in records if record.gold is not None]
    return {
        "f1_base": micro_f1((read_plain(record.base_calls), gold[record.id]) for record in labelled),
        "f1": micro_f1((read_plain(record.calls), gold[record.id]) for record in labelled),
    }
